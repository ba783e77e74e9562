"""What is timed: whole networks at 224 x 224, and the single operations of ../shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial

import numpy as np
import reference
import shapes

import convkern as ck
from convkern import zoo

from . import nodes
from .nodes import Deform, Network, Pool

SIZE = 224


@dataclass(frozen=True)
class Workload:
    """Something that convkern and the peers run.

    Attributes
    ----------
    name : str
    network : Network
        What the peers run.
    run : callable
        What convkern runs, with the keyword `threads`; returns the array.
    macs : int
        Multiply-adds.
    """

    name: str
    network: Network
    run: Callable[..., np.ndarray]
    macs: int

    @cached_property
    def want(self) -> np.ndarray:
        """What the float64 oracle says, (H, W, C)."""
        return oracle(self.network)


def oracle(network: Network) -> np.ndarray:
    """Run a network in float64 NumPy; the result is (H, W, C)."""
    arrays = {name: array.astype(np.float64) for name, array in network.inputs.items()}
    for node in network.nodes:
        arrays[node.name] = _oracle(node, *(arrays[name] for name in node.inputs))
    return arrays[network.output][0].transpose(1, 2, 0)


def _oracle(node, x, *more):
    if isinstance(node, Pool) and node.kernel is None:
        return reference.global_avg_pool2d(x, layout="NCHW")
    top, left, bottom, right = node.pads
    window = {"stride": node.stride, "padding": ((top, bottom), (left, right)), "layout": "NCHW"}
    if isinstance(node, Pool):
        pool = {"max": reference.max_pool2d, "average": reference.avg_pool2d}[node.kind]
        return pool(x, node.kernel, **window)
    weights = node.w.astype(np.float64), node.bias.astype(np.float64)
    window |= {"dilation": node.dilation, "activation": node.activation}
    if isinstance(node, Deform):
        offset, mask = more
        return reference.deform_conv2d(x, offset, *weights, mask=mask, **window)
    residual = more[0] if more else None
    return reference.conv2d(x, *weights, groups=node.groups, residual=residual, **window)


# ---------------------------------------------------------------------------------------- networks


def _network(name: str, make: Callable[[], ck.Graph]) -> Workload:
    graph = make()
    x = np.random.default_rng(0).standard_normal((SIZE, SIZE, 3)).astype(np.float32)
    out = np.empty(graph.out_shape(x.shape), np.float32)
    run = partial(graph, x, out=out)
    return Workload(name, nodes.of_graph(graph, x), run, graph.cost(x.shape).macs)


NETWORKS: dict[str, Callable[[], Workload]] = {
    name: partial(_network, name, make)
    for name, make in {
        "mobilenet_v1": lambda: zoo.mobilenet_v1_body().graph,
        "mobilenet_v1_0.5": lambda: zoo.mobilenet_v1_body(0.5).graph,
        "mobilenet_v2": zoo.mobilenet_v2_body,
        "efficientnet_lite0": lambda: zoo.efficientnet_lite0().graph,
    }.items()
}


# -------------------------------------------------------------------------------- single operations


def operations(pattern: str) -> list[tuple[str, Callable[[], Workload]]]:
    """List those whose name matches, such as "separable*", of the shapes of `pytest bench/`."""
    chosen = [case for case in shapes.load_all(all_shapes=False) if fnmatchcase(str(case), pattern)]
    return [(str(case), partial(_operation, case)) for case in chosen]


def _operation(case) -> Workload:
    layer, inputs = shapes.prepare(case.call())
    out = np.empty(layer.out_shape(inputs[0].shape), np.float32)
    call = case.call(layout="NCHW")
    network = nodes.of_call(call, shapes.prepare(call)[0])
    return Workload(str(case), network, partial(layer, *inputs, out=out), shapes.cost(case).macs)
