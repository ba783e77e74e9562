"""Deformable convolution: shapes/deform.txt x engine, each output checked; see README.md."""

from functools import lru_cache, partial
from pathlib import Path

import engines
import numpy as np
import pytest
import reference

import convkern as ck

TEXT = Path(__file__).with_name("shapes").joinpath("deform.txt").read_text()
SHAPES = [tuple(map(int, line.split()[1:])) for line in TEXT.splitlines() if line[0] != "#"]
TOLERANCE = 1e-4  # of the largest output: peers sample at coordinates that are rounded to float32


@lru_cache(maxsize=1)
def arrays(c, h, w, m, offset_groups):
    """Make up an image, offsets, weights and a mask (NHWC, HWIO), and the exact result."""
    rng = np.random.default_rng(0)
    x, offset = rng.standard_normal((h, w, c)), rng.standard_normal((h, w, 18 * offset_groups))
    weights, mask = rng.standard_normal((3, 3, c, m)), rng.random((h, w, 9 * offset_groups))
    x, offset, weights, mask = (a.astype(np.float32) for a in (x, offset, weights, mask))
    return (
        x,
        offset,
        weights,
        mask,
        reference.deform_conv2d(x, offset, weights, padding=1, mask=mask),
    )


def planar(a):
    return np.ascontiguousarray(a.transpose(2, 0, 1))[None]


def convkern(isa, layout, x, offset, w, mask):
    """Run the layer, its weights packed once and its output reused."""
    with ck.use_isa(isa):
        layer = ck.DeformConv2d(w, padding=1, layout=layout, weight_layout="HWIO")
    if layout == "NCHW":
        x, offset, mask = planar(x)[0], planar(offset)[0], planar(mask)[0]
    out = np.empty(layer.out_shape(x.shape), np.float32)
    result = (lambda y: y.transpose(1, 2, 0)) if layout == "NCHW" else np.asarray
    return partial(layer, x, offset, mask, out=out, threads=1), result


def onnxruntime(x, offset, w, mask):
    onnx = pytest.importorskip("onnx")
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
    from onnx.numpy_helper import from_array

    inputs = {"x": planar(x), "offset": planar(offset), "mask": planar(mask)}
    groups = offset.shape[-1] // 18
    names = ["x", "w", "offset", "", "mask"]
    node = make_node("DeformConv", names, ["y"], pads=[1] * 4, offset_group=groups)
    kind = onnx.TensorProto.FLOAT
    y = make_tensor_value_info("y", kind, (1, w.shape[-1], *x.shape[:2]))
    infos = [make_tensor_value_info(name, kind, a.shape) for name, a in inputs.items()]
    weights = from_array(np.ascontiguousarray(w.transpose(3, 2, 0, 1)), "w")
    graph = make_graph([node], "deform", infos, [y], [weights])
    model = make_model(graph, opset_imports=[make_opsetid("", 22)], ir_version=10)
    return engines.run_onnx(model.SerializeToString(), **inputs)


def openvino(x, offset, w, mask):
    ov = pytest.importorskip("openvino")
    from openvino import opset8

    inputs = [planar(a) for a in (x, offset, mask)]
    given = [opset8.parameter(a.shape, np.float32) for a in inputs]
    weights = opset8.constant(np.ascontiguousarray(w.transpose(3, 2, 0, 1)))
    one, groups = [1, 1], offset.shape[-1] // 18
    node = opset8.deformable_convolution(
        given[0], given[1], weights, one, one, one, one, given[2], "EXPLICIT", 1, groups, True
    )
    return engines.run_openvino(ov.Model([node], given), *inputs)


OURS = {
    f"{isa}-{layout}": partial(convkern, isa, layout)
    for isa in ck.available_isas()
    for layout in ("NHWC", "NCHW")
}
PEERS = {engine.__name__: engine for engine in (onnxruntime, openvino)}


@pytest.mark.parametrize("engine", [*OURS, *PEERS])
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}to{0[3]}-{0[1]}x{0[2]}-og{0[4]}".format)
def bench_deform(benchmark, shape, engine):
    *given, want = arrays(*shape)
    cost = ck.cost.deform_conv2d(*(a.shape for a in given[:3]), padding=1, mask=True)
    benchmark.group = f"deform_conv2d-{shape} ({2e-6 * cost.macs:.0f} MFLOP)"
    run, result = {**OURS, **PEERS}[engine](*given)
    got = result(benchmark(run))
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
