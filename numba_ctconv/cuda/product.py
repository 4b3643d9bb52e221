"""The tiled product of forward and grad_input on the GPU; tiles.py says what it is and how it is cut.

    target[o, q·step_out + phase - crop_out] = bias[o] + Σ_c Σ_m panel[(c, m), (o, phase)] · source[c, sample(q, m)]

Called by fast.py with memory for all; nothing here allocates or checks. An element sums the products of BLOCK_STAGES
stages apart, term after term, and adds such partial sums up in order: what it is made of does not depend on the tile.
"""

import functools

import numpy as np

from . import tiles
from .simt import cuda, device, kernel, ptx

BLOCK_STAGES, DEPTH, TERMS = tiles.BLOCK_STAGES, tiles.DEPTH, tiles.TERMS
column_at, term_offset = device(tiles.column_at), device(tiles.term_offset)


@device
def direct_sum(source, panels, sizes, panel, tile_rows, group, item, q, row):
    """The sum of one element, its absent samples left out: for tiles whose weights hold Inf or NaN."""
    total = panels.dtype.type(0)
    for first in range(0, sizes.stages, BLOCK_STAGES):
        partial = panels.dtype.type(0)
        for term in range(first * sizes.stage_terms, min(first + BLOCK_STAGES, sizes.stages) * sizes.stage_terms):
            channel = term // sizes.taps
            sample = q * sizes.step_in + sizes.origin + (term - channel * sizes.taps) * sizes.slope
            inside = (channel < sizes.term_channels) & (item >= 0) & (sample >= 0) & (sample < source.shape[2])
            value = ptx.load_sample(source, item, group * sizes.term_channels + channel, sample, inside)
            weight = ptx.load_element(panels, panel + term * tile_rows + row, inside)
            partial = ptx.multiply_add_where(partial, weight, value, inside)
        total = total + partial
    return total


@functools.cache
def product(tile, itemsize):
    """The kernel of a tile and an element size, for blocks of tile.threads."""
    kind = np.dtype(f"f{itemsize}")
    rows, columns, threads, across = tile.rows, tile.columns, tile.threads, tile.across
    thread_rows, thread_columns = tile.thread_rows, tile.thread_columns
    panel_room, room_size = tile.panel_room, tile.room
    stage_room = panel_room + tile.slab_room
    vector = 16 // itemsize
    zero_sums = ptx.zero_sums(kind, thread_rows * thread_columns)
    load_weights = ptx.load_run(thread_rows)
    load_samples = ptx.load_apart(thread_columns, across)
    store_sums = ptx.store_tile(thread_rows, thread_columns, across, columns)
    wait_for_stage, wait_for_all = ptx.wait(DEPTH - 2), ptx.wait(0)

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
            there = (row < sizes.stage_rows) & (channel < sizes.term_channels)
            plane, position = lane % planes, lane // planes
            for k in range(0, sizes.width, sizes.row_lanes):
                sample = first + k + lane
                ptx.copy_sample(
                    room, at + (row * planes + plane) * sizes.pitch + position, source, item,
                    group * sizes.term_channels + channel, sample, (row < sizes.stage_rows) & (k + lane < sizes.width),
                    there & (sample >= 0) & (sample < length),
                )  # fmt: skip
                plane = plane + sizes.row_lanes % planes
                over = plane // planes
                plane = plane - over * planes
                position = position + sizes.row_lanes // planes + over

    @device
    def load_dense(source, room, at, sizes, stage, group, column_item, column_q, thread):
        """Begin to copy a row of columns for each of a stage's terms."""
        lane, own_row = thread % sizes.row_lanes, thread // sizes.row_lanes
        for r in range(0, sizes.stage_rows, threads // sizes.row_lanes):
            row = r + own_row
            term = stage * sizes.stage_terms + row
            channel = term // sizes.taps
            shift = sizes.origin + (term - channel * sizes.taps) * sizes.slope
            wanted = row < sizes.stage_rows
            for k in range(0, columns, sizes.row_lanes):
                j = k + lane
                item = ptx.load_element(column_item, j, j < columns)
                sample = ptx.load_element(column_q, j, j < columns) * sizes.step_in + shift
                inside = (channel < sizes.term_channels) & (item >= 0) & (sample >= 0) & (sample < source.shape[2])
                ptx.copy_sample(
                    room, at + row * columns + j, source, item, group * sizes.term_channels + channel, sample,
                    wanted & (j < columns), inside,
                )  # fmt: skip

    @kernel(threads, tile.resident)
    def run(source, panels, phases, bias, sizes, output):
        """One block a tile; `phases` holds the family's, `panels` what packing.pack made."""
        thread = cuda.threadIdx.x
        room = cuda.shared.array(room_size, kind, alignment=16)
        column_item = cuda.shared.array(columns, np.int64)
        column_q = cuda.shared.array(columns, np.int64)
        offsets = cuda.shared.array(TERMS, np.int64)
        batch, out_channels, length = output.shape
        tiles_down = sizes.groups * sizes.row_tiles
        row_tile, column_tile = cuda.blockIdx.x % tiles_down, cuda.blockIdx.x // tiles_down
        group, first_row = row_tile // sizes.row_tiles, row_tile % sizes.row_tiles * rows
        count = sizes.stage_terms * rows
        panel = row_tile * sizes.stages * count
        for k in range(0, columns, threads):
            item, position = column_at(sizes, columns, batch, column_tile, k + thread)
            ptx.store_element(column_item, k + thread, item, k + thread < columns)
            ptx.store_element(column_q, k + thread, sizes.q_first + position, k + thread < columns)
        ptx.store_element(offsets, thread, term_offset(sizes, columns, thread), thread < sizes.stage_terms)
        flags = tiles_down * sizes.stages * count + row_tile * sizes.stages
        infinite = thread < 0
        for k in range(0, sizes.stages, threads):
            infinite = infinite | (ptx.load_element(panels, flags + k + thread, k + thread < sizes.stages) != 0)
        direct = ptx.any_of_block(infinite)
        stages = 0 if direct else sizes.stages
        item, position = column_at(sizes, columns, batch, column_tile, 0)
        low = min(0, (sizes.taps - 1) * sizes.slope)
        first = (sizes.q_first + position) * sizes.step_in + sizes.origin + low

        across_at = thread % across
        down_at = thread // across * thread_rows
        total, partial = zero_sums(), zero_sums()
        for ahead in range(DEPTH - 1 + stages):
            if ahead >= DEPTH - 1:
                wait_for_stage()
                cuda.syncthreads()  # the stage is there for all, and the one before it no longer needed
            if ahead < stages:
                at = ahead % DEPTH * stage_room
                load_panel(panels, panel + ahead * count, room, at, count, thread)
                if sizes.spaced:
                    load_spaced(source, room, at + panel_room, sizes, ahead, group, item, first, thread)
                else:
                    load_dense(source, room, at + panel_room, sizes, ahead, group, column_item, column_q, thread)
            ptx.commit()
            stage = ahead - (DEPTH - 1)
            if stage >= 0:
                at = stage % DEPTH * stage_room
                weights_at, samples_at = at + down_at, at + panel_room + across_at
                for t in range(0, sizes.stage_terms - 1, 2):  # two at a time, so that loads are under way in time
                    one = samples_at + ptx.load_shared(offsets, t)
                    other = samples_at + ptx.load_shared(offsets, t + 1)
                    weights, samples = load_weights(room, weights_at + t * rows), load_samples(room, one)
                    partial = ptx.multiply_add(partial, weights, samples)
                    weights, samples = load_weights(room, weights_at + (t + 1) * rows), load_samples(room, other)
                    partial = ptx.multiply_add(partial, weights, samples)
                if sizes.stage_terms % 2:
                    t = sizes.stage_terms - 1
                    one = samples_at + ptx.load_shared(offsets, t)
                    weights, samples = load_weights(room, weights_at + t * rows), load_samples(room, one)
                    partial = ptx.multiply_add(partial, weights, samples)
                if (stage + 1) % BLOCK_STAGES == 0 or stage + 1 == stages:
                    total = ptx.add(total, partial)
                    partial = zero_sums()
        wait_for_all()
        cuda.syncthreads()
        store_sums(room, down_at * columns + across_at, total)
        cuda.syncthreads()

        last_row = min(first_row + rows, sizes.rows)
        for channel in range(first_row // sizes.phases, -(-last_row // sizes.phases)):
            first_phase = max(first_row - channel * sizes.phases, 0)
            own_phases = min(last_row - channel * sizes.phases, sizes.phases) - first_phase
            o = group * (out_channels // sizes.groups) + channel
            added = bias[o] if bias.size > 0 else output.dtype.type(0)
            row_at = channel * sizes.phases + first_phase - first_row
            for k in range(0, columns * own_phases, threads):  # a run of the output: columns, and their phases
                j, p = (k + thread) // own_phases, (k + thread) % own_phases
                item = ptx.load_element(column_item, j, j < columns)
                q = ptx.load_element(column_q, j, j < columns)
                phase = ptx.load_element(phases, first_phase + p, j < columns)
                l = q * sizes.step_out + phase - sizes.crop_out
                there = (j < columns) & (item >= 0) & (l >= 0) & (l < length)
                value = ptx.load_element(room, (row_at + p) * columns + j, j < columns)
                if direct:
                    value = direct_sum(source, panels, sizes, panel, rows, group, item, q, row_at + p)
                ptx.store_sample(output, item, o, l, value + added, there)

    return run
