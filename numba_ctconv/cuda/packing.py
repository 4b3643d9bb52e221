"""Weights packed on the GPU for the tiled product. Called by fast.py once for a layer, or for a call.

A block of THREADS packs one stage of one tile of rows: panels [group][tile][stage][term][row], padded with zeros, and
after all of them, for each such block, 1 where it holds Inf or NaN, else 0.
"""

from .simt import cuda, kernel, ptx

THREADS = 128


@kernel(THREADS, 4)
def pack(weight, table, by_input, tile_rows, row_tiles, rows, phases, term_channels, taps, stages, stage_terms,
         tap_step, panels):  # fmt: skip
    """Row (o, phase) and term (c, m) meet in weight[c, o, first tap of the phase + m·tap_step].

    `by_input` swaps c and o: then rows are input channels. `table` holds the phases and then their first taps.
    """
    thread = cuda.threadIdx.x
    count = stage_terms * tile_rows
    row_tile, stage = cuda.blockIdx.x // stages, cuda.blockIdx.x % stages
    group, first_row = row_tile // row_tiles, row_tile % row_tiles * tile_rows
    panel = cuda.blockIdx.x * count
    groups_channels = weight.shape[0] // (rows // phases if by_input else term_channels)
    infinite = thread < 0
    for k in range(0, count, THREADS):
        element = k + thread
        term, row = stage * stage_terms + element // tile_rows, first_row + element % tile_rows
        c, o = term // taps, row // phases
        there = (element < count) & (c < term_channels) & (row < rows)
        tap = ptx.load_element(table, phases + row % phases, there) + (term - c * taps) * tap_step
        if by_input:
            value = ptx.load_sample(weight, group * (rows // phases) + o, c, tap, there)
        else:
            value = ptx.load_sample(weight, group * term_channels + c, o, tap, there)
        ptx.store_element(panels, panel + element, value, element < count)
        infinite = infinite | (value - value != 0)
    found = ptx.any_of_block(infinite)
    flags = groups_channels * row_tiles * stages * count
    flag = panels.dtype.type(1) if found else panels.dtype.type(0)
    ptx.store_element(panels, flags + cuda.blockIdx.x + thread, flag, thread < 1)
