"""The fast path of the CPU engine: packs what the kernels take, allocates their scratch memory and calls them.

Each operation says whether it did the call: where a layer has no tiled layout, or where a weight or an input is not
finite, it did not. Which kernels serve a layer is decided by the layer alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..geometry import Geometry, Plan
from . import (
    blocks,
    depthwise,
    depthwise_rows,
    panels,
    row_sums,
    tiled,
    tiled_weight,
    weight_layout,
)
from . import target as machine
from .blocks import Call
from .panels import Packed

Kept = dict[Any, Any]  # what a layer keeps of its weight for the engine, until the weight is assigned


def forward(
    input: Any, weight: Any, bias: Any, geometry: Geometry, groups: int, kept: Kept | None, output: Any
) -> bool:
    """Forward by rows or tiles; False where neither serves."""
    plan = geometry.plan
    if weight.shape[0] == groups and depthwise_rows.fits(plan):
        own = _packed(panels.of_rows, weight, plan, groups, kept)
        if own.finite:
            _rows(depthwise_rows.forward_call(geometry, input.itemsize), input, own.values, bias, output)
        return bool(own.finite)
    packed = _packed(panels.of_forward, weight, plan, groups, kept)
    if packed is None or not packed.finite:
        return False
    calls = blocks.forward_calls(packed.families, geometry, groups, input.shape, input.strides, kept is not None)
    return _product(input, bias, packed, calls, output)


def grad_input(
    grad_output: Any, weight: Any, geometry: Geometry, groups: int, kept: Kept | None, grad_input: Any
) -> bool:
    """The input gradient by rows or tiles; as above."""
    plan = geometry.plan
    nothing = np.empty(0, grad_input.dtype)  # to start from
    if _is_depthwise(weight, groups) and depthwise_rows.fits(plan):
        own = _packed(panels.of_rows, weight, plan, groups, kept)
        if own.finite:
            call = depthwise_rows.grad_input_call(geometry, grad_input.itemsize)
            _rows(call, grad_output, own.values, nothing, grad_input)
        return bool(own.finite)
    packed = _packed(panels.of_grad_input, weight, plan, groups, kept)
    if packed is None or not packed.finite:
        return False
    calls = blocks.grad_input_calls(
        packed.families, geometry, groups, grad_output.shape, grad_output.strides, kept is not None
    )
    return _product(grad_output, nothing, packed, calls, grad_input)


def grad_weight(
    grad_output: Any,
    input: Any,
    geometry: Geometry,
    groups: int,
    workers: int,
    long: bool,
    grad_weight: Any,
    grad_bias: Any | None,
) -> bool:
    """The weight gradient by rows or tiles, and with it the bias's; False where neither serves, or is not finite."""
    if grad_bias is None:
        grad_bias = np.empty(0, grad_weight.dtype)
    if _is_depthwise(grad_weight, groups) and depthwise_rows.fits(geometry.plan):
        return _weight_rows(
            grad_output, input, geometry.plan, geometry.crops.left, workers, long, grad_weight, grad_bias
        )
    return _weight_product(grad_output, input, geometry, groups, workers, long, grad_weight, grad_bias)


def _is_depthwise(weight: Any, groups: int) -> bool:
    return bool(weight.shape[0] == groups and weight.shape[1] == 1)


def _packed(pack: Callable[..., Any], weight: Any, plan: Plan, groups: int, kept: Kept | None) -> Any:
    """The weight packed in one of the ways of panels: the layer's, packed at its first use, or the call's."""
    if kept is None:
        return pack(weight, plan, groups, now=False)
    key = pack, plan, groups
    try:
        return kept[key]
    except KeyError:
        kept[key] = packed = pack(weight, plan, groups, now=True)
        return packed


def _rows(call: depthwise_rows.Call, source: Any, weight: Any, bias: Any, target: Any) -> None:
    """Run a depthwise layer's forward or grad_input."""
    workers, long = machine.share(weight.size * call.positions * target.shape[0])
    chunk = depthwise.CHUNK
    size = (call.lead + chunk + call.tail) * call.step_in + chunk * call.step_out + 1
    scratch = np.empty((workers, size), target.dtype)
    lanes = machine.vector_bytes() // target.itemsize
    stretches = machine.stretches(workers, target.shape[0] * target.shape[1], target.shape[2])
    depthwise.rows(
        source, weight, bias, *call, lanes, workers, stretches, int(long), scratch, target
    )  # fmt: skip


def _weight_rows(
    grad_output: Any, input: Any, plan: Plan, crop: int, workers: int, long: bool, grad_weight: Any, grad_bias: Any
) -> bool:
    """Run a depthwise layer's grad_weight; False where an operand is not finite."""
    size = input.itemsize
    function = depthwise_rows.rows("grad_weight", plan, size)
    lanes, ahead = machine.vector_bytes() // size, depthwise_rows.ahead(plan, size)
    together = max(1, machine.SUMS_BYTES // ((plan.kernel_size + 1) * machine.vector_bytes()))
    sums = together * (plan.kernel_size * (lanes + 1) + lanes)
    scratch = np.empty((workers, sums + (depthwise.CHUNK + ahead) * plan.stride + depthwise.CHUNK), input.dtype)
    infinite = np.zeros(workers, input.dtype)
    depthwise.grad_weight(
        grad_output, input, function, row_sums.rows(size), row_sums.lanes(size), plan.stride, ahead, crop, lanes,
        together, workers, int(long), scratch, infinite, grad_weight, grad_bias,
    )  # fmt: skip
    return not np.count_nonzero(infinite)


def _product(source: Any, bias: Any, packed: Packed, calls: tuple[Call, ...], output: Any) -> bool:
    """Run the tiled product of forward or grad_input, one family of phases after the other.

    False where the panels are made here, of a weight that is not finite.
    """
    workers = machine.threads() if calls[0].long else 1
    for k, (panel_numbers, numbers, shared_size, worker_size, makes_panels, _) in enumerate(calls):
        scratch = np.empty(shared_size + workers * worker_size, output.dtype)
        made = scratch if makes_panels else packed.panels[k]  # by the kernel itself, or at the layer's first call,
        if made is None:  # or now
            made, finite = panels.values_of(packed.weight, packed.families[k])
            if not finite:
                return False
        tiled.product(source, bias, made, panel_numbers, numbers, workers, packed.weight, scratch, output)
        if makes_panels and scratch[0] != 0:
            return False
    return True


def _weight_product(
    grad_output: Any,
    input: Any,
    geometry: Geometry,
    groups: int,
    workers: int,
    long: bool,
    grad_weight: Any,
    grad_bias: Any,
) -> bool:
    """Run the tiled product of grad_weight; False where the layer has none, or an input is not finite."""
    if input.size == 0:
        return False
    problem = weight_layout.WeightProblem(
        groups, input.shape[0], input.shape[2], grad_weight.shape[0] // groups, grad_weight.shape[1], workers,
        geometry.crops.left, input.itemsize,
    )  # fmt: skip
    call = weight_layout.weight_call(geometry.plan, problem)
    if call is None:
        return False
    own = call.layout
    offsets = np.empty((workers, call.sizes.stretch), np.int64)
    scratch = np.empty((workers, call.sizes.scratch_size), input.dtype)
    sums = np.empty((workers, call.sums_size), input.dtype)
    infinite = np.zeros(workers, input.dtype)
    tiled_weight.product(
        grad_output, input, own.planes, own.shifts, own.taps, call.tiles, call.numbers, workers, int(long),
        tiled_weight.share.address(input.dtype), offsets, scratch, sums, infinite, grad_weight, grad_bias,
    )  # fmt: skip
    return not np.count_nonzero(infinite)
