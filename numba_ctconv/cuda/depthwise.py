"""Depthwise layers on the GPU, whose rows each meet one row: little is multiplied, so memory sets the pace.

    forward     y[n, c, l]  = bias[c] + Σ_{k, t: t·stride + k·dilation = l + crop_left} w[c, 0, k] · x[n, c, t]
    grad_input  dx[n, c, t] = Σ_k w[c, 0, k] · dy[n, c, t·stride + k·dilation - crop_left]

A block of forward reads what its results reach once into shared memory, as words of what is summed in, with zeros
beyond the ends; grad_input reads each sample for all taps that meet it while the first-level cache holds it.
Neighbouring threads take neighbouring results, and a thread results of one phase, so that all of them take the same
taps: in rising order, summed apart in blocks of BLOCK_TAPS. row_cuts.py says which thread takes what; fast.py calls.
depthwise_weight.py has the gradient of the weight.
"""

import functools

from . import row_cuts
from .simt import cuda, device, kernel, ptx

BLOCK_TAPS = 32  # of a partial sum, so that rounding stays near that of pairwise sums
THREADS, RESULTS, ROOM, WEIGHTS = row_cuts.THREADS, row_cuts.RESULTS, row_cuts.ROOM, row_cuts.WEIGHTS
RESIDENT = {4: 3, 8: 2}  # blocks that share a multiprocessor, by the bytes of a word: their registers are the limit


@device
def place_of(thread, cut, batch, channels):
    """(tile, line of the block, lane of the line, item, channel, whether there is such an item) of a thread."""
    line = thread >> cut.shift
    block = cuda.blockIdx.x // cut.tiles
    row = (block * THREADS >> cut.shift) + line
    n = row // channels
    there = n < batch
    c = row - n * channels
    return cuda.blockIdx.x - block * cut.tiles, line, thread - (line << cut.shift), n * there, c * there, there


@device
def load_weights(weight, panel, at, c, lane, threads, there):
    """The taps of a row, which lie from `at` on, and whether some row of the block has one that is not finite."""
    kernel_size = weight.shape[2]
    infinite = lane < 0
    for first in range(0, kernel_size, threads):
        k = first + lane
        value = ptx.load_sample(weight, c, 0, k, there & (k < kernel_size))
        infinite = infinite | (value - value != 0)
        ptx.store_element(panel, at + k, value, k < kernel_size)
    return ptx.any_of_block(infinite)


@functools.cache
def load_samples(arithmetic):
    """A reader of a stretch of a row: load(room, at, source, n, c, first, count, lane, threads, there).

    Halves are no more than two bytes, which no copy takes alone: a thread waits for four of them at once.
    """

    @device
    def copy(room, at, source, n, c, first, count, lane, threads, there):
        k = 0
        while k < count:  # a range would divide to know its length
            l = first + k + lane
            inside = there & (l >= 0) & (l < source.shape[2])
            ptx.copy_sample(room, at + k + lane, source, n, c, l, k + lane < count, inside)
            k += threads
        ptx.commit()

    @device
    def convert(room, at, source, n, c, first, count, lane, threads, there):
        end = min(source.shape[2], first + count)
        k = 0
        while k < count:
            i = k + lane
            l = first + i
            load_1 = ptx.load_sample(source, n, c, l, there & (l >= 0) & (l < end))
            l += threads
            load_2 = ptx.load_sample(source, n, c, l, there & (l >= 0) & (l < end))
            l += threads
            load_3 = ptx.load_sample(source, n, c, l, there & (l >= 0) & (l < end))
            l += threads
            load_4 = ptx.load_sample(source, n, c, l, there & (l >= 0) & (l < end))
            ptx.store_element(room, at + i, load_1, i < count)
            ptx.store_element(room, at + i + threads, load_2, i + threads < count)
            ptx.store_element(room, at + i + 2 * threads, load_3, i + 2 * threads < count)
            ptx.store_element(room, at + i + 3 * threads, load_4, i + 3 * threads < count)
            k += 4 * threads

    return copy if arithmetic.terms == 1 else convert


@functools.cache
def forward(arithmetic):
    """The kernel of an arithmetic, for blocks of THREADS."""
    kind = arithmetic.word
    load, wait = load_samples(arithmetic), ptx.wait(0)
    zero_sums, load_one, load_results = ptx.zero_sums(kind, RESULTS), ptx.load_spaced(1), ptx.load_spaced(RESULTS)
    places_of, store_results = ptx.spaced(RESULTS), ptx.store_spaced(RESULTS)

    @device
    def sum_taps(room, panel, cut, at, place, tap, taps, fewest, length):
        """The sums of a pass: the first tap's sample for the first result is room[at] and lies at `place`."""
        total = zero_sums()
        for first in range(0, cut.most_taps, BLOCK_TAPS):
            partial = zero_sums()
            for m in range(first, min(first + BLOCK_TAPS, cut.most_taps)):
                if m < fewest:
                    w = load_one(panel, tap + m * cut.tap_step, 0)
                    x = load_results(room, at - m * cut.input_step, cut.space)
                    partial = ptx.multiply_add(partial, w, x)
                else:  # the phase of a thread may have no such tap, or an infinite one that meets no sample
                    met = m < taps
                    back = m * met
                    w = load_one(panel, tap + back * cut.tap_step, 0)
                    x = load_results(room, at - back * cut.input_step, cut.space)
                    places = places_of(place - back * cut.input_step, cut.space)
                    partial = ptx.multiply_add_inside(partial, w, x, places, 0, length * met)
            total = ptx.add(total, partial)
        return total

    @kernel(THREADS, RESIDENT[arithmetic.word_bytes])
    def run(input, weight, bias, table, cut, output):
        """One block a tile of its rows; `table` is that of row_cuts.py."""
        thread = cuda.threadIdx.x
        room = cuda.shared.array(ROOM, kind)
        panel = cuda.shared.array(WEIGHTS, kind)
        batch, channels, _ = output.shape
        length, kernel_size = input.shape[2], weight.shape[2]
        threads = 1 << cut.shift
        tile, line, lane, n, c, there = place_of(thread, cut, batch, channels)
        first_q = tile * cut.passes * RESULTS * cut.space + cut.crop_quotient
        first_sample = first_q - cut.reach
        samples_at, weights_at = line * cut.samples, line * kernel_size
        load(room, samples_at, input, n, c, first_sample, cut.samples, lane, threads, there)
        infinite = load_weights(weight, panel, weights_at, c, lane, threads, there)
        added = ptx.load_element(bias, c, there & (c < bias.shape[0]))
        wait()
        cuda.syncthreads()

        fewest = cut.fewest_taps
        if infinite and (first_sample < 0 or first_sample + cut.samples > length):
            fewest = 0
        for k in range(0, cut.step, threads):  # once, unless the stride is larger than a row's threads are many
            own = there & (k + lane < cut.step)
            p = (k + lane) * own
            q = (cut.crop_phase + p) // cut.stride
            r = cut.crop_phase + p - q * cut.stride
            tap = ptx.load_element(table, r, r >= 0)
            shift = ptx.load_element(table, cut.stride + r, r >= 0)
            taps = ptx.load_element(table, 2 * cut.stride + r, r >= 0)
            for turn in range(cut.passes):
                at = q - shift + cut.reach + turn * RESULTS * cut.space
                sums = sum_taps(
                    room, panel, cut, samples_at + at, first_sample + at, weights_at + tap, taps, fewest, length
                )
                l = (tile * cut.passes + turn) * RESULTS * cut.step + p
                store_results(output, n, c, l, cut.step, sums, added, own)

    return run


@functools.cache
def grad_input(arithmetic):
    """The kernel of an arithmetic, for blocks of THREADS."""
    kind = arithmetic.word
    nothing = kind.type(0)
    zero_sums, load_one = ptx.zero_sums(kind, RESULTS), ptx.load_row(1, False)
    load_inside, load_checked = ptx.load_row(RESULTS, False), ptx.load_row(RESULTS, True)
    places_of, store_results = ptx.spaced(RESULTS), ptx.store_spaced(RESULTS)

    @kernel(THREADS, RESIDENT[arithmetic.word_bytes])
    def run(grad_output, weight, cut, grad_input):
        """One block a tile of its rows."""
        thread = cuda.threadIdx.x
        batch, channels, _ = grad_input.shape
        length, kernel_size = grad_output.shape[2], weight.shape[2]
        threads = 1 << cut.shift
        tile, _, lane, n, c, there = place_of(thread, cut, batch, channels)
        space = threads * cut.stride
        first = tile * RESULTS * space - cut.crop_left
        last = first + (RESULTS * threads - 1) * cut.stride + (kernel_size - 1) * cut.dilation
        inside = first >= 0 and last < length
        place = first + lane * cut.stride
        total = zero_sums()
        for begin in range(0, kernel_size, BLOCK_TAPS):
            partial = zero_sums()
            for k in range(begin, min(begin + BLOCK_TAPS, kernel_size)):
                at = place + k * cut.dilation
                w = load_one(weight, c, 0, k, 0)
                if inside:
                    partial = ptx.multiply_add(partial, w, load_inside(grad_output, n, c, at, space))
                else:
                    dy = load_checked(grad_output, n, c, at, space)
                    partial = ptx.multiply_add_inside(partial, w, dy, places_of(at, space), 0, length)
            total = ptx.add(total, partial)
        store_results(grad_input, n, c, tile * RESULTS * threads + lane, threads, total, nothing, there)

    return run
