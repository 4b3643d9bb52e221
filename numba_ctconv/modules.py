"""ConvTranspose1d: a layer that keeps its parameters, over the functions of functional."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from . import checks
from .checks import GradientName
from .dispatch import Engine, cpu_engine, cuda_engine, engine_of
from .functional import Gradients, backward, forward
from .geometry import Crops
from .precision import chosen as chosen_precision


class ConvTranspose1d:
    """A transposed convolution layer, with the parameters and the state of torch.nn.ConvTranspose1d.

    Parameters
    ----------
    in_channels, out_channels : int
        Divisible by `groups`.
    kernel_size : int
        Taps.
    stride, padding, output_padding, groups, dilation
        As in :func:`numba_ctconv.conv_transpose1d`: `padding` is an int or a pair of crops.
    bias : bool
        Whether the layer has a bias.
    padding_mode : {"zeros"}
    device : {"cpu", "cuda"}
        Where the parameters live, and so where its inputs have to.
    dtype : float32 or float64
        On CUDA also float16, and bfloat16 where ml_dtypes gives NumPy that dtype.
    algorithm : {"auto", "tiled", "gather", "scatter"}
    precision : {"ieee", "tf32"}, optional
        As in :func:`numba_ctconv.conv_transpose1d`; by default, each call takes the setting around it.
    rng : numpy.random.Generator, optional
        Source of the initial parameters, drawn from U(-√k, √k) with k = groups/(C_out·K) as torch does.

    Attributes
    ----------
    weight : array of shape (C_in, C_out/groups, K)
        Assigning copies. On the CPU what is read is a read-only view: write
        ``layer.weight = layer.weight - rate * gradients.weight``; on CUDA it is a copy.
    bias : array of shape (C_out,), or None
        Likewise.

    Raises
    ------
    TypeError, ValueError
        For an argument that breaks a rule above.

    Examples
    --------
    >>> import numpy as np
    >>> layer = ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    >>> layer
    ConvTranspose1d(4, 6, kernel_size=(3,), stride=(2,), padding=(1,), output_padding=(1,), groups=2)
    >>> layer(np.zeros((1, 4, 10), np.float32)).shape
    (1, 6, 20)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int = 1,
        padding_mode: str = "zeros",
        *,
        device: str = "cpu",
        dtype: Any = np.float32,
        algorithm: str = "auto",
        precision: str | None = None,
        rng: "np.random.Generator | None" = None,  # quoted: NumPy loads numpy.random only when it is asked for
    ) -> None:
        p = checks.parameters(stride, padding, output_padding, groups, dilation)
        checks.padding_mode(padding_mode)
        self.stride, self.padding, self.groups, self.dilation = p.stride, p.padding, p.groups, p.dilation
        self.output_padding = p.output_padding or 0
        self.padding_mode = padding_mode
        self.in_channels, self.out_channels = checks.channels(in_channels, out_channels, p.groups)
        self.kernel_size = checks.integer(kernel_size, "kernel_size", 1)
        self.device = checks.device(device)
        has_bias = checks.boolean(bias, "bias")
        generator = checks.generator(rng)
        bound = math.sqrt(self.groups / (self.out_channels * self.kernel_size))
        engine = self._engine()
        self.dtype = checks.layer_dtype(dtype, engine.dtypes)
        self.algorithm = checks.algorithm(algorithm, engine.algorithms)
        chosen_precision(precision, engine.precisions)
        self.precision = precision
        given = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        self._checked = (given, checks.parameters(*given))
        self._kept: dict[Any, Any] = {}  # what the engine makes of the weight, until the weight is another

        def draw(*shape: int) -> Any:
            return _own(engine, engine.upload(generator.uniform(-bound, bound, shape).astype(self.dtype)))

        self._weight = draw(self.in_channels, self.out_channels // self.groups, self.kernel_size)
        self._bias = draw(self.out_channels) if has_bias else None

    @property
    def weight(self) -> Any:
        """The weight, (C_in, C_out/groups, K)."""
        return self._shown(self._weight)

    @weight.setter
    def weight(self, value: Any) -> None:
        self._weight, self._kept = self._taken(value, self._weight, "weight"), {}

    @property
    def bias(self) -> Any:
        """The bias, (C_out,), or None."""
        return None if self._bias is None else self._shown(self._bias)

    @bias.setter
    def bias(self, value: Any) -> None:
        if (value is None) != (self._bias is None):
            checks.fixed_bias(value)
        if value is not None:
            self._bias = self._taken(value, self._bias, "bias")

    def __call__(
        self, input: Any, output_size: int | Iterable[int] | None = None, *, out: Any = None, stream: Any = None
    ) -> Any:
        """Forward: see :func:`numba_ctconv.conv_transpose1d`."""
        given = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        if given != self._checked[0]:  # an attribute was assigned
            self._checked = (given, checks.parameters(*given))
        p = self._checked[1]
        return forward(
            input, self._weight, self._bias, p, output_size, self.algorithm, self.precision, out, stream, self._kept
        )

    def backward(
        self,
        grad_output: Any,
        input: Any,
        *,
        needs: Iterable[GradientName] | None = None,
        input_length: int | None = None,
        out: Gradients | None = None,
        stream: Any = None,
    ) -> Gradients:
        """Gradients of the layer at `input`: see :func:`numba_ctconv.conv_transpose1d_backward`.

        By default all that the layer has: a layer without bias has no gradient of it.
        """
        own: tuple[GradientName, ...] = ("input", "weight") if self._bias is None else ("input", "weight", "bias")
        wanted = own if needs is None else needs
        p = checks.parameters(self.stride, self.padding, None, self.groups, self.dilation, derived=True)
        return backward(
            grad_output, input, self._weight, p, wanted, input_length, self.algorithm, self.precision, out, stream,
            self._kept,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Copies of the parameters in host memory, under torch's names "weight" and "bias"."""
        return {name: self._engine().download(array) for name, array in self._parameters().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the parameters from a mapping with exactly the layer's names; all or none of them."""
        parameters = self._parameters()
        state = checks.state_keys(state_dict, tuple(parameters))
        taken = {name: self._taken(state[name], own, name) for name, own in parameters.items()}
        self._weight, self._kept = taken["weight"], {}
        self._bias = taken.get("bias")

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], *, groups: int = 1, **parameters: Any) -> Self:
        """The layer that a state dict describes: sizes and dtype are read off its arrays, the rest is given.

        Examples
        --------
        >>> state = ConvTranspose1d(4, 6, 3, stride=2).state_dict()
        >>> ConvTranspose1d.from_state_dict(state, stride=2)
        ConvTranspose1d(4, 6, kernel_size=(3,), stride=(2,))
        """
        state = checks.state_keys(state_dict, ("weight",), ("bias",))
        g = checks.integer(groups, "groups", 1)
        _, weight = _parameter(state["weight"], "weight", parameters.get("device"))
        in_channels, group_channels, kernel_size = checks.weight_sizes(weight.shape, g)
        layer = cls(
            in_channels,
            group_channels * g,
            kernel_size,
            groups=g,
            bias="bias" in state,
            dtype=weight.dtype,
            **parameters,
        )
        layer.load_state_dict(state)
        return layer

    def __repr__(self) -> str:
        padding = tuple(self.padding) if isinstance(self.padding, Crops) else (self.padding,)
        shown = [f"{self.in_channels}, {self.out_channels}, kernel_size={(self.kernel_size,)}, stride={(self.stride,)}"]
        if padding != (0,):
            shown.append(f"padding={padding}")
        if self.dilation != 1:
            shown.append(f"dilation={(self.dilation,)}")
        if self.output_padding:
            shown.append(f"output_padding={(self.output_padding,)}")
        if self.groups != 1:
            shown.append(f"groups={self.groups}")
        if self._bias is None:
            shown.append("bias=False")
        return f"{type(self).__name__}({', '.join(shown)})"

    # Pickles and copies hold the parameters in host memory, wherever the layer lives.

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_weight": self._engine().download(self._weight),
            "_bias": None if self._bias is None else self._engine().download(self._bias),
            "_kept": {},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        engine = self._engine()
        self._weight = _own(engine, engine.upload(self._weight))
        self._bias = None if self._bias is None else _own(engine, engine.upload(self._bias))

    def _engine(self) -> Engine:
        return cpu_engine() if self.device == "cpu" else cuda_engine("device")

    def _parameters(self) -> dict[str, Any]:
        return {"weight": self._weight} if self._bias is None else {"weight": self._weight, "bias": self._bias}

    def _shown(self, array: Any) -> Any:
        if self.device == "cuda":
            return self._engine().copy(array)
        view = array.view()
        view.flags.writeable = False
        return view

    def _taken(self, value: Any, own: Any, name: str) -> Any:
        """A copy of a parameter's new value, in this layer's memory."""
        source, array = _parameter(value, name, self.device)
        checks.layer_parameter(array, name, own.shape, self.dtype)
        engine = self._engine()
        return _own(engine, engine.copy(array) if source is engine else engine.upload(source.download(array)))


def _own(engine: Engine, parameter: Any) -> Any:
    """A parameter of a layer as the engine sees it, so that no call looks at it again."""
    return engine.operands({"parameter": parameter})["parameter"]


def _parameter(value: Any, name: str, device: object) -> tuple[Engine, Any]:
    """A parameter's new value, and the engine whose memory it is in; from the host, of any dtype that its layer has."""
    source = engine_of({name: value})
    if source is not cpu_engine() or device != "cuda":
        return source, source.operands({name: value})[name]
    checks.host_parameter(value, name)
    return source, np.asarray(value)
