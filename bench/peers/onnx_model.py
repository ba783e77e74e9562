"""A network as an ONNX model, which ONNX Runtime and OpenVINO read."""

import numpy as np

from .nodes import Activation, Conv, Deform, Network, Pool

OPSET = 22
IR_VERSION = 10


def onnx_model(network: Network) -> bytes:
    """Write the model."""
    from onnx import TensorProto
    from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info

    graph = _Graph()
    arrays = {name: name for name in network.inputs}  # in the model, by its name in the network
    for node in network.nodes:
        add = _pool if isinstance(node, Pool) else _conv
        arrays[node.name] = add(graph, node, [arrays[name] for name in node.inputs])
    kind = TensorProto.FLOAT
    given = [make_tensor_value_info(name, kind, a.shape) for name, a in network.inputs.items()]
    y = make_tensor_value_info(arrays[network.output], kind, None)
    made = make_graph(graph.nodes, "network", given, [y], graph.constants)
    model = make_model(made, opset_imports=[make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model.SerializeToString()


class _Graph:
    """ONNX nodes and constants; adding one returns the name of its array."""

    def __init__(self) -> None:
        self.nodes, self.constants = [], []

    def add(self, kind: str, *names: str, **attributes) -> str:
        from onnx.helper import make_node

        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(make_node(kind, names, [name], name, **attributes))
        return name

    def constant(self, array) -> str:
        from onnx.numpy_helper import from_array

        name = f"constant_{len(self.constants)}"
        self.constants.append(from_array(np.ascontiguousarray(array, np.float32), name))
        return name


def _pool(graph: _Graph, node: Pool, inputs: list[str]) -> str:
    if node.kernel is None:
        return graph.add("GlobalAveragePool", *inputs)
    kind = {"max": "MaxPool", "average": "AveragePool"}[node.kind]
    window = {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.pads}
    return graph.add(kind, *inputs, **window)


def _conv(graph: _Graph, node: Conv, inputs: list[str]) -> str:
    x, *more = inputs
    w, bias = graph.constant(node.w), graph.constant(node.bias)
    window = {"strides": node.stride, "pads": node.pads, "dilations": node.dilation}
    window["group"] = node.groups
    if isinstance(node, Deform):
        offset, mask = more
        names, groups = (x, w, offset, bias, mask), {"offset_group": node.offset_groups}
        y = graph.add("DeformConv", *names, **window, **groups)
    else:
        y = graph.add("Conv", x, w, bias, **window)
        if node.residual is not None:
            y = graph.add("Add", y, *more)
    return _activation(graph, y, node.activation)


def _activation(graph: _Graph, y: str, activation: Activation) -> str:
    if activation is None:
        return y
    if activation == (0, np.inf):
        return graph.add("Relu", y)
    if isinstance(activation, tuple):
        return graph.add("Clip", y, *map(graph.constant, activation))
    if activation == "hardsigmoid":
        return graph.add("HardSigmoid", y, alpha=1 / 6, beta=0.5)
    if activation == "silu":
        return graph.add("Mul", y, graph.add("Sigmoid", y))
    return graph.add({"hardswish": "HardSwish", "sigmoid": "Sigmoid"}[activation], y)
