"""Calls written down for a C program, tests/c/run_vectors.c, and what it makes of them.

The program knows ``convkern.h`` and nothing else: no Python between the calls and the C library.
Built by a cross compiler and run by an emulator it tests the kernels of another architecture.
"""

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import reference

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread"]
OK, E_SHAPE, E_OVERFLOW, E_ISA = 0, -2, -3, -5  # of ck_status

# struct header of run_vectors.c. The sizes are those of the structures of convkern.h.
HEADER = np.dtype(
    [
        ("kind", "i8"),
        ("dtype", "i8"),
        ("layout", "i8"),
        ("window", "i8", 6),
        ("channels", "i8", 4),
        ("image", "i8", 8),
        ("pool", "i8", 2),
        ("offset_groups", "i8"),
        ("dw_activation", "i8"),
        ("activation", "i8"),
        ("dw_clamp", "f8", 2),
        ("clamp", "f8", 2),
        ("w_stride", "i8", 4),
        ("dw_stride", "i8", 4),
        ("count", "i8", 8),
    ]
)
LAYOUTS = ("NHWC", "NCHW")
KINDS = {
    "conv2d": 0,
    "pointwise_conv2d": 0,
    "depthwise_conv2d": 1,
    "separable_conv2d": 2,
    "deform_conv2d": 5,
    "spatially_separable_conv2d": 6,
}
POOLING_KINDS = {"max_pool2d": 3, "avg_pool2d": 4, "global_avg_pool2d": 4}
ACTIVATION_KINDS = ("clamp", "hardswish", "hardsigmoid", "sigmoid", "silu")
CLAMPS = {None: (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6)}


@dataclass(frozen=True)
class Target:
    """Where the C library is compiled for, and how it is run there."""

    name: str
    compiler: tuple
    runner: tuple = ()

    def missing(self):
        """Name the tools that this machine lacks."""
        tools = [command[0] for command in (self.compiler, self.runner) if command]
        return [tool for tool in tools if shutil.which(tool) is None]

    def build(self, directory):
        """Compile the library and run_vectors.c, as a user of the library would."""
        program = directory / f"run_vectors_{self.name}"
        sources = [*sorted((ROOT / "csrc").glob("ck_*.c")), ROOT / "tests/c/run_vectors.c"]
        command = [*self.compiler, *FLAGS, "-I", ROOT / "csrc", *sources, "-o", program, "-lm"]
        done = _run(command)
        assert done.returncode == 0, done.stderr
        return Program(self, program)


NATIVE = Target("native", ("cc",))
AARCH64 = Target("aarch64", ("aarch64-linux-gnu-gcc", "-static"), ("qemu-aarch64",))


@dataclass(frozen=True)
class Program:
    """The compiled run_vectors.c, for one ISA."""

    target: Target
    path: Path
    isa: str = ""

    def for_isa(self, isa):
        """Choose the ISA of later runs."""
        return replace(self, isa=isa)

    def command(self, *arguments):
        """Run one of its commands."""
        return _run([*self.target.runner, self.path, *arguments], self.path.parent)

    def run(self, calls):
        """Run calls.

        Returns
        -------
        list of ndarray
            Flat, in the calls' dtype.
        """
        answers = self.answers([encode(made) for made in calls])
        assert [status for status, _ in answers] == [OK] * len(calls)
        return [y.view(made.x.dtype) for made, (_, y) in zip(calls, answers, strict=True)]

    def answers(self, encoded):
        """Run encoded calls; each gives a status and the bytes of a result."""
        cases, results = (self.path.with_suffix(s) for s in (".cases", ".results"))
        cases.write_bytes(b"".join(encoded))
        done = self.command("run", self.isa, cases, results)
        answers = list(_answers(results.read_bytes(), encoded))
        assert done.returncode == 0, (
            f"{self.target.name}, {self.isa}: {_exit(done)} in case {len(answers)}: {done.stderr}"
        )
        return answers


def encode(made, **changes):
    """Write a call down: a header, with any changes, and its arrays."""
    header = np.zeros((), HEADER)
    header["dtype"] = made.x.dtype == np.float64
    writers = {"deform_conv2d": _write_deform, **dict.fromkeys(POOLING_KINDS, _write_pooling)}
    arrays = writers.get(made.op, _write_convolution)(header, made)
    header["count"][: len(arrays)] = [0 if a is None else a.size for a in arrays]
    for field, value in changes.items():
        header[field] = value
    return header.tobytes() + b"".join(_memory(a) for a in arrays if a is not None)


def _write_convolution(header, made):
    """Write into a header; give the arrays."""
    options, x = made.options, made.x
    layout = options.get("layout", "NHWC")
    sizes = _sizes(x, layout)
    *dw, w = (_hwio(made, i) for i in range(len(made.weights)))
    *dw_bias, bias = made.biases
    kernel = np.max([a.shape[:2] for a in (*dw, w)], axis=0)
    header["kind"] = KINDS[made.op]
    header["layout"] = LAYOUTS.index(layout)
    header["channels"] = _channels(made, sizes[3], w, dw)
    _write_window(header, options, sizes, kernel)
    for prefix in ("", "dw_"):
        activation = options.get(f"{prefix}activation")
        kind = activation if activation in ACTIVATION_KINDS else "clamp"
        header[f"{prefix}activation"] = ACTIVATION_KINDS.index(kind)
        clamp = CLAMPS.get(activation, activation)
        header[f"{prefix}clamp"] = clamp if kind == "clamp" else CLAMPS[None]
    header["w_stride"] = np.array(w.strides) // w.itemsize
    header["dw_stride"] = np.array(dw[0].strides) // w.itemsize if dw else 0
    return [x, options.get("residual"), w, bias, *(dw or [None]), *(dw_bias or [None])]


def _write_deform(header, made):
    """Write into a header; a convolution whose groups the image says, and two more arrays."""
    (offset, given), layout = made.weights, made.options.get("layout", "NHWC")
    kh, kw, share, _ = _hwio(made, 1).shape
    groups = _sizes(made.x, layout)[3] // share
    arrays = _write_convolution(header, replace(made, weights=(given,)).with_(groups=groups))
    header["offset_groups"] = _sizes(offset, layout)[3] // (2 * kh * kw)
    return [*arrays, offset, made.options.get("mask")]


def _write_pooling(header, made):
    """Write into a header; an NCHW image is as many images of one channel."""
    options = {"stride": None, **made.options}
    batch, height, width, channels = _sizes(made.x, options.get("layout", "NHWC"))
    if options.get("layout") == "NCHW":
        batch, channels = batch * channels, 1
    kernel = _pair(options.get("kernel", (height, width)))
    if options["stride"] is None:
        options["stride"] = kernel
    header["kind"] = POOLING_KINDS[made.op]
    header["pool"] = [options.get(name, False) for name in ("ceil_mode", "count_include_pad")]
    _write_window(header, options, (batch, height, width, channels), kernel)
    return [made.x]


def _write_window(header, options, sizes, kernel):
    stride, dilation = (_pair(options.get(name, 1)) for name in ("stride", "dilation"))
    padding = options.get("padding", 0)
    pads = reference.resolve_padding(padding, sizes[1:3], kernel, stride, dilation)
    header["window"] = (*kernel, *stride, *dilation)
    header["image"] = (*sizes, *pads[0], *pads[1])


def _sizes(x, layout):
    """Batch, height, width and channels."""
    b, *sizes = x.shape if x.ndim == 4 else (1, *x.shape)
    return (b, *sizes) if layout == "NHWC" else (b, *sizes[1:], sizes[0])


def _channels(made, channels, w, dw):
    """Channels in, channels out, groups and multiplier."""
    if made.op == "spatially_separable_conv2d":
        return (0 if made.weights[0].ndim == 1 else channels, 0, 0, 0)
    multiplier = (dw[0] if dw else w).shape[3]
    if made.op == "depthwise_conv2d":
        return (channels, 0, 0, multiplier)
    groups = made.options.get("groups", 1)
    return (channels, w.shape[3], groups, multiplier if dw else 0)


def _hwio(made, index):
    """See weights as convkern.h does, as (kh, kw, C, N) or (kh, kw, C, multiplier)."""
    w, layout = made.weights[index], made.options.get("layout", "NHWC")
    oihw = made.options.get("weight_layout", "HWIO" if layout == "NHWC" else "OIHW") == "OIHW"
    if made.op == "spatially_separable_conv2d":
        taps = (w if w.ndim == 2 else w[None]).T if layout == "NCHW" or w.ndim == 1 else w
        return taps[:, None, :, None] if index == 0 else taps[None, :, :, None]
    if index == 0 and made.op in ("depthwise_conv2d", "separable_conv2d"):
        channels = _sizes(made.x, layout)[3]
        if oihw:
            return w.reshape(channels, -1, *w.shape[2:]).transpose(2, 3, 0, 1)
        return w.reshape(*w.shape[:2], channels, -1)
    if w.ndim == 2:
        return (w.T if oihw else w)[None, None]
    return w.transpose(2, 3, 1, 0) if oihw else w


def _memory(a):
    """Give the elements in the order in which they lie in memory."""
    return a.transpose(np.argsort(a.strides)[::-1]).tobytes()


def _pair(value):
    return tuple(value) if np.iterable(value) else (value, value)


def _answers(results, encoded):
    at = 0
    for call in encoded:
        if at == len(results):
            return
        status, count = np.frombuffer(results, "i8", 2, at)
        wide = np.frombuffer(call, HEADER, 1)["dtype"][0]
        size = int(count) * (8 if wide else 4)
        yield int(status), np.frombuffer(results, "u1", size, at + 16)
        at += 16 + size


def _run(command, directory=None):
    """Run a command without what a sanitizer preloads into this process."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    return subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, check=False
    )


def _exit(done):
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return f"exit status {done.returncode}"
