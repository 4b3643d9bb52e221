"""Kernels that write without summing: what the scatter kernels start from, and copies of any strides.

Called by the engine on arrays of three dimensions.
"""

from numba import cuda


@cuda.jit
def fill(bias, array):
    """array[n, c, l] = bias[c], or 0 where bias is empty."""
    _, channels, length = array.shape
    zero = array.dtype.type(0)
    for owned in range(cuda.grid(1), array.size, cuda.gridsize(1)):
        l = owned % length
        c = owned // length % channels
        n = owned // length // channels
        array[n, c, l] = bias[c] if bias.size > 0 else zero


@cuda.jit
def copy(source, target):
    """target[n, c, l] = source[n, c, l]."""
    _, channels, length = target.shape
    for owned in range(cuda.grid(1), target.size, cuda.gridsize(1)):
        l = owned % length
        c = owned // length % channels
        n = owned // length // channels
        target[n, c, l] = source[n, c, l]
