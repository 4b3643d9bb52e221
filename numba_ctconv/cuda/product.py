"""The tiled product of forward and grad_input on the GPU; tiles.py says what it is and how it is cut.

    target[o, q·step_out + phase - crop_out] = bias[o] + Σ_c Σ_m panel[(c, m), (o, phase)] · source[c, sample(q, m)]

Called by fast.py with memory for all; nothing here allocates or checks. An element sums the products of BLOCK_STAGES
stages apart, term after term, and adds such partial sums up in order: what it is made of does not depend on the tile.
Nor on whether the product is split over several thread blocks: then these store each partial sum, for parts.py to add.
"""

import functools

import numpy as np

from . import fragments, tiles
from .multiply import pipeline, product_stage
from .simt import cuda, device, kernel, ptx
from .tile import BLOCK_STAGES, DEPTH, WORDS, splits, thread_place
from .words import as_multiplied, copy_channels, values_of

block_at, column_at, term_offset = (device(each) for each in (tiles.block_at, tiles.column_at, tiles.term_offset))


@functools.cache
def direct_block(arithmetic):
    """A partial sum of one element, its absent samples left out: for tiles whose weights hold Inf or NaN."""
    terms = arithmetic.terms
    place = device(fragments.weight_place if arithmetic.tensor else fragments.row_place)
    multiplied = as_multiplied(arithmetic)
    first, second = values_of(arithmetic)

    @device
    def direct(source, panels, sizes, panel, tile_rows, group, item, q, row, block):
        partial = panels.dtype.type(0)
        for stage in range(block * BLOCK_STAGES, min((block + 1) * BLOCK_STAGES, sizes.stages)):
            for t in range(sizes.stage_words):
                word = stage * sizes.stage_words + t
                channel = word // sizes.taps
                sample = q * sizes.step_in + sizes.origin + (word - channel * sizes.taps) * sizes.slope
                inside = (item >= 0) & (sample >= 0) & (sample < source.shape[2])
                at = panel + stage * (sizes.panel_words * tile_rows) + place(t, row, tile_rows)
                weights = ptx.load_element(panels, at, inside)
                channel = channel * terms
                there = inside & (channel < sizes.term_channels)
                value = ptx.load_sample(source, item, group * sizes.term_channels + channel, sample, there)
                partial = ptx.multiply_add_where(partial, first(weights), multiplied(value), there)
                if terms == 2:
                    there = inside & (channel + 1 < sizes.term_channels)
                    value = ptx.load_sample(source, item, group * sizes.term_channels + channel + 1, sample, there)
                    partial = ptx.multiply_add_where(partial, second(weights), multiplied(value), there)
        return partial

    return direct


@functools.cache
def product(tile, arithmetic):
    """The kernel of a tile and an arithmetic, for blocks of tile.threads."""
    kind, vector = arithmetic.word, 16 // arithmetic.word_bytes
    rows, columns, threads, pitch = tile.rows, tile.columns, tile.threads, tile.pitch
    panel_room, room_size, may_split = tile.panel_room, tile.room, splits(tile, arithmetic)
    place = device(thread_place(tile))
    fetch, direct_block_of = copy_channels(arithmetic), direct_block(arithmetic)
    store_sums = ptx.store_tile(tile.row_steps, tile.column_steps, pitch)
    store_part = ptx.store_part(tile.row_steps, tile.column_steps)

    @device
    def load_panel(panels, panel, room, at, count, thread):
        """Begin to copy a stage's weights."""
        for k in range(0, panel_room, threads * vector):
            element = k + thread * vector
            ptx.copy_vector(room, at + element, panels, panel + element, element < count)

    @device
    def load_spaced(source, room, at, sizes, stage, group, item, first, thread):
        """Begin to copy what a stage's taps reach: neighbouring threads take neighbouring samples."""
        lane, own_row = thread % sizes.row_lanes, thread // sizes.row_lanes
        planes, length = sizes.step_in, source.shape[2]
        for r in range(0, sizes.stage_rows, threads // sizes.row_lanes):
            row = r + own_row
            channel = stage * sizes.stage_rows + row
            plane, position = lane % planes, lane // planes
            for k in range(0, sizes.width, sizes.row_lanes):
                sample = first + k + lane
                fetch(
                    room, at + (row * planes + plane) * sizes.pitch + position, source, item,
                    group * sizes.term_channels, channel, sizes.term_channels, sample,
                    (row < sizes.stage_rows) & (k + lane < sizes.width), (sample >= 0) & (sample < length),
                )  # fmt: skip
                plane = plane + sizes.row_lanes % planes
                over = plane // planes
                plane = plane - over * planes
                position = position + sizes.row_lanes // planes + over

    @device
    def load_dense(source, room, at, sizes, stage, group, column_item, column_q, thread):
        """Begin to copy a row of columns for each of a stage's words."""
        lane, own_row = thread % sizes.row_lanes, thread // sizes.row_lanes
        for r in range(0, sizes.stage_rows, threads // sizes.row_lanes):
            row = r + own_row
            term = stage * sizes.stage_words + row
            channel = term // sizes.taps
            shift = sizes.origin + (term - channel * sizes.taps) * sizes.slope
            wanted = row < sizes.stage_rows
            for k in range(0, columns, sizes.row_lanes):
                j = k + lane
                item = ptx.load_element(column_item, j, j < columns)
                sample = ptx.load_element(column_q, j, j < columns) * sizes.step_in + shift
                fetch(
                    room, at + row * pitch + j, source, item, group * sizes.term_channels, channel,
                    sizes.term_channels, sample, wanted & (j < columns),
                    (item >= 0) & (sample >= 0) & (sample < source.shape[2]),
                )  # fmt: skip

    @device
    def load(
        stage, at, source, panels, room, sizes, panel, first_stage, group, item, first, column_item, column_q, thread
    ):
        """Begin to copy a stage's weights and samples."""
        count = sizes.panel_words * rows
        stage = first_stage + stage
        load_panel(panels, panel + stage * count, room, at, count, thread)
        if sizes.spaced:
            load_spaced(source, room, at + panel_room, sizes, stage, group, item, first, thread)
        else:
            load_dense(source, room, at + panel_room, sizes, stage, group, column_item, column_q, thread)

    @device
    def end_block(
        total, partial, stage, parts, sizes, split, first_stage, group, first_row, column_item, column_q, thread
    ):
        """Add a partial sum up, or store it."""
        if split:
            row, column = place(thread)
            block, row = (first_stage + stage) // BLOCK_STAGES, first_row + row
            store_part(
                parts, block, group * sizes.rows + row, sizes.rows - row, column_item, column_q, sizes.q_first, column,
                partial,
            )  # fmt: skip
        else:
            total = ptx.add(total, partial)
        return total

    @device
    def store_direct(
        source, panels, parts, sizes, panel, first_stage, stages, group, first_row, column_item, column_q, thread
    ):
        """Store the partial sums of a split tile whose weights hold Inf or NaN."""
        for block in range(first_stage // BLOCK_STAGES, -(-(first_stage + stages) // BLOCK_STAGES)):
            for k in range(0, rows * columns, threads):
                row, j = (k + thread) // columns, (k + thread) % columns
                item, q = ptx.load_shared(column_item, j), ptx.load_shared(column_q, j)
                value = direct_block_of(source, panels, sizes, panel, rows, group, item, q, row, block)
                there = (item >= 0) & (first_row + row < sizes.rows)
                ptx.store_weight(
                    parts, block, group * sizes.rows + first_row + row, item, q - sizes.q_first, value, there
                )

    zero_sums = ptx.zero_sums(kind, tile.thread_rows * tile.thread_columns)
    stage_room = panel_room + tile.slab_room
    sums_of = pipeline(zero_sums, load, product_stage(tile, arithmetic), end_block, DEPTH, BLOCK_STAGES, stage_room)

    @kernel(threads, tile.resident)
    def run(source, panels, phases, bias, sizes, parts, output):
        """One block a tile, or a part of it; `phases` holds the family's, `panels` what packing.pack made.

        A split product's sums go to `parts`, and not to `output`; tiles.parts_shape says how they lie.
        """
        thread = cuda.threadIdx.x
        room = cuda.shared.array(room_size, kind, alignment=16)
        column_item = cuda.shared.array(columns, np.int64)
        column_q = cuda.shared.array(columns, np.int64)
        offsets = cuda.shared.array(WORDS, np.int64)
        batch, out_channels, length = output.shape
        row_tile, part, column_tile = block_at(sizes, cuda.blockIdx.x)
        group, first_row = row_tile // sizes.row_tiles, row_tile % sizes.row_tiles * rows
        count = sizes.panel_words * rows
        panel = row_tile * sizes.stages * count
        for k in range(0, columns, threads):
            item, position = column_at(sizes, columns, batch, column_tile, k + thread)
            ptx.store_element(column_item, k + thread, item, k + thread < columns)
            ptx.store_element(column_q, k + thread, sizes.q_first + position, k + thread < columns)
        # where a stage ends early, the rest of an instruction has zero weights, and samples that are there
        offset = term_offset(sizes, thread * (thread < sizes.stage_words))
        ptx.store_element(offsets, thread, offset, thread < WORDS)
        flags = sizes.groups * sizes.row_tiles * sizes.stages * count + row_tile * sizes.stages
        infinite = thread < 0
        for k in range(0, sizes.stages, threads):
            infinite = infinite | (ptx.load_element(panels, flags + k + thread, k + thread < sizes.stages) != 0)
        direct = ptx.any_of_block(infinite)
        split = may_split and sizes.part_stages < sizes.stages
        first_stage = part * sizes.part_stages
        part_stages = min(sizes.stages - first_stage, sizes.part_stages)
        stages = 0 if direct else part_stages
        item, position = column_at(sizes, columns, batch, column_tile, 0)
        low = min(0, (sizes.taps - 1) * sizes.slope)
        first = (sizes.q_first + position) * sizes.step_in + sizes.origin + low

        loaded = (source, panels, room, sizes, panel, first_stage, group, item, first, column_item, column_q, thread)
        ended = (parts, sizes, split, first_stage, group, first_row, column_item, column_q, thread)
        total = sums_of(stages, loaded, (room, sizes, offsets, thread), ended)
        if split:
            if direct:
                store_direct(
                    source, panels, parts, sizes, panel, first_stage, part_stages, group, first_row, column_item,
                    column_q, thread,
                )  # fmt: skip
            return
        row, column = place(thread)
        store_sums(room, row * pitch + column, total)
        cuda.syncthreads()

        last_row = min(first_row + rows, sizes.rows)
        for channel in range(first_row // sizes.phases, -(-last_row // sizes.phases)):
            first_phase = max(first_row - channel * sizes.phases, 0)
            own_phases = min(last_row - channel * sizes.phases, sizes.phases) - first_phase
            o = group * (out_channels // sizes.groups) + channel
            added = ptx.load_element(bias, o, bias.size > 0)
            row_at = channel * sizes.phases + first_phase - first_row
            for k in range(0, columns * own_phases, threads):  # a run of the output: columns, and their phases
                j, p = (k + thread) // own_phases, (k + thread) % own_phases
                item = ptx.load_element(column_item, j, j < columns)
                q = ptx.load_element(column_q, j, j < columns)
                phase = ptx.load_element(phases, first_phase + p, j < columns)
                l = q * sizes.step_out + phase - sizes.crop_out
                there = (j < columns) & (item >= 0) & (l >= 0) & (l < length)
                value = ptx.load_element(room, (row_at + p) * pitch + j, j < columns)
                if direct:
                    for block in range(-(-sizes.stages // BLOCK_STAGES)):  # onto the zero of a sum without stages
                        value = value + direct_block_of(
                            source, panels, sizes, panel, rows, group, item, q, row_at + p, block
                        )
                ptx.store_sample(output, item, o, l, value + added, there)

    return run
