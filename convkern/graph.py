"""Networks: layers that read each other's arrays, planned once per input shape, run in one call.

A plan fuses what it can (a depthwise and the pointwise that alone reads it become one separable,
and a pointwise before that runs inside it where its array is large), runs layers whose arrays are
too large for the cache depth-first, band of rows by band of rows, and lays all arrays into one
arena; see csrc/ck_plan.c. The result has the bits that the layers give one by one.

Layers of NCHW run as those of NHWC: planes become pixels before the first, and pixels planes behind
the last, band by band. Those that sum little, and one by itself, stay on planes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _core, runtime
from ._geometry import as_array, as_same_dtype, as_shape, check_memory
from ._operation import check_out
from .cost import Cost
from .layers import (
    Conv2d,
    DeformConv2d,
    DepthwiseConv2d,
    PointwiseConv2d,
    SeparableConv2d,
    SpatiallySeparableConv2d,
    _Immutable,
    _Pool,
)

__all__ = ["Graph", "Node", "Plan", "PlannedStep", "Sequential"]

_KEPT_PLANS = 8  # shapes, with numbers of threads; the oldest goes first

# Multiply-adds for each element of a graph's planes, from which pixels between the layers pay for
# turning these two. Measured with AMX, AVX-512 and AVX2, two to four layers of 3 to 960 channels on
# images of 7x7 to 224x224, times of the same on planes: from 32 on 0.6 to 1.07 (where a pooling
# reads the input, or a depthwise writes the output, at most 1.16 and 1.3), of 16 to 31 0.7 to 1.35,
# of less 0.8 to 3, without any sums over channels 0.5 to 3 (less than 1 on 7x7 and 14x14 only).
_LEAST_SUMS = 32


class Node(NamedTuple):
    """A layer of a graph, and the arrays that it reads; it makes the array of its own name.

    Attributes
    ----------
    name : str
    layer : layer
        One of the layers of convkern.
    inputs : str or sequence of str
        The array that the layer reads. Of a `DeformConv2d`, x, offset and perhaps mask.
    residual : str, optional
        An array of the output's shape that is added before the activation.
    """

    name: str
    layer: Any
    inputs: Any
    residual: str | None = None


class _Step(NamedTuple):
    """Nodes that run as one layer."""

    names: tuple[str, ...]
    layer: Any
    inputs: tuple[str, ...]
    residual: str | None

    @property
    def output(self) -> str:
        return self.names[-1]

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inputs if self.residual is None else (*self.inputs, self.residual)


class PlannedStep(NamedTuple):
    """How some nodes of a graph run.

    Attributes
    ----------
    names : tuple of str
        The nodes; more than one where they are fused.
    layer : layer
        What does their work; for NHWC, where planes are turned into pixels.
    x_shape, shape : tuple of int
        Of the array that it reads, and of the one that it makes.
    group : int
        Steps of one group run together, band by band. Turns of planes belong to groups, too, or
        are one, whose number is left out here.
    band : int
        Rows of the group's last array that are made at once; 0 where all are.
    rows : int
        Rows of this step's array that are kept in memory; 0 where all are.
    bytes : int
        What the array takes in the arena; 0 for the output, which is the caller's, unless it is
        made of these pixels.
    inside : bool
        Made within the next step, a few channels of some pixels at a time; the array never exists.
    """

    names: tuple[str, ...]
    layer: Any
    x_shape: tuple[int, ...]
    shape: tuple[int, ...]
    group: int
    band: int
    rows: int
    bytes: int
    inside: bool


class Plan(NamedTuple):
    """What a graph does for one input shape; `str` shows it as a table.

    Attributes
    ----------
    steps : tuple of PlannedStep
        In the order in which they run.
    arena : int
        Bytes that all arrays between the input and the output take together; in NCHW also the rows
        of these two as pixels.
    workspace : int
        Bytes of the arena, and of what the layers need beside it.
    """

    steps: tuple[PlannedStep, ...]
    arena: int
    workspace: int

    def __str__(self) -> str:
        rows = [("group", "nodes", "input", "output", "runs", "bytes")]
        for step in self.steps:
            runs = f"bands of {step.band} rows" if step.band else "whole"
            if step.rows:
                runs += f", keeps {step.rows}"
            if step.inside:
                runs = "inside the next"
            rows.append(
                (
                    str(step.group),
                    " + ".join(step.names),
                    "x".join(map(str, step.x_shape)),
                    "x".join(map(str, step.shape)),
                    runs,
                    f"{step.bytes:,}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(
            [*lines, f"arena {self.arena:,} bytes, workspace {self.workspace:,} bytes"]
        )


class _Program(NamedTuple):
    """A plan in C, and the shapes of every step's array."""

    packed: _core.Plan
    shapes: dict[str, tuple[int, ...]]


class Graph:
    """A network of layers, called like one layer.

    Parameters
    ----------
    nodes : sequence of Node, or of tuples (name, layer, inputs[, residual])
        Each reads the input or arrays of nodes before it. All layers have the same layout, which
        is that of the graph, the same dtype and the same ISA. Nodes that the output does not
        depend on are left out.
    input : str, optional
        The name of the input.
    output : str, optional
        The node whose array is the result; by default the last.

    Raises
    ------
    TypeError
        If a node is no node, a name no string, or a layer no layer.
    ValueError
        If a name is taken, or unknown where it is read; if a layer reads too few or too many
        arrays, or layers differ in layout, dtype or ISA.

    Examples
    --------
    An inverted residual, whose wide arrays are never whole in memory where they are large:

    >>> import numpy as np, convkern as ck
    >>> rng = np.random.default_rng(0)
    >>> def weights(*shape):
    ...     return rng.standard_normal(shape).astype(np.float32)
    >>> block = ck.Graph([
    ...     ("expand", ck.PointwiseConv2d(weights(24, 144), activation="relu6"), "x"),
    ...     ("depthwise", ck.DepthwiseConv2d(weights(3, 3, 144), padding=1), "expand"),
    ...     ("project", ck.PointwiseConv2d(weights(144, 24)), "depthwise", "x"),
    ... ], input="x")
    >>> block(np.ones((56, 56, 24), np.float32)).shape
    (56, 56, 24)
    >>> [step.names for step in block.plan((56, 56, 24)).steps]
    [('expand',), ('depthwise', 'project')]
    """

    def __init__(
        self, nodes: Sequence[Any], *, input: str = "input", output: str | None = None
    ) -> None:
        name = type(self).__name__
        self._name = name
        self._input = _as_name(name, "input", input)
        self._nodes = _as_nodes(name, nodes, self._input)
        self._output = self._nodes[-1].name if output is None else _as_name(name, "output", output)
        if all(node.name != self._output for node in self._nodes):
            raise ValueError(f"{name}: output={self._output!r} is not a node")
        self._layout, self._dtype, self.isa = _common(name, self._nodes)
        self._needed = _needed(self._nodes, self._output)
        sums = _sums_an_element(self._input, self._needed)
        self._turn = self._layout == "NCHW" and sums >= _LEAST_SUMS
        self._steps = _fuse(self._needed, "NHWC" if self._turn else self._layout)
        if self._turn and len(self._steps) == 1:  # which does as is best for it
            self._turn, self._steps = False, _fuse(self._needed, self._layout)
        self._programs: dict[Any, _Program] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._nodes, self._input, self._output)

    def __repr__(self) -> str:
        return f"{self._name}({len(self._nodes)} nodes, {self._input!r} -> {self._output!r})"

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The layers, and what they read."""
        return self._nodes

    @property
    def input(self) -> str:
        """The name of the input."""
        return self._input

    @property
    def output(self) -> str:
        """The name of the array that is the result."""
        return self._output

    def __call__(
        self, x: Any, out: np.ndarray | None = None, threads: int | None = None
    ) -> np.ndarray:
        """Run the network on x; `out` and `threads` are those of any layer."""
        name = self._name
        threads = runtime.num_threads(name, threads)
        if self._dtype is None:
            x = as_array(name, "x", x)
        else:
            x = as_same_dtype(name, "x", x, self._dtype, "the weights")
        program = self._program(x.shape, x.dtype, threads)
        shape = program.shapes[self._output]
        check_memory(name, shape, x.itemsize)
        if out is not None:
            check_out(name, out, shape, x.dtype)
        return program.packed.run(shape, x, out)

    def out_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result for an input of this shape, or ValueError."""
        return self._shapes(as_shape(self._name, "x_shape", x_shape))[self._output]

    def out_shapes(self, x_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shape of every node's array for an input of this shape."""
        shapes = {self._input: as_shape(self._name, "x_shape", x_shape)}
        for node in self._nodes:
            shapes[node.name] = node.layer.out_shape(shapes[node.inputs[0]])
        return shapes

    def cost(self, x_shape: tuple[int, ...]) -> Cost:
        """The sum of the layers' costs for an input of this shape; see `convkern.cost`."""
        shapes = self.out_shapes(x_shape)
        costs = (node.layer.cost(*(shapes[i] for i in node.inputs)) for node in self._nodes)
        return sum(costs, Cost())

    def plan(self, x_shape: tuple[int, ...]) -> Plan:
        """What runs how for an input of this shape."""
        x_shape = as_shape(self._name, "x_shape", x_shape)
        dtype = self._dtype or np.dtype(np.float32)
        program = self._program(x_shape, dtype, runtime.get_num_threads())
        places, arena, workspace = program.packed.places()
        shapes = program.shapes
        steps = tuple(
            PlannedStep(
                s.names, s.layer, shapes[s.inputs[0]], shapes[s.output], g, band, rows, size, inside
            )
            for s, (g, band, rows, _, size, inside) in zip(self._steps, places, strict=True)
        )
        return Plan(steps, arena, workspace)

    def _shapes(self, x_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        shapes = {self._input: x_shape}
        for step in self._needed:
            shape = shapes[step.output] = step.layer.out_shape(shapes[step.inputs[0]])
            if step.residual is not None and shapes[step.residual] != shape:
                raise ValueError(
                    f"{self._name}: {step.output!r} adds {step.residual!r} of shape "
                    f"{shapes[step.residual]}; it must have the output's, {shape}"
                )
        return shapes

    def _program(self, x_shape: tuple[int, ...], dtype: np.dtype, threads: int) -> _Program:
        program = self._programs.get((x_shape, dtype, threads))
        if program is None:
            program = self._make(x_shape, dtype, threads)
            while len(self._programs) >= _KEPT_PLANS:
                self._programs.pop(next(iter(self._programs), None), None)
            self._programs[x_shape, dtype, threads] = program
        return program

    def _make(self, x_shape: tuple[int, ...], dtype: np.dtype, threads: int) -> _Program:
        shapes = self._shapes(x_shape)
        for step in self._steps:
            check_memory(self._name, shapes[step.output], dtype.itemsize)
        if 0 in x_shape[:1] and len(x_shape) == 4:  # an empty batch needs no program, but one
            shape = (1, *x_shape[1:])  # shows what an image of it would take
            return _Program(self._make(shape, dtype, threads).packed, shapes)
        numbers = {self._input: 0}
        steps = []
        for step in self._steps:
            arrays = [numbers[i] for i in step.inputs]
            residual = -1 if step.residual is None else numbers[step.residual]
            offset, mask = [*arrays[1:], -1, -1][:2]
            read = [_as_pixels(shapes[i]) if self._turn else shapes[i] for i in step.inputs]
            what, sizes, offset_groups = _operation(step, read)
            steps.append((what, sizes, (arrays[0], residual, offset, mask), offset_groups))
            numbers[step.output] = len(steps)
        packed = _core.Plan(self._name, dtype.itemsize == 8, steps, threads, self._turn)
        return _Program(packed, shapes)


class Sequential(Graph):
    """Layers in a row: a `Graph` whose nodes are called "0", "1", ...

    Parameters
    ----------
    layers : sequence of layers
        At least one.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> net = ck.Sequential([
    ...     ck.Conv2d(np.ones((3, 3, 3, 8), np.float32), stride=2, padding="same"),
    ...     ck.DepthwiseConv2d(np.ones((3, 3, 8), np.float32), padding="same"),
    ...     ck.PointwiseConv2d(np.ones((8, 4), np.float32)),
    ... ])
    >>> print(net.plan((32, 32, 3)))  # doctest: +ELLIPSIS
    group  nodes  input    output   runs   bytes
    0      0      32x32x3  16x16x8  whole  8,192
    1      1 + 2  16x16x8  16x16x4  whole  0
    arena 8,192 bytes, workspace ... bytes
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        nodes = []
        before = "input"
        for i, layer in enumerate(layers):
            nodes.append(Node(str(i), layer, before))
            before = str(i)
        super().__init__(nodes)

    @property
    def layers(self) -> tuple[Any, ...]:
        """The layers in the order in which they run."""
        return tuple(node.layer for node in self._nodes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.layers,)


def _rebuild(graph: type[Graph], nodes: Any, input: str, output: str) -> Graph:
    return graph(nodes, input=input, output=output)


def _as_name(graph: str, what: str, name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{graph}: {what} must be a string, not {type(name).__name__}")
    return name


def _as_nodes(graph: str, nodes: Any, first: str) -> tuple[Node, ...]:
    """Nodes whose names are their own and whose inputs come before them."""
    known = {first}
    checked = []
    for i, given in enumerate(nodes):
        if not isinstance(given, tuple) or not 3 <= len(given) <= 4:
            raise TypeError(
                f"{graph}: nodes[{i}] must be a Node or (name, layer, inputs[, residual]), "
                f"not {given!r:.80}"
            )
        node = Node(*given)
        name = _as_name(graph, f"the name of nodes[{i}]", node.name)
        if not isinstance(node.layer, _Immutable):
            kind = type(node.layer).__name__
            raise TypeError(f"{graph}: the layer of {name!r} must be a layer, not {kind}")
        if not isinstance(node.inputs, (str, tuple, list)):
            raise TypeError(
                f"{graph}: the inputs of {name!r} must be a string or a sequence of strings, "
                f"not {type(node.inputs).__name__}"
            )
        inputs = (node.inputs,) if isinstance(node.inputs, str) else tuple(node.inputs)
        deformable = isinstance(node.layer, DeformConv2d)
        if not (2 <= len(inputs) <= 3 if deformable else len(inputs) == 1):
            expected = "x, offset and perhaps mask" if deformable else "one array"
            raise ValueError(f"{graph}: {name!r} reads {expected}, not {inputs}")
        if node.residual is not None and isinstance(node.layer, _Pool):
            raise ValueError(f"{graph}: {name!r} is a pooling, which has no residual")
        for read in inputs if node.residual is None else (*inputs, node.residual):
            if _as_name(graph, f"what {name!r} reads", read) not in known:
                raise ValueError(f"{graph}: {name!r} reads {read!r}, which no node before it makes")
        if name in known:
            raise ValueError(f"{graph}: two arrays are called {name!r}")
        known.add(name)
        checked.append(Node(name, node.layer, inputs, node.residual))
    if not checked:
        raise ValueError(f"{graph}: nodes is empty; a network has at least one layer")
    return tuple(checked)


def _common(graph: str, nodes: tuple[Node, ...]) -> tuple[str, np.dtype | None, str]:
    """Layout, dtype (None where there are no weights) and ISA, which all layers share."""
    seen: dict[str, tuple[str, Any]] = {}
    for name, layer, *_ in nodes:
        operation = layer._operation
        pooling = isinstance(layer, _Pool)
        facts = {"layout": _layout_of(layer), "ISA": layer.isa}
        if not pooling:
            facts["dtype"] = operation.w.dtype
        for what, value in facts.items():
            first, expected = seen.setdefault(what, (name, value))
            if value != expected:
                raise ValueError(
                    f"{graph}: {first!r} has {what} {expected} and {name!r} has {value}; all "
                    f"layers must have the same"
                )
    return seen["layout"][1], seen["dtype"][1] if "dtype" in seen else None, seen["ISA"][1]


def _needed(nodes: tuple[Node, ...], output: str) -> list[_Step]:
    """The nodes that the output depends on."""
    needed = {output}
    steps = []
    for node in reversed(nodes):
        if node.name in needed:
            steps.append(_Step((node.name,), node.layer, node.inputs, node.residual))
            needed.update(steps[-1].reads)
    return steps[::-1]


def _sums_an_element(input: str, nodes: list[_Step]) -> float:
    """How many multiply-adds there are for an element of the input and the output, in planes.

    Only those count that sum over channels; arrays of one channel are the same in both layouts.
    """
    area = {input: 1.0}  # pixels, of the input's
    like: dict[str, str] = {}  # arrays of as many channels, whose number the layer does not say
    channels: dict[str, int] = {}
    sums = 0.0
    for node in nodes:
        operation, x = node.layer._operation, node.inputs[0]
        stride = operation.window.stride if operation.window else (np.inf, 1)
        area[node.output] = area[x] / math.prod(stride)
        x = like.get(x, x)
        if isinstance(node.layer, (_Pool, SpatiallySeparableConv2d)):
            like[node.output] = x
            continue
        channels.setdefault(x, operation.in_channels)
        channels[node.output] = operation.out_channels
        if not isinstance(node.layer, DepthwiseConv2d):
            sums += operation.w.size * area[node.output]
    ends = [(name, channels.get(like.get(name, name), 1)) for name in (input, nodes[-1].output)]
    turned = sum(c * area[name] for name, c in ends if c > 1)
    return sums / turned if turned else math.inf if sums else 0.0


def _layout_of(layer: Any) -> str:
    operation = layer._operation
    return str(operation.layout if isinstance(layer, _Pool) else operation.layouts.image)


def _with_layout(layer: Any, layout: str) -> Any:
    """The layer for images of this layout."""
    if _layout_of(layer) == layout:
        return layer
    operation = layer._operation
    arrays, options = layer._arrays, layer._options | {"layout": layout}
    if isinstance(layer, SpatiallySeparableConv2d):
        arrays = tuple(array if array is None else array.T for array in arrays)
    elif not isinstance(layer, _Pool):
        options["weight_layout"] = operation.layouts.weights
    with runtime.use_isa(layer.isa):
        return type(layer)(*arrays, **options)


def _as_pixels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The NHWC shape of such an NCHW array."""
    return (*shape[:-3], *shape[-2:], shape[-3])


def _fuse(steps: list[_Step], layout: str) -> tuple[_Step, ...]:
    """Depthwise layers joined with the pointwise layer that alone reads them."""
    readers: dict[str, int] = {}
    for step in steps:
        for name in step.reads:
            readers[name] = readers.get(name, 0) + 1
    fused: list[_Step] = []
    at: dict[str, int] = {}
    for step in steps:
        x = step.inputs[0]
        depthwise = fused[at[x]] if x in at else None
        if depthwise is not None and readers[x] == 1 and x != step.residual:
            layer = _separable(depthwise, step.layer, layout)
            if layer is not None and at[x] == len(fused) - 1:
                names = (*depthwise.names, *step.names)
                step = _Step(names, layer, depthwise.inputs, step.residual)
                fused.pop()
        at[step.output] = len(fused)
        fused.append(step)
    return tuple(step._replace(layer=_with_layout(step.layer, layout)) for step in fused)


def _separable(depthwise: _Step, pointwise: Any, layout: str) -> SeparableConv2d | None:
    """One layer that does what both do in this layout, where there is one."""
    first = depthwise.layer
    if not isinstance(first, DepthwiseConv2d) or depthwise.residual is not None:
        return None
    if not isinstance(pointwise, (PointwiseConv2d, Conv2d)):
        return None
    operation = pointwise._operation
    plain = operation.window.kernel == operation.window.stride == (1, 1)
    if not plain or any(operation.window.padding_for(1, 1)) or operation.channels[2] > 1:
        return None
    if first._operation.layouts != operation.layouts:
        return None
    own, other = first._options, pointwise._options
    with runtime.use_isa(first.isa):
        return SeparableConv2d(
            first._arrays[0],
            pointwise._arrays[0],
            first._arrays[1],
            pointwise._arrays[1],
            stride=own["stride"],
            padding=own["padding"],
            dilation=own["dilation"],
            dw_activation=own["activation"],
            activation=other["activation"],
            layout=layout,
            weight_layout=operation.layouts.weights,
            precision=other["precision"],
        )


def _operation(step: _Step, shapes: list[tuple[int, ...]]) -> tuple[Any, tuple[int, ...], int]:
    """What C runs for a step, the sizes of its image, and its offset groups."""
    operation, packed = step.layer._operation, step.layer._packed
    if isinstance(step.layer, _Pool):
        plan = operation.plan(shapes[0])
        window = plan.window
        pooling = (operation.kind, packed, window.flat(), window.ceil_mode)
        return (*pooling, operation.count_include_pad), plan.sizes, 0
    if isinstance(step.layer, DeformConv2d):
        plan = operation.plan(*[*shapes, None][:3])
        return packed[plan.groups], plan.sizes, plan.offset_groups
    return packed, operation.plan(shapes[0]).sizes, 0
