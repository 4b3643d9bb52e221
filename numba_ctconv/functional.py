"""The functions a user calls: check everything, compute the lengths, pick the engine, hand over. No loops here."""

from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any, NamedTuple

from . import checks, shapes
from .checks import OUT_NAMES, GradientName, Parameters
from .dispatch import Engine, are_plain, cpu_engine, engine_of
from .precision import chosen as chosen_precision


class Gradients(NamedTuple):
    """The gradients of a transposed convolution; None where one was not needed.

    Attributes
    ----------
    input : array of shape (N, C_in, L_in) or (C_in, L_in), or None
    weight : array of shape (C_in, C_out/groups, K), or None
    bias : array of shape (C_out,), or None
    """

    input: Any
    weight: Any
    bias: Any


def output_length(
    input_length: int,
    kernel_size: int,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int = 0,
    dilation: int = 1,
    *,
    output_size: int | Iterable[int] | None = None,
) -> int:
    """Length of the output of a 1-D transposed convolution.

    L_out = (L_in - 1)·stride - crop_left - crop_right + dilation·(K - 1) + 1, where an integer `padding` p crops p
    samples on the left and p - output_padding on the right.

    Parameters
    ----------
    input_length : int
        L_in, in samples; at least 1.
    kernel_size : int
        K, in taps; at least 1.
    stride : int
        Output samples between neighbouring input samples; at least 1.
    padding : int or pair of int
        An integer of at least 0 as in torch, or the pair (crop_left, crop_right), of either sign.
    output_padding : int
        Samples added on the right; smaller than `stride` or `dilation`, and 0 beside a pair.
    dilation : int
        Output samples between neighbouring taps; at least 1.
    output_size : int or sequence of int, optional
        The length asked for; overrides `output_padding`.

    Returns
    -------
    int
        L_out, at least 0.

    Raises
    ------
    TypeError, ValueError
        For an argument that is no integer or out of range, and where the output would have a negative length.

    Examples
    --------
    >>> output_length(80, 16, stride=8, padding=4)
    640
    >>> output_length(80, 16, stride=8, padding=(0, 8))
    640
    """
    p = checks.parameters(stride, padding, output_padding, 1, dilation)
    return checks.forward_geometry(
        p,
        checks.integer(kernel_size, "kernel_size", 1),
        checks.integer(input_length, "input_length", 1),
        checks.output_size(output_size, (2, 3)),
    ).output_length


def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int = 0,
    groups: int = 1,
    dilation: int = 1,
    *,
    output_size: int | Iterable[int] | None = None,
    algorithm: str = "auto",
    precision: str | None = None,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """1-D transposed convolution, the operation of torch.nn.functional.conv_transpose1d.

    Every input sample adds its product with the taps to the output samples from t·stride on:
    y[n, o, t·stride + k·dilation - crop_left] += x[n, i, t]·w[i, o, k], summed over the input channels i of o's group,
    t and k, plus bias[o].

    Parameters
    ----------
    input : array of shape (N, C_in, L_in) or (C_in, L_in)
        NumPy array or CUDA device array, float32 or float64; any strides, read-only and unaligned arrays too. On CUDA
        also float16 and bfloat16, whose products are summed in float32 and rounded once.
    weight : array of shape (C_in, C_out/groups, K)
        Of the dtype of `input`.
    bias : array of shape (C_out,), optional
        Added to every sample of its channel.
    stride, dilation, groups : int
        At least 1; `groups` divides C_in.
    padding : int or pair of int
        An integer p of at least 0 crops p samples on the left and p - output_padding on the right. A pair is
        (crop_left, crop_right) itself; a negative crop extends the output, whose new samples hold the taps that
        reach them and the bias.
    output_padding : int
        Samples added on the right; smaller than `stride` or `dilation`, and 0 beside a pair.
    output_size : int or sequence of int, optional
        The length of the output; overrides `output_padding`. A sequence has one element, or one a dimension of
        `input`, of which the last counts. With an integer `padding` it lies within a window of `stride` lengths; with
        a pair, crop_left holds and crop_right follows, any length from 0.
    algorithm : {"auto", "tiled", "gather", "scatter"}
        "tiled": a matrix product of shifted rows in register tiles, the fast path of NumPy arrays; on CUDA, on tensor
        cores for halves and where "tf32" is allowed. "gather": every output sample collects its products, in a fixed
        order. "scatter": every input sample adds to its outputs; on CUDA by atomic additions, so that bits may differ
        from run to run, and not for halves. "auto" is "tiled" for NumPy arrays and "gather" on CUDA, both
        deterministic.
    precision : {"ieee", "tf32"}, optional
        How float32 products may be computed on CUDA: "tf32" allows "tiled" to round both factors, which the other
        algorithms never do; it is refused beside NumPy arrays. Default: what
        :func:`float32_precision` set around the call, else "ieee".
    out : array, optional
        Where the result goes: of its shape and dtype, writeable, sharing no memory with another argument.
    stream : optional
        CUDA only: an integer, a Numba, CuPy or torch stream, or an object with ``__cuda_stream__`` that the work is
        queued on. Default: the stream of `input`.

    Returns
    -------
    array of shape (N, C_out, L_out) or (C_out, L_out)
        `out`, or a new array of the library of `input`; L_out as :func:`output_length` gives it.

    Raises
    ------
    TypeError, ValueError
        Before any work, for an argument that breaks a rule above.

    Notes
    -----
    The arguments keep the order and meaning of torch's (where `groups` comes before `dilation`, unlike in conv1d).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 2.0]])
    >>> w = np.array([[[1.0, 10.0, 100.0]]])
    >>> conv_transpose1d(x, w, stride=2)
    array([[  1.,  10., 102.,  20., 200.]])
    >>> conv_transpose1d(x, w, stride=2, padding=(0, 1))
    array([[  1.,  10., 102.,  20.]])
    """
    p = checks.parameters(stride, padding, output_padding, groups, dilation)
    return forward(input, weight, bias, p, output_size, algorithm, precision, out, stream)


def forward(
    input: Any,
    weight: Any,
    bias: Any,
    p: Parameters,
    output_size: int | Iterable[int] | None,
    algorithm: str,
    precision: str | None,
    out: Any,
    stream: Any,
    kept: dict[Any, Any] | None = None,
) -> Any:
    """conv_transpose1d with its integers checked; a layer gives what it keeps of its weight for the engine."""
    usual = output_size is None and precision is None and stream is None and type(algorithm) is str
    if usual and are_plain(input, weight, bias, out):
        engine, x, w, b, y = cpu_engine(), input, weight, bias, out  # the engine's own view of each is itself
        allowed, queue = engine.precisions[0], None
        chosen, geometry, shape = shapes.plain_forward(
            engine, p, algorithm, x.dtype, x.shape, w.dtype, w.shape, b is not None and (b.dtype, b.shape),
            out is not None and (out.dtype, out.shape, out.strides),
        )  # fmt: skip
        if out is None:
            out = y = engine.empty(shape, x.dtype, input, queue)
        else:
            checks.output_memory(engine, "out", y, {"input": x, "weight": w, "bias": b})
    else:
        given = {"input": input, "weight": weight, "bias": bias, "out": out}
        engine = engine_of(given, optional=("bias", "out"))
        allowed = chosen_precision(precision, engine.precisions)
        arrays = engine.operands(given)
        x, w, b, y = arrays.values()
        chosen, geometry, shape = shapes.kept_forward(engine, p, algorithm, output_size, x, w, b, y)
        if out is not None:
            checks.output_memory(engine, "out", y, {"input": x, "weight": w, "bias": b})
        queue = engine.launch_stream(stream, arrays)
        if out is None:
            out = engine.empty(shape, x.dtype, input, queue)
            y = engine.operands({"out": out})["out"]
    if len(shape) == 2:
        x, y = engine.batched(x), engine.batched(y)
    engine.forward(x, w, b, geometry, p.groups, chosen, allowed, queue, kept, y)
    return out


def conv_transpose1d_backward(
    grad_output: Any,
    input: Any,
    weight: Any,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | None = None,
    groups: int = 1,
    dilation: int = 1,
    *,
    needs: Iterable[GradientName] = ("input", "weight", "bias"),
    input_length: int | None = None,
    algorithm: str = "auto",
    precision: str | None = None,
    out: Gradients | None = None,
    stream: Any = None,
) -> Gradients:
    """Gradients of :func:`conv_transpose1d` with respect to its input, weight and bias.

    Parameters
    ----------
    grad_output : array of shape (N, C_out, L_out) or (C_out, L_out)
        Gradient of the loss with respect to the output. Its length fixes the right crop: no output padding has to be
        worked out.
    input : array of shape (N, C_in, L_in) or (C_in, L_in), or None
        What went forward; None where `needs` leaves out "weight" and `input_length` is given.
    weight : array of shape (C_in, C_out/groups, K)
    stride, padding, groups, dilation
        As went forward.
    output_padding : int, optional
        Not needed; if given, the length of `grad_output` is held against it.
    needs : sequence of {"input", "weight", "bias"}
        The gradients to compute.
    input_length : int, optional
        L_in where `input` is None.
    algorithm : {"auto", "tiled", "gather", "scatter"}
        As in :func:`conv_transpose1d`.
    precision : {"ieee", "tf32"}, optional
        As in :func:`conv_transpose1d`.
    out : Gradients, optional
        Where the results go; a None in it is allocated.
    stream : optional
        As in :func:`conv_transpose1d`; default: the stream of `grad_output`.

    Returns
    -------
    Gradients
        The arrays (input, weight, bias), each None where `needs` leaves it out.

    Raises
    ------
    TypeError, ValueError
        Before any work, for an argument that breaks a rule above.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.array([[1.0, 2.0]]), np.array([[[1.0, 10.0, 100.0]]])
    >>> g = conv_transpose1d_backward(np.ones((1, 5)), x, w, stride=2)
    >>> g.input, g.weight, g.bias
    (array([[111., 111.]]), array([[[3., 3., 3.]]]), array([5.]))
    """
    p = checks.parameters(stride, padding, output_padding, groups, dilation, derived=True)
    return backward(grad_output, input, weight, p, needs, input_length, algorithm, precision, out, stream)


def backward(
    grad_output: Any,
    input: Any,
    weight: Any,
    p: Parameters,
    needs: Iterable[GradientName],
    input_length: int | None,
    algorithm: str,
    precision: str | None,
    out: Gradients | None,
    stream: Any,
    kept: dict[Any, Any] | None = None,
) -> Gradients:
    """conv_transpose1d_backward with its integers checked; a layer gives what it keeps of its weight for the engine."""
    wanted = checks.needs(needs)
    outs = checks.gradients_out(out, wanted)
    usual = precision is None and stream is None and type(algorithm) is str and type(input_length) in (int, NoneType)
    plain = usual and are_plain(grad_output, weight, input, outs[0]) and are_plain(grad_output, weight, *outs[1:])
    if plain:
        engine, dy, x, w = cpu_engine(), grad_output, input, weight  # the engine's own view of each is itself
        allowed, queue = engine.precisions[0], None
        chosen, geometry, result_shapes = shapes.plain_backward(
            engine, p, algorithm, input_length, "weight" in wanted, dy.dtype, dy.shape, w.dtype, w.shape,
            x is not None and (x.dtype, x.shape),
            out is not None and tuple(y is not None and (y.dtype, y.shape, y.strides) for y in outs),
        )  # fmt: skip
        if out is not None:
            _check_outs(engine, outs, {"grad_output": dy, "input": x, "weight": w})
    else:
        given = {"grad_output": grad_output, "input": input, "weight": weight} | dict(zip(OUT_NAMES, outs, strict=True))
        engine = engine_of(given, optional=("input", *OUT_NAMES))
        allowed = chosen_precision(precision, engine.precisions)
        arrays = engine.operands(given)
        dy, x, w, *views = arrays.values()
        chosen, geometry, result_shapes = shapes.kept_backward(
            engine, p, algorithm, input_length, "weight" in wanted, dy, x, w, views
        )
        _check_outs(engine, views, {"grad_output": dy, "input": x, "weight": w})
        queue = engine.launch_stream(stream, arrays)
    results = list(outs)
    targets = results if plain else views
    for k, name in enumerate(Gradients._fields):
        if results[k] is None and name in wanted:
            results[k] = engine.empty(result_shapes[k], dy.dtype, grad_output, queue)
            if not plain:
                targets[k] = engine.operands({name: results[k]})[name]
    gradients = Gradients(*results)
    dx, dw, db = targets
    if len(dy.shape) == 2:
        dy, x, dx = (array if array is None else engine.batched(array) for array in (dy, x, dx))
    if dx is not None:
        engine.grad_input(dy, w, geometry, p.groups, chosen, allowed, queue, kept, dx)
    if dw is not None:
        engine.grad_weight(dy, x, geometry, p.groups, chosen, allowed, queue, dw, db)
    elif db is not None:
        engine.grad_bias(dy, chosen, queue, db)
    return gradients


def _check_outs(engine: Engine, arrays: Sequence[Any], operands: dict[str, Any]) -> None:
    """Hold the arrays of a backward `out` against the memory of the operands and of each other."""
    for name, array in zip(OUT_NAMES, arrays, strict=True):
        if array is not None:
            checks.output_memory(engine, name, array, operands)
            operands[name] = array
