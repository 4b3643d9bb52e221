"""The arithmetics of the fast path, and which serves a call. Plain Python, imported by all that cuts and computes.

A *word* is what a lane reads of shared memory at once: for FMA units and tf32 one number, for the halves two numbers
whose products are summed together, the first in the low bits. So halves lie in shared memory, and meet in a product, as
float32 numbers do: a tap is an offset in words, whatever the shift, the stride and the length.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ..checks import BFLOAT16, Precision


class Arithmetic(NamedTuple):
    """What multiplies, and what a word of it holds. All but float64 sum in float32."""

    name: str
    word_bytes: int
    terms: int  # of a word
    tensor: bool  # whether tensor cores multiply

    @property
    def word(self) -> np.dtype[Any]:
        """The dtype of words in memory, and of sums."""
        return np.dtype(f"f{self.word_bytes}")

    @property
    def step(self) -> int:
        """Words of a row that one instruction multiplies: 8 terms of tf32, 16 of the halves."""
        return 8 if self.tensor else 1


FLOAT32, FLOAT64 = Arithmetic("float32", 4, 1, False), Arithmetic("float64", 8, 1, False)
TF32, FLOAT16, BFLOAT16_PAIRS = (Arithmetic(n, 4, t, True) for n, t in (("tf32", 1), ("float16", 2), ("bfloat16", 2)))
ALL = (FLOAT32, FLOAT64, TF32, FLOAT16, BFLOAT16_PAIRS)


@functools.lru_cache(maxsize=64)
def arithmetic_of(dtype: Any, precision: Precision) -> Arithmetic:
    """That of arrays of a dtype, where float32 products may be rounded as `precision` says."""
    if dtype == BFLOAT16:
        return BFLOAT16_PAIRS
    if dtype == np.float16:
        return FLOAT16
    if dtype == np.float64:
        return FLOAT64
    return TF32 if precision == "tf32" else FLOAT32
