"""Who is timed: convkern with each instruction set, its textbook loops, and installed peers.

An engine takes a call of tests/cases.py and returns two functions: `run`, which is timed, and
`result`, which turns what `run` returned into an NHWC array. Whatever a peer lets one do
beforehand is done beforehand: weights packed, graph compiled, input in the peer's layout, output
allocated where it can be. All run on one thread, in float32.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

import convkern as ck


def convkern(isa, call):
    """Run the layer, its weights packed once and its output reused."""
    with ck.use_isa(isa):
        layer = call.layer()
    out = np.empty(layer.out_shape(call.x.shape), call.x.dtype)
    return partial(layer, call.x, out=out, threads=1), np.asarray


def naive(call):
    """Run the textbook loops."""
    return partial(call.run, ck.naive), np.asarray


def depthwise(call):
    """Run the depthwise layer whose kernels are column times row, on the best instruction set."""
    if call.op != "spatially_separable_conv2d":
        pytest.skip("is the same operation, or cannot do it")
    column, row = call.weights
    w = np.ascontiguousarray(column[:, None] * row[None])
    return convkern(ck.isa(), replace(call, op="depthwise_conv2d", weights=(w,)))


@dataclass
class _Conv:
    """What every peer understands: a convolution with OIHW weights, and an optional relu6."""

    w: np.ndarray
    bias: np.ndarray
    stride: tuple
    dilation: tuple
    pads: tuple  # top, left, bottom, right
    groups: int
    relu6: bool

    @property
    def kernel(self):
        return self.w.shape[2:]


def _convs(call):
    """Spell a call out as one or two convolutions."""
    options = call.options
    (top, bottom), (left, right) = options.get("padding", ((0, 0), (0, 0)))
    window = (options["stride"], options.get("dilation", (1, 1)), (top, left, bottom, right))
    unit = ((1, 1), (1, 1), (0, 0, 0, 0))
    depthwise = call.op in ("depthwise_conv2d", "separable_conv2d")
    groups = call.x.shape[-1] if depthwise else options.get("groups", 1)
    relu6 = options.get("dw_activation") == "relu6"
    if call.op == "spatially_separable_conv2d":
        return _column_and_row(call, *window)
    w, *pw = call.weights
    w = w.reshape((1, 1, *w.shape) if w.ndim == 2 else (*w.shape[:2], -1, w.shape[-1]))
    if depthwise:
        w = w.reshape(*w.shape[:2], 1, -1)
    first = _Conv(_oihw(w), call.biases[0], *window, groups, relu6)
    return [first] + [_Conv(_oihw(p[None, None]), call.biases[1], *unit, 1, False) for p in pw]


def _column_and_row(call, stride, dilation, pads):
    """Spell two depthwise convolutions out; the image is padded on all sides before the first."""
    (column, row), (bias,) = call.weights, call.biases
    (sh, sw), (dh, dw), groups = stride, dilation, len(bias)
    column, row = _oihw(column[:, None, None]), _oihw(row[None, :, None])
    none = np.zeros_like(bias)
    return [
        _Conv(column, none, (sh, 1), (dh, 1), pads, groups, False),
        _Conv(row, bias, (1, sw), (1, dw), (0, 0, 0, 0), groups, False),
    ]


def _oihw(w):
    return np.ascontiguousarray(w.transpose(3, 2, 0, 1))


def _nchw(x):
    return np.ascontiguousarray(x.transpose(2, 0, 1))[None]


def _from_nchw(y):
    return np.array(y)[0].transpose(1, 2, 0)  # a copy: peers' views do not keep their memory


def torch(call):
    """Trace and freeze; channels_last, in which the NHWC arrays need no conversion."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    layers = []
    for conv in _convs(call):
        (outputs, inputs), (top, left, bottom, right) = conv.w.shape[:2], conv.pads
        padding = (top, left)
        if not _same_size(conv, call.x.shape, padding):
            layers.append(torch.nn.ZeroPad2d((left, right, top, bottom)))
            padding = (0, 0)
        layer = torch.nn.Conv2d(
            inputs * conv.groups,
            outputs,
            conv.kernel,
            conv.stride,
            padding,
            conv.dilation,
            conv.groups,
        )
        layer.weight.data[:], layer.bias.data[:] = map(torch.from_numpy, (conv.w, conv.bias))
        layers += [layer, torch.nn.ReLU6()] if conv.relu6 else [layer]
    net = torch.nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)
    x = torch.from_numpy(call.x)[None].permute(0, 3, 1, 2)
    with torch.inference_mode():
        net = torch.jit.freeze(torch.jit.trace(net, x))

    def run():
        with torch.inference_mode():
            return net(x)

    return run, lambda y: _from_nchw(y.numpy())


def _same_size(conv, shape, padding):
    """Whether padding both sides like the first gives as many outputs: torch can only do that."""
    for axis in (0, 1):
        extent = conv.dilation[axis] * (conv.kernel[axis] - 1) + 1
        asked, offered = conv.pads[axis] + conv.pads[axis + 2], 2 * padding[axis]
        sizes = {(shape[axis] + pads - extent) // conv.stride[axis] for pads in (asked, offered)}
        if len(sizes) > 1:
            return False
    return True


def _onnx_model(call):
    onnx = pytest.importorskip("onnx")
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
    from onnx.numpy_helper import from_array

    nodes, weights, last = [], [], "x"
    for i, conv in enumerate(_convs(call)):
        weights += [from_array(conv.w, f"w{i}"), from_array(conv.bias, f"b{i}")]
        attributes = {"strides": conv.stride, "dilations": conv.dilation, "pads": conv.pads}
        inputs, last = [last, f"w{i}", f"b{i}"], f"conv{i}"
        nodes.append(make_node("Conv", inputs, [last], group=conv.groups, **attributes))
        if conv.relu6:
            weights += [from_array(np.float32(v), name) for v, name in ((0, "low"), (6, "high"))]
            nodes.append(make_node("Clip", [last, "low", "high"], ["relu6"]))
            last = "relu6"
    x = make_tensor_value_info("x", onnx.TensorProto.FLOAT, _nchw(call.x).shape)
    y = make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)
    graph = make_graph(nodes, "convolution", [x], [y], weights)
    model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def onnxruntime(call):
    """Run a session bound to its arrays; ONNX is NCHW, which it converts to and from inside."""
    return run_onnx(_onnx_model(call), x=_nchw(call.x))


def run_onnx(model, **inputs):
    """Run a model's session, bound to its inputs and its output."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    (output,) = session.get_outputs()
    y = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
    binding.bind_ortvalue_output(output.name, y)
    return partial(session.run_with_iobinding, binding), lambda _: _from_nchw(y.numpy())


def openvino(call):
    """Run an inference request on its own tensors; NCHW outside, converted inside."""
    ov = pytest.importorskip("openvino")
    return run_openvino(ov.Core().read_model(_onnx_model(call)), _nchw(call.x))


def run_openvino(model, *inputs):
    """Run a model on one thread, in float32, on its own tensors."""
    ov = pytest.importorskip("openvino")
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
    }
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    for i, array in enumerate(inputs):
        request.get_input_tensor(i).data[:] = array
    return request.infer, lambda _: _from_nchw(request.get_output_tensor().data)


def ncnn(call):
    """Extract from a fresh extractor, as ncnn asks for; fp32 throughout, planar outside."""
    ncnn = pytest.importorskip("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_vulkan_compute = False
    for kind in ("fp16", "bf16"):
        for use in ("packed", "storage"):
            setattr(net.opt, f"use_{kind}_{use}", False)
    net.opt.use_fp16_arithmetic = False
    lines, weights = ["Input x 0 1 blob0"], b""
    for i, conv in enumerate(_convs(call)):
        kind = "ConvolutionDepthWise" if conv.groups > 1 else "Convolution"
        lines.append(f"{kind} conv{i} 1 1 blob{i} blob{i + 1} {_ncnn_params(conv)}")
        # A tag of 0 says raw float32.
        weights += np.uint32(0).tobytes() + conv.w.tobytes() + conv.bias.tobytes()
    net.load_param_mem("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines]) + "\n")
    with TemporaryDirectory() as folder:
        path = Path(folder, "weights.bin")
        path.write_bytes(weights)
        net.load_model(str(path))
    planes = _nchw(call.x)[0]  # a Mat does not keep what it was made from
    x = ncnn.Mat(planes).clone()
    last = f"blob{len(lines) - 1}"

    def run():
        with net.create_extractor() as extractor:
            extractor.input("blob0", x)
            return extractor.extract(last)[1]

    return run, lambda y: np.array(y).transpose(1, 2, 0)


def _ncnn_params(conv):
    """ncnn's numbered parameters; see its docs/developer-guide/operators.md."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.stride, conv.dilation
    top, left, bottom, right = conv.pads
    params = {0: conv.w.shape[0], 1: kw, 11: kh, 2: dw, 12: dh, 3: sw, 13: sh, 5: 1}
    params |= {4: left, 15: right, 14: top, 16: bottom, 6: conv.w.size, 7: conv.groups}
    relu6 = " 9=3 -23310=2,0.0,6.0" if conv.relu6 else ""
    return " ".join(f"{key}={value}" for key, value in params.items()) + relu6


OURS = {"naive": naive, "depthwise": depthwise} | {
    isa: partial(convkern, isa) for isa in ck.available_isas()
}
PEERS = {engine.__name__: engine for engine in (torch, onnxruntime, openvino, ncnn)}
