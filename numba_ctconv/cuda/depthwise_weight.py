"""The weight gradient of depthwise layers on the GPU, whose every weight meets one row of either array.

    grad_weight[i, o, k] = Σ_n Σ_t x[n, i, t] · dy[n, i·outputs + o, t·stride + k·dilation - crop_left]

A block reads a tile of both rows once into shared memory, as words of what is summed in, with zeros beyond the ends. A
thread meets TERMS samples of one phase of grad_output with the samples that TAPS taps of that phase take, all in
registers: with t = q - shift - m for the phase's m-th tap, a step from q to q is one from m to m. Tile after tile is
summed apart and added; then the threads of a phase are added up in a tree. Blocks that share a channel leave
their sums in memory, where weight_product.add_parts adds them in order. row_cuts.py says which thread takes what, by
the shapes alone; fast.py calls.
"""

import functools

from . import row_cuts
from .depthwise import load_samples
from .simt import cuda, device, kernel, ptx

THREADS, TAPS, TERMS, ROOM = row_cuts.WEIGHT_THREADS, row_cuts.TAPS, row_cuts.TERMS, row_cuts.WEIGHT_ROOM
RESIDENT = {4: 5, 8: 4}  # blocks that share a multiprocessor, by the bytes of a word: their registers are the limit


@device
def holds_infinite(room, at, count, lane, threads):
    """Whether what a thread has copied of a line holds Inf or NaN; only it may ask before a barrier."""
    infinite = lane < 0
    k = 0
    while k < count:
        value = ptx.load_element(room, at + k + lane, k + lane < count)
        infinite = infinite | (value - value != 0)
        k += threads
    return infinite


@functools.cache
def grad_weight(arithmetic):
    """The kernel of an arithmetic, for blocks of THREADS."""
    kind = arithmetic.word
    load, wait = load_samples(arithmetic), ptx.wait(0)
    zero_sums, load_terms = ptx.zero_sums(kind, TAPS), ptx.load_spaced(TERMS)
    load_window = ptx.load_steps(tuple(range(TERMS + TAPS - 1)))
    load_one, load_taps = ptx.load_spaced(1), ptx.load_steps(tuple(range(TAPS - 1, -1, -1)))
    places_of = ptx.spaced(TAPS)
    store_sums = ptx.store_tile(tuple(tap * THREADS for tap in range(TAPS)), (0,), 1)

    @device
    def sum_tile(room, cut, masked, at, samples_at, place, sample, length, out_length):
        """The sums of a tile: the first term is room[at] and at `place`, its window's begins at `sample` likewise."""
        partial = zero_sums()
        if masked:  # term by term, which is slow, but rare
            for k in range(cut.passes * TERMS):
                step = k + k // TERMS * (cut.lanes - 1) * TERMS
                l = place + step * cut.stride
                term = load_one(room, at + step * cut.stride, 0)
                places = places_of(sample + step + TAPS - 1, -1)
                there = (l >= 0) & (l < out_length)
                taken = load_taps(room, samples_at + step)
                partial = ptx.multiply_add_inside(partial, term, taken, places, 0, length * there)
        else:
            for turn in range(cut.passes):
                step = turn * TERMS * cut.lanes
                terms = load_terms(room, at + step * cut.stride, cut.stride)
                partial = ptx.correlate(partial, terms, load_window(room, samples_at + step))
        return partial

    @device
    def add_up(room, thread, own, works, members, stride):
        """Sums of the threads of a phase, which lie `stride` apart, the upper half onto the lower until one is left."""
        cuda.syncthreads()
        while members > 1:
            half = (members + 1) // 2
            wanted = works & (own + half < members)
            for tap in range(TAPS):
                at = tap * THREADS + thread
                total = ptx.load_element(room, at, wanted) + ptx.load_element(room, at + half * stride, wanted)
                ptx.store_element(room, at, total, wanted)
            cuda.syncthreads()
            members = half

    @kernel(THREADS, RESIDENT[arithmetic.word_bytes])
    def run(grad_output, input, table, cut, target):
        """One block a part of the tiles, a channel and a range of taps; `target` is (parts, C_in, outputs, K)."""
        thread = cuda.threadIdx.x
        room = cuda.shared.array(ROOM, kind)
        batch, channels, out_length = grad_output.shape
        length, outputs = input.shape[2], target.shape[2]
        stride = cut.stride
        part = cuda.blockIdx.x // (channels * cut.ranges)
        block = cuda.blockIdx.x - part * (channels * cut.ranges)
        channel = block // cut.ranges
        first_group = (block - channel * cut.ranges) * cut.tap_groups
        i = channel // outputs

        load_threads = THREADS // cut.lines
        load_line = thread // load_threads
        out_samples = cut.span * stride
        idle = load_line >= cut.lines  # they have no lane
        load_lane = thread - load_line * load_threads + idle * (out_samples + cut.samples)
        load_at = load_line * (out_samples + cut.samples)

        phase, own = thread % stride, thread // stride
        members = cut.lines * cut.lanes
        group = own // members
        own -= group * members
        works = group < cut.tap_groups
        group = group * works  # who has nothing to do does what somebody else does
        line = own // cut.lanes
        lane = own - line * cut.lanes
        shift = ptx.load_element(table, stride + phase, phase >= 0)
        line_at = line * (out_samples + cut.samples)
        at = line_at + lane * TERMS * stride + phase
        samples_at = line_at + out_samples + lane * TERMS + cut.most_shift - shift + (cut.tap_groups - 1 - group) * TAPS
        reach = cut.most_shift + (first_group + cut.tap_groups) * TAPS - 1

        total = zero_sums()
        for tile in range(part * cut.part_tiles, min(part * cut.part_tiles + cut.part_tiles, cut.all_tiles)):
            items = tile // cut.tiles
            first_q = (tile - items * cut.tiles) * cut.span + cut.crop_quotient
            first, first_sample = first_q * stride - cut.crop_left, first_q - reach
            n = items * cut.lines + load_line
            there = n < batch
            cuda.syncthreads()  # all are done with the tile before
            load(room, load_at, grad_output, n, channel, first, out_samples, load_lane, load_threads, there)
            load(room, load_at + out_samples, input, n, i, first_sample, cut.samples, load_lane, load_threads, there)
            wait()
            outside = first < 0 or first + out_samples > out_length
            outside = outside or first_sample < 0 or first_sample + cut.samples > length
            infinite = thread < 0
            if outside:
                infinite = holds_infinite(room, load_at, out_samples, load_lane, load_threads)
                infinite |= holds_infinite(room, load_at + out_samples, cut.samples, load_lane, load_threads)
            masked = ptx.any_of_block(infinite)
            place, sample = first + at - line_at, first_sample + samples_at - line_at - out_samples
            partial = sum_tile(room, cut, masked, at, samples_at, place, sample, length, out_length)
            total = ptx.add(total, partial)

        cuda.syncthreads()
        store_sums(room, thread, total)
        add_up(room, thread, own, works, members, stride)
        first_tap = ptx.load_element(table, phase, phase >= 0)
        taps = ptx.load_element(table, 2 * stride + phase, phase >= 0)
        for m in range(TAPS):
            tap = (first_group + group) * TAPS + m
            there = works & (own == 0) & (tap < taps)
            value = ptx.load_element(room, m * THREADS + thread, there)
            ptx.store_weight(target, part, i, channel - i * outputs, first_tap + tap * cut.tap_step, value, there)

    return run
