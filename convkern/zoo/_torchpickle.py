"""Read a state dict saved by ``torch.save``, without torch and without trusting the file.

A pickle is a program for a small stack machine, and its GLOBAL instruction can name any callable of
any module. So neither ``pickle`` nor torch is used here: `_Machine` runs the few instructions that
a state dict needs and can build nothing but dicts, lists, tuples, strings, numbers and tensors.
What it builds is hostile until checked: tuples that share their items can be exponentially large
to compare or print, and deep ones overflow the C stack when hashed.

``torch.save`` has had two containers, and both are read:

- since torch 1.6 a zip archive: ``NAME/data.pkl`` (the state dict, with storages by key) and
  ``NAME/data/KEY`` (the bytes of each storage), all stored uncompressed;
- before that a stream: five pickles (magic number, protocol version, the writer's byte order, the
  state dict, the sorted storage keys), then for each storage its length as int64, and its bytes.
"""

import io
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_PROTOCOL = 1001

_STORAGE_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}

# What reading a damaged file can raise below; anything else would be a bug of this module. The
# warning is pickletools', of a backslash in a global's name, where warnings are errors.
_DAMAGE = (
    Warning,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    EOFError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
)


class _Storage(NamedTuple):
    """A named run of elements somewhere else in the file."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A strided view of a storage, all counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a torch state dict as NumPy arrays.

    Parameters
    ----------
    path : path-like
        A file written by ``torch.save(module.state_dict(), path)``, of any torch version since 0.4.

    Returns
    -------
    dict of str to ndarray
        Read-only views of the storages, in the file's order; tensors that share a storage in the
        file share memory here. The dtypes are the file's.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file, is cut short or damaged, or names any global but the handful that
        rebuild tensors; the message says which.

    Examples
    --------
    >>> state = load_state_dict("model.pth")  # doctest: +SKIP
    >>> state["_conv_stem.weight"].shape  # doctest: +SKIP
    (32, 3, 3, 3)
    """
    data = Path(path).read_bytes()
    read = _read_zip if data.startswith(b"PK") else _read_stream
    try:
        state, storages = read(data)
        return {name: _view(name, tensor, storages) for name, tensor in state.items()}
    except _DAMAGE as error:
        raise ValueError(f"{os.fspath(path)!r} is not a torch state dict: {error}") from error


def _read_zip(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        # Without these two a small file could unpack to any size.
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("torch.save stores its members uncompressed, this archive does not")
        if sum(member.file_size for member in members) > len(data):
            raise ValueError("the members of the archive overlap")

        names = [member.filename for member in members]
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"the archive has {len(pickles)} members named data.pkl, not 1")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
            raise ValueError("its storages are not little-endian")

        machine = _Machine()
        state = machine.run(io.BytesIO(archive.read(root + "data.pkl")))
        storages = {
            key: _elements(storage, archive.read(f"{root}data/{key}"))
            for key, storage in machine.storages.items()
        }
    return _checked_state(state), storages


def _read_stream(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    stream = io.BytesIO(data)
    if _Machine().run(stream) != _STREAM_MAGIC:
        raise ValueError("it starts with neither a zip header nor torch's magic number")
    if _Machine().run(stream) != _STREAM_PROTOCOL:
        raise ValueError(f"its protocol version is not {_STREAM_PROTOCOL}")
    if _Machine().run(stream)["little_endian"] is not True:
        raise ValueError("its storages are not little-endian")

    machine = _Machine()
    state = machine.run(stream)
    keys = _Machine().run(stream)
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not named or set(keys) != machine.storages.keys():
        raise ValueError("the storages in the file are not those that its tensors name")
    storages = {}
    for key in keys:
        storage = machine.storages[key]
        (size,) = struct.unpack("<q", stream.read(8))
        if size != storage.size:
            raise ValueError(f"storage {key!r} has {size} elements, not {storage.size}")
        storages[key] = _elements(storage, stream.read(size * storage.dtype.itemsize))
    if stream.read(1):
        raise ValueError("more follows its last storage")
    return _checked_state(state), storages


def _checked_state(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not a dict of tensors")
    for name, value in state.items():
        if not isinstance(value, _Tensor):
            raise ValueError(f"entry {name!r} is a {type(value).__name__}, not a tensor")
    return state


def _elements(storage: _Storage, data: bytes) -> np.ndarray:
    if len(data) != storage.size * storage.dtype.itemsize:
        raise ValueError(
            f"storage {storage.key!r} has {len(data)} bytes,"
            f" not {storage.size} elements of {storage.dtype.itemsize} bytes"
        )
    return np.frombuffer(data, storage.dtype)


def _view(name: str, tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    """Lay a tensor over its storage, or refuse it if any element would be outside."""
    storage, offset, shape, strides = tensor
    if len(shape) != len(strides) or not all(map(_is_count, (offset, *shape, *strides))):
        raise ValueError(f"tensor {name!r} has no valid offset, shape and strides")
    if 0 in shape:
        return np.empty(shape, storage.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= storage.size:
        raise ValueError(
            f"tensor {name!r} of offset {offset}, shape {shape}, strides {strides} reaches element"
            f" {last} of storage {storage.key!r}, which has {storage.size}"
        )
    # The stride along an axis of length 1 means nothing, so it was not checked: drop it.
    item = storage.dtype.itemsize
    steps = [stride * item if n > 1 else 0 for n, stride in zip(shape, strides, strict=True)]
    return np.lib.stride_tricks.as_strided(
        storages[storage.key][offset:], shape, steps, writeable=False
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


class _Machine:
    """The pickle instructions of a state dict, and no others.

    Attributes
    ----------
    storages : dict of str to _Storage
        Every storage that the last pickle mentioned, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, _Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        """Execute one pickle, leaving `stream` right behind it, and return what it built."""
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in _LITERALS:
                self._stack.append(argument)
            elif opcode.name in _INSTRUCTIONS:
                _INSTRUCTIONS[opcode.name](self, argument)
            else:
                raise ValueError(f"refused the pickle instruction {opcode.name} {argument!r:.80}")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _push_tuple(self, n: int) -> None:
        self._stack.append(tuple(self._stack.pop() for _ in range(n))[::-1])

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError(f"append to a {type(target).__name__}")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise ValueError(f"item assignment to a {type(target).__name__}")
        for key, value in _pairs(items):
            # Nothing but strings: hashing a deeply nested tuple overflows the C stack.
            if not isinstance(key, str):
                raise ValueError(f"a dict key is a {type(key).__name__}, not a string")
            target[key] = value

    def _reduce(self) -> None:
        arguments = self._stack.pop()
        function = self._stack.pop()
        if function is not _new_dict and function is not _rebuild_tensor:
            raise ValueError(f"refused to call a {type(function).__name__}")
        self._stack.append(function(*arguments))

    def _build(self) -> None:
        """Drop an object's state: torch hangs module versions (`_metadata`) on the outer dict."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise ValueError(f"refused to set the state of a {type(self._stack[-1]).__name__}")

    def _persistent_load(self) -> None:
        kind, dtype, key, _location, size, *views = self._stack.pop()
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise ValueError("a persistent id is not that of a storage")
        if not _is_count(size) or any(view is not None for view in views):
            raise ValueError(f"storage {key!r} has no valid size, or is a view of another")
        storage = _Storage(key, dtype, size)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key!r} is both {self.storages[key]} and {storage}")
        self._stack.append(storage)


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _find_global(module: Any, name: Any) -> Any:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a global's name is not a string")
    if (module, name) not in _GLOBALS:
        raise ValueError(f"refused the global {module}.{name}: only tensors are rebuilt")
    return _GLOBALS[module, name]


def _new_dict() -> dict[str, Any]:
    return {}


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _requires_grad: Any,
    _backward_hooks: Any,
    _metadata: Any = None,
) -> _Tensor:
    """Stand in for torch's function; `_view` checks the numbers when the storages are read."""
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor is rebuilt from a {type(storage).__name__}, not a storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor's shape and strides are not tuples")
    return _Tensor(storage, offset, shape, strides)


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _new_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
} | {("torch", name): np.dtype(code) for name, code in _STORAGE_DTYPES.items()}

_LITERALS = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
)

_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "STOP": lambda m, _: None,
    "NONE": lambda m, _: m._stack.append(None),
    "NEWTRUE": lambda m, _: m._stack.append(True),
    "NEWFALSE": lambda m, _: m._stack.append(False),
    "MARK": lambda m, _: m._marks.append(len(m._stack)),
    "EMPTY_DICT": lambda m, _: m._stack.append({}),
    "EMPTY_LIST": lambda m, _: m._stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m._stack.append(()),
    "TUPLE1": lambda m, _: m._push_tuple(1),
    "TUPLE2": lambda m, _: m._push_tuple(2),
    "TUPLE3": lambda m, _: m._push_tuple(3),
    "TUPLE": lambda m, _: m._stack.append(tuple(m._pop_to_mark())),
    "APPEND": lambda m, _: m._append([m._stack.pop()]),
    "APPENDS": lambda m, _: m._append(m._pop_to_mark()),
    "SETITEM": lambda m, _: m._set_items([m._stack.pop(-2), m._stack.pop()]),
    "SETITEMS": lambda m, _: m._set_items(m._pop_to_mark()),
    "BINPUT": lambda m, index: m._memo.update({index: m._stack[-1]}),
    "LONG_BINPUT": lambda m, index: m._memo.update({index: m._stack[-1]}),
    "MEMOIZE": lambda m, _: m._memo.update({len(m._memo): m._stack[-1]}),
    "BINGET": lambda m, index: m._stack.append(m._memo[index]),
    "LONG_BINGET": lambda m, index: m._stack.append(m._memo[index]),
    "GLOBAL": lambda m, name: m._stack.append(_find_global(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m._stack.append(_find_global(m._stack.pop(-2), m._stack.pop())),
    "REDUCE": lambda m, _: m._reduce(),
    "BUILD": lambda m, _: m._build(),
    "BINPERSID": lambda m, _: m._persistent_load(),
}
