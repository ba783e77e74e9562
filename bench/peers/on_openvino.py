"""OpenVINO: a request on its own tensors, in float32; it converts to blocked layouts inside."""

import numpy as np

from .nodes import Deform, Network
from .onnx_model import onnx_model


def prepare(network: Network, threads: int):
    import openvino as ov

    deform = any(isinstance(node, Deform) for node in network.nodes)
    model = _deform(ov, network) if deform else ov.Core().read_model(onnx_model(network))
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    for i, array in enumerate(network.inputs.values()):
        request.get_input_tensor(i).data[:] = array
    return request.infer, lambda _: request.get_output_tensor().data[0].transpose(1, 2, 0)


def _deform(ov, network: Network):
    """Make the model; OpenVINO has the operation, its reader of ONNX does not know it."""
    from openvino import opset8

    node = network.nodes[0]
    if len(network.nodes) > 1 or node.activation is not None:
        raise NotImplementedError("OpenVINO is given deformable convolutions alone")
    x, offset, mask = (opset8.parameter(a.shape, np.float32) for a in network.inputs.values())
    begin, end = node.pads[:2], node.pads[2:]
    window = (node.stride, begin, end, node.dilation)
    y = opset8.deformable_convolution(
        *(x, offset, opset8.constant(node.w), *window, mask, "EXPLICIT"),
        *(node.groups, node.offset_groups, True),
    )
    y = opset8.add(y, opset8.constant(node.bias[None, :, None, None]))
    return ov.Model([y], [x, offset, mask])
