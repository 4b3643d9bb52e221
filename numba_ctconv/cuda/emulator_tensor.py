"""The twins of ptx_tensor.py in NumPy, beside emulator.py: tensor cores a warp at a time, by the maps of the PTX ISA.

A product of tf32 numbers or halves is exact in float32, and the emulator adds them to a sum one after the other, which
a GPU need not: sums that are exact are the same on both. An operand of mma.sync that was not rounded is an error.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import fragments
from .emulator import Shared, cuda, load_sample

TF32_DROPPED = np.uint32(0x1FFF)  # the bits of a float32 number that tf32 has not


def multiply_add(name: str) -> Callable[..., Any]:
    """As ptx_tensor.multiply_add."""
    halves = name != "tf32"
    depth = 16 if halves else 8
    lane = np.arange(fragments.WARP)[:, None]
    a_at = fragments.element_of_a(lane, np.arange(8 if halves else 4), halves)
    b_at = fragments.element_of_b(lane, np.arange(4 if halves else 2), halves)
    c_at = fragments.element_of_c(lane, np.arange(4))

    def multiply(sums: Any, a: Any, low: Any, high: Any) -> Any:
        warps = len(cuda.block.lanes) // fragments.WARP
        across = 2 * low.shape[1]
        sums = sums.copy()
        for m in range(a.shape[1] // 4):
            left = np.zeros((warps, fragments.ROWS, depth), np.float32)
            left[:, *a_at] = _elements(a[:, 4 * m : 4 * m + 4], name).reshape(warps, fragments.WARP, -1)
            for n in range(low.shape[1]):
                right = np.zeros((warps, depth, fragments.COLUMNS), np.float32)
                words = np.stack([low[:, n], high[:, n]], axis=1)
                right[:, *b_at] = _elements(words, name).reshape(warps, fragments.WARP, -1)
                own = [(2 * m + i // 2) * across + 2 * n + i % 2 for i in range(4)]
                total = np.zeros((warps, fragments.ROWS, fragments.COLUMNS), np.float32)
                total[:, *c_at] = sums[:, own].reshape(warps, fragments.WARP, 4)
                for k in range(depth):
                    total = total + left[:, :, k, None] * right[:, k, None, :]
                sums[:, own] = total[:, *c_at].reshape(-1, 4)
        return sums

    return multiply


def _elements(words: Any, name: str) -> Any:
    """The numbers in words (lanes, registers), in the order of a lane's elements."""
    if name == "tf32":
        unrounded = np.ascontiguousarray(words).view(np.uint32) & TF32_DROPPED != 0
        if (unrounded & np.isfinite(words)).any():
            raise RuntimeError("an operand of mma.sync is not rounded to tf32")
        return words
    pairs = np.stack([_half(words, name, k) for k in (0, 1)], axis=-1)
    return pairs.reshape(len(words), -1)


def load_weights(count: int) -> Callable[[Shared, Any], Any]:
    """As ptx_tensor.load_weights."""
    steps = (np.arange(count)[:, None] * 128 + np.arange(4)).ravel()

    def load(array: Shared, index: Any) -> Any:
        if np.any(index % 4):
            raise IndexError("a vector is loaded from where it is not aligned")
        return array.read(index[:, None] + steps)

    return load


def words_where(words: Any, wanted: Any) -> Any:
    """As ptx_tensor.words_where."""
    return np.where(wanted[:, None], words, np.float32(0))


def rounded(words: Any) -> Any:
    """As ptx_tensor.rounded."""
    bits = np.ascontiguousarray(words).view(np.uint32)
    nearest = (bits + (TF32_DROPPED + np.uint32(1)) // np.uint32(2)) & ~TF32_DROPPED
    return np.where(np.isfinite(words), nearest, bits).astype(np.uint32).view(np.float32).reshape(np.shape(words))


def _half(words: Any, name: str, k: int) -> Any:
    bits = (np.ascontiguousarray(words).view(np.uint32) >> np.uint32(16 * k)).astype(np.uint16)
    if name == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(np.shape(words))
    return bits.view(np.float16).astype(np.float32).reshape(np.shape(words))


def _unpacked(name: str, k: int) -> Callable[[Any], Any]:
    return lambda words: _half(words, name, k)


unpacked = {(name, k): _unpacked(name, k) for name in ("float16", "bfloat16") for k in (0, 1)}


def load_pair(
    array: Any, n: Any, c: Any, l: Any, other_n: Any, other_c: Any, other_l: Any, inside: Any, other_inside: Any
) -> Any:
    """As ptx_tensor.load_pair."""
    low = load_sample(array, n, c, l, inside).astype(array.dtype).view(np.uint16)
    high = load_sample(array, other_n, other_c, other_l, other_inside).astype(array.dtype).view(np.uint16)
    return (low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)).view(np.float32)


def copy_pair(
    shared: Shared, index: Any, array: Any, n: Any, c: Any, l: Any, other_n: Any, other_c: Any, other_l: Any,
    wanted: Any, inside: Any, other_inside: Any,
) -> None:  # fmt: skip
    """As ptx_tensor.copy_pair."""
    inside, other_inside = wanted & inside, wanted & other_inside
    shared.write(index, load_pair(array, n, c, l, other_n, other_c, other_l, inside, other_inside), wanted)
