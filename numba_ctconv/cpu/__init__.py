"""The CPU engine: NumPy arrays in, NumPy arrays out. Chooses the algorithm, allocates, calls the kernels.

"tiled" is the fast path, and what "auto" takes: register tiles, and rows in place where the layer is depthwise. Where a
layer has no tiled layout (its taps reach too far for a slab), and where a weight or an input is not finite (so that a
product with an absent sample's zero would not vanish), its call is done by "gather". All that is decided by the layer
and its weight alone, so an output's bits depend neither on the batch nor on the length.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import checks
from ..checks import Algorithm
from ..geometry import Geometry, Plan
from . import depthwise, depthwise_rows, layout, microkernels, moves, panels, tiled, tiled_weight
from . import forward as forward_kernels
from . import grad_input as grad_input_kernels
from . import grad_weight as grad_weight_kernels
from . import target as machine
from .panels import Packed

FLOAT32, FLOAT64 = checks.DTYPES
Kept = dict[Any, Any]  # what a layer keeps of its weight for the engine, until the weight is assigned
OVERLAP_WORK = 10_000  # candidate solutions that NumPy tries before a pair of strided arrays counts as sharing memory


class CpuEngine:
    """The operations of dispatch.Engine on NumPy arrays."""

    algorithms: tuple[Algorithm, ...] = ("auto", "tiled", "gather", "scatter")

    def operands(self, values: dict[str, Any]) -> dict[str, Any]:
        """Plain views of arrays of a dtype that the kernels take; None stays None."""
        return {name: None if value is None else self._operand(value, name) for name, value in values.items()}

    def _operand(self, value: Any, name: str) -> Any:
        if type(value) is np.ndarray and (value.dtype is FLOAT32 or value.dtype is FLOAT64):
            return value
        if isinstance(value, np.ma.MaskedArray):
            checks.masked(name)
        checks.floating(value, name)
        return np.asarray(value)

    def batched(self, array: Any) -> Any:
        """A view with a leading dimension of one."""
        return array[None]

    def writeable(self, value: Any) -> bool:
        """Whether NumPy lets the array be written."""
        return bool(value.flags.writeable)

    def overlap(self, one: Any, other: Any) -> bool:
        """Whether two arrays share memory; pairs too intricate to tell count as sharing."""
        try:
            return bool(np.shares_memory(one, other, max_work=OVERLAP_WORK))  # type: ignore[arg-type]  # the stub lacks it
        except np.exceptions.TooHardError:
            return True

    def launch_stream(self, stream: Any, values: dict[str, Any]) -> None:
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
        stream: None,
        kept: Kept | None,
        output: Any,
    ) -> None:
        """Overwrite output (N, C_out, L_out) from input (N, C_in, L_in), weight and bias (C_out) or None."""
        if output.size == 0:
            return
        if bias is None:
            bias = np.empty(0, output.dtype)
        plan, crop = geometry.plan, geometry.crops.left
        batch, out_channels, length = output.shape
        workers = machine.workers(input.size * weight.shape[1] * plan.kernel_size)
        if algorithm == "scatter":
            forward_kernels.scatter(
                input, weight, bias, plan.stride, plan.dilation, groups, crop, workers,
                machine.stretches(workers, batch * out_channels, length), output,
            )  # fmt: skip
            return
        positions = (crop + length - 1) // plan.stride - crop // plan.stride + 1
        if weight.shape[0] == groups and algorithm != "gather" and depthwise_rows.fits(plan):
            own = _kept(kept, ("rows", plan, groups), lambda: panels.of_rows(weight))
            if own.finite:
                steps = (1, plan.shift(plan.kernel_size - 1), 0, 0, plan.stride, crop)
                first = crop // plan.stride
                _rows("forward", input, own.values, bias, plan, workers, steps, first, positions, output)
                return
        elif algorithm != "gather":
            packed = _kept(kept, ("forward", plan, groups), lambda: panels.of_forward(weight, plan, groups))
            if packed is not None and packed.finite:
                _product(input, bias, packed, groups, workers, 0, crop, crop // plan.stride, positions, output)
                return
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
        stream: None,
        kept: Kept | None,
        grad_input: Any,
    ) -> None:
        """Overwrite grad_input (N, C_in, L_in) from grad_output (N, C_out, L_out) and weight."""
        if grad_input.size == 0:
            return
        plan, crop = geometry.plan, geometry.crops.left
        batch, in_channels, length = grad_input.shape
        workers = machine.workers(grad_input.size * weight.shape[1] * plan.kernel_size)
        if algorithm == "scatter":
            grad_input_kernels.scatter(
                grad_output, weight, plan.stride, plan.dilation, plan.phase_step, plan.inverse, groups, crop, workers,
                machine.stretches(workers, batch * in_channels, length), grad_input,
            )  # fmt: skip
            return
        if _is_depthwise(weight, groups) and algorithm != "gather" and depthwise_rows.fits(plan):
            own = _kept(kept, ("rows", plan, groups), lambda: panels.of_rows(weight))
            if own.finite:
                steps = (plan.stride, 0, plan.shift(plan.kernel_size - 1), crop, 1, 0)
                nothing = np.empty(0, grad_input.dtype)
                _rows("grad_input", grad_output, own.values, nothing, plan, workers, steps, 0, length, grad_input)
                return
        elif algorithm != "gather":
            packed = _kept(kept, ("grad_input", plan, groups), lambda: panels.of_grad_input(weight, plan, groups))
            if packed is not None and packed.finite:
                nothing = np.empty(0, grad_input.dtype)
                _product(grad_output, nothing, packed, groups, workers, crop, 0, 0, length, grad_input)
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
        stream: None,
        grad_weight: Any,
    ) -> None:
        """Overwrite grad_weight (C_in, C_out/groups, K) from grad_output and input."""
        plan, crop, workers = geometry.plan, geometry.crops.left, machine.threads()
        if algorithm == "scatter":
            grad_weight_kernels.scatter(
                grad_output, input, plan.stride, plan.dilation, groups, crop, workers, grad_weight
            )  # fmt: skip
            return
        if _is_depthwise(grad_weight, groups) and algorithm != "gather" and depthwise_rows.fits(plan):
            if _weight_rows(grad_output, input, plan, crop, workers, grad_weight):
                return
        elif algorithm != "gather":
            done = _weight_product(grad_output, input, geometry, groups, workers, grad_weight)
            if done:
                return
        # the places of the partial sums must not follow the threads: only the length of the input cuts a stretch short
        rows, _, stretch = machine.tile(grad_weight.shape[0] // groups, 1, geometry.input_length, grad_weight.itemsize)
        slab = np.empty((workers, rows, stretch), grad_weight.dtype)
        tap = np.empty((workers, stretch), grad_weight.dtype)
        grad_weight_kernels.gather(
            grad_output, input, plan.stride, plan.dilation, groups, crop, workers, slab, tap, grad_weight
        )

    def grad_bias(self, grad_output: Any, algorithm: Algorithm, stream: None, grad_bias: Any) -> None:
        """Overwrite grad_bias (C_out) from grad_output; one kernel serves all algorithms."""
        workers = machine.threads()
        slab = np.empty((workers, machine.LONGEST_STRETCH), grad_bias.dtype)
        grad_weight_kernels.sum_channels(grad_output, workers, slab, grad_bias)

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


def _is_depthwise(weight: Any, groups: int) -> bool:
    return bool(weight.shape[0] == groups and weight.shape[1] == 1)


def _kept(kept: Kept | None, key: tuple[str, Plan, int], pack: Callable[[], Any]) -> Any:
    """The packed weight of an operation, a plan and groups: the layer's, packed at its first use, or the call's."""
    if kept is None:
        return pack()
    if key not in kept:
        kept[key] = pack()
    return kept[key]


def _rows(operation: str, source: Any, weight: Any, bias: Any, plan: Plan, workers: int,
          steps: tuple[int, int, int, int, int, int], position: int, positions: int, target: Any) -> None:  # fmt: skip
    """Run a depthwise layer's forward or grad_input; `steps` are step_in, lead, tail, crop_in, step_out, crop_out."""
    row = depthwise_rows.rows(operation, plan, target.itemsize)
    step_in, lead, tail, _, step_out, _ = steps
    chunk = depthwise.CHUNK
    scratch = np.empty((workers, (lead + chunk + tail) * step_in + chunk * step_out + 1), target.dtype)
    lanes = machine.vector_bytes() // target.itemsize
    stretches = machine.stretches(workers, target.shape[0] * target.shape[1], target.shape[2])
    depthwise.rows(
        source, weight, bias, row, *steps, position, positions, lanes, workers, stretches, scratch, target
    )  # fmt: skip


def _weight_rows(grad_output: Any, input: Any, plan: Plan, crop: int, workers: int, grad_weight: Any) -> bool:
    """Run a depthwise layer's grad_weight; False where an operand is not finite."""
    row = depthwise_rows.rows("grad_weight", plan, input.itemsize)
    lanes, reach = machine.vector_bytes() // input.itemsize, plan.shift(plan.kernel_size - 1)
    scratch = np.empty(
        (workers, plan.kernel_size * lanes + (depthwise.STRETCH + reach) * plan.stride + depthwise.STRETCH), input.dtype
    )
    infinite = np.zeros(workers, input.dtype)
    depthwise.grad_weight(
        grad_output, input, row, plan.stride, reach, crop, lanes, workers, scratch, infinite, grad_weight
    )
    return not np.isnan(infinite).any()


def _product(
    source: Any,
    bias: Any,
    packed: Packed,
    groups: int,
    workers: int,
    crop_in: int,
    crop_out: int,
    q_first: int,
    positions: int,
    output: Any,
) -> None:
    """Run the tiled product of forward or grad_input, one family of phases after the other."""
    for panel in packed.panels:
        own = panel.layouts.of(source.shape[0], positions)
        sizes = layout.sizes_of(
            own, groups, source, output.shape[1] // groups, workers, crop_in, crop_out, q_first, positions
        )
        slabs = np.empty((workers, own.slab_rows * sizes.pitch + sizes.few_columns), output.dtype)
        tile_size = own.rows * own.vectors * own.lanes
        staged = max(tile_size // own.tile_phases * own.slots, microkernels.COLUMNS[-1] * sizes.start_size)
        scratch = np.empty((workers, tile_size + staged + sizes.start_size), output.dtype)
        offsets = np.empty((2, own.term_rows.size), np.int64)
        tiled.product(
            source, bias, panel.values, own.term_rows, own.term_starts, own.planes, own.phases, panel.tiles,
            panel.lay_out, panel.deinterleave if own.every_plane else 0, sizes, workers, slabs, scratch, offsets,
            output,
        )  # fmt: skip


def _weight_product(
    grad_output: Any, input: Any, geometry: Geometry, groups: int, workers: int, grad_weight: Any
) -> bool:
    """Run the tiled product of grad_weight; False where the layer has none, or an input is not finite."""
    plan, (row_channels, channels) = geometry.plan, (grad_weight.shape[0] // groups, grad_weight.shape[1])
    own = layout.weight_layout(plan, row_channels, grad_weight.itemsize)
    if own is None or input.size == 0:
        return False
    sizes = layout.weight_sizes(
        own, groups, input.shape[0], input.shape[2], row_channels, channels, workers, plan.stride, geometry.crops.left,
        input.itemsize,
    )  # fmt: skip
    if sizes is None:
        return False
    tiles = microkernels.tiles(input.itemsize, own.lanes, own.rows, own.vectors, 1, 1, adds=True)
    tile_sums = own.rows * own.vectors * own.lanes
    part_rows = (-(-row_channels // own.rows) // sizes.parts + 1) * own.rows
    offsets = np.empty((workers, sizes.stretch), np.int64)
    scratch = np.empty(
        (workers, sizes.slab_rows * sizes.pitch + sizes.stretch * own.rows + tile_sums + own.rows), input.dtype
    )
    sums = np.empty((workers, part_rows * len(own.shifts) * sizes.pitch), input.dtype)
    infinite = np.zeros(workers, input.dtype)
    tiled_weight.product(
        grad_output, input, own.planes, own.shifts, own.taps, tiles,
        moves.moves.interleave(input.itemsize, own.lanes, own.rows),
        moves.moves.lay_out(input.itemsize, len(own.planes)), moves.moves.transpose(plan.stride * input.itemsize),
        sizes,
        workers, offsets, scratch, sums, infinite, grad_weight,
    )  # fmt: skip
    return not np.isnan(infinite).any()
