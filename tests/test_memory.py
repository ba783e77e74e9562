"""Not one byte is touched outside the arrays of a call: guard pages and canaries.

A failure of a guard-page test is a segmentation fault, which pytest's faulthandler reports with
the name of the test.
"""

from dataclasses import replace

import numpy as np
import pytest
from cases import (
    CHANNELS,
    EXAMPLES,
    LAYOUTS,
    OPS,
    assert_same_bits,
    call,
    channels_id,
    example,
    nchw,
    python,
)
from guard import guarded

pytestmark = pytest.mark.usefixtures("isa")

ENDS = ["before", "after"]
CANARY = np.float32(-12345.678)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("access", ["p[0]", "p[0] = 1"], ids=["read", "write"])
def test_guard_pages_kill(end, access):
    first, last = 0, 2
    touching, beyond = (first, -1) if end == "before" else (last, 3)
    for index, survives in ((touching, True), (beyond, False)):
        done = python(
            "import ctypes, numpy as np; from guard import guarded\n"
            f"a = guarded(np.ones(3, np.float32), {end!r}, writable=True)\n"
            f"p = ctypes.cast(a.ctypes.data + 4 * {index}, ctypes.POINTER(ctypes.c_float))\n"
            f"print('before', flush=True); {access}; print('after', flush=True)\n"
        )
        assert done.stdout.split() == (["before", "after"] if survives else ["before"])
        assert (done.returncode == 0) is survives


def check_guarded(made, end):
    """Run a call with every array against an unmapped page, its inputs in read-only pages."""
    want = made.run()
    options = {
        k: v if v is None else guarded(v, end) for k, v in made.options.items() if k == "residual"
    }
    behind = replace(
        made,
        x=guarded(made.x, end),
        weights=tuple(guarded(w, end) for w in made.weights),
        biases=tuple(b if b is None else guarded(b, end) for b in made.biases),
    )
    out = guarded(np.full_like(want, CANARY), end, writable=True)
    assert_same_bits(behind.run(out=out, **options), want)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_guard_pages(name, end, layout):
    for options in (
        {"residual": True},
        {"activation": "silu"},
        {"bias": False},
        {"data": "doubles"},
    ):
        check_guarded(example(name, layout=layout, **options), end)
    check_guarded(example(name, x=EXAMPLES[name]["x"][1:], layout=layout, residual=True), end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("groups", "terms", "outputs"), [(16, 6, 6), (7, 3, 5), (5, 1, 4), (2, 8, 8), (3, 11, 8)]
)
def test_guard_pages_pointwise_groups(groups, terms, outputs, end, data):
    made = {"groups": groups, "outputs": groups * outputs, "kernel": (1, 1), "data": data}
    for stride in (1, 2):
        check_guarded(call("conv2d", (2, 5, 6, groups * terms), stride=stride, **made), end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("channels", CHANNELS, ids=channels_id)
@pytest.mark.parametrize("op", OPS)
def test_guard_pages_channels(op, channels, end):
    window = {} if op == "pointwise_conv2d" else {"padding": 1}
    for stride in (1, 2):
        check_guarded(call(op, (1, 3, 4, channels), outputs=7, stride=stride, **window), end)
        check_guarded(call(op, (1, 3, 2, 5), outputs=channels, stride=stride, **window), end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("width", range(1, 10), ids="width_{}".format)
@pytest.mark.parametrize("op", OPS)
def test_guard_pages_image_size(op, width, end):
    window = {} if op == "pointwise_conv2d" else {"padding": 1}
    for height in range(1, 10):
        for stride in (1, 2):
            made = call(op, (1, height, width, 3), outputs=17, stride=stride, **window)
            check_guarded(made, end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "kernel", [(1, 1), (2, 2), (3, 3), (1, 7), (7, 1), (5, 5), (4, 6)], ids=str
)
@pytest.mark.parametrize("op", [op for op in OPS if op != "pointwise_conv2d"])
def test_guard_pages_kernel(op, kernel, end):
    for stride in (1, 2, 3):
        for padding in ("valid", "same", ((0, 3), (2, 1))):
            made = call(op, (1, 7, 8, 5), kernel=kernel, stride=stride, padding=padding, outputs=9)
            check_guarded(made, end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "width", [1, 2, 7, 8, 9, 14, 16, 17, 31, 33, 35, 63], ids="width_{}".format
)
def test_guard_pages_planes(width, end, data):
    for stride, dilation in ((1, 1), (2, 1), (1, 2), (2, 2)):
        window = {"stride": stride, "dilation": dilation, "padding": dilation, "data": data}
        check_guarded(nchw(call("depthwise_conv2d", (1, 9, width, 9), **window)), end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("pixels", range(1, 34), ids="pixels_{}".format)
def test_guard_pages_pixels_per_tile(pixels, end):
    for channels, outputs in ((1, 1), (3, 33), (17, 31), (9, 22), (64, 5)):
        made = call("pointwise_conv2d", (1, 1, pixels, channels), outputs=outputs, residual=True)
        check_guarded(made, end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_guard_pages_strided(name, end, layout):
    made = example(name, layout=layout)
    want = made.run()
    gap = (slice(3, None),) if end == "after" else (slice(None, -3),)

    def spread(a, writable=False):
        """Lay an array out with gaps between its rows, against the unmapped page."""
        base = np.full((*a.shape[:-1], a.shape[-1] + 3), CANARY)
        base[(..., *gap)] = a
        return guarded(base, end, writable=writable)

    out = spread(want * np.nan, writable=True)
    before = out.copy()
    y = replace(made, x=spread(made.x)[(..., *gap)]).run(out=out[(..., *gap)])
    assert_same_bits(np.ascontiguousarray(y), want)
    before[(..., *gap)] = want
    assert_same_bits(out, before)


@pytest.mark.parametrize("layout_and_name", [(o, n) for o in LAYOUTS for n in EXAMPLES], ids=str)
def test_canaries_around_out(layout_and_name):
    layout, name = layout_and_name
    made = example(name, layout=layout, residual=True, activation="relu6")
    want = made.run()
    inner = tuple(slice(2, 2 + n) for n in want.shape)
    memory = np.full([n + 5 for n in want.shape], CANARY)
    made.run(out=memory[inner])
    expected = np.full_like(memory, CANARY)
    expected[inner] = want
    assert_same_bits(memory, expected)

    row = np.full(want.size + 64, CANARY)  # contiguous, at every alignment of a cache line
    for start in range(0, 17):
        row[:] = CANARY
        made.run(out=row[start : start + want.size].reshape(want.shape))
        assert_same_bits(row[start : start + want.size].reshape(want.shape), want)
        assert (row[:start] == CANARY).all()
        assert (row[start + want.size :] == CANARY).all()
