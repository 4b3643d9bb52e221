"""The fast path of the CUDA engine: packs what the tiled kernels take, finds them memory and queues them.

Which kernels serve a layer, and in which order they sum, is decided by the layer alone; whether a product is split, and
a second kernel adds its partial sums, by the call. Every buffer comes from the pool of the library that the caller's
arrays come from or, where it has none, partial sums from what the stream's last call gave back; packed weights that a
layer keeps carry an event until it is reached, so that work on another stream waits for the packing, and the host for
nothing. What a call launches follows from the forms of its arrays: it is worked out once, and kept for the latest of
them.
"""

import functools
import math
from typing import Any, NamedTuple

from ..geometry import Family, Geometry, Plan, families
from . import (
    arrays,
    captures,
    depthwise,
    depthwise_weight,
    fill,
    launches,
    packing,
    parts,
    producers,
    product,
    queues,
    row_cuts,
    tiles,
    weight_product,
)
from .arithmetic import FLOAT32, Arithmetic
from .arrays import Form
from .launch import Configuration, thread_each
from .launches import Prepared
from .queues import Queue
from .tile import tiles_of
from .tiles import Layer

Kept = dict[Any, Any]  # what a layer keeps of its weight for the engine, until the weight is assigned
CALLS = 256  # of an operation, whose launches are kept
ONE_PHASE = (0, 0)  # and its first tap
OF_GRAPHS = "of graphs"  # what a layer keeps for graphs alone


class Rows(NamedTuple):
    """The launch of an operation on the rows of a depthwise layer."""

    run: Prepared  # on the operands, the table if there is one, and the result
    table: tuple[Any, ...]


class Packing(NamedTuple):
    """The launch that packs a weight for a product."""

    run: Prepared  # on the weight, the table and the panels
    table: Any  # the phases of its rows and their first taps
    panels: Form


class Parts(NamedTuple):
    """Partial sums that wait in memory, and the launch that adds them."""

    sums: Form
    add: Prepared  # on the sums, the table of phases, the bias and the target


class Product(NamedTuple):
    """A product of a layer."""

    packing: Packing
    run: Prepared  # on the source, the panels, the table, the bias, the partial sums and the target
    parts: Parts | None  # where it is split


class Products(NamedTuple):
    """Those of an operation."""

    fill: Prepared | None  # on the bias and the target, where some phases hold the bias alone
    each: tuple[Product, ...]
    key: Any  # under which a layer keeps what is packed


class Packed(NamedTuple):
    """The panels of an operation, as a layer keeps them."""

    panels: tuple[Any, ...]
    ready: Any  # an event after which they are there; None where they are


class WeightParts(NamedTuple):
    """The launches of grad_weight."""

    run: Prepared  # on grad_output, the input, the table if there is one, and the parts
    table: tuple[Any, ...]
    parts: Parts | None  # of (C_out/groups, C_in, K), whose channels are the sums' rows; None where the result is one


def forward(
    input: Any, weight: Any, bias: Any, geometry: Geometry, groups: int, arithmetic: Arithmetic, queue: Queue,
    kept: Kept | None, output: Any,
) -> None:  # fmt: skip
    """Forward, one product for each family of phases."""
    if output.size == 0:
        return
    call = _forward(input.form, weight.form, bias.form, output.form, geometry, groups, arithmetic, queue.device)
    if isinstance(call, Rows):
        launches.run(call.run, queue, input, weight, bias, *call.table, output)
        return
    if call.fill is not None:
        launches.run(call.fill, queue, bias, output)
    _multiply(call, input, weight, bias, queue, kept, output)


def grad_input(
    grad_output: Any, weight: Any, geometry: Geometry, groups: int, arithmetic: Arithmetic, queue: Queue,
    kept: Kept | None, grad_input: Any,
) -> None:  # fmt: skip
    """The input gradient, one product."""
    if grad_input.size == 0:
        return
    call = _grad_input(grad_output.form, weight.form, grad_input.form, geometry, groups, arithmetic, queue.device)
    if isinstance(call, Rows):
        launches.run(call.run, queue, grad_output, weight, grad_input)
    else:
        _multiply(call, grad_output, weight, arrays.nothing(grad_input.dtype), queue, kept, grad_input)


def grad_weight(
    grad_output: Any, input: Any, geometry: Geometry, groups: int, arithmetic: Arithmetic, queue: Queue,
    grad_weight: Any,
) -> None:  # fmt: skip
    """The weight gradient, in parts that are added up where one would not fill the GPU."""
    call = _grad_weight(grad_output.form, input.form, grad_weight.form, geometry, groups, arithmetic, queue.device)
    if call.parts is None:
        launches.run(call.run, queue, grad_output, input, *call.table, arrays.batched(grad_weight))
        return
    one_phase, no_bias = _table(ONE_PHASE, queue.device), arrays.nothing(grad_weight.dtype)
    with producers.borrowed(call.parts.sums, grad_weight, queue, None) as sums:
        launches.run(call.run, queue, grad_output, input, *call.table, sums)
        launches.run(call.parts.add, queue, sums, one_phase, no_bias, arrays.transposed(grad_weight))


@functools.lru_cache(maxsize=CALLS)
def _forward(
    input: Form, weight: Form, bias: Form, output: Form, geometry: Geometry, groups: int, arithmetic: Arithmetic,
    device: int,
) -> Rows | Products:  # fmt: skip
    """What forward launches."""
    plan, crop = geometry.plan, geometry.crops.left
    if _is_depthwise(weight, groups) and row_cuts.fits(plan):
        lines = output.shape[0] * output.shape[1]
        cut = row_cuts.forward_cut(plan, crop, lines, output.shape[2])
        configuration = Configuration(row_cuts.blocks_of(cut, lines), row_cuts.THREADS)
        table = _table(row_cuts.phase_table(plan), device)
        kernel = depthwise.forward(_full(arithmetic))
        return Rows(
            launches.prepare(kernel, configuration, device, input, weight, bias, table.form, cut, output), (table,)
        )
    own = families(plan)
    fill_all = any(family.taps == 0 for family in own)
    place = (crop, *geometry.positions(range(plan.stride)))
    return Products(
        launches.prepare(fill.fill, thread_each(output.size), device, bias, output) if fill_all else None,
        tuple(
            _forward_product(family, plan, place, input, weight, bias, output, groups, arithmetic, device)
            for family in own
            if family.taps
        ),
        ("forward", plan, groups, arithmetic.name, device),
    )


def _forward_product(
    family: Family, plan: Plan, place: tuple[int, int, int], input: Form, weight: Form, bias: Form, output: Form,
    groups: int, arithmetic: Arithmetic, device: int,
) -> Product:  # fmt: skip
    layer = tiles.forward_layer(plan, family, weight.shape, groups, arithmetic)
    packing = _packing(weight, layer, family.phases + family.first_taps, plan.tap_step, False, device)
    return _product(input, layer, packing, (-family.shift, *place), bias, output, device)


@functools.lru_cache(maxsize=CALLS)
def _grad_input(
    grad_output: Form, weight: Form, grad_input: Form, geometry: Geometry, groups: int, arithmetic: Arithmetic,
    device: int,
) -> Rows | Products:  # fmt: skip
    """What grad_input launches."""
    plan, crop = geometry.plan, geometry.crops.left
    if _is_depthwise(weight, groups) and grad_output.size > 0:
        lines = grad_input.shape[0] * grad_input.shape[1]
        cut = row_cuts.grad_input_cut(plan, crop, grad_input.shape[2])
        configuration = Configuration(row_cuts.blocks_of(cut, lines), row_cuts.THREADS)
        kernel = depthwise.grad_input(_full(arithmetic))
        return Rows(launches.prepare(kernel, configuration, device, grad_output, weight, cut, grad_input), ())
    layer = tiles.grad_input_layer(plan, weight.shape, groups, arithmetic)
    packing = _packing(weight, layer, ONE_PHASE, 1, True, device)
    bias, place = arrays.nothing(grad_input.dtype).form, (-crop, 0, 0, grad_input.shape[2])
    own = _product(grad_output, layer, packing, place, bias, grad_input, device)
    return Products(None, (own,), ("grad_input", plan, groups, arithmetic.name, device))


@functools.lru_cache(maxsize=CALLS)
def _grad_weight(
    grad_output: Form, input: Form, grad_weight: Form, geometry: Geometry, groups: int, arithmetic: Arithmetic,
    device: int,
) -> WeightParts:  # fmt: skip
    """What grad_weight launches."""
    shape: Any = grad_weight.shape
    plan, crop = geometry.plan, geometry.crops.left
    table: tuple[Any, ...] = ()
    if shape[0] == groups and row_cuts.weight_fits(plan) and input.size and grad_output.size:
        arithmetic = _full(arithmetic)
        batch, channels, out_length = grad_output.shape
        sizes: Any = row_cuts.weight_cut(plan, crop, channels, batch, out_length, arithmetic.word_bytes)
        configuration = Configuration(row_cuts.weight_blocks(sizes, channels), row_cuts.WEIGHT_THREADS)
        count, direct = sizes.parts, arithmetic.terms == 1
        table = (_table(row_cuts.phase_table(plan), device),)
        kernel = depthwise_weight.grad_weight(arithmetic)
    else:
        tile = tiles.weight_tile(shape, groups, arithmetic)
        sizes = tiles.weight_sizes(plan, tile, shape, groups, input.shape[0], input.shape[2], crop, arithmetic)
        count, direct = tiles.parts_of(sizes), True
        configuration = Configuration(count * groups * sizes.row_tiles * sizes.column_tiles, tile.threads)
        kernel = weight_product.weight_product(tile, arithmetic)
    if count == 1 and direct:
        target, own = arrays.form_of(grad_weight.dtype, (1, *shape), (0, *grad_weight.strides)), None
    else:
        target = arrays.contiguous_form(arithmetic.word, (count, *shape))
        bias, one_phase = arrays.nothing(grad_weight.dtype).form, _table(ONE_PHASE, device).form
        own = _parts(target, one_phase, bias, (1, 1, 0), arrays.swapped(grad_weight), device)
    operands = (grad_output, input, *(each.form for each in table), sizes, target)
    return WeightParts(launches.prepare(kernel, configuration, device, *operands), table, own)


def _is_depthwise(weight: Form, groups: int) -> bool:
    """Whether each output channel meets one input channel, and the other way round."""
    return bool(weight.shape[0] == groups and weight.shape[1] == 1)


def _full(arithmetic: Arithmetic) -> Arithmetic:
    """That of depthwise layers, whose few products gain nothing from tensor cores."""
    return FLOAT32 if arithmetic.name == "tf32" else arithmetic


def _multiply(
    call: Products, source: Any, weight: Any, bias: Any, queue: Queue, kept: Kept | None, target: Any
) -> None:
    """Queue the products of an operation."""
    for own, panels in zip(call.each, _panels(call, weight, queue, kept), strict=True):
        table = own.packing.table
        if own.parts is None:
            launches.run(own.run, queue, source, panels, table, bias, arrays.nothing(panels.dtype, 4), target)
        else:
            of_graphs = None if kept is None else kept.setdefault(OF_GRAPHS, [])
            with producers.borrowed(own.parts.sums, target, queue, of_graphs) as sums:
                launches.run(own.run, queue, source, panels, table, bias, sums, target)
                launches.run(own.parts.add, queue, sums, table, bias, target)


def _panels(call: Products, weight: Any, queue: Queue, kept: Kept | None) -> tuple[Any, ...]:
    """What the layer keeps, packed at its first use on a GPU outside a graph, or what the call packs.

    What a graph packs, the layer keeps for the graph alone: its memory must be there when the graph runs.
    """
    if kept is None:
        return _pack(call, weight, queue)
    own: Packed | None = kept.get(call.key)
    if own is not None:
        if own.ready is not None and captures.order(own.ready, queue):
            kept[call.key] = own = own._replace(ready=None)
        for each in own.panels:
            producers.keep(each, queue)
        return own.panels
    captured = captures.capturing(queue)
    own = Packed(_pack(call, weight, queue), None if captured else queues.mark(queue))
    if captured:
        kept.setdefault(OF_GRAPHS, []).append(own)
    else:
        kept[call.key] = own
    return own.panels


def _pack(call: Products, weight: Any, queue: Queue) -> tuple[Any, ...]:
    """Queue the packing of a weight for all products of an operation."""
    packed = []
    for own in call.each:
        panels = producers.workspace(own.packing.panels, weight, queue)
        launches.run(own.packing.run, queue, weight, own.packing.table, panels)
        packed.append(panels)
    return tuple(packed)


def _packing(weight: Form, layer: Layer, table: tuple[int, ...], tap_step: int, by_input: bool, device: int) -> Packing:
    """The launch that packs a weight."""
    panels, phases = arrays.contiguous_form(layer.arithmetic.word, (layer.packed,)), _table(table, device)
    configuration = Configuration(layer.groups * layer.row_tiles * layer.stages, packing.THREADS)
    run = launches.prepare(
        packing.pack(layer.arithmetic), configuration, device, weight, phases.form, int(by_input), layer.tile_rows,
        layer.row_tiles, layer.channels * layer.phases, layer.phases, layer.term_channels, layer.taps, layer.stages,
        layer.stage_words, layer.panel_words, tap_step, panels,
    )  # fmt: skip
    return Packing(run, phases, panels)


@functools.lru_cache(maxsize=1024)
def _table(values: tuple[int, ...], device: int) -> Any:
    """Integers of a layer on a GPU: copied there once, and the host waits for it."""
    return arrays.constants(values, device)


def _product(
    source: Form, layer: Layer, packing: Packing, place: tuple[int, int, int, int], bias: Form, target: Form,
    device: int,
) -> Product:  # fmt: skip
    """A product; `place` is origin, crop_out, q_first, positions."""
    batch, table = target.shape[0], packing.table.form
    tile = tiles.tile_for(layer, batch, place[3])
    sizes = tiles.sizes_of(layer, tile, batch, *place)
    kernels = _kernels(layer.tile_rows, layer.arithmetic)
    sums = arrays.contiguous_form(layer.arithmetic.word, tiles.parts_shape(sizes, batch))
    arguments = (source, packing.panels, table, bias, sizes, sums, target)
    for kernel in kernels.values():  # no later length is to wait for a compiler
        launches.compile_for(kernel, arguments, device)
    configuration = Configuration(tiles.blocks_of(sizes, tile, batch), tile.threads)
    run = launches.prepare(kernels[tile.columns], configuration, device, *arguments)
    return Product(packing, run, _parts(sums, table, bias, tiles.parts_place(sizes), target, device))


def _parts(sums: Form, table: Form, bias: Form, place: tuple[int, int, int], target: Form, device: int) -> Parts | None:
    """Partial sums, if there are any; what adds them is compiled in any case. `place` is as parts.py says."""
    arguments = (sums, table, bias, *place, target)
    launches.compile_for(parts.add_parts, arguments, device)
    configuration = Configuration(-(-math.prod(sums.shape[1:]) // parts.THREADS), parts.THREADS)
    return Parts(sums, launches.prepare(parts.add_parts, configuration, device, *arguments)) if sums.size else None


@functools.cache
def _kernels(tile_rows: int, arithmetic: Arithmetic) -> dict[int, Any]:
    """Those of the tiles of so many rows, by the columns of a tile."""
    return {tile.columns: product.product(tile, arithmetic) for tile in tiles_of(arithmetic)[tile_rows]}


def forget() -> None:
    """Work out anew what is launched from now on."""
    for kept in (_forward, _grad_input, _grad_weight):
        kept.cache_clear()
