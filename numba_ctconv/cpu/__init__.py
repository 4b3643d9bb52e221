"""The CPU engine: NumPy arrays in, NumPy arrays out. Chooses the algorithm, allocates, calls the kernels.

"tiled" is the fast path, and what "auto" takes: register tiles, and rows in place where the layer is depthwise. Where a
layer has no tiled layout (its taps reach too far for a slab), and where a weight or an input is not finite (so that a
product with an absent sample's zero would not vanish), its call is done by "gather". All that is decided by the layer
and its weight alone, so an output's bits depend neither on the batch nor on the length.
"""

from typing import Any

import numpy as np

from .. import checks
from ..checks import Algorithm, Precision
from ..geometry import Geometry
from . import fast, row_sums
from . import forward as forward_kernels
from . import grad_input as grad_input_kernels
from . import grad_weight as grad_weight_kernels
from . import target as machine
from .fast import Kept

FLOAT32, FLOAT64 = checks.DTYPES
FAST: tuple[Algorithm, ...] = ("auto", "tiled")
OVERLAP_WORK = 10_000  # candidate solutions that NumPy tries before a pair of strided arrays counts as sharing memory


class CpuEngine:
    """The operations of dispatch.Engine on NumPy arrays."""

    algorithms: tuple[Algorithm, ...] = ("auto", "tiled", "gather", "scatter")
    precisions: tuple[Precision, ...] = ("ieee",)
    dtypes: tuple[np.dtype[Any], ...] = checks.DTYPES

    def operands(self, values: dict[str, Any]) -> dict[str, Any]:
        """Plain views of arrays of a dtype that the kernels take; None stays None."""
        arrays = dict(values)
        for name, value in values.items():
            if value is None or (type(value) is np.ndarray and (value.dtype is FLOAT32 or value.dtype is FLOAT64)):
                continue
            arrays[name] = self._operand(value, name)
        return arrays

    def _operand(self, value: Any, name: str) -> Any:
        if isinstance(value, np.ma.MaskedArray):
            checks.masked(name)
        checks.floating(value, name)
        return np.asarray(value)

    def described(self, array: Any) -> checks.Described:
        """The dtype and the shape of an array, and its strides."""
        return checks.Described(array.dtype, array.shape, array.strides)

    def batched(self, array: Any) -> Any:
        """A view with a leading dimension of one."""
        return array[None]

    def writeable(self, array: Any) -> bool:
        """Whether NumPy lets the array be written."""
        return bool(array.flags.writeable)

    def overlapped(self, array: Any, others: dict[str, Any]) -> str | None:
        """The first of `others` that shares memory with the array; pairs too intricate to tell count as sharing."""
        own = array.flags.owndata
        for name, other in others.items():
            if other is None or (own and other is not array and other.flags.owndata):
                continue
            try:
                if np.shares_memory(array, other, max_work=OVERLAP_WORK):  # type: ignore[arg-type]  # the stub lacks it
                    return name
            except np.exceptions.TooHardError:
                return name
        return None

    def launch_stream(self, stream: Any, arrays: dict[str, Any]) -> None:
        """Host work has no queue."""
        checks.no_stream(stream)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: Any, stream: None) -> Any:
        """A new array."""
        return np.empty(shape, dtype)

    def forward(
        self,
        input: Any,
        weight: Any,
        bias: Any,
        geometry: Geometry,
        groups: int,
        algorithm: Algorithm,
        precision: Precision,
        stream: None,
        kept: Kept | None,
        output: Any,
    ) -> None:
        """Overwrite output (N, C_out, L_out) from input (N, C_in, L_in), weight and bias (C_out) or None."""
        if output.size == 0:
            return
        if bias is None:
            bias = np.empty(0, output.dtype)
        if algorithm in FAST and fast.forward(input, weight, bias, geometry, groups, kept, output):
            return
        workers, _ = machine.share(weight.size * geometry.input_length * output.shape[0])
        plan, crop = geometry.plan, geometry.crops.left
        batch, out_channels, length = output.shape
        if algorithm == "scatter":
            forward_kernels.scatter(
                input, weight, bias, plan.stride, plan.dilation, groups, crop, workers,
                machine.stretches(workers, batch * out_channels, length), output,
            )  # fmt: skip
            return
        _, positions = geometry.positions(range(plan.stride))
        tile = machine.tile(weight.shape[1], plan.stride, positions, output.itemsize)
        span = min(tile.stretch + plan.shift(plan.kernel_size - 1), geometry.input_length)
        sums = np.empty((workers, *tile), output.dtype)
        slab = np.empty((workers, machine.CHANNELS_TOGETHER, span), output.dtype)
        forward_kernels.gather(
            input, weight, bias, plan.stride, plan.dilation, plan.phase_step, plan.inverse, groups, crop, workers, sums,
            slab, output,
        )  # fmt: skip

    def grad_input(
        self,
        grad_output: Any,
        weight: Any,
        geometry: Geometry,
        groups: int,
        algorithm: Algorithm,
        precision: Precision,
        stream: None,
        kept: Kept | None,
        grad_input: Any,
    ) -> None:
        """Overwrite grad_input (N, C_in, L_in) from grad_output (N, C_out, L_out) and weight."""
        if grad_input.size == 0:
            return
        if algorithm in FAST and fast.grad_input(grad_output, weight, geometry, groups, kept, grad_input):
            return
        workers, _ = machine.share(weight.size * geometry.input_length * grad_input.shape[0])
        plan, crop = geometry.plan, geometry.crops.left
        batch, in_channels, length = grad_input.shape
        if algorithm == "scatter":
            grad_input_kernels.scatter(
                grad_output, weight, plan.stride, plan.dilation, plan.phase_step, plan.inverse, groups, crop, workers,
                machine.stretches(workers, batch * in_channels, length), grad_input,
            )  # fmt: skip
            return
        rows, _, stretch = machine.tile(in_channels // groups, 1, length, grad_input.itemsize)
        sums = np.empty((workers, rows, stretch), grad_input.dtype)
        slab = np.empty((workers, machine.CHANNELS_TOGETHER, stretch), grad_input.dtype)
        grad_input_kernels.gather(
            grad_output, weight, plan.stride, plan.dilation, groups, crop, workers, sums, slab, grad_input
        )

    def grad_weight(
        self,
        grad_output: Any,
        input: Any,
        geometry: Geometry,
        groups: int,
        algorithm: Algorithm,
        precision: Precision,
        stream: None,
        grad_weight: Any,
        grad_bias: Any | None,
    ) -> None:
        """Overwrite grad_weight (C_in, C_out/groups, K), and grad_bias (C_out) or None, from grad_output and input."""
        workers, long = machine.share(grad_weight.size * geometry.input_length * input.shape[0])
        plan, crop = geometry.plan, geometry.crops.left
        if algorithm in FAST and fast.grad_weight(
            grad_output, input, geometry, groups, workers, long, grad_weight, grad_bias
        ):
            return
        if grad_bias is not None:
            self.grad_bias(grad_output, algorithm, stream, grad_bias)
        if algorithm == "scatter":
            grad_weight_kernels.scatter(
                grad_output, input, plan.stride, plan.dilation, groups, crop, workers, grad_weight
            )  # fmt: skip
            return
        # the places of the partial sums must not follow the threads: only the length of the input cuts a stretch short
        rows, _, stretch = machine.tile(grad_weight.shape[0] // groups, 1, geometry.input_length, grad_weight.itemsize)
        slab = np.empty((workers, rows, stretch), grad_weight.dtype)
        tap = np.empty((workers, stretch), grad_weight.dtype)
        grad_weight_kernels.gather(
            grad_output, input, plan.stride, plan.dilation, groups, crop, workers, slab, tap, grad_weight
        )

    def grad_bias(self, grad_output: Any, algorithm: Algorithm, stream: None, grad_bias: Any) -> None:
        """Overwrite grad_bias (C_out) from grad_output, with the bits that it has beside grad_weight."""
        (workers, long), itemsize = machine.share(grad_output.size), grad_bias.itemsize
        lanes, together = machine.vector_bytes() // itemsize, machine.SUMS_BYTES // machine.vector_bytes()
        scratch = np.empty((workers, together * (lanes + 1) + machine.LONGEST_STRETCH), grad_bias.dtype)
        grad_weight_kernels.sum_channels(
            grad_output, row_sums.rows(itemsize), row_sums.lanes(itemsize), lanes, together, workers, int(long),
            scratch, grad_bias,
        )  # fmt: skip

    # A layer's parameters live in host memory already; CUDA's are moved.

    def upload(self, array: Any) -> Any:
        """A copy of a host array where this engine computes."""
        return np.array(array)

    def download(self, array: Any) -> Any:
        """A copy of an array of this engine in host memory."""
        return np.array(array)

    def copy(self, array: Any) -> Any:
        """A contiguous copy."""
        return np.array(array, order="C")


ENGINE = CpuEngine()
