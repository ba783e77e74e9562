"""How each peer runs a call: torch, ONNX Runtime, OpenVINO, ncnn.

All that the operations have in common with the peers is said once, by `steps`: convolutions with
OIHW weights, deformable ones, poolings. A peer says how it runs a step of each kind, and skips what
it lacks. All get the call in NCHW, as they would have it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest


@dataclass(frozen=True)
class Conv:
    """A convolution with OIHW weights, and a relu6 if it has one."""

    w: np.ndarray
    bias: np.ndarray
    groups: int
    stride: tuple = (1, 1)
    dilation: tuple = (1, 1)
    pads: tuple = (0, 0, 0, 0)  # top, left, bottom, right
    relu6: bool = False

    @property
    def kernel(self):
        return self.w.shape[2:]


@dataclass(frozen=True)
class Deform(Conv):
    """A convolution of samples at the input "offset", times the input "mask"."""

    offset_groups: int = 1


@dataclass(frozen=True)
class Pool:
    """A pooling; a global one has no kernel. Averages do not count the padding."""

    op: str
    kernel: tuple | None
    stride: tuple
    pads: tuple


def steps(call):
    """Spell an NCHW call out in the peers' terms."""
    options, channels = call.options, len(call.x)
    (top, bottom), (left, right) = options.get("padding", ((0, 0), (0, 0)))
    stride, pads = options.get("stride", (1, 1)), (top, left, bottom, right)
    if call.op.endswith("pool2d"):
        return [Pool(call.op, options.get("kernel"), stride, pads)]
    dilation = options.get("dilation", (1, 1))
    if call.op == "spatially_separable_conv2d":
        return _column_and_row(call, stride, dilation, pads)
    w, *pw = call.weights[1:] if call.op == "deform_conv2d" else call.weights
    w = _oihw(w)
    first = {"w": w, "bias": call.biases[0], "groups": channels // w.shape[1]}
    first |= {"stride": stride, "dilation": dilation, "pads": pads}
    if call.op == "deform_conv2d":
        return [Deform(**first, offset_groups=len(call.weights[0]) // (2 * w[0, 0].size))]
    first["relu6"] = options.get("dw_activation") == "relu6"
    return [Conv(**first)] + [Conv(_oihw(p), call.biases[1], groups=1) for p in pw]


def _column_and_row(call, stride, dilation, pads):
    """Spell two depthwise convolutions out; the image is padded on all sides before the first."""
    (column, row), (bias,) = call.weights, call.biases
    (sh, sw), (dh, dw), groups = stride, dilation, len(bias)
    column, row = column[:, None, :, None], row[:, None, None, :]
    return [
        Conv(column, np.zeros_like(bias), groups, (sh, 1), (dh, 1), pads),
        Conv(row, bias, groups, (1, sw), (1, dw)),
    ]


def _oihw(w):
    return w[:, :, None, None] if w.ndim == 2 else w


def inputs(call):
    """Name the input arrays, (1, C, H, W)."""
    arrays = {"x": call.x}
    if call.op == "deform_conv2d":
        arrays |= {"offset": call.weights[0], "mask": call.options["mask"]}
    return {name: a[None] for name, a in arrays.items()}


def _nhwc(y):
    """Turn (1, C, H, W), (C, H, W) or (C,) of one pixel; a copy: views do not keep their memory."""
    y = np.array(y)
    y = y[:, None, None] if y.ndim == 1 else y.reshape(y.shape[-3:])
    return y.transpose(1, 2, 0)


# ------------------------------------------------------------------------------------------- torch


def torch(layout, call):
    """Trace and freeze; NHWC is its channels_last."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    memory = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    x = torch.from_numpy(call.x[None]).contiguous(memory_format=memory)
    layers = [layer for step in steps(call) for layer in _torch_layers(step, x.shape[2:])]
    net = torch.nn.Sequential(*layers).eval().to(memory_format=memory)
    with torch.inference_mode():
        net = torch.jit.freeze(torch.jit.trace(net, x))

    def run():
        with torch.inference_mode():
            return net(x)

    return run, lambda y: _nhwc(y.numpy())


def _torch_layers(step, size):
    from torch import from_numpy, nn

    top, left, bottom, right = step.pads
    if isinstance(step, Pool):
        if step.kernel is None:
            return [nn.AdaptiveAvgPool2d(1)]
        if step.op == "max_pool2d":
            return [nn.MaxPool2d(step.kernel, step.stride, (top, left))]
        return [nn.AvgPool2d(step.kernel, step.stride, (top, left), count_include_pad=False)]
    before, padding = [], (top, left)
    if not _same_size(step, size, padding):
        before, padding = [nn.ZeroPad2d((left, right, top, bottom))], (0, 0)
    outputs, terms = step.w.shape[:2]
    channels = (terms * step.groups, outputs)
    layer = nn.Conv2d(*channels, step.kernel, step.stride, padding, step.dilation, step.groups)
    layer.weight.data[:], layer.bias.data[:] = map(from_numpy, (step.w, step.bias))
    return [*before, layer, *([nn.ReLU6()] if step.relu6 else [])]


def _same_size(conv, size, padding):
    """Whether padding both sides like the first gives as many outputs: torch can only do that."""
    for axis in (0, 1):
        extent = conv.dilation[axis] * (conv.kernel[axis] - 1) + 1
        asked, offered = conv.pads[axis] + conv.pads[axis + 2], 2 * padding[axis]
        sizes = {(size[axis] + pads - extent) // conv.stride[axis] for pads in (asked, offered)}
        if len(sizes) > 1:
            return False
    return True


# ------------------------------------------------------------------------------- ONNX and OpenVINO


def onnx_model(call):
    """Write the call as an ONNX model."""
    onnx = pytest.importorskip("onnx")
    from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info
    from onnx.numpy_helper import from_array

    nodes, weights, last = [], {}, "x"
    for i, step in enumerate(steps(call)):
        new, more = _onnx_nodes(step, last, f"step{i}")
        nodes, weights, last = nodes + new, weights | more, new[-1].output[0]
    kind = onnx.TensorProto.FLOAT
    given = [make_tensor_value_info(name, kind, a.shape) for name, a in inputs(call).items()]
    y = make_tensor_value_info(last, kind, None)
    constants = [from_array(np.ascontiguousarray(a), name) for name, a in weights.items()]
    graph = make_graph(nodes, "call", given, [y], constants)
    model = make_model(graph, opset_imports=[make_opsetid("", 22)], ir_version=10)
    return model.SerializeToString()


def _onnx_nodes(step, x, y):
    """Make the nodes of a step from blob `x` to blob `y`, and its weights by name."""
    from onnx.helper import make_node

    window = {"strides": step.stride, "pads": step.pads}
    if isinstance(step, Pool):
        if step.kernel is None:
            return [make_node("GlobalAveragePool", [x], [y])], {}
        kind = {"max_pool2d": "MaxPool", "avg_pool2d": "AveragePool"}[step.op]
        return [make_node(kind, [x], [y], kernel_shape=step.kernel, **window)], {}
    w, bias, low, high = (f"{y}.{name}" for name in ("w", "bias", "low", "high"))
    weights = {w: step.w, bias: step.bias}
    window |= {"dilations": step.dilation, "group": step.groups}
    if isinstance(step, Deform):
        names = [x, w, "offset", bias, "mask"]
        node = make_node("DeformConv", names, [y], offset_group=step.offset_groups, **window)
        return [node], weights
    if not step.relu6:
        return [make_node("Conv", [x, w, bias], [y], **window)], weights
    conv = make_node("Conv", [x, w, bias], [f"{y}.conv"], **window)
    clip = make_node("Clip", [f"{y}.conv", low, high], [y])
    return [conv, clip], weights | {low: np.float32(0), high: np.float32(6)}


def onnxruntime(call):
    """Run a session bound to its arrays; it converts to and from its blocked layout inside."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(onnx_model(call), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in inputs(call).items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    (output,) = session.get_outputs()
    y = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
    binding.bind_ortvalue_output(output.name, y)
    return partial(session.run_with_iobinding, binding), lambda _: _nhwc(y.numpy())


def openvino(call):
    """Run an inference request on its own tensors, in float32; it converts inside."""
    ov = pytest.importorskip("openvino")
    deform = call.op == "deform_conv2d"
    model = _openvino_deform(ov, call) if deform else ov.Core().read_model(onnx_model(call))
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
    }
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    for i, array in enumerate(inputs(call).values()):
        request.get_input_tensor(i).data[:] = array
    return request.infer, lambda _: _nhwc(request.get_output_tensor().data)


def _openvino_deform(ov, call):
    """Make the model; OpenVINO has the operation, its reader of ONNX does not know it."""
    from openvino import opset8

    (step,) = steps(call)
    x, offset, mask = (opset8.parameter(a.shape, np.float32) for a in inputs(call).values())
    begin, end = step.pads[:2], step.pads[2:]
    window = (step.stride, begin, end, step.dilation)
    y = opset8.deformable_convolution(
        *(x, offset, opset8.constant(step.w), *window, mask, "EXPLICIT"),
        *(step.groups, step.offset_groups, True),
    )
    y = opset8.add(y, opset8.constant(step.bias[None, :, None, None]))
    return ov.Model([y], [x, offset, mask])


# -------------------------------------------------------------------------------------------- ncnn


def ncnn(call):
    """Extract from a fresh extractor, as ncnn asks for; fp32 throughout."""
    ncnn = pytest.importorskip("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_vulkan_compute = False
    for kind in ("fp16", "bf16"):
        for use in ("packed", "storage"):
            setattr(net.opt, f"use_{kind}_{use}", False)
    net.opt.use_fp16_arithmetic = False
    given, weights, last = inputs(call), b"", "x"
    lines = [f"Input {name} 0 1 {name}" for name in given]
    for i, step in enumerate(steps(call)):
        lines.append(_ncnn_line(step, last, f"step{i}"))
        last = f"step{i}"
        if not isinstance(step, Pool):  # a tag of 0 says raw float32
            weights += np.uint32(0).tobytes() + step.w.tobytes() + step.bias.tobytes()
    net.load_param_mem("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines]) + "\n")
    with TemporaryDirectory() as folder:
        path = Path(folder, "weights.bin")
        path.write_bytes(weights)
        net.load_model(str(path))
    # A Mat does not keep what it was made from.
    mats = {name: ncnn.Mat(a[0]).clone() for name, a in given.items()}

    def run():
        with net.create_extractor() as extractor:
            for name, mat in mats.items():
                extractor.input(name, mat)
            return extractor.extract(last)[1]

    return run, _nhwc


def _ncnn_line(step, x, y):
    """Write a layer with its numbered parameters; see ncnn's docs/developer-guide/operators.md."""
    (sh, sw), (top, left, bottom, right) = step.stride, step.pads
    if isinstance(step, Pool):
        params = {0: int(step.op != "max_pool2d"), 4: int(step.kernel is None)}
        if step.kernel is not None:  # 5=1: no more padding than said
            params |= {1: step.kernel[1], 11: step.kernel[0], 2: sw, 12: sh, 5: 1}
            params |= {3: left, 14: right, 13: top, 15: bottom}
        return f"Pooling {y} 1 1 {x} {y} {_numbered(params)}"
    (kh, kw), (dh, dw) = step.kernel, step.dilation
    params = {0: len(step.w), 1: kw, 11: kh, 2: dw, 12: dh, 3: sw, 13: sh, 5: 1}
    params |= {4: left, 15: right, 14: top, 16: bottom, 6: step.w.size, 7: step.groups}
    if isinstance(step, Deform):
        if (step.groups, step.offset_groups) != (1, 1):
            pytest.skip("ncnn has neither groups nor offset groups here")
        return f"DeformableConv2D {y} 3 1 {x} offset mask {y} {_numbered(params)}"
    kind = "ConvolutionDepthWise" if step.groups > 1 else "Convolution"
    relu6 = " 9=3 -23310=2,0.0,6.0" if step.relu6 else ""
    return f"{kind} {y} 1 1 {x} {y} {_numbered(params)}{relu6}"


def _numbered(params):
    return " ".join(f"{key}={value}" for key, value in params.items())


PEERS = {
    "torch-NHWC": partial(torch, "NHWC"),
    "torch-NCHW": partial(torch, "NCHW"),
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ncnn": ncnn,
}
PEERS_THAT_DEFORM = {  # torch leaves it to torchvision
    name: run for name, run in PEERS.items() if not name.startswith("torch")
}
