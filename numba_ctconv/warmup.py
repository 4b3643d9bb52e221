"""warmup: compile, or load from disk, all that layers will need, before the first call that counts.

It runs small problems of the layers through ConvTranspose1d and knows nothing of the engines.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from . import checks
from .checks.wording import one_of, refuse
from .dispatch import cpu_engine, cuda_engine
from .functional import conv_transpose1d, conv_transpose1d_backward
from .modules import ConvTranspose1d
from .published import layers as published_layers

Pass = Literal["forward", "grad_input", "grad_weight"]
PASSES: tuple[Pass, ...] = ("forward", "grad_input", "grad_weight")
DTYPES = ("float32", "float64")
SHAPES = ((1, 1), (1, 8), (4, 8), (1, 200))  # (N, L_in): a streaming step, short, several short ones, long


class Sizes(NamedTuple):
    """What of a layer decides which code it needs."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    groups: int
    dilation: int
    algorithm: str = "auto"

    @classmethod
    def of(cls, layer: Any) -> "Sizes":
        """Those of a layer, or of a problem, which has no algorithm."""
        return cls(*(getattr(layer, name) for name in cls._fields if hasattr(layer, name)))

    def __str__(self) -> str:
        parameters = (f"{name}={getattr(self, name)}" for name in ("kernel_size", "stride", "groups", "dilation"))
        return f"{self.in_channels} to {self.out_channels} channels, {', '.join(parameters)}"


def warmup(
    layers: Iterable[ConvTranspose1d] | None = None,
    passes: Iterable[Pass] = PASSES,
    dtypes: Iterable[Any] = DTYPES,
    device: str = "cpu",
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Compile all code that layers need, or load it from disk, so that no later call of theirs compiles.

    On the CPU the code is kept on disk, in the folder that ``numba-ctconv info`` names, where new processes find it:
    call this while a container image is built, say. It serves only on the model of CPU that it was made on, with the
    same versions of Python, Numba and this package; elsewhere, each layer's first call compiles. On CUDA the code
    lives as long as the process.

    Parameters
    ----------
    layers : iterable of ConvTranspose1d, optional
        Their parameters count, their weights do not. Default: layers of published models, of all common shapes.
    passes : iterable of {"forward", "grad_input", "grad_weight"}
        What the layers will be used for.
    dtypes : iterable of dtype
        float32, float64 or both.
    device : {"cpu", "cuda"}
        Where they will run.
    progress : callable, optional
        Called with what is next, how many steps are done and how many there are; in the end with an empty string.

    Raises
    ------
    TypeError, ValueError
        For an argument that breaks a rule above, before any work.

    Examples
    --------
    >>> layer = ConvTranspose1d(4, 6, 4, stride=2)
    >>> warmup([layer], passes=["forward"], dtypes=["float32"], progress=lambda *step: print(*step, sep=" | "))
    4 to 6 channels, kernel_size=4, stride=2, groups=1, dilation=1, float32 | 0 | 1
     | 1 | 1
    """
    sizes = list(dict.fromkeys(_published() if layers is None else _given(layers)))
    wanted = list(_each(passes, "passes"))
    for name in wanted:
        one_of(name, PASSES, "passes")
    types = [checks.layer_dtype(dtype) for dtype in _each(dtypes, "dtypes")]
    run(sizes, wanted, types, checks.device(device), progress or _silent)


def run(
    sizes: Sequence[Sizes],
    passes: Sequence[Pass],
    dtypes: Sequence[np.dtype[Any]],
    device: Literal["cpu", "cuda"],
    progress: Callable[[str, int, int], None],
) -> None:
    """Do so for sizes; :func:`warmup` has checked the arguments."""
    steps = [(own, dtype) for dtype in dtypes for own in sizes]
    for done, (own, dtype) in enumerate(steps):
        progress(f"{own}, {dtype}", done, len(steps))
        layer = ConvTranspose1d(**own._asdict(), dtype=dtype, device=device, rng=np.random.default_rng(0))
        for batch, length in SHAPES:
            _call(layer, passes, batch, length)
        if device == "cpu":
            _call_function(layer, passes)
        # what takes over where an operand is not finite
        layer.weight = np.full((own.in_channels, own.out_channels // own.groups, own.kernel_size), np.nan, dtype)
        _call(layer, passes, 1, 1, np.nan)
    progress("", len(steps), len(steps))


def _call(layer: ConvTranspose1d, passes: Sequence[Pass], batch: int, length: int, value: float = 0.0) -> None:
    """Run the passes on an input full of `value`."""
    engine = cpu_engine() if layer.device == "cpu" else cuda_engine("device")
    x = engine.upload(np.full((batch, layer.in_channels, length), value, layer.dtype))
    if "forward" in passes:
        layer(x)
    output_length = (length - 1) * layer.stride + layer.dilation * (layer.kernel_size - 1) + 1
    dy = engine.upload(np.zeros((batch, layer.out_channels, output_length), layer.dtype))
    if "grad_input" in passes:
        layer.backward(dy, x, needs=("input",))
    if "grad_weight" in passes:
        layer.backward(dy, x, needs=("weight", "bias"))


def _call_function(layer: ConvTranspose1d, passes: Sequence[Pass]) -> None:
    """Run what packs a weight as it meets it: a function on a short input."""
    weight, stride, groups, dilation = layer.weight, layer.stride, layer.groups, layer.dilation
    if "forward" in passes:
        x = np.zeros((1, layer.in_channels, 1), layer.dtype)
        conv_transpose1d(x, weight, stride=stride, groups=groups, dilation=dilation)
    if "grad_input" in passes:
        dy = np.zeros((1, layer.out_channels, dilation * (layer.kernel_size - 1) + 1), layer.dtype)
        conv_transpose1d_backward(
            dy, None, weight, stride, groups=groups, dilation=dilation, needs=("input",), input_length=1
        )


def _given(layers: Any) -> Iterator[Sizes]:
    for layer in _each(layers, "layers"):
        if not isinstance(layer, ConvTranspose1d):
            refuse(TypeError, "layers", "an iterable of ConvTranspose1d", layer)
        yield Sizes.of(layer)


def _published() -> Iterator[Sizes]:
    for row in published_layers():
        if row["core"]:
            yield Sizes(row["cin"], row["cout"], row["k"], row["s"], row["g"], row["d"])


def _each(values: Any, name: str) -> Iterator[Any]:
    """Go through an argument; a string's letters are none of the things meant."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        refuse(TypeError, name, "an iterable", values)
    return iter(values)


def _silent(text: str, done: int, total: int) -> None:
    """Report nothing."""
