"""The node test vectors of the onnx package, and those that torch once exported for it."""

import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import onnx_adapter  # noqa: E402

MODULES = (
    "conv",
    "deformconv",
    "maxpool",
    "averagepool",
    "globalaveragepool",
    "globalmaxpool",
)
EXPORTED = ("pytorch-converted", "pytorch-operator")
NOT_OFFERED = {
    "test_maxpool_2d_uint8",
    "test_maxpool_with_argmax_2d_precomputed_pads",
    "test_maxpool_with_argmax_2d_precomputed_strides",
}  # and everything in three dimensions
RTOL, ATOL = 1e-3, 1e-7  # those of onnx.backend.test


def node_cases():
    """Give (name, node, inputs, output) of each operator's node tests."""
    package = "onnx.backend.test.case.node"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in MODULES:
            importlib.import_module(f"{package}.{module}")
    for case in importlib.import_module(package)._NodeTestCases:
        node = case.model.graph.node[0]
        if node.op_type in onnx_adapter.RUN and len(case.model.graph.node) == 1:
            for inputs, (output, *_) in case.data_sets:
                yield case.name, node, inputs, output


def exported_cases():
    """The same of models of one node that torch exported, whose weights are initializers."""
    data = Path(onnx.__file__).parent / "backend/test/data"
    for path in sorted(p for kind in EXPORTED for p in (data / kind).glob("*/model.onnx")):
        graph = onnx.load(path).graph
        if len(graph.node) != 1 or graph.node[0].op_type not in onnx_adapter.RUN:
            continue
        values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        given = [i.name for i in graph.input if i.name not in values]
        folder = path.parent / "test_data_set_0"
        values |= {name: _tensor(folder / f"input_{i}.pb") for i, name in enumerate(given)}
        inputs = [values[name] for name in graph.node[0].input]
        yield path.parent.name, graph.node[0], inputs, _tensor(folder / "output_0.pb")


def _tensor(path):
    return onnx.numpy_helper.to_array(onnx.load_tensor(path))


CASES = [*node_cases(), *exported_cases()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_node(isa, case):
    name, node, inputs, want = case
    for dtype in (np.float32, np.float64):
        cast = [a.astype(dtype) if a.dtype == np.float32 else a for a in inputs]
        try:
            y = onnx_adapter.run_node(node, cast)
        except onnx_adapter.NotOffered:
            assert name in NOT_OFFERED or inputs[0].ndim == 5
            return
        assert name not in NOT_OFFERED
        assert y.shape == want.shape
        np.testing.assert_allclose(y, want, rtol=RTOL, atol=ATOL)


def test_there_are_cases():
    """As many as there were when this was written: an empty list would pass."""
    counts = {op: sum(node.op_type == op for _, node, _, _ in CASES) for op in onnx_adapter.RUN}
    least = {"Conv": 30, "DeformConv": 4, "MaxPool": 24, "AveragePool": 24}
    least |= {"GlobalAveragePool": 2, "GlobalMaxPool": 2}
    assert all(counts[op] >= least[op] for op in onnx_adapter.RUN), counts
