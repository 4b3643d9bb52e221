"""A kernel of multiply-adds in registers, beside whose rate the benchmark sets that of a row. Launched by graphs."""

from numba import cuda

CHAINS = 8  # none of which waits for another
STEPS = 16  # of each chain in a round, unrolled


@cuda.jit
def multiply_adds(rounds, constants, sums):
    """Halve each chain and add one, which keeps it near two; all sums are stored, so that none is left out.

    `constants` holds a half, a one, and where the first chain starts; kernels know no literal of the array's dtype.
    """
    half, one, a = constants[0], constants[1], constants[2]
    b = a + one
    c = b + one
    d = c + one
    e = d + one
    f = e + one
    g = f + one
    h = g + one
    for _ in range(rounds):
        for _step in range(STEPS):
            a = cuda.fma(a, half, one)
            b = cuda.fma(b, half, one)
            c = cuda.fma(c, half, one)
            d = cuda.fma(d, half, one)
            e = cuda.fma(e, half, one)
            f = cuda.fma(f, half, one)
            g = cuda.fma(g, half, one)
            h = cuda.fma(h, half, one)
    place = cuda.grid(1)
    if place < sums.size:
        sums[place] = a + b + c + d + e + f + g + h
