"""What is ours as a contestant: an algorithm of this package, and the way in which a user calls it.

"function" is the public function, which packs the weights every time; "layer" is a ConvTranspose1d, which keeps them
packed; "layer out" is that with arrays for the results that are used again, so that no page of memory is new.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numba

from ..functional import Gradients, conv_transpose1d, conv_transpose1d_backward
from ..modules import ConvTranspose1d
from .checking import GRADIENTS, Arrays, shapes
from .contestants import Pass, needed
from .device import Host, Place, operands_in
from .formats import FORMATS
from .timing import Call
from .workloads import Operands, Problem

Style = Literal["function", "layer", "layer out"]
STYLES: tuple[Style, ...] = get_args(Style)


class Ours:
    """An algorithm of this package.

    Parameters
    ----------
    algorithm : str
    place : "cpu" or Place
        Where it runs: the host, or a GPU with its clock.
    style : {"function", "layer", "layer out"}
    threads : int, optional
        Numba's threads; default: as many as it has when this is made.
    """

    exact = True
    cold = False

    def __init__(
        self, algorithm: str, place: Literal["cpu"] | Place, style: Style = "function", threads: int | None = None
    ) -> None:
        self.name = algorithm if style == "function" else f"{algorithm} {style}"
        self.threads = numba.get_num_threads() if threads is None else threads
        self._algorithm = algorithm
        self._place: Place = Host() if place == "cpu" else place
        self._style: Style = style

    def takes(self, problem: Problem, what: Pass, dtype: str) -> bool:  # noqa: ARG002  # the protocol's
        """Every pass of every problem; but nothing is scattered into halves, which would round every addition."""
        return self._algorithm != "scatter" or FORMATS[dtype].rounding == 0

    def prepare(self, problem: Problem, what: Pass, operands: Operands) -> Call:
        """A call of the public function or of a layer made from the weights."""
        run = self._forward if what == "forward" else self._backward
        work = run(problem, what, operands_in(self._place, operands), operands.weight.dtype)
        return self._place.call(work, lambda: numba.set_num_threads(self.threads))

    def arrays(self, what: Pass, result: Any) -> Arrays:
        """The output, or the gradients that were needed."""
        named = {"output": result} if what == "forward" else result._asdict()
        return {name: self._place.take(array) for name, array in named.items() if array is not None}

    def _forward(self, problem: Problem, what: Pass, operands: Operands, dtype: Any) -> Callable[[], Any]:  # noqa: ARG002  # as _backward
        x, w, b, _ = operands
        on = self._place.keywords
        if self._style == "function":
            parameters = problem.forward_parameters | self._chosen() | on
            return lambda: conv_transpose1d(x, w, b, **parameters)
        layer, size = self._layer(problem, operands), problem.output_size
        if self._style == "layer":
            return lambda: layer(x, size, **on)
        out = self._empty(problem, "output", dtype)
        return lambda: layer(x, size, out=out, **on)

    def _backward(self, problem: Problem, what: Pass, operands: Operands, dtype: Any) -> Callable[[], Any]:
        x, w, _, dy = operands
        names = needed(problem, what)
        on = self._place.keywords
        if self._style == "function":
            parameters = problem.backward_parameters | self._chosen() | {"needs": names} | on
            return lambda: conv_transpose1d_backward(dy, x, w, **parameters)
        layer = self._layer(problem, operands)
        if self._style == "layer":
            return lambda: layer.backward(dy, x, needs=names, **on)
        out = Gradients(*(self._empty(problem, name, dtype) if name in names else None for name in GRADIENTS))
        return lambda: layer.backward(dy, x, needs=names, out=out, **on)

    def _layer(self, problem: Problem, operands: Operands) -> ConvTranspose1d:
        state = {"weight": operands.weight} | ({} if operands.bias is None else {"bias": operands.bias})
        parameters: dict[str, Any] = problem.parameters | self._chosen() | {"device": self._place.device}
        return ConvTranspose1d.from_state_dict(state, **parameters)

    def _chosen(self) -> dict[str, Any]:
        return {"algorithm": self._algorithm, "precision": self._place.precision}

    def _empty(self, problem: Problem, name: str, dtype: Any) -> Any:
        return self._place.empty(shapes(problem)[name], dtype)
