"""The fast path of the CUDA engine: packs what the tiled kernels take, finds them memory and queues them.

Which kernels serve a layer, and in which order they sum, is decided by the layer alone. Every buffer comes from the
pool of the library that the caller's arrays come from; packed weights that a layer keeps carry an event until it is
reached, so that work on another stream waits for the packing, and the host for nothing.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..geometry import Geometry, families
from . import (
    arrays,
    captures,
    depthwise,
    depthwise_weight,
    fill,
    launches,
    packing,
    producers,
    product,
    queues,
    row_cuts,
    tiles,
    weight_product,
)
from .arithmetic import FLOAT32, Arithmetic
from .launch import Configuration, thread_each
from .queues import Queue
from .tile import tiles_of
from .tiles import Layer

Kept = dict[Any, Any]  # what a layer keeps of its weight for the engine, until the weight is assigned


class Product(NamedTuple):
    """A product of a layer with its weight packed."""

    layer: Layer
    origin: int  # as in tiles.Sizes
    panels: Any
    table: Any  # the phases of its rows and their first taps


class Products(NamedTuple):
    """Those of an operation, as a layer keeps them."""

    each: tuple[Product, ...]
    ready: Any  # an event after which the panels are there; None where they are


def forward(
    input: Any, weight: Any, bias: Any, geometry: Geometry, groups: int, arithmetic: Arithmetic, queue: Queue,
    kept: Kept | None, output: Any,
) -> None:  # fmt: skip
    """Forward, one product for each family of phases."""
    plan, crop = geometry.plan, geometry.crops.left
    if output.size == 0:
        return
    if _is_depthwise(weight, groups) and row_cuts.fits(plan):
        lines = output.shape[0] * output.shape[1]
        cut = row_cuts.forward_cut(plan, crop, lines, output.shape[2])
        configuration = Configuration(row_cuts.blocks_of(cut, lines), row_cuts.THREADS)
        operands = (input, weight, bias, _table(row_cuts.phase_table(plan), queue.device), cut)
        launches.start(depthwise.forward(_full(arithmetic)), configuration, queue, *operands, output)
        return
    own = families(plan)
    if any(family.taps == 0 for family in own):  # phases that hold the bias alone
        launches.start(fill.fill, thread_each(output.size), queue, bias, output)

    def packed() -> Iterator[Product]:
        for family in own:
            if family.taps:
                layer = tiles.forward_layer(plan, family, weight.shape, groups, arithmetic)
                yield _packed(
                    weight, layer, -family.shift, family.phases + family.first_taps, plan.tap_step, False, queue
                )

    first = crop // plan.stride
    positions = (crop + output.shape[2] - 1) // plan.stride - first + 1
    for each in _products(kept, ("forward", plan, groups, arithmetic.name, queue.device), packed, queue):
        _start(input, each, (each.origin, crop, first, positions), bias, queue, output)


def grad_input(
    grad_output: Any, weight: Any, geometry: Geometry, groups: int, arithmetic: Arithmetic, queue: Queue,
    kept: Kept | None, grad_input: Any,
) -> None:  # fmt: skip
    """The input gradient, one product."""
    plan = geometry.plan
    if grad_input.size == 0:
        return
    if _is_depthwise(weight, groups) and grad_output.size > 0:
        lines = grad_input.shape[0] * grad_input.shape[1]
        cut = row_cuts.grad_input_cut(plan, geometry.crops.left, grad_input.shape[2])
        configuration = Configuration(row_cuts.blocks_of(cut, lines), row_cuts.THREADS)
        run = depthwise.grad_input(_full(arithmetic))
        launches.start(run, configuration, queue, grad_output, weight, cut, grad_input)
        return

    def packed() -> Iterator[Product]:
        layer = tiles.grad_input_layer(plan, weight.shape, groups, arithmetic)
        yield _packed(weight, layer, -geometry.crops.left, (0, 0), 1, True, queue)

    bias, positions = arrays.nothing(grad_input.dtype), grad_input.shape[2]
    for each in _products(kept, ("grad_input", plan, groups, arithmetic.name, queue.device), packed, queue):
        _start(grad_output, each, (-geometry.crops.left, 0, 0, positions), bias, queue, grad_input)


def grad_weight(
    grad_output: Any, input: Any, geometry: Geometry, groups: int, arithmetic: Arithmetic, queue: Queue,
    grad_weight: Any,
) -> None:  # fmt: skip
    """The weight gradient, in parts that are added up where one would not fill the GPU."""
    shape, plan, crop = grad_weight.shape, geometry.plan, geometry.crops.left
    if shape[0] == groups and row_cuts.weight_fits(plan) and input.size and grad_output.size:
        arithmetic = _full(arithmetic)
        batch, channels, out_length = grad_output.shape
        cut = row_cuts.weight_cut(plan, crop, channels, batch, out_length, arithmetic.word_bytes)
        configuration = Configuration(row_cuts.weight_blocks(cut, channels), row_cuts.WEIGHT_THREADS)
        target = _parts(cut.parts, arithmetic, arithmetic.terms == 1, queue, grad_weight)
        table = _table(row_cuts.phase_table(plan), queue.device)
        run = depthwise_weight.grad_weight(arithmetic)
        launches.start(run, configuration, queue, grad_output, input, table, cut, target)
    else:
        tile = tiles.weight_tile(shape, groups, arithmetic)
        sizes = tiles.weight_sizes(plan, tile, shape, groups, input.shape[0], input.shape[2], crop, arithmetic)
        parts = tiles.parts_of(sizes)
        target = _parts(parts, arithmetic, True, queue, grad_weight)
        blocks = parts * groups * sizes.row_tiles * sizes.column_tiles
        run = weight_product.weight_product(tile, arithmetic)
        launches.start(run, Configuration(blocks, tile.threads), queue, grad_output, input, sizes, target)
    if target.owner is not grad_weight:
        threads = weight_product.SUM_THREADS
        adding = Configuration(-(-grad_weight.size // threads), threads)
        launches.start(weight_product.add_parts, adding, queue, target, grad_weight)


def _parts(parts: int, arithmetic: Arithmetic, direct: bool, queue: Queue, grad_weight: Any) -> Any:
    """Where the parts of the weight gradient are summed: if there is one, in it where that may be, else apart."""
    if parts == 1 and direct:
        return arrays.batched(grad_weight)
    memory = producers.workspace(parts * grad_weight.size, arithmetic.word, grad_weight, queue)
    return arrays.reshaped(memory, (parts, *grad_weight.shape))


def _is_depthwise(weight: Any, groups: int) -> bool:
    """Whether each output channel meets one input channel, and the other way round."""
    return bool(weight.shape[0] == groups and weight.shape[1] == 1)


def _full(arithmetic: Arithmetic) -> Arithmetic:
    """That of depthwise layers, whose few products gain nothing from tensor cores."""
    return FLOAT32 if arithmetic.name == "tf32" else arithmetic


def _products(
    kept: Kept | None, key: Any, packed: Callable[[], Iterator[Product]], queue: Queue
) -> tuple[Product, ...]:
    """What the layer keeps under the key, packed at its first use on a GPU outside a graph, or what the call packs.

    What a graph packs, the layer keeps for the graph alone: its memory must be there when the graph runs.
    """
    if kept is None:
        return tuple(packed())
    own: Products | None = kept.get(key)
    if own is not None:
        if own.ready is not None and captures.order(own.ready, queue):
            kept[key] = own = own._replace(ready=None)
        for each in own.each:
            producers.keep(each.panels, queue)
        return own.each
    captured = captures.capturing(queue)
    own = Products(tuple(packed()), None if captured else queues.mark(queue))
    if captured:
        kept.setdefault("of graphs", []).append(own)
    else:
        kept[key] = own
    return own.each


def _packed(
    weight: Any, layer: Layer, origin: int, table: tuple[int, ...], tap_step: int, by_input: bool, queue: Queue
) -> Product:
    """Queue the packing of a weight."""
    panels = producers.workspace(layer.packed, layer.arithmetic.word, weight, queue)
    view, phases = arrays.reshaped(panels, (layer.packed,)), _table(table, queue.device)
    configuration = Configuration(layer.groups * layer.row_tiles * layer.stages, packing.THREADS)
    launches.start(
        packing.pack(layer.arithmetic), configuration, queue, weight, phases, int(by_input), layer.tile_rows,
        layer.row_tiles, layer.channels * layer.phases, layer.phases, layer.term_channels, layer.taps, layer.stages,
        layer.stage_words, layer.panel_words, tap_step, view,
    )  # fmt: skip
    return Product(layer, origin, view, phases)


@functools.lru_cache(maxsize=1024)
def _table(values: tuple[int, ...], device: int) -> Any:
    """Integers of a layer on a GPU: copied there once, and the host waits for it."""
    return arrays.constants(values, device)


def _start(source: Any, own: Product, place: tuple[int, int, int, int], bias: Any, queue: Queue, target: Any) -> None:
    """Queue a product; `place` is origin, crop_out, q_first, positions."""
    batch, layer = target.shape[0], own.layer
    tile = tiles.tile_for(layer, batch, place[3])
    sizes = tiles.sizes_of(layer, tile, batch, *place)
    kernels = _kernels(layer.tile_rows, layer.arithmetic)
    arguments = (source, own.panels, own.table, bias, sizes, target)
    for kernel in kernels.values():  # no later length is to wait for a compiler
        launches.compile_for(kernel, arguments, queue)
    configuration = Configuration(tiles.blocks_of(sizes, tile, batch), tile.threads)
    launches.start(kernels[tile.columns], configuration, queue, *arguments)


@functools.cache
def _kernels(tile_rows: int, arithmetic: Arithmetic) -> dict[int, Any]:
    """Those of the tiles of so many rows, by the columns of a tile."""
    return {tile.columns: product.product(tile, arithmetic) for tile in tiles_of(arithmetic)[tile_rows]}
