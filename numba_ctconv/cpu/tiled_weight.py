"""The fast path of grad_weight on the CPU: a matrix product that sums over time.

With the output gradient split into planes, tap k of shift h_k and phase r_k has

    dw[i, o, k] = Σ_n Σ_t x[n, i, t] · planes[n, t + h_k, (o, r_k)],

so one row of `planes` holds a position of some channels, a strip, with their phases side by side, and a shift of time
is an offset of whole rows: nothing is copied twice. Where channels are few, a row holds the samples of all taps
instead. microkernels.py computes tiles of (input channels) × (channels and phases) for a stretch of time, which are
added up in order.

Called by the engine with its scratch memory; nothing here allocates or checks. The stretches depend on the batch and
the length alone, so threads change no bit.
"""

from numba import prange

from .asking import asked_by, asked_by_last, list_samples
from .compilation import helper, kernel, task
from .intrinsics import address_of, call_rows, call_task, record_of, release_gil, take_gil
from .rows import ZERO, add_samples, nothing_of, share_of, to_line
from .target import LONGEST_STRETCH
from .weight_layout import WEIGHT_SIZES
from .weight_packing import pack_inputs, pack_planes


@kernel("r3 r3 n1 n1 n1 n2 n1 i i i o2 c2 c2 c1 w3 w1", nogil=False)
def product(
    grad_output, input, planes, shifts, taps, tiles, numbers, workers, long, task_at, offsets, scratch, sums, infinite,
    grad_weight, grad_bias,
):  # fmt: skip
    """Workers share the rows of all blocks of strips out evenly; other Python threads run in a `long` call.

    `taps` is the tap of each (shift, plane), or -1; `tiles` are the addresses of the compiled tiles of 1, 2, .. vectors
    that store, and of those that add; `numbers` are a WeightSizes, which says where all lies in `scratch` (workers, -).
    Other scratch: offsets (workers, stretch), sums (workers, rows that wait together · shifts · strips · pitch).
    `infinite` gets a NaN where a sum is not finite, which an input may have done to it that meets no sample. The bias
    has a gradient where `grad_bias` has elements: a row is added up when it is first met.
    """
    gil = release_gil(long)
    for worker in prange(workers):
        call_task(
            task_at,
            (grad_output, input, planes, shifts, taps, tiles, numbers, workers, worker, offsets, scratch, sums,
             infinite, grad_weight, grad_bias),
        )  # fmt: skip
    take_gil(gil)


@task("r3 r3 n1 n1 n1 n2 n1 i i o2 c2 c2 c1 w3 w1")
def share(
    grad_output, input, planes, shifts, taps, tiles, numbers, workers, worker, offsets, scratch, sums, infinite,
    grad_weight, grad_bias,
):  # fmt: skip
    """A worker's part of the groups, blocks and rows."""
    sizes = record_of(numbers, WEIGHT_SIZES)
    rows, strip, pitch = sizes.rows, sizes.strip, sizes.pitch
    batch, in_channels, length = input.shape
    group_channels = grad_weight.shape[1]
    group_rows = in_channels // sizes.groups
    width = sizes.strips * strip  # channels of a block
    blocks = -(-group_channels // width)
    terms = batch * length
    row_size = shifts.size * (sizes.together // strip) * pitch
    item_rows = length + shifts[shifts.size - 1]
    size = scratch.itemsize
    strip_size = sizes.slab_rows * pitch
    row_tiles = -(-group_rows // rows)
    before = work = ZERO
    for first in range(0, group_channels, width):
        work += vectors_of(min(width, group_channels - first), planes.size, sizes)
    work *= sizes.groups * row_tiles
    skipped = to_line(scratch[worker])  # every vector of a slab and of sums lies in one cache line
    own_scratch = scratch[worker, skipped:]
    slab, panel = own_scratch[: sizes.panel_at], own_scratch[sizes.panel_at : sizes.tile_at]
    tile_sums = address_of(own_scratch) + sizes.tile_at * size
    nothing = address_of(own_scratch) + sizes.start_at * size  # what a tile starts from
    list_at = address_of(own_scratch) + sizes.list_at * size
    own_scratch[sizes.start_at : sizes.bias_at] = 0
    if strip * planes.size < pitch or group_channels % strip > 0:
        slab[:] = 0  # the columns that no channel fills: their sums are dropped, but subnormal ones would take long
    total = sums[worker, to_line(sums[worker]) :]
    check = infinite.dtype.type(0)
    for block in range(sizes.groups * blocks):
        group, first_channel = block // blocks, block % blocks * width
        channels = min(width, group_channels - first_channel)
        tile_begin, tile_end, before = share_of(
            row_tiles, vectors_of(channels, planes.size, sizes), before, work, worker, workers
        )
        if tile_begin == tile_end:
            continue
        across = tiles_of_row(channels, planes, shifts, tiles, sizes)
        adds_up = grad_bias.size > 0 and tile_begin == 0
        if adds_up:
            own_scratch[sizes.bias_at : sizes.totals_at] = 0
        for begin in range(tile_begin, tile_end, sizes.waiting):
            end = min(begin + sizes.waiting, tile_end)
            for term in range(0, terms, sizes.stretch):
                term_end = min(term + sizes.stretch, terms)
                if begin == tile_begin or terms > sizes.stretch:  # else they are still there
                    first_row = term // length * item_rows + term % length
                    if adds_up and begin == tile_begin:
                        for item in range(-(-term // length), -(-term_end // length)):
                            add_samples(
                                grad_output, item, group * group_channels + first_channel, channels,
                                sizes.add_rows, sizes.lanes, scratch, worker, skipped + sizes.bias_at,
                                skipped + sizes.row_at, LONGEST_STRETCH,
                            )  # fmt: skip
                    pack_planes(
                        grad_output, planes, sizes, group, first_channel, channels, term, term_end, item_rows,
                        length, slab,
                    )  # fmt: skip
                    for r in range(term, term_end):
                        offsets[worker, r - term] = (r // length * item_rows + r % length - first_row) * pitch
                asked = asked_of(
                    grad_output, input, planes, sizes, group, first_channel, channels, begin * rows,
                    min(end * rows, group_rows), term_end, (end - begin) * across, list_at,
                )  # fmt: skip
                number = ZERO
                for row_tile in range(begin, end):
                    row = row_tile * rows
                    pack_inputs(
                        input, group * group_rows + row, min(rows, group_rows - row), sizes, term, term_end, panel
                    )  # fmt: skip
                    for c in range(0, channels, sizes.together):
                        own = min(sizes.together, channels - c)
                        number = add_stretch(
                            address_of(panel), address_of(slab) + c // strip * strip_size * size,
                            address_of(offsets) + worker * offsets.strides[0], term_end - term, shifts, planes.size,
                            sizes, own, strip_size * size, tiles[0 if term == 0 else 1], nothing, tile_sums,
                            row_size, address_of(total) + (row_tile - begin) * rows * row_size * size, size,
                            asked, number,
                        )  # fmt: skip
                        if terms <= sizes.stretch:
                            check += store_rows(
                                total, row_size, taps, planes.size, sizes, first_channel + c, own, group, row,
                                min(row + rows, group_rows), group_rows, grad_weight,
                            )  # fmt: skip
            if terms > sizes.stretch:
                check += store_rows(
                    total, row_size, taps, planes.size, sizes, first_channel, channels, group, begin * rows,
                    min(end * rows, group_rows), group_rows, grad_weight,
                )  # fmt: skip
        if adds_up:
            at = address_of(own_scratch)
            call_rows(sizes.add_lanes, (at + sizes.bias_at * size, channels, at + sizes.totals_at * size))
            for c in range(channels):
                grad_bias[group * group_channels + first_channel + c] = own_scratch[sizes.totals_at + c]
    infinite[worker] = check


@helper
def vectors_of(channels, planes, sizes):
    """Vectors of the columns of so many channels."""
    whole = channels // sizes.strip
    return whole * (sizes.pitch // sizes.lanes) + -(-(channels - whole * sizes.strip) * planes // sizes.lanes)


@helper
def tiles_of_row(channels, planes, shifts, tiles, sizes):
    """Tiles of the columns of so many channels."""
    count = 0
    for channel in range(0, channels, sizes.strip):
        vectors = vectors_of(min(sizes.strip, channels - channel), planes.size, sizes)
        count += shifts.size * -(-vectors // tiles.shape[1])
    return count


@helper
def asked_of(
    grad_output, input, planes, sizes, group, channel, channels, row, row_end, term, tiles, list_at
):  # fmt: skip
    """What the last of so many tiles ask for, of the stretch that begins at a term: of the item where it does."""
    count, length = ZERO, input.shape[2]
    if sizes.list_size > 0 and term < input.shape[0] * length:
        item, t = term // length, term % length
        end = t + sizes.stretch
        rows, group_channels = input.shape[1] // sizes.groups, grad_output.shape[1] // sizes.groups
        first = t * sizes.stride - sizes.crop_left + planes[0]
        last = first + sizes.stretch * sizes.stride
        count = list_samples(list_at, count, input, item, group * rows + row, row_end - row, t, end)
        count = list_samples(
            list_at, count, grad_output, item, group * group_channels + channel, channels, first, last
        )  # fmt: skip
    return asked_by_last(list_at, count, tiles, sizes.stretch // sizes.block)


@helper
def add_stretch(
    panel, slab, offsets, terms, shifts, planes, sizes, channels, strip_bytes, tiles, nothing, tile_sums, row_size,
    total, size, asked, number,
):  # fmt: skip
    """Multiply a tile's rows by the strips of so many channels, shift by shift: a strip stays in a cache meanwhile.

    `number` tiles came before; returns how many there are with these.
    """
    for s in range(-(-channels // sizes.strip)):
        vectors = vectors_of(min(sizes.strip, channels - s * sizes.strip), planes, sizes)
        shares = -(-vectors // tiles.size)  # even ones: the narrowest tiles are the slowest
        for h in range(shifts.size):
            for k in range(shares):
                done, end = k * vectors // shares, (k + 1) * vectors // shares
                call_task(
                    tiles[end - done - 1],
                    (panel,
                     slab + s * strip_bytes + (shifts[h] * sizes.pitch + done * sizes.lanes) * size, offsets, terms,
                     sizes.block, nothing, tile_sums,
                     total + ((h * (sizes.together // sizes.strip) + s) * sizes.pitch + done * sizes.lanes) * size,
                     row_size, asked_by(number, asked)),
                )  # fmt: skip
                number += 1
    return number


@helper
def store_rows(
    sums, row_size, taps, planes, sizes, channel, channels, group, begin, end, group_rows, grad_weight
):  # fmt: skip
    """Store the sums of the rows from `begin` to `end` of a group; NaN where one is not finite."""
    check = grad_weight.dtype.type(0)
    for row in range(begin, end):
        check += store_taps(
            sums, (row - begin) * row_size, taps, planes, sizes, channel, channels, group * group_rows + row,
            grad_weight,
        )  # fmt: skip
    return check


@helper
def store_taps(sums, begin, taps, planes, sizes, first_channel, channels, row, grad_weight):
    """Put the sums of each (shift, plane) where its tap stands, for a row of weights; NaN where one is not finite."""
    size, strip, pitch = grad_weight.itemsize, sizes.strip, sizes.pitch
    moved = 0
    if sizes.lay_out != 0 and grad_weight.strides[2] == size and grad_weight.strides[1] % size == 0:
        moved = sizes.in_order
    run = channels if strip * planes == pitch else strip  # channels whose sums are neighbours
    whole = channels // strip
    used = whole * pitch + (channels - whole * strip) * planes
    check = grad_weight.dtype.type(0)
    for h in range(taps.size // planes):
        shift_at = begin + h * (sizes.together // strip) * pitch
        check += nothing_of(sums, shift_at, shift_at + used)
        for first in range(0, channels, run):
            at, channel, own = shift_at + first // strip * pitch, first_channel + first, min(run, channels - first)
            if h < moved:
                to = address_of(grad_weight) + row * grad_weight.strides[0] + channel * grad_weight.strides[1]
                call_task(
                    sizes.store if h == 0 else sizes.lay_out,
                    (address_of(sums) + at * size, planes, own,
                     to + h * planes * size, grad_weight.strides[1] // size),
                )  # fmt: skip
                continue
            for p in range(planes):
                k = taps[h * planes + p]
                if k >= 0:
                    for c in range(own):
                        grad_weight[row, channel + c, k] = sums[at + c * planes + p]
    return check
