"""The reader of torch's state dicts: what it reads, and all that it must refuse."""

import os
import pickle
import random
import struct
import warnings
import zipfile

import numpy as np
import pytest

from convkern.zoo._torchpickle import load_state_dict

DTYPES = {
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
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


# A pickle assembler: each function returns the instructions that push one object.


def string(text):
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(n):
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key="0", size=6, kind="FloatStorage", tail=b""):
    kind = f"ctorch\n{kind}\n".encode()
    parts = [string("storage"), kind, string(key), string("cpu"), integer(size), tail]
    return b"(" + b"".join(parts) + b"tQ"


def tensor(source, offset=0, shape=(2, 3), strides=(3, 1)):
    parts = [source, integer(offset), numbers(shape), numbers(strides), b"\x89", ORDERED_DICT]
    return REBUILD + b"(" + b"".join(parts) + b"tR"


def state_dict(entries):
    items = b"".join(string(name) + value for name, value in entries.items())
    return b"\x80\x02" + ORDERED_DICT + b"(" + items + b"u."


@pytest.fixture(params=["zip", "stream"])
def save(request, tmp_path):
    """Write a pickle and its storages' bytes in either of torch's containers."""

    def save_zip(program, storages):
        path = tmp_path / "state.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("state/data.pkl", program)
            archive.writestr("state/byteorder", "little")
            for key, data in storages.items():
                archive.writestr(f"state/data/{key}", data)
        return path

    def save_stream(program, storages):
        path = tmp_path / "state.pth"
        with open(path, "wb") as file:
            for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                pickle.dump(header, file, protocol=2)
            file.write(program)
            pickle.dump(list(storages), file, protocol=2)
            for data in storages.values():
                file.write(struct.pack("<q", len(data) // 4) + data)
        return path

    return {"zip": save_zip, "stream": save_stream}[request.param]


def cases(by_name):
    return [pytest.param(*values, id=name) for name, values in by_name.items()]


SIX = np.arange(6, dtype="<f4")


def test_reads_offsets_strides_and_shared_storages(save):
    path = save(
        state_dict(
            {
                "rows": tensor(storage()),
                "transposed": tensor(storage(), shape=(3, 2), strides=(1, 3)),
                "tail": tensor(storage(), offset=4, shape=(2,), strides=(1,)),
                "scalar": tensor(storage(), offset=5, shape=(), strides=()),
                "empty": tensor(storage(), shape=(0, 3), strides=(3, 1)),
                "expanded": tensor(storage(), offset=2, shape=(2, 2), strides=(0, 1)),
                "length_1": tensor(storage(), shape=(1, 6), strides=(2**90, 1)),
            }
        ),
        {"0": SIX.tobytes()},
    )
    state = load_state_dict(path)
    want = {
        "rows": SIX.reshape(2, 3),
        "transposed": SIX.reshape(2, 3).T,
        "tail": SIX[4:],
        "scalar": SIX[5],
        "empty": SIX[:0].reshape(0, 3),
        "expanded": SIX[[[2, 3], [2, 3]]],
        "length_1": SIX[None],
    }
    assert list(state) == list(want)
    for name, array in state.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, want[name])
        assert not array.size or not array.flags.writeable
    assert np.shares_memory(state["rows"], state["tail"])


@pytest.mark.parametrize("kind", DTYPES)
def test_reads_dtype(kind, tmp_path):
    want = np.array([0, 1, 1], DTYPES[kind])
    program = state_dict({"a": tensor(storage(size=3, kind=kind), shape=(3,), strides=(1,))})
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", want.tobytes())
    state = load_state_dict(tmp_path / "a.pth")
    assert state["a"].dtype == want.dtype
    np.testing.assert_array_equal(state["a"], want)


def test_reads_the_version_metadata_that_torch_attaches(save):
    # state_dict() returns an OrderedDict with an attribute `_metadata`, which pickles as BUILD.
    metadata = b"}" + string("_metadata") + ORDERED_DICT + b"sb"
    program = state_dict({"a": tensor(storage())})[:-1] + metadata + b"."
    assert list(load_state_dict(save(program, {"0": SIX.tobytes()}))) == ["a"]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("container", ["zip", "stream"])
def test_reads_what_torch_writes(container, protocol, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5))
        torch.save(
            module.state_dict(),
            tmp_path / "a.pth",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=container == "zip",
        )
    state = load_state_dict(tmp_path / "a.pth")
    assert list(state) == list(module.state_dict())
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(state[name], value.numpy(), strict=True)


class Bomb:
    """Pickles as a call, which the reader must not make."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, f"{os.name}.system"), (eval, "eval"), (os.mkdir, "mkdir")]
)
def test_refuses_to_call(function, name, protocol, save, tmp_path):
    trap = tmp_path / "trap"
    arguments = {os.system: f"mkdir '{trap}'", eval: f"__import__('os').mkdir({str(trap)!r})"}
    program = pickle.dumps(Bomb(function, arguments.get(function, str(trap))), protocol)
    with pytest.raises(ValueError, match=f"refused the global .*{name}"):
        load_state_dict(save(program, {}))
    assert not trap.exists()


NESTED = b")" + b"\x85" * 100_000  # hashing it recursively overflows the C stack
EXPONENTIAL = b")" + b"q\x00h\x00\x86" * 100  # printing or comparing it never ends


@pytest.mark.parametrize(
    ("program", "message"),
    cases(
        {
            "torch_function": (b"ctorch\nload\n.", "global torch.load"),
            "dotted_name": (b"\x8c\x05torch\x8c\x0cjit.os.chmod\x93.", "global torch.jit.os.chmod"),
            "nameless_global": (b"NN\x93.", "not a string"),
            "instance": (b"(ios\nsystem\n.", "INST 'os system'"),
            "new_object": (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
            "extension_registry": (b"\x82\x01.", "EXT1"),
            "ordered_dict_of_items": (b"ccollections\nOrderedDict\n]\x85R.", "argument"),
            "call_a_dtype": (b"ctorch\nFloatStorage\n)R.", "refused to call"),
            "call_a_string": (string("os.system") + b")R.", "refused to call"),
            "state_of_a_function": (REBUILD + b"N}" + string("a") + b"Nsb.", "set the state"),
            "state_of_a_list": (b"]Nb.", "set the state"),
            "append_to_a_dict": (b"}Na.", "append"),
            "item_of_a_list": (b"]NNs.", "assignment"),
            "key_is_a_number": (b"}K\x01Ns.", "key"),
            "key_is_deep": (b"}" + NESTED + b"Ns.", "key"),
            "odd_items": (b"}(" + string("a") + b"N" + string("b") + b"u.", "zip"),
            "stack_underflow": (b"\x86.", "pop"),
            "no_mark": (b"t.", "pop"),
            "unknown_memo": (b"h\x05.", "5"),
            "unknown_instruction": (b"\xff.", "opcode"),
            "no_end": (b"N", "STOP"),
            "nothing": (b".", "pop"),
            "a_list": (b"].", "a list"),
            "a_nested_dict": (state_dict({"a": b"}"}), "entry 'a' is a dict"),
            "a_number": (state_dict({"epoch": b"K\x03"}), "entry 'epoch' is a int"),
            "storage_of_a_module": (b"(" + string("module") + b"NNNNtQ.", "persistent id"),
            "storage_of_no_type": (
                b"(" + string("storage") + b"N" + string("0") + b"NK\x01tQ.",
                "persistent id",
            ),
            "tensor_of_no_storage": (state_dict({"a": tensor(b"N")}), "not a storage"),
            "tensor_of_no_shape": (
                state_dict({"a": REBUILD + b"(" + storage() + b"K\x00NN\x89NtR"}),
                "not tuples",
            ),
            "tensor_of_few_arguments": (state_dict({"a": REBUILD + b")R"}), "argument"),
            "exponential_shape": (
                state_dict(
                    {"a": REBUILD + b"(" + storage() + b"K\x00" + EXPONENTIAL * 2 + b"\x89NtR"}
                ),
                "shape",
            ),
            "exponential_name": (b"N" + EXPONENTIAL + b"\x93.", "not a string"),
        }
    ),
)
def test_refuses_pickle(program, message, save):
    with pytest.raises(ValueError, match=f"is not a torch state dict: .*{message}"):
        load_state_dict(save(program, {"0": SIX.tobytes()} if b"FloatStorage" in program else {}))


@pytest.mark.parametrize(
    ("value", "message"),
    cases(
        {
            "offset_negative": (tensor(storage(), offset=-1), "offset"),
            "offset_too_large": (
                tensor(storage(), offset=1),
                "element 6 of storage '0', which has 6",
            ),
            "shape_negative": (tensor(storage(), shape=(-2, -3)), "shape"),
            "shape_too_large": (tensor(storage(), shape=(3, 3)), "element 8"),
            "shape_overflows": (tensor(storage(), shape=(2**62, 2**62), strides=(4, 1)), "element"),
            "shape_huge_but_empty": (tensor(storage(), shape=(0, 2**70)), ""),
            "shape_not_int": (tensor(storage()).replace(integer(2), b"\x88"), "shape"),
            "strides_negative": (tensor(storage(), offset=5, strides=(-3, -1)), "strides"),
            "strides_too_large": (tensor(storage(), strides=(4, 1)), "element 6"),
            "strides_too_few": (tensor(storage(), strides=(1,)), "strides"),
            "axes_too_many": (tensor(storage(), shape=(1,) * 99, strides=(1,) * 99), ""),
            "storage_smaller_than_said": (tensor(storage(size=7)), "'0' has 6|'0' has 24 bytes"),
            "storage_larger_than_said": (tensor(storage(size=5)), "'0' has 6|'0' has 24 bytes"),
            "storage_of_double": (tensor(storage(kind="DoubleStorage")), "elements of 8 bytes"),
            "storage_size_negative": (tensor(storage(size=-6)), "size"),
            "storage_missing": (tensor(storage("1")), "1|storages"),
            "storage_name_escapes": (tensor(storage("../0")), "no item|storages"),
            "storage_is_a_view": (tensor(storage(tail=b")")), "view"),
            "storage_of_two_sizes": (tensor(storage()) + b"0" + tensor(storage(size=5)), "POP"),
        }
    ),
)
def test_refuses_tensor(value, message, save):
    with pytest.raises(ValueError, match=f"is not a torch state dict: .*({message})"):
        load_state_dict(save(state_dict({"a": value}), {"0": SIX.tobytes()}))


def test_refuses_storage_of_two_sizes(save):
    program = state_dict({"a": tensor(storage()), "b": tensor(storage(size=5), shape=(1, 3))})
    with pytest.raises(ValueError, match="storage '0' is both"):
        load_state_dict(save(program, {"0": SIX.tobytes()}))


@pytest.fixture
def good(save):
    return save(state_dict({"a": tensor(storage())}), {"0": SIX.tobytes()})


def test_refuses_file_cut_short_anywhere(good):
    data = good.read_bytes()
    for size in range(len(data)):
        good.write_bytes(data[:size])
        with pytest.raises(ValueError, match="is not a torch state dict"):
            load_state_dict(good)


def test_damaged_file_raises_only_valueerror(good):
    data = good.read_bytes()
    rng = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        good.write_bytes(damaged)
        try:
            state = load_state_dict(good)
        except ValueError:
            continue
        assert all(isinstance(array, np.ndarray) for array in state.values())


def test_refuses_bytes_behind_the_last_storage(good):
    data = good.read_bytes()
    if not data.startswith(b"PK"):
        good.write_bytes(data + b"\0")
        with pytest.raises(ValueError, match="more follows"):
            load_state_dict(good)


@pytest.mark.parametrize("header", ["magic", "protocol", "little_endian"])
def test_refuses_stream_of_another_kind(header, tmp_path):
    headers = {"magic": 0x1950A86A20F9469CFC6C, "protocol": 1001, "little_endian": True}
    headers[header] = False
    with open(tmp_path / "a.pth", "wb") as file:
        for value in (
            headers["magic"],
            headers["protocol"],
            {"little_endian": headers["little_endian"]},
        ):
            pickle.dump(value, file, protocol=2)
    with pytest.raises(ValueError, match=header.replace("_", "[- ]")):
        load_state_dict(tmp_path / "a.pth")


def write_zip(path, change, compression=zipfile.ZIP_STORED):
    members = {"a/data.pkl": state_dict({"a": tensor(storage())}), "a/data/0": SIX.tobytes()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in change(members).items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    cases(
        {
            "big_endian": (lambda m: m | {"a/byteorder": b"big"}, "little-endian"),
            "two_pickles": (lambda m: m | {"b/data.pkl": b"N."}, "2 members named data.pkl"),
            "no_pickle": (lambda m: {"a/data/0": m["a/data/0"]}, "0 members named data.pkl"),
            "no_storage": (lambda m: {"a/data.pkl": m["a/data.pkl"]}, "a/data/0"),
        }
    ),
)
def test_refuses_archive(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_state_dict(write_zip(tmp_path / "a.pth", change))


def test_refuses_compressed_archive(tmp_path):
    path = write_zip(tmp_path / "a.pth", lambda m: m, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="uncompressed"):
        load_state_dict(path)


def test_refuses_archive_whose_members_overlap(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"N." * 1000)
        archive.filelist *= 100
    with pytest.raises(ValueError, match="overlap"):
        load_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"PK", os.urandom(64), b"\x80\x02}."])
def test_refuses_other_file(data, tmp_path):
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.pth' is not a torch state dict"):
        load_state_dict(tmp_path / "a.pth")


def test_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_state_dict(tmp_path / "a.pth")
