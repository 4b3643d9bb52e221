"""The tiled product of grad_weight on the GPU: rows are input channels, columns (output channel, tap).

    grad_weight[i, o, k] = Σ_n Σ_t x[n, i, t] · dy[n, o, t·stride + k·dilation - crop_left]

The terms are the samples of all items, one item after the other, TERMS to a stage. Where the weights are too few to
fill a chip, the terms are cut into parts, each a block of its own, whose sums wait in memory and are added up in order.
tiles.py says where the cuts are; fast.py calls, with memory for all.
"""

import functools

import numpy as np

from . import tiles
from .simt import cuda, device, kernel, ptx

BLOCK_STAGES, DEPTH, TERMS = tiles.BLOCK_STAGES, tiles.DEPTH, tiles.TERMS
SUM_THREADS = 256
stage_meets_edge = device(tiles.stage_meets_edge)


@kernel(SUM_THREADS, 4)
def add_parts(parts, grad_weight):
    """grad_weight[i, o, k] = Σ parts[part, i, o, k], in order."""
    _, row_channels, kernel_size = grad_weight.shape
    element = cuda.blockIdx.x * SUM_THREADS + cuda.threadIdx.x
    k, o, i = element % kernel_size, element // kernel_size % row_channels, element // kernel_size // row_channels
    there = element < grad_weight.size
    total = grad_weight.dtype.type(0)
    for part in range(parts.shape[0]):
        total = total + ptx.load_weight(parts, part, i, o, k, there)
    ptx.store_sample(grad_weight, i, o, k, total, there)


@functools.cache
def weight_product(tile, itemsize):
    """The kernel of a tile and an element size, for blocks of tile.threads."""
    kind = np.dtype(f"f{itemsize}")
    rows, columns, threads, across = tile.rows, tile.columns, tile.threads, tile.across
    thread_rows, thread_columns = tile.thread_rows, tile.thread_columns
    pitch = tile.input_pitch
    stage_room, room_size = TERMS * (pitch + columns), DEPTH * TERMS * (pitch + columns)
    zero_sums = ptx.zero_sums(kind, thread_rows * thread_columns)
    load_inputs = ptx.load_run(thread_rows)
    load_outputs = ptx.load_apart(thread_columns, across)
    store_sums = ptx.store_tile(thread_rows, thread_columns, across, columns)
    wait_for_stage, wait_for_all = ptx.wait(DEPTH - 2), ptx.wait(0)

    @device
    def load_stage(grad_output, input, sizes, stage, group, first_row, column_o, column_place, room, at, thread):
        """Begin to copy a stage's samples of the input, transposed, and of grad_output, a row of columns each."""
        length, out_length = input.shape[2], grad_output.shape[2]
        row_channels, out_channels = input.shape[1] // sizes.groups, grad_output.shape[1] // sizes.groups
        terms = input.shape[0] * length
        own = thread % TERMS
        term = stage * TERMS + own
        item = term // length
        for k in range(0, rows, threads // TERMS):  # neighbouring threads take neighbouring samples
            row = k + thread // TERMS
            channel = first_row + row
            ptx.copy_sample(
                room, at + own * pitch + row, input, item, group * row_channels + channel, term - item * length,
                row < rows, (term < terms) & (channel < row_channels),
            )  # fmt: skip
        lane = thread % 32
        for r in range(0, TERMS, threads // 32):
            own = r + thread // 32
            term = stage * TERMS + own
            item = term // length
            start = (term - item * length) * sizes.stride
            for k in range(0, columns, 32):
                j = k + lane
                o = ptx.load_shared(column_o, j)
                l = start + ptx.load_shared(column_place, j)
                ptx.copy_sample(
                    room, at + TERMS * pitch + own * columns + j, grad_output, item, group * out_channels + o, l,
                    own < TERMS, (term < terms) & (o >= 0) & (l >= 0) & (l < out_length),
                )  # fmt: skip

    @kernel(threads, tile.resident)
    def run(grad_output, input, sizes, target):
        """One block a tile of one part; `target` is (parts, C_in, C_out/groups, K)."""
        thread = cuda.threadIdx.x
        room = cuda.shared.array(room_size, kind, alignment=16)
        column_o = cuda.shared.array(columns, np.int64)
        column_place = cuda.shared.array(columns, np.int64)  # where the column's tap meets sample 0
        _, in_channels, out_channels, kernel_size = target.shape
        row_channels = in_channels // sizes.groups
        length, out_length = input.shape[2], grad_output.shape[2]
        tiles_in_part = sizes.groups * sizes.row_tiles * sizes.column_tiles
        part, place = cuda.blockIdx.x // tiles_in_part, cuda.blockIdx.x % tiles_in_part
        group, place = place // (sizes.row_tiles * sizes.column_tiles), place % (sizes.row_tiles * sizes.column_tiles)
        first_row, first_column = place % sizes.row_tiles * rows, place // sizes.row_tiles * columns
        for k in range(0, columns, threads):
            column = first_column + k + thread
            o = column // kernel_size
            there = o < out_channels
            tap = column - o * kernel_size
            ptx.store_element(column_o, k + thread, o * there - (1 - there), k + thread < columns)
            ptx.store_element(column_place, k + thread, tap * sizes.dilation - sizes.crop_left, k + thread < columns)
        cuda.syncthreads()
        first_stage = part * sizes.part_stages
        stages = min(sizes.stages - first_stage, sizes.part_stages)

        across_at = thread % across
        down_at = thread // across * thread_rows
        total, partial = zero_sums(), zero_sums()
        for ahead in range(DEPTH - 1 + stages):
            if ahead >= DEPTH - 1:
                wait_for_stage()
                cuda.syncthreads()  # the stage is there for all, and the one before it no longer needed
            if ahead < stages:
                load_stage(grad_output, input, sizes, first_stage + ahead, group, first_row, column_o, column_place,
                           room, ahead % DEPTH * stage_room, thread)  # fmt: skip
            ptx.commit()
            stage = ahead - (DEPTH - 1)
            if stage >= 0:
                at = stage % DEPTH * stage_room
                inputs_at, outputs_at = at + down_at, at + TERMS * pitch + across_at
                if stage_meets_edge(sizes, first_stage + stage, input.shape[0], length, out_length, kernel_size):
                    for t in range(TERMS):
                        start = ((first_stage + stage) * TERMS + t) % length * sizes.stride
                        inputs = load_inputs(room, inputs_at + t * pitch)
                        outputs = load_outputs(room, outputs_at + t * columns)
                        places = load_outputs(column_place, across_at)
                        partial = ptx.multiply_add_inside(partial, inputs, outputs, places, start, out_length)
                else:
                    for t in range(0, TERMS, 2):  # two at a time, so that loads are under way in time
                        inputs = load_inputs(room, inputs_at + t * pitch)
                        outputs = load_outputs(room, outputs_at + t * columns)
                        partial = ptx.multiply_add(partial, inputs, outputs)
                        inputs = load_inputs(room, inputs_at + (t + 1) * pitch)
                        outputs = load_outputs(room, outputs_at + (t + 1) * columns)
                        partial = ptx.multiply_add(partial, inputs, outputs)
                if (stage + 1) % BLOCK_STAGES == 0 or stage + 1 == stages:
                    total = ptx.add(total, partial)
                    partial = zero_sums()
        wait_for_all()
        cuda.syncthreads()
        store_sums(room, down_at * columns + across_at, total)
        cuda.syncthreads()
        for row in range(min(rows, row_channels - first_row)):
            for k in range(0, columns, threads):
                j = k + thread
                o = ptx.load_element(column_o, j, j < columns)
                there = (j < columns) & (o >= 0)
                value = ptx.load_element(room, row * columns + j, j < columns)
                tap = first_column + j - o * kernel_size
                ptx.store_weight(target, part, group * row_channels + first_row + row, o, tap, value, there)

    return run
