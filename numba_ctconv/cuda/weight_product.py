"""The tiled product of grad_weight on the GPU: rows are input channels, columns (output channel, tap).

    grad_weight[i, o, k] = Σ_n Σ_t x[n, i, t] · dy[n, o, t·stride + k·dilation - crop_left]

The terms are the samples of all items, one item after the other, WORDS words of them to a stage. Where the weights are
too few to fill a chip, the terms are cut into parts, each a block of its own, whose sums wait in memory, where parts.py
adds them up in order.
tiles.py says where the cuts are; fast.py calls, with memory for all.
"""

import functools

import numpy as np

from . import tiles
from .multiply import input_place, must_be_inside, pipeline, weight_stage, weight_stage_inside
from .simt import cuda, device, kernel, ptx
from .tile import BLOCK_STAGES, DEPTH, WORDS, thread_place
from .words import copy_times

stage_meets_edge = device(tiles.stage_meets_edge)


@functools.cache
def weight_product(tile, arithmetic):
    """The kernel of a tile and an arithmetic, for blocks of tile.threads."""
    kind, terms = arithmetic.word, arithmetic.terms
    rows, columns, threads, pitch, input_room = tile.rows, tile.columns, tile.threads, tile.pitch, tile.input_room
    stage_room = input_room + WORDS * pitch
    room_size = DEPTH * stage_room
    place, input_at, fetch = device(thread_place(tile)), device(input_place(tile)), copy_times(arithmetic)
    multiply_stage, multiply_inside = weight_stage(tile, arithmetic), weight_stage_inside(tile, arithmetic)
    must_mask = must_be_inside(tile, arithmetic)
    store_sums = ptx.store_tile(tile.row_steps, tile.column_steps, pitch)

    @device
    def load(stage, at, grad_output, input, room, sizes, first_stage, group, first_row, column_o, column_place, thread):
        """Begin to copy a stage's samples of the input, and of grad_output, a row of columns for each."""
        batch, length = input.shape[0], input.shape[2]
        row_channels, out_channels = input.shape[1] // sizes.groups, grad_output.shape[1] // sizes.groups
        first_word = (first_stage + stage) * WORDS
        own = thread % WORDS
        item = (first_word + own) * terms // length
        t = (first_word + own) * terms - item * length
        for k in range(0, rows, threads // WORDS):  # neighbouring threads take neighbouring samples
            row = k + thread // WORDS
            channel = first_row + row
            fetch(
                room, at + input_at(own, row), input, group * row_channels + channel, item, t, batch, length, 1, 0,
                row < rows, channel < row_channels,
            )  # fmt: skip
        lane = thread % 32
        for r in range(0, WORDS, threads // 32):
            own = r + thread // 32
            item = (first_word + own) * terms // length
            t = (first_word + own) * terms - item * length
            for k in range(0, columns, 32):
                j = k + lane
                o = ptx.load_shared(column_o, j)
                fetch(
                    room, at + input_room + own * pitch + j, grad_output, group * out_channels + o, item, t, batch,
                    length, sizes.stride, ptx.load_shared(column_place, j), own < WORDS, o >= 0,
                )  # fmt: skip

    @device
    def multiply(partial, stage, at, grad_output, input, room, sizes, first_stage, kernel_size, column_place, thread):
        """A stage's products; those with an absent sample of grad_output are left out where they are not zero."""
        batch, length, out_length = input.shape[0], input.shape[2], grad_output.shape[2]
        stage = first_stage + stage
        masked = stage_meets_edge(sizes, stage, WORDS * terms, batch, length, out_length, kernel_size)
        if masked:
            masked = must_mask(at, room, thread)
        if masked:
            first_term = stage * (WORDS * terms)
            partial = multiply_inside(
                partial, at, room, column_place, first_term, length, sizes.stride, out_length, thread
            )
        else:
            partial = multiply_stage(partial, at, room, thread)
        return partial

    @device
    def add_block(total, partial, stage):
        return ptx.add(total, partial)

    zero_sums = ptx.zero_sums(kind, tile.thread_rows * tile.thread_columns)
    sums_of = pipeline(zero_sums, load, multiply, add_block, DEPTH, BLOCK_STAGES, stage_room)

    @kernel(threads, tile.resident)
    def run(grad_output, input, sizes, target):
        """One block a tile of one part; `target` is (parts, C_in, C_out/groups, K)."""
        thread = cuda.threadIdx.x
        room = cuda.shared.array(room_size, kind, alignment=16)
        column_o = cuda.shared.array(columns, np.int64)
        column_place = cuda.shared.array(columns, np.int64)  # where the column's tap meets sample 0
        _, in_channels, out_channels, kernel_size = target.shape
        row_channels = in_channels // sizes.groups
        tiles_in_part = sizes.groups * sizes.row_tiles * sizes.column_tiles
        part, at = cuda.blockIdx.x // tiles_in_part, cuda.blockIdx.x % tiles_in_part
        group, at = at // (sizes.row_tiles * sizes.column_tiles), at % (sizes.row_tiles * sizes.column_tiles)
        first_row, first_column = at % sizes.row_tiles * rows, at // sizes.row_tiles * columns
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

        loaded = (grad_output, input, room, sizes, first_stage, group, first_row, column_o, column_place, thread)
        multiplied = (grad_output, input, room, sizes, first_stage, kernel_size, column_place, thread)
        total = sums_of(stages, loaded, multiplied, ())
        row, column = place(thread)
        store_sums(room, row * pitch + column, total)
        cuda.syncthreads()
        for row in range(min(rows, row_channels - first_row)):
            for k in range(0, columns, threads):
                j = k + thread
                o = ptx.load_element(column_o, j, j < columns)
                there = (j < columns) & (o >= 0)
                value = ptx.load_element(room, row * pitch + j, j < columns)
                tap = first_column + j - o * kernel_size
                ptx.store_weight(target, part, group * row_channels + first_row + row, o, tap, value, there)

    return run
