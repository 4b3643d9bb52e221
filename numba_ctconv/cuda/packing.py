"""Weights packed on the GPU for the tiled product. Called by fast.py once for a layer, or for a call.

A block of THREADS packs one stage of one tile of rows: panels [group][tile][stage], each of the words of the tile's
rows in the order of fragments.py, padded with zeros, and after all of them, for each such block, 1 where it holds Inf
or NaN, else 0. Weights are rounded here to what the arithmetic multiplies.
"""

import functools

from . import fragments
from .simt import cuda, device, kernel, ptx
from .words import values_of, weight_word

THREADS = 128


@functools.cache
def pack(arithmetic):
    """The kernel that packs for an arithmetic."""
    load = weight_word(arithmetic)
    first, second = values_of(arithmetic)
    place = device(fragments.weight_place if arithmetic.tensor else fragments.row_place)

    @kernel(THREADS, 4)
    def run(weight, table, by_input, tile_rows, row_tiles, rows, phases, term_channels, taps, stages, stage_words,
            panel_words, tap_step, panels):  # fmt: skip
        """Row (o, phase) and term (c, m) meet in weight[c, o, first tap of the phase + m·tap_step].

        `by_input` swaps c and o: then rows are input channels. `table` holds the phases and then their first taps.
        """
        thread = cuda.threadIdx.x
        count = panel_words * tile_rows
        row_tile, stage = cuda.blockIdx.x // stages, cuda.blockIdx.x % stages
        group, first_row = row_tile // row_tiles, row_tile % row_tiles * tile_rows
        panel = cuda.blockIdx.x * count
        groups = weight.shape[0] // (rows // phases if by_input else term_channels)
        own_first = group * (rows // phases) if by_input else 0
        first_channel = 0 if by_input else group * term_channels
        infinite = thread < 0
        for k in range(0, count, THREADS):
            t, row = (k + thread) // tile_rows, first_row + (k + thread) % tile_rows
            word = stage * stage_words + t
            c, o = word // taps, row // phases
            there = (t < stage_words) & (row < rows)
            tap = ptx.load_element(table, phases + row % phases, there) + (word - c * taps) * tap_step
            value = load(weight, by_input, first_channel, c, term_channels, own_first + o, tap, there)
            ptx.store_element(panels, panel + place(t, row - first_row, tile_rows), value, t < panel_words)
            low, high = first(value), second(value)
            infinite = infinite | (low - low + (high - high) != 0)
        found = ptx.any_of_block(infinite)
        flags = groups * row_tiles * stages * count
        flag = panels.dtype.type(1) if found else panels.dtype.type(0)
        ptx.store_element(panels, flags + cuda.blockIdx.x + thread, flag, thread < 1)

    return run
