"""What may be passed as an array, where results go, and which calls agree to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
from cases import (
    EXAMPLES,
    HasArray,
    HasDLPack,
    as_memoryview,
    assert_same_bits,
    check,
    example,
    images_nchw,
    nchw,
)

import convkern as ck

pytestmark = [pytest.mark.usefixtures("isa"), pytest.mark.parametrize("name", EXAMPLES)]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def reversed_in_memory(a):
    return a[(slice(None, None, -1),) * a.ndim].copy()[(slice(None, None, -1),) * a.ndim]


def every_second(a):
    wide = np.full([2 * n for n in a.shape], np.nan, a.dtype)
    view = wide[(slice(None, None, 2),) * a.ndim]
    view[...] = a
    return view


def unaligned(a):
    copy = np.frombuffer(bytearray(a.nbytes + 1), np.uint8)[1:].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


def sliced_channels(a):
    wide = np.full((*a.shape[:-1], a.shape[-1] + 3), np.nan, a.dtype)
    wide[..., 2:-1] = a
    return wide[..., 2:-1]


STRIDED = [np.asfortranarray, reversed_in_memory, every_second, sliced_channels, unaligned]


@pytest.mark.parametrize("kind", [*STRIDED, read_only, as_memoryview, HasArray, HasDLPack])
def test_input_kind(name, kind, layout):
    made = example(name, residual=True, layout=layout)
    want = made.run()
    odd = replace(
        made,
        x=kind(made.x),
        weights=tuple(map(kind, made.weights)),
        biases=tuple(map(kind, made.biases)),
    )
    assert_same_bits(odd.run(residual=kind(made.options["residual"])), want)


def test_broadcast_input(name):
    made = example(name)
    pixel = made.x[:1, :1, :1]
    view = np.broadcast_to(pixel, made.x.shape)
    assert_same_bits(replace(made, x=view).run(), replace(made, x=view.copy()).run())


def test_one_image_as_a_batch_of_three(name):
    made = example(name)
    one = replace(made, x=made.x[:1]).run()
    y = replace(made, x=np.broadcast_to(made.x[:1], (3, *made.x.shape[1:]))).run()
    for image in y:
        assert_same_bits(image[None], one)


def test_inputs_are_unchanged(name, layout):
    made = example(name, residual=True, layout=layout)
    arrays = [*made.arrays, made.options["residual"]]
    copies = [a.copy() for a in arrays]
    made.run()
    made.run(out=np.empty_like(made.options["residual"]))
    for a, copy in zip(arrays, copies, strict=True):
        assert_same_bits(a, copy)


def test_result_is_fresh_and_c_contiguous(name, layout):
    made = example(name, layout=layout)
    y = made.run()
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert not any(np.shares_memory(y, a) for a in made.arrays)
    assert not np.shares_memory(y, made.run())


def test_batch_is_its_images(name, layout):
    made = example(name, layout=layout, x=(4, *EXAMPLES[name]["x"][1:]), activation="silu")
    y = made.run()
    for x, image in zip(made.x, y, strict=True):
        assert_same_bits(replace(made, x=x[None]).run(), image[None])
        assert_same_bits(replace(made, x=x).run(), image)


@pytest.mark.parametrize("activation", [None, "hardswish", "sigmoid"], ids=str)
def test_layouts_agree(name, activation):
    made = example(name, residual=True, activation=activation)
    assert_same_bits(nchw(made).run(), images_nchw(made.run()))


def test_weight_layout_overrides(name):
    made = example(name)
    twin = nchw(made)
    want = made.run()
    if made.op == "spatially_separable_conv2d":
        pytest.skip("has no weight_layout")
    assert_same_bits(made.run(weight_layout="HWIO"), want)
    assert_same_bits(replace(made, weights=twin.weights).run(weight_layout="OIHW"), want)
    assert_same_bits(
        replace(twin, weights=made.weights).run(weight_layout="HWIO"), images_nchw(want)
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_threads_agree(name, threads):
    made = example(name, x=(3, 17, *EXAMPLES[name]["x"][2:]))
    assert_same_bits(made.run(threads=threads), made.run())


def test_repeats_agree(name):
    made = example(name, activation="silu")
    want = made.run()
    for _ in range(3):
        assert_same_bits(made.run(), want)


def test_out_is_returned(name, layout):
    made = example(name, layout=layout, residual=True)
    want = made.run()
    out = np.full_like(want, np.nan)
    assert made.run(out=out) is out
    assert_same_bits(out, want)


@pytest.mark.parametrize("kind", STRIDED)
def test_output_strided(name, kind, layout):
    made = example(name, layout=layout, residual=True)
    want = made.run()
    out = kind(np.full_like(want, np.nan))
    assert made.run(out=out) is out
    assert_same_bits(out, want)


def test_out_of_an_empty_batch(name):
    made = example(name, x=(0, *EXAMPLES[name]["x"][1:]))
    out = np.empty_like(made.run())
    assert made.run(out=out) is out


def test_out_is_the_residual(name, layout):
    made = example(name, layout=layout, residual=True)
    want = made.run()
    residual = made.options["residual"].copy()
    assert_same_bits(made.run(residual=residual, out=residual), want)


def test_out_overlaps_the_residual(name):
    made = example(name, residual=True)
    want = made.run()
    rows = np.zeros((want.shape[0], want.shape[1] + 1, *want.shape[2:]), want.dtype)
    rows[:, 1:] = made.options["residual"]
    assert_same_bits(made.run(residual=rows[:, 1:], out=rows[:, :-1]), want)


@pytest.mark.parametrize("offset", [0, 1, 7, 64, 500])
def test_out_overlaps_the_image(name, offset, layout):
    made = example(name, layout=layout)
    want = made.run()
    memory = np.zeros(max(made.x.size, want.size) + 2 * offset, np.float32)
    x = memory[: made.x.size].reshape(made.x.shape)
    x[...] = made.x
    out = memory[offset : offset + want.size].reshape(want.shape)
    assert_same_bits(replace(made, x=x).run(out=out), want)
    x[...] = made.x
    backwards = memory[offset : offset + want.size][::-1].reshape(want.shape)
    assert_same_bits(replace(made, x=x).run(out=backwards), want)


def test_out_overlaps_weights_and_bias(name):
    made = example(name)
    want = made.run()
    for kind in ("weights", "biases"):
        for index, a in enumerate(getattr(made, kind)):
            memory = np.zeros(max(a.size, want.size) + 5, np.float32)
            view = memory[: a.size].reshape(a.shape)
            view[...] = a
            arrays = list(getattr(made, kind))
            arrays[index] = view
            out = memory[5 : 5 + want.size].reshape(want.shape)
            assert_same_bits(replace(made, **{kind: tuple(arrays)}).run(out=out), want)


def test_integers_of_numpy_are_integers(name):
    made = example(name)
    numpy_made = {"stride": np.int64(1), "threads": np.int32(1)}
    if "pointwise" not in name:
        numpy_made |= {"padding": (np.uint8(1), np.int16(2)), "dilation": np.array([1, 2])}
    plain = {"stride": 1, "padding": (1, 2), "dilation": [1, 2]}
    plain = {k: v for k, v in plain.items() if k in numpy_made}
    assert_same_bits(made.run(**numpy_made), made.run(**plain))


def test_mixed_magnitudes(name, layout):
    check(example(name, data="wide_range", layout=layout))


@pytest.mark.parametrize("argument", ["x", "weights", "biases"])
def test_mixed_dtypes_are_refused(name, argument):
    made = example(name)
    values = getattr(made, argument)
    if argument == "x":
        double = values.astype(np.float64)
    else:
        double = (*values[:-1], values[-1].astype(np.float64))
    with pytest.raises(TypeError, match="float"):
        replace(made, **{argument: double}).run()


def test_same_result_from_the_module_and_the_package(name):
    made = example(name)
    assert_same_bits(made.run(ck.ops), made.run(ck))
