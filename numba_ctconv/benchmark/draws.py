"""Operands of problems so large that drawing every number would take longer than all else; called by on_gpu.

All arrays are cut from one pool of random numbers, which is repeated. Its length is a prime, so that items and channels
of one array differ, and each array begins at a place of its own.
"""

import functools
import math
import zlib
from typing import Any

import numpy as np

from .checking import shapes
from .formats import Format
from .workloads import Operands, Problem

POOL = 4_194_301  # numbers


def operands(problem: Problem, kind: Format, *, exact: bool, gradients: bool) -> Operands:
    """Arrays of the problem, the same at every call, in the format's values: small integers if `exact`, else normal."""
    rng = np.random.default_rng(zlib.crc32(problem.name.encode()))

    def draw(name: str) -> Any:
        shape = shapes(problem)[name]
        begin = int(rng.integers(POOL))
        pool = _pool(kind, exact)
        return np.resize(np.concatenate([pool[begin:], pool[:begin]]), math.prod(shape)).reshape(shape)

    x, w = draw("input"), draw("weight")
    b = draw("bias") if problem.bias else None
    return Operands(x, w, b, draw("output") if gradients else None)


@functools.lru_cache(maxsize=2)  # of one run, integers and normal deviates
def _pool(kind: Format, exact: bool) -> Any:
    rng = np.random.default_rng(POOL)
    if exact:
        return rng.integers(-4, 5, POOL).astype(kind.host)
    return kind.rounded(rng.standard_normal(POOL, kind.host))
