"""The number formats that a run computes in, and what each adds to the rounding of float32 or float64 sums.

Asked by checking, contestants and the places of operands. Halves are host arrays of float32 that hold values of the
half alone, so that NumPy, which has no bfloat16, serves as the oracle of all; on a GPU they are what they are called.
"""

from typing import Any, Literal, NamedTuple

import numpy as np

LOOSE = 4  # roundings of a partial sum: in two steps, before a bias is added and after it


class Format(NamedTuple):
    """A dtype and, for float32 on a GPU, a precision; sums are of the host's dtype."""

    name: str
    host: np.dtype[Any]
    itemsize: int  # of the arrays that are moved
    precision: Literal["ieee", "tf32"] = "ieee"
    rounding: float = 0.0  # of a result that is rounded once more, relative to it
    factors: float = 0.0  # of a product whose factors are rounded, relative to it
    least: float = 0.0  # of a result that is subnormal in the format

    def rounded(self, array: Any) -> Any:
        """A host array with its values rounded to the format, ties to even; None stays None."""
        if array is None or self.host.itemsize == self.itemsize:
            return array
        if self.name == "float16":
            return array.astype(np.float16).astype(self.host)
        bits = np.ascontiguousarray(array, self.host).view(np.uint32)
        kept = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        return kept.view(self.host)

    def allowed(self, expected: Any, magnitude: Any, *, loose: bool) -> Any:
        """How far off a result may be, beside the rounding of its sum; `magnitude` is the sum of its terms' sizes.

        A `loose` one is a peer's, which may round partial sums to halves, and cut factors off where it should round.
        """
        if loose:
            return (2 * self.factors + LOOSE * self.rounding) * magnitude + self.least
        return self.factors * magnitude + self.rounding * np.abs(expected) + self.least


_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
FORMATS = {
    "float32": Format("float32", _SINGLE, 4),
    "float64": Format("float64", _DOUBLE, 8),
    "float16": Format("float16", _SINGLE, 2, rounding=2.0**-11, least=2.0**-25),
    "bfloat16": Format("bfloat16", _SINGLE, 2, rounding=2.0**-8),
}
# Each of two factors is off by 2**-11 at most.
TF32 = Format("float32", _SINGLE, 4, "tf32", factors=2.0**-10 + 2.0**-22)


def chosen(dtype: str, precision: str = "ieee") -> Format:
    """The format of a run."""
    return TF32 if precision == "tf32" and dtype == "float32" else FORMATS[dtype]
