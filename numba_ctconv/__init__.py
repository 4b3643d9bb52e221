"""1-D transposed convolution, forward and gradients, as Numba kernels for NumPy arrays and CUDA device arrays."""

from .functional import Gradients, conv_transpose1d, conv_transpose1d_backward, output_length
from .modules import ConvTranspose1d
from .precision import float32_precision
from .warmup import warmup

__version__ = "0.1.0"
__all__ = [
    "ConvTranspose1d",
    "Gradients",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "float32_precision",
    "output_length",
    "warmup",
]
