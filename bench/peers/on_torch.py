"""torch: traced, frozen and fused; its NHWC is channels_last."""

import warnings

from .nodes import Conv, Deform, Network, Pool

RELU = (0, float("inf"))
WARM_UP = 3  # runs in which it still watches what it is given


def prepare(layout: str, network: Network, threads: int):
    import torch

    torch.set_num_threads(threads)
    memory = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    net = _module(network).eval().to(memory_format=memory)
    (array,) = network.inputs.values()
    x = torch.from_numpy(array).contiguous(memory_format=memory)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, all of it
        net = torch.jit.freeze(torch.jit.trace(net, x))
        if len(_clamps(network)) <= 1:  # torch 2.13 would give them all the limits of one
            net = torch.jit.optimize_for_inference(net)
        for _ in range(WARM_UP):
            net(x)

    def run():
        with torch.inference_mode():
            return net(x)

    return run, lambda y: y.numpy()[0].transpose(1, 2, 0)


def _module(network: Network):
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.ModuleList(nn.Sequential(*_layers(node)) for node in network.nodes)
            self.ends = nn.ModuleList(_end(node) for node in network.nodes)

        def forward(self, x):
            arrays = dict(zip(network.inputs, [x], strict=True))
            for node, step, end in zip(network.nodes, self.steps, self.ends, strict=True):
                y = step(arrays[node.x])
                more = [arrays[name] for name in node.inputs[1:]]
                arrays[node.name] = end(y + more[0] if more else y)
            return arrays[network.output]

    return Net()


def _clamps(network: Network) -> set:
    activations = {node.activation for node in network.nodes if isinstance(node, Conv)}
    return {a for a in activations if isinstance(a, tuple) and a != RELU}


def _layers(node) -> list:
    """Make what comes before a residual; padding that is not symmetric is a layer of its own."""
    from torch import from_numpy, nn

    if isinstance(node, Deform):
        raise NotImplementedError("torch leaves deformable convolutions to torchvision")
    top, left, bottom, right = node.pads
    if isinstance(node, Pool):
        if node.kernel is None:
            return [nn.AdaptiveAvgPool2d(1)]
        if (top, left) != (bottom, right):
            raise NotImplementedError("torch pools with symmetric padding")
        if node.kind == "max":
            return [nn.MaxPool2d(node.kernel, node.stride, (top, left))]
        return [nn.AvgPool2d(node.kernel, node.stride, (top, left), count_include_pad=False)]
    before, padding = [], (top, left)
    if (top, left) != (bottom, right):
        before, padding = [nn.ZeroPad2d((left, right, top, bottom))], (0, 0)
    outputs, terms = node.w.shape[:2]
    channels = (terms * node.groups, outputs)
    layer = nn.Conv2d(*channels, node.kernel, node.stride, padding, node.dilation, node.groups)
    layer.weight.data[:], layer.bias.data[:] = (from_numpy(a.copy()) for a in (node.w, node.bias))
    return [*before, layer]


def _end(node):
    from torch import nn

    activation = node.activation if isinstance(node, Conv) else None
    if isinstance(activation, tuple):
        clamps = {RELU: nn.ReLU, (0, 6): nn.ReLU6}
        return clamps[activation]() if activation in clamps else nn.Hardtanh(*activation)
    names = {
        None: nn.Identity,
        "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid,
        "sigmoid": nn.Sigmoid,
        "silu": nn.SiLU,
    }
    return names[activation]()
