"""How words come about and what they hold, by arithmetic: functions that the tiled kernels are put together from.

Called by product.py, weight_product.py and packing.py. A float32 word may be copied asynchronously and is rounded to
tf32 when it is multiplied; two halves are loaded and put side by side.
"""

import functools

from .simt import device, ptx, tensor


@device
def same(value):
    """The value: what needs no rounding, or is no pair."""
    return value


@functools.cache
def copy_channels(arithmetic):
    """A copier of samples: of a channel, or of two that neighbour, at one place of an item.

    copy(room, at, source, item, first, channel, channels, sample, wanted, inside): `channel` counts words from channel
    `first`, of which there are `channels`.
    """

    @device
    def copy(room, at, source, item, first, channel, channels, sample, wanted, inside):
        ptx.copy_sample(room, at, source, item, first + channel, sample, wanted, inside & (channel < channels))

    @device
    def copy_pair(room, at, source, item, first, channel, channels, sample, wanted, inside):
        low = 2 * channel
        tensor.copy_pair(
            room, at, source, item, first + low, sample, item, first + low + 1, sample, wanted,
            inside & (low < channels), inside & (low + 1 < channels),
        )  # fmt: skip

    return copy if arithmetic.terms == 1 else copy_pair


@functools.cache
def copy_times(arithmetic):
    """A copier of samples: of a term of grad_weight, or of two that follow each other.

    copy(room, at, array, channel, item, t, batch, length, stride, place, wanted, inside): the term is time t of the
    item, of `length`, and lies at t·stride + place of the array.
    """

    @device
    def copy(room, at, array, channel, item, t, batch, length, stride, place, wanted, inside):
        l = t * stride + place
        inside = inside & (item < batch) & (l >= 0) & (l < array.shape[2])
        ptx.copy_sample(room, at, array, item, channel, l, wanted, inside)

    @device
    def copy_pair(room, at, array, channel, item, t, batch, length, stride, place, wanted, inside):
        over = (t + 1) // length  # the next term may be of the next item
        l, next_l = t * stride + place, (t + 1 - over * length) * stride + place
        tensor.copy_pair(
            room, at, array, item, channel, l, item + over, channel, next_l, wanted,
            inside & (item < batch) & (l >= 0) & (l < array.shape[2]),
            inside & (item + over < batch) & (next_l >= 0) & (next_l < array.shape[2]),
        )  # fmt: skip

    return copy if arithmetic.terms == 1 else copy_pair


@functools.cache
def weight_word(arithmetic):
    """A loader of packed weights: of one weight, or of two whose summed channels neighbour.

    load(weight, by_input, first, channel, channels, own, tap, inside): `channel` counts words from channel `first`, of
    which there are `channels`. It is an output channel, and `own` an input channel, where `by_input`; else the reverse.
    """
    multiplied = as_multiplied(arithmetic)

    @device
    def load(weight, by_input, first, channel, channels, own, tap, inside):
        c, inside = first + channel, inside & (channel < channels)
        return multiplied(ptx.load_sample(weight, own if by_input else c, c - first if by_input else own, tap, inside))

    @device
    def load_pair(weight, by_input, first, channel, channels, own, tap, inside):
        low = 2 * channel
        c = first + low
        i, o = own if by_input else c, low if by_input else own
        step_i, step_o = 0 if by_input else 1, 1 if by_input else 0
        return tensor.load_pair(
            weight, i, o, tap, i + step_i, o + step_o, tap, inside & (low < channels), inside & (low + 1 < channels)
        )

    return load if arithmetic.terms == 1 else load_pair


def as_multiplied(arithmetic):
    """What is done to a number before it is multiplied."""
    return tensor.rounded if arithmetic.name == "tf32" else same


def values_of(arithmetic):
    """(first, second): what a word, or each of a tuple, multiplies; the second is that of pairs."""
    if arithmetic.terms == 1:
        return as_multiplied(arithmetic), same
    return tensor.unpacked[arithmetic.name, 0], tensor.unpacked[arithmetic.name, 1]
