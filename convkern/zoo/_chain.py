"""Run layers one after another over memory that is reused."""

import threading
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from convkern.cost import Cost

Shape = tuple[int, ...]

# A step reads the output of the step before and, as a residual, at most that of two steps before,
# so with three buffers in rotation it never writes what it or a later step still reads.
_BUFFERS = 3


class Layer(Protocol):
    """What `LayerChain` asks of a layer; those of ``convkern.layers`` have it."""

    def __call__(
        self,
        x: np.ndarray,
        out: np.ndarray | None = None,
        threads: int | None = None,
        *,
        residual: np.ndarray | None = None,
    ) -> np.ndarray: ...

    def out_shape(self, x_shape: Shape) -> Shape: ...

    def cost(self, x_shape: Shape) -> Cost: ...


class Step(NamedTuple):
    """A layer, and whether it adds the input of the step before (an inverted residual)."""

    layer: Layer
    residual: bool = False


class LayerChain:
    """Layers in a row, each reading the output of the one before.

    Fresh memory is slow: its pages are faulted in one by one. So each thread keeps three buffers
    that the activations rotate through, for the shape it ran last. Calls from several threads do
    not meet. Pickles hold the layers alone.

    Parameters
    ----------
    steps : sequence of Step
        At least one. A step with a residual needs a step before it, with an input of the shape
        that the step puts out.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["steps"])  # type: ignore[misc]

    def __call__(self, x: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Run all layers on `x`; the result is the caller's, not a reused buffer."""
        before = x = np.asarray(x)
        for step, out in zip(self.steps, [*self._buffers(x.shape), None], strict=True):
            residual = before if step.residual else None
            before, x = x, step.layer(x, out=out, threads=threads, residual=residual)
        return x

    def out_shapes(self, x_shape: Shape) -> list[Shape]:
        """Shape of every layer's output, for images of `x_shape`."""
        shapes = []
        for step in self.steps:
            x_shape = step.layer.out_shape(x_shape)
            shapes.append(x_shape)
        return shapes

    def cost(self, x_shape: Shape) -> Cost:
        """Sum of the layers' costs, for images of `x_shape`."""
        inputs = [x_shape, *self.out_shapes(x_shape)[:-1]]
        costs = (step.layer.cost(shape) for step, shape in zip(self.steps, inputs, strict=True))
        return sum(costs, Cost())

    def _buffers(self, x_shape: Shape) -> list[np.ndarray]:
        """Where this thread puts the output of every step but the last."""
        planned_shape, buffers = getattr(self._local, "plan", (None, []))
        if planned_shape != x_shape:
            shapes = self.out_shapes(x_shape)[:-1]
            sizes = [max(map(prod, shapes[i::_BUFFERS]), default=0) for i in range(_BUFFERS)]
            memory = [np.empty(size, np.float32) for size in sizes]
            buffers = [
                memory[i % _BUFFERS][: prod(shape)].reshape(shape) for i, shape in enumerate(shapes)
            ]
            self._local.plan = x_shape, buffers
        return buffers
