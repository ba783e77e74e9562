"""What is timed: whole networks at 224 x 224, and the single operations of ../shapes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import reference
import shapes

import convkern as ck
from convkern import zoo

from . import nodes
from .mobilenet_v2 import mobilenet_v2_body
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
    program : callable
        Given a number of threads, what convkern runs: a function whose result is the array.
    macs : int
        Multiply-adds.
    want : ndarray
        What the float64 oracle says, (H, W, C).
    """

    name: str
    network: Network
    program: Callable[[int], Callable[[], np.ndarray]]
    macs: int
    want: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "want", oracle(self.network))


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
    run = lambda threads: partial(graph, x, out=out, threads=threads)  # noqa: E731
    return Workload(name, nodes.of_graph(graph, x), run, graph.cost(x.shape).macs)


def _mobilenet_v1(alpha: float) -> ck.Graph:
    return ck.Sequential(zoo.mobilenet_v1_body(alpha).layers)


def _efficientnet_lite0() -> ck.Graph:
    net = zoo.efficientnet_lite0()
    made = []
    for i, step in enumerate(net._features.steps):
        names = ["input", *[node[0] for node in made]]
        made.append((f"layer{i}", step.layer, names[-1], names[-2] if step.residual else None))
    made.append(("pooled", ck.GlobalAvgPool2d(), made[-1][0]))
    return ck.Graph([*made, ("logits", net._classifier, "pooled")])


NETWORKS: dict[str, Callable[[], Workload]] = {
    name: partial(_network, name, make)
    for name, make in {
        "mobilenet_v1": partial(_mobilenet_v1, 1.0),
        "mobilenet_v1_0.5": partial(_mobilenet_v1, 0.5),
        "mobilenet_v2": mobilenet_v2_body,
        "efficientnet_lite0": _efficientnet_lite0,
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
    run = lambda threads: partial(layer, *inputs, out=out, threads=threads)  # noqa: E731
    call = case.call(layout="NCHW")
    network = nodes.of_call(call, shapes.prepare(call)[0])
    return Workload(str(case), network, run, shapes.cost(case).macs)
