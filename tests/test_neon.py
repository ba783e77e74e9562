"""The C library without Python: NEON under an emulator, and every ISA of this machine.

The calls are those of the other tests, at the edges of 2 and 4 lanes and of the NEON tile; the
oracle is theirs too. Guard pages around every array are the C program's affair (run_vectors.c), and
so are the caller's floating-point environment and the same bits at any address.
"""

import functools
from dataclasses import replace
from itertools import product

import deforming
import numpy as np
import pooling
import pytest
import reference
import vectors
from cases import (
    ACTIVATIONS,
    EXAMPLES,
    ISAS,
    OPS,
    Call,
    assert_same_bits,
    assert_within,
    call,
    check,
    example,
    images_nchw,
    nchw,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_properties import SETTINGS, calls

import convkern as ck

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 31)
SPECIALS = [np.nan, np.inf, -np.inf]
RUNS = [(vectors.NATIVE, isa) for isa in ISAS]
RUNS += [(vectors.AARCH64, isa) for isa in ("scalar", "neon")]


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Compile for a target, once; skip where this machine has no tools for it."""

    @functools.cache
    def build(target):
        return target.build(tmp_path_factory.mktemp(target.name))

    def build_or_skip(target):
        if missing := target.missing():
            pytest.skip(f"no {' and no '.join(missing)} on this machine")
        return build(target)

    return build_or_skip


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[0].name}-{run[1]}")
def program(request, build):
    """Compile the C program for each target and choose each of its ISAs."""
    target, isa = request.param
    return build(target).for_isa(isa)


def check_all(program, calls):
    """Run calls in one go, and their NCHW twins, and compare each result with the oracle's."""
    calls = list(calls)
    calls += [nchw(made) for made in calls if not {"layout", "weight_layout"} & {*made.options}]
    assert calls
    for made, y in zip(calls, program.run(calls), strict=True):
        check(made, y.reshape(made.want().shape))


def window_of(op, **window):
    return {} if op == "pointwise_conv2d" else window


@pytest.mark.parametrize("target", [vectors.NATIVE, vectors.AARCH64], ids=lambda t: t.name)
def test_isas(build, target):
    isas = build(target).command("isas").stdout.split()
    assert isas == (["scalar", "neon"] if target is vectors.AARCH64 else [*ck.available_isas()])


def test_guard_pages_kill(program):
    assert program.command("touch", "inside").returncode == 0
    for side in ("before", "after"):
        assert program.command("touch", side).returncode < 0


@pytest.mark.parametrize("op", OPS)
def test_channels(program, op, data):
    check_all(
        program,
        (
            call(op, x, outputs=outputs, stride=stride, data=data, **window_of(op, padding=1))
            for channels, stride in product(CHANNELS, (1, 2))
            for x, outputs in (((1, 3, 4, channels), 7), ((1, 4, 3, 5), channels))
        ),
    )


@pytest.mark.parametrize("op", OPS)
def test_image_size(program, op, data):
    check_all(
        program,
        (
            call(op, (2, h, w, 5), outputs=9, stride=stride, data=data, **window_of(op, padding=1))
            for h, w, stride in product((1, 2, 3, 6), range(1, 10), (1, 2))
        ),
    )


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3), (1, 7), (5, 5), (9, 4)], ids=str)
@pytest.mark.parametrize("op", [op for op in OPS if op != "pointwise_conv2d"])
def test_window(program, op, kernel, data):
    check_all(
        program,
        (
            call(op, (1, 9, 10, 6), kernel=kernel, stride=stride, padding=padding, data=data)
            for stride, padding in product((1, 2, (3, 1)), ("valid", "same", ((0, 3), (2, 1))))
        ),
    )
    check_all(
        program,
        (
            call(op, (1, 9, 8, 3), kernel=kernel, dilation=d, padding=8, stride=s, data=data)
            for d, s in product((2, (1, 3)), (1, 2))
        ),
    )


def test_groups(program, data):
    check_all(
        program,
        (
            call("conv2d", (1, 5, 6, groups * n), groups=groups, outputs=groups * m, data=data)
            for groups, n, m in product((2, 3, 5), (1, 2, 4, 5), (1, 2, 4, 5))
        ),
    )


@pytest.mark.parametrize("op", ["depthwise_conv2d", "separable_conv2d"])
def test_multiplier(program, op, data):
    check_all(
        program,
        (
            call(op, (1, 5, 6, n), multiplier=m, padding=1, stride=stride, data=data)
            for n, m, stride in product((1, 2, 3, 5), (1, 2, 3, 4, 5, 7), (1, 2))
        ),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation(program, activation, data):
    check_all(
        program,
        (
            example(name, activation=activation, bias=bias, residual=residual, data=data)
            for name, (bias, residual) in product(EXAMPLES, ((True, False), (False, True)))
        ),
    )
    separable = (name for name in EXAMPLES if name.startswith("separable"))
    check_all(program, (example(name, dw_activation=activation, data=data) for name in separable))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if isinstance(a, str)])
def test_activation_over_its_whole_range(program, activation, dtype):
    huge = np.geomspace(1e-30, 1e30, 501)
    z = np.concatenate([np.linspace(-800, 800, 2001), np.linspace(-9, 9, 2001), huge, -huge])
    z = z.astype(dtype).reshape(1, 1, -1, 1)
    options = {"activation": activation}
    made = Call("depthwise_conv2d", z, (np.ones((1, 1, 1), dtype),), (None,), options)
    exact = z.astype(np.longdouble)
    own = reference.activation_error(exact, 0 * exact, activation, dtype)
    assert_within(program.run([made])[0].reshape(z.shape), made.want(), own)


@pytest.mark.parametrize("pixels", [*range(1, 16), 23, 24, 25, 37, 49])
def test_pixels_per_tile(program, pixels, data):
    check_all(
        program,
        (
            call("pointwise_conv2d", (1, 1, pixels, n), outputs=m, residual=True, data=data)
            for n, m in ((1, 1), (3, 8), (4, 11), (17, 16))
        ),
    )


@pytest.mark.parametrize("groups", [1, 3], ids="groups_{}".format)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 5), (4, 2)], ids=str)
def test_wide_planes(program, kernel, groups, data):
    """Of images this wide, NCHW's planes are multiplied."""
    options = {"kernel": kernel, "outputs": 6, "groups": groups, "residual": True, "data": data}
    check_all(
        program,
        (
            call("conv2d", (2, 23, width, 6), stride=stride, dilation=dilation, **options)
            for width in (61, 64, 75)
            for stride, dilation in ((1, 1), (2, 1), (3, 1), (1, 2))
        ),
    )


def test_long_sums(program, data):
    check_all(
        program,
        [
            call("conv2d", (1, 3, 4, 301), outputs=9, padding=1, residual=True, data=data),
            call("pointwise_conv2d", (1, 3, 5, 2311), outputs=5, activation="relu6", data=data),
            call("separable_conv2d", (1, 3, 4, 1163), outputs=7, padding=1, data=data),
        ],
    )


@pytest.mark.parametrize("op", [op for op in OPS if op != "spatially_separable_conv2d"])
def test_weights_oihw(program, op, data):
    """Strides other than those of contiguous HWIO weights."""
    for multiplier in (1, 3):
        made = call(op, (1, 4, 5, 6), outputs=9, multiplier=multiplier, data=data)
        weights = []
        for w in made.weights:
            depthwise = w is made.weights[0] and op in ("depthwise_conv2d", "separable_conv2d")
            w = w.reshape(*w.shape[:2], 1, -1) if depthwise else w
            oihw = w.T if w.ndim == 2 else w.transpose(3, 2, 0, 1)
            weights.append(np.ascontiguousarray(oihw))
        twin = replace(made, weights=tuple(weights)).with_(weight_layout="OIHW")
        check_all(program, [twin])
        assert_same_bits(*program.run([made, twin]))


@pytest.mark.parametrize("special", SPECIALS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_special_pixel(program, special, activation):
    calls = []
    for name in EXAMPLES:
        made = example(name, activation=activation, data="integers")
        for spot in ((0, 0, 0, 0), (-1, -1, -1, -1), (0, 3, 2, made.x.shape[-1] // 2)):
            x = made.x.copy()
            x[spot] = special
            calls.append(replace(made, x=x))
    check_all(program, calls)


@pytest.mark.parametrize("special", SPECIALS, ids=str)
def test_special_weight(program, special):
    calls = []
    for name in EXAMPLES:
        made = example(name, data="integers")
        for index, spot in product(range(len(made.weights)), (0, -1)):
            weights = [w.copy() for w in made.weights]
            weights[index].reshape(-1)[spot] = special
            calls.append(replace(made, weights=tuple(weights)))
    check_all(program, calls)


@pytest.mark.parametrize("name", EXAMPLES)
def test_denormals_are_flushed(program, name):
    made = example(name, bias=False)
    made = replace(made, x=np.full_like(made.x, 1e-40))
    assert (program.run([made])[0] == 0).all()


@pytest.mark.parametrize("name", EXAMPLES)
def test_same_bits_for_any_batch(program, name, layout, data):
    made = example(name, layout=layout, data=data)
    made = replace(made, x=np.concatenate([made.x, made.x[::-1]]))
    images = [replace(made, x=image[None]) for image in made.x]
    whole, *single = program.run([made, *images])
    assert_same_bits(whole, np.concatenate(single))


def check_pooling(program, calls):
    """The same of calls of pooling functions."""
    calls = list(calls)
    calls += [pooling.nchw(made) for made in calls]
    for made, y in zip(calls, program.run(calls), strict=True):
        pooling.check(made, y.reshape(made.want().shape))


@pytest.mark.parametrize("op", pooling.WINDOWED)
def test_pooling(program, op, data):
    check_pooling(
        program,
        (
            pooling.pool(op, (2, 5, width, channels), kernel=kernel, stride=stride, data=data)
            for (width, channels), kernel, stride in product(
                ((7, 1), (8, 3), (9, 4), (4, 5), (5, 16), (21, 1), (33, 19)), (1, 2, 3), (1, 2, 3)
            )
        ),
    )
    check_pooling(program, (pooling.example(name, data=data) for name in pooling.EXAMPLES))


def test_global_pooling(program, data):
    shapes = product((1, 2, 5), (1, 3, 4, 7, 16, 49), (1, 2, 3, 4, 5, 17))
    check_pooling(program, (pooling.pool("global_avg_pool2d", x, data=data) for x in shapes))


@pytest.mark.parametrize("special", [*SPECIALS, -0.0, 1e-40], ids=str)
def test_special_pixels_of_pooling(program, special):
    calls = []
    for name in pooling.EXAMPLES:
        made = pooling.example(name, data="integers")
        for spot in (0, 7, -1):
            x = made.x.copy()
            x.reshape(-1)[spot] = special
            calls.append(made.on(x))
        if made.op == "max_pool2d":
            calls.append(made.on(np.full_like(made.x, special)))
    check_pooling(program, calls)


def check_deform(program, calls):
    """The same of deformable convolutions, whose bits are the same in both layouts."""
    calls = list(calls)
    results = iter(program.run([each for made in calls for each in (made, deforming.nchw(made))]))
    for made, y, twin in zip(calls, results, results, strict=True):
        y = y.reshape(*made.weights[0].shape[:-1], -1)  # an offset for each pixel of y
        check(made, y)
        assert_same_bits(twin, images_nchw(y).ravel())


def test_deform(program, data):
    deform = deforming.deform
    channels = product(CHANNELS, (True, False))
    check_deform(program, (deform((1, 3, 4, n), mask=m, padding=1, data=data) for n, m in channels))
    sizes = product((1, 2, 6), (1, 2, 9), (0.0, 0.4, 9.0))
    check_deform(
        program, (deform((2, h, w, 5), padding=1, spread=s, data=data) for h, w, s in sizes)
    )
    groups = ((2, 1), (1, 3), (3, 2), (6, 6))
    check_deform(
        program,
        (
            deform((1, 4, 5, 6 * n), groups=g, offset_groups=o, outputs=6, data=data)
            for (g, o), n in product(groups, (1, 3))
        ),
    )
    check_deform(program, (deforming.example(name, data=data) for name in deforming.EXAMPLES))


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (5, 4)], ids=str)
def test_deform_window(program, kernel, data):
    windows = product((1, 2, (3, 1)), (1, (2, 1)), ("same", 4, ((0, 3), (2, 1))))
    check_deform(
        program,
        (
            deforming.deform(
                (1, 7, 9, 3), kernel=kernel, stride=s, dilation=d, padding=p, data=data
            )
            for s, d, p in windows
        ),
    )


def test_activation_of_deform(program):
    check_deform(
        program,
        (
            deforming.example(name, activation=activation, bias=not extra, residual=extra)
            for name, activation, extra in product(deforming.EXAMPLES, ACTIVATIONS, (True, False))
        ),
    )


def test_deform_in_blocks(program, data):
    """More terms than a range of the GEMM holds, more pixels than a block, a band that slides."""
    check_deform(
        program,
        [
            deforming.deform((1, 3, 4, 611), outputs=3, padding=1, residual=True, data=data),
            deforming.deform((1, 200, 3, 131), outputs=3, stride=(7, 1), spread=9, data=data),
        ],
    )


@pytest.mark.parametrize("special", [np.nan, *deforming.FAR], ids=str)
def test_special_offset(program, special):
    rng, calls = np.random.default_rng(0), []
    for name, share in product(deforming.EXAMPLES, (0.02, 1)):
        made = deforming.example(name)
        offset = made.weights[0]
        moved = np.where(rng.random(offset.shape) < share, np.float32(special), offset)
        calls.append(deforming.with_offsets(made, moved))
    check_deform(program, calls)


@pytest.mark.parametrize("special", [*SPECIALS, 1e-40], ids=str)
def test_special_pixel_and_mask_of_deform(program, special):
    calls = []
    for name, spread in product(deforming.EXAMPLES, (0.0, 1.5)):
        made = deforming.example(name, spread=spread)
        x = made.x.copy()
        x[0, 1, 2] = x[-1, -1, -1, -1] = special
        calls.append(replace(made, x=x))
        if "mask" in made.options:
            mask = made.options["mask"].copy()
            mask[0, 1, 0, ::5] = special
            calls.append(made.with_(mask=mask))
    check_deform(program, calls)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"offset_groups": 0}, vectors.E_SHAPE),
        ({"offset_groups": -1}, vectors.E_SHAPE),
        ({"offset_groups": 4}, vectors.E_SHAPE),
        ({"channels": (38, 7, 3, 0)}, vectors.E_SHAPE),
        ({"image": (2, 5, 6, 37, 1, 1, 1, 1)}, vectors.E_SHAPE),
        ({"image": (2, 5, 6, 38, 2**62, 2**62, 1, 1)}, vectors.E_OVERFLOW),
        ({"image": (2, 5, 6, 38, 2**29, 2**29, 2**29, 2**29)}, vectors.E_OVERFLOW),
        ({"window": (3, 3, 0, 1, 1, 1)}, vectors.E_SHAPE),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_a_deformable(program, changes, status):
    changed = vectors.encode(deforming.example("offset_groups"), **changes)
    assert [status for status, _ in program.answers([changed])] == [status]


def test_one_column_and_row_for_all_channels(program, data):
    op = "spatially_separable_conv2d"
    calls = []
    for channels, stride, dilation in product((1, 3, 4, 9), (1, 2), (1, 2)):
        window = {"kernel": (3, 5), "padding": 4, "stride": stride, "dilation": dilation}
        made = call(op, (2, 5, 9, channels), bias=False, data=data, **window)
        calls.append(replace(made, weights=tuple(w[:, 0].copy() for w in made.weights)))
    check_all(program, calls)


@settings(SETTINGS, max_examples=60)
@given(st.lists(calls(), min_size=1, max_size=20))
def test_any_calls(program, calls):
    check_all(program, calls)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"window": (3, 3, 0, 1, 1, 1)}, vectors.E_SHAPE),
        ({"window": (3, 3, 1, 1, 1, -1)}, vectors.E_SHAPE),
        ({"window": (9, 9, 1, 1, 1, 1)}, vectors.E_SHAPE),
        ({"channels": (5, 19, 2, 0)}, vectors.E_SHAPE),
        ({"channels": (5, 0, 1, 0)}, vectors.E_SHAPE),
        ({"image": (2, 6, 7, 4, 1, 1, 1, 1)}, vectors.E_SHAPE),
        ({"image": (2, 6, 7, 5, -1, 1, 1, 1)}, vectors.E_SHAPE),
        ({"image": (2, 6, 7, 5, 2**62, 2**62, 1, 1)}, vectors.E_OVERFLOW),
        ({"dtype": 2}, vectors.E_SHAPE),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit(program, changes, status):
    changed = vectors.encode(example("conv2d_3x3"), **changes)
    assert [status for status, _ in program.answers([changed])] == [status]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"window": (5, 3, 0, 1, 1, 1)}, vectors.E_SHAPE),
        ({"window": (5, 12, 1, 1, 1, 1)}, vectors.E_SHAPE),
        ({"channels": (18, 0, 0, 0)}, vectors.E_SHAPE),
        ({"channels": (-1, 0, 0, 0)}, vectors.E_SHAPE),
        ({"channels": (0, 0, 0, 0)}, vectors.E_SHAPE),  # but there is a bias
        ({"image": (2, 7, 6, 0, 2, 1, 1, 3)}, vectors.E_SHAPE),
        ({"image": (2, 7, 6, 19, 2, 1, 2**62, 2**62)}, vectors.E_OVERFLOW),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_column_and_row(program, changes, status):
    changed = vectors.encode(example("spatial_5x3"), **changes)
    assert [status for status, _ in program.answers([changed])] == [status]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"window": (3, 3, 0, 1, 1, 1)}, vectors.E_SHAPE),
        ({"window": (0, 3, 1, 1, 1, 1)}, vectors.E_SHAPE),
        ({"window": (9, 9, 1, 1, 1, 1)}, vectors.E_SHAPE),
        ({"image": (2, 6, 7, 0, 1, 1, 1, 1)}, vectors.E_SHAPE),
        ({"image": (-1, 6, 7, 5, 1, 1, 1, 1)}, vectors.E_SHAPE),
        ({"image": (2, 6, 7, 5, 2**62, 2**62, 1, 1)}, vectors.E_OVERFLOW),
        ({"image": (2**30, 2**20, 2**20, 5, 1, 1, 1, 1)}, vectors.E_OVERFLOW),
        ({"window": (2**62, 1, 1, 1, 2, 1)}, vectors.E_SHAPE),  # reaches over 2**63 - 1 rows
        ({"window": (2**62 + 1, 1, 1, 1, 2, 1)}, vectors.E_OVERFLOW),
        ({"dtype": 2}, vectors.E_SHAPE),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_a_pooling(program, changes, status):
    changed = vectors.encode(pooling.example("avg_3x3"), **changes)
    assert [status for status, _ in program.answers([changed])] == [status]


def test_no_such_isa(program):
    available = program.command("isas").stdout.split()
    other = next(isa for isa in ("neon", "avx2") if isa not in available)
    calls = [vectors.encode(example("conv2d_3x3")), vectors.encode(pooling.example("avg_3x3"))]
    assert [s for s, _ in program.for_isa(other).answers(calls)] == [vectors.E_ISA] * 2
