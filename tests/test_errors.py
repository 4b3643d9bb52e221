"""What the public functions and layers refuse, and in which words; what they take although it looks odd.

Every refusal is a row: what is changed in a valid call, the type of the error and how its message begins. A message
names the argument, what is expected and what was given. Each row is also held to the promise that a refusal comes
before any work: no kernel runs, nothing is allocated and no array of the caller changes.
"""

import enum
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import numba_ctconv
from numba_ctconv import ConvTranspose1d, Gradients, conv_transpose1d, conv_transpose1d_backward, output_length
from numba_ctconv.cpu import CpuEngine

KERNELS = ("forward", "grad_input", "grad_weight", "grad_bias")
INTEGER = "must be an integer; got"
CROPS = "must be an integer or a pair (crop_left, crop_right); got"
NO_ARRAY = "must be a NumPy array or a CUDA device array; got"
FLOATING = "must be a float32 or float64 array in native byte order; got dtype"


def values(*shape, dtype=np.float32):
    """Small integers, different ones everywhere."""
    return (np.arange(np.prod(shape), dtype=int) % 7 - 3).reshape(shape).astype(dtype)


def read_only(*shape):
    array = values(*shape)
    array.flags.writeable = False
    return array


def repeated(*shape):
    """A writeable array whose elements share memory along the last dimension."""
    return np.lib.stride_tricks.as_strided(values(*shape[:-1], 1), shape, (*values(*shape[:-1], 1).strides[:-1], 0))


def device_array(**attributes):
    return SimpleNamespace(__cuda_array_interface__={}, **attributes)


def tracked_by_autograd():
    """Like torch's CUDA tensors that require grad: reading the interface raises."""

    def refuse(_):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")

    return type("Tensor", (), {"__cuda_array_interface__": property(refuse)})()


def forward_call():
    """A valid forward call; stride 2 gives 11 samples."""
    return {
        "input": values(2, 4, 5),
        "weight": values(4, 3, 3),
        "bias": values(3),
        "stride": 2,
        "out": values(2, 3, 11),
    }


def backward_call():
    """The valid backward call that belongs to it."""
    return {
        "grad_output": values(2, 3, 11),
        "input": values(2, 4, 5),
        "weight": values(4, 3, 3),
        "stride": 2,
        "out": Gradients(values(2, 4, 5), values(4, 3, 3), values(3)),
    }


def arrays_of(call):
    flat = [v for value in call.values() for v in (value if isinstance(value, tuple | list) else [value])]
    return [v for v in flat if isinstance(v, np.ndarray) and v.dtype.kind != "O"]


@pytest.fixture
def no_work(monkeypatch):
    """Kernels and allocation fail the test."""

    def refuse(*_args, **_kwargs):
        pytest.fail("work was done for a call that is refused")

    for name in (*KERNELS, "empty", "upload"):
        monkeypatch.setattr(CpuEngine, name, refuse)


def assert_refused(function, call, error, message):
    """Of exactly that type, with that beginning, and with no array changed."""
    before = [(array, array.tobytes()) for array in arrays_of(call)]
    with pytest.raises(error) as refusal:
        function(**call)
    assert type(refusal.value) is error
    assert str(refusal.value).startswith(message), str(refusal.value)
    assert all(array.tobytes() == old for array, old in before)


def refusals(rows):
    """Parameters changed, error and message, as parameters of a test."""
    return pytest.mark.parametrize(
        ("changes", "error", "message"),
        [pytest.param(*row, id=f"{number}-{'-'.join(row[0])}") for number, row in enumerate(rows)],
    )


# --- integers: the same in every function -----------------------------------------------------------------------------

INTEGERS = [
    ({"stride": 0}, ValueError, "`stride` must be at least 1; got stride=0"),
    ({"stride": -1}, ValueError, "`stride` must be at least 1; got stride=-1"),
    ({"stride": 2.0}, TypeError, f"`stride` {INTEGER} stride=2.0"),
    ({"stride": np.float64(2)}, TypeError, f"`stride` {INTEGER} stride=np.float64(2.0)"),
    ({"stride": "2"}, TypeError, f"`stride` {INTEGER} stride='2'"),
    ({"stride": True}, TypeError, f"`stride` {INTEGER} stride=True"),
    ({"stride": np.True_}, TypeError, f"`stride` {INTEGER} stride=np.True_"),
    ({"stride": None}, TypeError, f"`stride` {INTEGER} stride=None"),
    ({"stride": [True]}, TypeError, f"`stride` {INTEGER} stride=True"),
    ({"stride": [2.0]}, TypeError, f"`stride` {INTEGER} stride=2.0"),
    ({"stride": [[2]]}, TypeError, f"`stride` {INTEGER} stride=[2]"),
    ({"stride": np.array([2])}, TypeError, f"`stride` {INTEGER} stride=array([2])"),
    ({"stride": [2, 2]}, ValueError, "`stride` must be an integer or a sequence of one integer; got stride=[2, 2]"),
    ({"stride": ()}, ValueError, "`stride` must be an integer or a sequence of one integer; got stride=()"),
    ({"stride": 2**40}, ValueError, "`stride` must be at most 2147483647; got stride=1099511627776"),
    ({"stride": 2**70}, ValueError, "`stride` must be at most 2147483647; got stride=1180591620717411303424"),
    ({"dilation": 0}, ValueError, "`dilation` must be at least 1; got dilation=0"),
    ({"dilation": -1}, ValueError, "`dilation` must be at least 1; got dilation=-1"),
    ({"dilation": 1.0}, TypeError, f"`dilation` {INTEGER} dilation=1.0"),
    ({"dilation": 2**40}, ValueError, "`dilation` must be at most 2147483647; got dilation=1099511627776"),
    (
        {"dilation": (1, 1)},
        ValueError,
        "`dilation` must be an integer or a sequence of one integer; got dilation=(1, 1)",
    ),
    ({"padding": -1}, ValueError, "`padding` must be at least 0 as an integer; got padding=-1. To extend the output,"),
    ({"padding": (-1,)}, ValueError, "`padding` must be at least 0 as an integer; got padding=-1. To extend"),
    ({"padding": 1.5}, TypeError, f"`padding` {CROPS} padding=1.5"),
    ({"padding": values(2)}, TypeError, f"`padding` {CROPS} padding="),
    ({"padding": True}, TypeError, f"`padding` {CROPS} padding=True"),
    ({"padding": None}, TypeError, f"`padding` {CROPS} padding=None"),
    (
        {"padding": "same"},
        TypeError,
        "`padding` must be an integer or a pair (crop_left, crop_right); got padding='same'",
    ),
    ({"padding": "1"}, TypeError, "`padding` must be an integer or a pair (crop_left, crop_right); got padding='1'"),
    (
        {"padding": [1, 1, 1]},
        ValueError,
        "`padding` must be an integer or a pair (crop_left, crop_right); got padding=[1, 1, 1]",
    ),
    ({"padding": ()}, ValueError, "`padding` must be an integer or a pair (crop_left, crop_right); got padding=()"),
    ({"padding": (1.0, 0)}, TypeError, f"`padding[0]` {INTEGER} padding[0]=1.0"),
    ({"padding": (0, False)}, TypeError, f"`padding[1]` {INTEGER} padding[1]=False"),
    ({"padding": (0, "1")}, TypeError, f"`padding[1]` {INTEGER} padding[1]='1'"),
    (
        {"padding": 2**70},
        ValueError,
        "`padding` must be at most 4611686018427387903; got padding=1180591620717411303424",
    ),
    (
        {"padding": (2**70, 0)},
        ValueError,
        "`padding[0]` must be at most 4611686018427387903; got padding[0]=1180591620717411303424",
    ),
    (
        {"padding": (0, -(2**70))},
        ValueError,
        "`padding[1]` must be at least -4611686018427387903; got padding[1]=-1180591620717411303424",
    ),
    ({"output_padding": -1}, ValueError, "`output_padding` must be at least 0; got output_padding=-1"),
    ({"output_padding": 0.5}, TypeError, f"`output_padding` {INTEGER} output_padding=0.5"),
    ({"output_padding": "0"}, TypeError, f"`output_padding` {INTEGER} output_padding='0'"),
    ({"output_padding": False}, TypeError, f"`output_padding` {INTEGER} output_padding=False"),
    (
        {"output_padding": [0, 0]},
        ValueError,
        "`output_padding` must be an integer or a sequence of one integer; got output_padding=[0, 0]",
    ),
    (
        {"output_padding": 2},
        ValueError,
        "`output_padding` must be smaller than `stride` or `dilation`; got output_padding=2, stride=2, dilation=1",
    ),
    (
        {"output_padding": 3, "dilation": 3},
        ValueError,
        "`output_padding` must be smaller than `stride` or `dilation`; got output_padding=3, stride=2, dilation=3",
    ),
    (
        {"output_padding": 1, "padding": (1, 1)},
        ValueError,
        (
            "`output_padding` must be 0 where `padding` is a pair of crops, which already says where the output ends; "
            "got output_padding=1, padding=(1, 1)"
        ),
    ),
]
GROUPS = [
    ({"groups": 0}, ValueError, "`groups` must be at least 1; got groups=0"),
    ({"groups": -1}, ValueError, "`groups` must be at least 1; got groups=-1"),
    ({"groups": 1.0}, TypeError, f"`groups` {INTEGER} groups=1.0"),
    ({"groups": True}, TypeError, f"`groups` {INTEGER} groups=True"),
    (
        {"groups": 8},
        ValueError,
        "`groups` must divide the 4 input channels of `weight` (shape (4, 3, 3)); got groups=8",
    ),
    (
        {"groups": 3},
        ValueError,
        "`groups` must divide the 4 input channels of `weight` (shape (4, 3, 3)); got groups=3",
    ),
    ({"groups": 2**70}, ValueError, "`groups` must be at most 4611686018427387903; got groups=1180591620717411303424"),
]
ALGORITHMS = [
    ({"algorithm": "fast"}, ValueError, '`algorithm` must be one of "auto", "tiled", "gather", "scatter"'),
    ({"algorithm": ""}, ValueError, '`algorithm` must be one of "auto", "tiled", "gather", "scatter"'),
    ({"algorithm": None}, TypeError, '`algorithm` must be one of "auto", "tiled", "gather", "scatter"'),
    ({"algorithm": ["auto"]}, TypeError, '`algorithm` must be one of "auto", "tiled", "gather", "scatter"'),
]
PRECISIONS = [
    ({"precision": "tf32"}, ValueError, '`precision` must be "ieee" or None with NumPy arrays and layers on the CPU'),
    ({"precision": "tf23"}, ValueError, '`precision` must be one of "ieee", "tf32"; got precision=\'tf23\''),
    ({"precision": 32}, TypeError, '`precision` must be one of "ieee", "tf32"; got precision=32'),
    ({"precision": ["ieee"]}, TypeError, '`precision` must be one of "ieee", "tf32"'),
]
OUTPUT_SIZES = [  # stride 2, padding 0, dilation 1, 5 samples, 3 taps: 11 or 12
    (
        {"output_size": 10},
        ValueError,
        "`output_size` must lie between 11 and 12 for input length 5, kernel size 3, stride",
    ),
    (
        {"output_size": [13]},
        ValueError,
        "`output_size` must lie between 11 and 12 for input length 5, kernel size 3, str",
    ),
    # the window is one stride wide, even where output_padding could be larger
    (
        {"output_size": 17, "dilation": 3},
        ValueError,
        "`output_size` must lie between 15 and 16 for input length 5, kern",
    ),
    ({"output_size": -1}, ValueError, "`output_size` must be at least 0; got output_size=-1"),
    ({"output_size": (-1,), "padding": (0, 0)}, ValueError, "`output_size` must be at least 0; got output_size=-1"),
    ({"output_size": 11.0}, TypeError, f"`output_size` {INTEGER} output_size=11.0"),
    ({"output_size": "11"}, TypeError, f"`output_size` {INTEGER} output_size='11'"),
    ({"output_size": True}, TypeError, f"`output_size` {INTEGER} output_size=True"),
    ({"output_size": [2, 3, 11.0]}, TypeError, f"`output_size` {INTEGER} output_size=11.0"),
    ({"output_size": np.array([11])}, TypeError, f"`output_size` {INTEGER} output_size=array([11])"),
    (
        {"output_size": 2**70},
        ValueError,
        "`output_size` must be at most 4611686018427387903; got output_size=1180591620717411303424",
    ),
    (
        {"output_size": 0, "padding": 9},
        ValueError,
        "`output_size` must lie between -7 and -6 for input length 5, kernel",
    ),
]


# --- forward ----------------------------------------------------------------------------------------------------------


def not_arrays(name, array, beside):
    """What is no array, or an array of a dtype that no kernel takes."""
    return [
        ({name: array.tolist()}, TypeError, f"`{name}` {NO_ARRAY} list. Nested sequences are not arrays: convert with"),
        ({name: tuple(array)}, TypeError, f"`{name}` {NO_ARRAY} tuple. Nested sequences are not arrays: convert with"),
        ({name: np.float32(1)}, TypeError, f"`{name}` {NO_ARRAY} numpy.float32"),
        ({name: 1.0}, TypeError, f"`{name}` {NO_ARRAY} float"),
        ({name: "array"}, TypeError, f"`{name}` {NO_ARRAY} str"),
        ({name: memoryview(array)}, TypeError, f"`{name}` {NO_ARRAY} memoryview"),
        (
            {name: np.ma.masked_array(array)},
            TypeError,
            f"`{name}` must be a plain array; got a numpy.ma.MaskedArray, whose mask has no meaning",
        ),
        (
            {name: device_array()},
            TypeError,
            f"`{name}` must live where `{beside}` does; got a CUDA device array beside a NumPy array.",
        ),
        (
            {name: tracked_by_autograd()},
            TypeError,
            f"`{name}` must be a tensor that autograd does not follow; got a torch tensor with requires_grad=True.",
        ),
        *(
            ({name: array.astype(dtype)}, TypeError, f"`{name}` {FLOATING} {shown}")
            for dtype, shown in [
                (np.int64, "int64"), (np.int32, "int32"), (np.uint8, "uint8"), (bool, "bool"), (np.float16, "float16"),
                (np.complex64, "complex64"), (np.complex128, "complex128"), (object, "object"), (">f4", ">f4"),
                (">f8", ">f8"), (np.longdouble, str(np.dtype(np.longdouble))),
            ]
        ),
        ({name: np.zeros(array.shape, "f4,f4")}, TypeError, f"`{name}` {FLOATING} [('f0', '<f4'), ('f1', '<f4')]"),
    ]  # fmt: skip


def wrong_out(name, shape, inside):
    """Outs that can't take a result of `shape`; `inside` makes the changes of a call from one."""
    longer = (*shape[:-1], shape[-1] + 1)
    rows = [
        (values(*longer), ValueError, f"of shape {shape}; got shape {longer}"),
        (values(*shape)[None], ValueError, f"of shape {shape}; got shape {(1, *shape)}"),
        (values(*shape, dtype=np.float64), TypeError, "of dtype float32; got dtype float64"),
        (values(*shape, dtype=np.int32), TypeError, "a float32 or float64 array in native byte order; got dtype int32"),
        (values(*shape, dtype=">f4"), TypeError, "a float32 or float64 array in native byte order; got dtype >f4"),
        (read_only(*shape), ValueError, "writeable; got a read-only array"),
        (repeated(*shape), ValueError, f"an array whose elements do not share memory; got shape {shape} with strides"),
        (np.ma.masked_array(values(*shape)), TypeError, "a plain array; got a numpy.ma.MaskedArray"),
        (values(*shape).tolist(), TypeError, "a NumPy array or a CUDA device array; got list"),
        ("out", TypeError, "a NumPy array or a CUDA device array; got str"),
    ]
    return [(inside(out), error, f"`{name}` must be {message}") for out, error, message in rows]


def forward_out_over(name):
    """A call whose out reaches into an operand, through a buffer that holds both."""
    operand = forward_call()[name]
    buffer = values(operand.size + 66)
    shared = buffer[: operand.size].reshape(operand.shape)
    return {name: shared, "out": buffer[operand.size - 1 : operand.size + 65].reshape(2, 3, 11)}


OVERLAP = "must not overlap another argument; got an array that shares memory with"
FORWARD = [
    *INTEGERS,
    *GROUPS,
    *ALGORITHMS,
    *PRECISIONS,
    *OUTPUT_SIZES,
    (
        {"padding": 6},
        ValueError,
        "`padding` must leave an output of at least 0 samples; got padding=6, which crops 6 + 6 of",
    ),
    (
        {"padding": (9, 3)},
        ValueError,
        "`padding` must leave an output of at least 0 samples; got padding=(9, 3), which cr",
    ),
    (
        {"padding": (-(2**62) + 1, -(2**62) + 1)},
        ValueError,
        "`padding` must be crops within ±2**62; got padding=(-4611686018427387903, -4611686018427387903)",
    ),
    (
        {"output_size": []},
        ValueError,
        "`output_size` must be an integer or a sequence of 1 or 3 integers; got output_size=[]",
    ),
    (
        {"output_size": [3, 11]},
        ValueError,
        "`output_size` must be an integer or a sequence of 1 or 3 integers; got output_size=[3, 11]",
    ),
    (
        {"output_size": [2, 3, 11, 1]},
        ValueError,
        "`output_size` must be an integer or a sequence of 1 or 3 integers; got output_size=[2, 3, 11, 1]",
    ),
    (
        {"input": values(4, 5), "output_size": [2, 3, 11]},
        ValueError,
        "`output_size` must be an integer or a sequence of 1 or 2 integers; got output_size=[2, 3, 11]",
    ),
    *not_arrays("input", values(2, 4, 5), beside="weight"),
    *not_arrays("weight", values(4, 3, 3), beside="input"),
    *not_arrays("bias", values(3), beside="input"),
    (
        {"input": values(4)},
        ValueError,
        "`input` must be an array of shape (N, C_in, L_in) or (C_in, L_in); got shape (4,)",
    ),
    (
        {"input": values(1, 2, 4, 5)},
        ValueError,
        "`input` must be an array of shape (N, C_in, L_in) or (C_in, L_in); got shape (1, 2, 4, 5)",
    ),
    ({"input": np.float32(1) * np.ones(())[...]}, TypeError, f"`input` {NO_ARRAY} numpy.float64"),
    (
        {"input": np.array(1, np.float32)},
        ValueError,
        "`input` must be an array of shape (N, C_in, L_in) or (C_in, L_in); got shape ()",
    ),
    (
        {"weight": values(4, 3)},
        ValueError,
        "`weight` must be an array of shape (C_in, C_out/groups, K); got shape (4, 3)",
    ),
    (
        {"weight": values(4, 3, 3, 1)},
        ValueError,
        "`weight` must be an array of shape (C_in, C_out/groups, K); got shape (4, 3, 3, 1)",
    ),
    (
        {"input": values(2, 5, 5)},
        ValueError,
        "`input` must have the 4 channels of `weight` (shape (4, 3, 3)); got 5 channels (shape (2, 5, 5))",
    ),
    (
        {"input": values(2, 5, 4)},  # time before channels
        ValueError,
        "`input` must have the 4 channels of `weight` (shape (4, 3, 3)); got 5 channels (shape (2, 5, 4))",
    ),
    ({"input": values(2, 4, 0)}, ValueError, "`input` must be at least 1 sample long; got shape (2, 4, 0)"),
    ({"input": values(0, 4, 0)}, ValueError, "`input` must be at least 1 sample long; got shape (0, 4, 0)"),
    (
        {"input": values(2, 0, 5), "weight": values(0, 3, 3)},
        ValueError,
        "`weight` must be of shape (C_in, C_out/groups, K) with no size 0; got shape (0, 3, 3)",
    ),
    (
        {"weight": values(4, 0, 3)},
        ValueError,
        "`weight` must be of shape (C_in, C_out/groups, K) with no size 0; got sha",
    ),
    (
        {"weight": values(4, 3, 0)},
        ValueError,
        "`weight` must be of shape (C_in, C_out/groups, K) with no size 0; got sha",
    ),
    ({"bias": values(4)}, ValueError, "`bias` must be of shape (3,), one value an output channel; got shape (4,)"),
    (
        {"bias": values(3), "groups": 2},
        ValueError,
        "`bias` must be of shape (6,), one value an output channel; got shape (3,)",
    ),
    ({"bias": values(3, 1)}, ValueError, "`bias` must be of shape (3,), one value an output channel; got shape (3, 1)"),
    (
        {"bias": np.array(1, np.float32)},
        ValueError,
        "`bias` must be of shape (3,), one value an output channel; got shape ()",
    ),
    (
        {"weight": values(4, 3, 3, dtype=np.float64)},
        TypeError,
        "`weight` must have the dtype of `input`, float32; got float64. Nothing is promoted: convert one of them with",
    ),
    (
        {"bias": values(3, dtype=np.float64)},
        TypeError,
        "`bias` must have the dtype of `input`, float32; got float64. Nothing is promoted: convert one of them with",
    ),
    (
        {"input": values(2, 4, 5, dtype=np.float64)},
        TypeError,
        "`weight` must have the dtype of `input`, float64; got float32. Nothing is promoted",
    ),
    ({"stream": 0}, TypeError, "`stream` must be None with NumPy arrays: it orders work on a GPU; got int"),
    ({"stream": "legacy"}, TypeError, "`stream` must be None with NumPy arrays: it orders work on a GPU; got str"),
    *wrong_out("out", (2, 3, 11), lambda out: {"out": out}),
    ({"out": values(3, 11)}, ValueError, "`out` must be of shape (2, 3, 11); got shape (3, 11)"),
    *((forward_out_over(name), ValueError, f"`out` {OVERLAP} `{name}`") for name in ("input", "weight", "bias")),
]


@refusals(FORWARD)
@pytest.mark.usefixtures("no_work")
def test_forward_refuses(changes, error, message):
    assert_refused(conv_transpose1d, forward_call() | changes, error, message)


@pytest.mark.parametrize("name", ["input", "weight"])
@pytest.mark.usefixtures("no_work")
def test_forward_needs_both_arrays(name):
    assert_refused(conv_transpose1d, forward_call() | {name: None}, TypeError, f"`{name}` {NO_ARRAY} None")


@pytest.mark.usefixtures("no_work")
def test_forward_refuses_an_output_beyond_what_an_index_reaches():
    """A view of few bytes stands for an input that no memory could hold."""
    endless = np.broadcast_to(np.float32(1), (1, 2**33))
    with pytest.raises(
        ValueError, match=r"^`stride` and `dilation` must give an output of less than 2\*\*62 samples; got"
    ):
        conv_transpose1d(endless, np.ones((1, 1, 1), np.float32), stride=2**31 - 1)


@pytest.mark.usefixtures("no_work")
def test_forward_refuses_a_torch_tensor_and_says_how_to_pass_it():
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(2, 4, 5), torch.zeros(2, 4, 5, requires_grad=True)):
        message = f"`input` {NO_ARRAY} torch.Tensor. Pass its NumPy view: value.detach().numpy()."
        assert_refused(conv_transpose1d, forward_call() | {"input": tensor}, TypeError, message)


def test_a_device_array_without_cuda_is_refused(monkeypatch):
    monkeypatch.delattr(numba_ctconv, "cuda", raising=False)
    monkeypatch.setitem(sys.modules, "numba_ctconv.cuda", None)
    message = "`input` must be a NumPy array where numba.cuda can't be used; got a CUDA device array"
    call = {"input": device_array(), "weight": device_array()}
    assert_refused(conv_transpose1d, call, TypeError, message)


# --- backward ---------------------------------------------------------------------------------------------------------


def outs(**arrays):
    return {"out": Gradients(*(arrays.get(name) for name in Gradients._fields))}


def backward_outs_over(name, operand):
    """A call in which the out of a gradient reaches into an operand."""
    call = backward_call()
    shape, size = call[operand].shape, call[operand].size
    needed = call["out"]._asdict()[name]
    buffer = values(size + needed.size)
    out = buffer[size - 1 : size - 1 + needed.size].reshape(needed.shape)
    return {operand: buffer[:size].reshape(shape)} | outs(**{name: out})


def overlapping_outs():
    buffer = values(40 + 36)
    return outs(input=buffer[:40].reshape(2, 4, 5), weight=buffer[39:75].reshape(4, 3, 3))


NAMES = "('input', 'weight', 'bias')"
BACKWARD = [
    *INTEGERS,
    *GROUPS,
    *ALGORITHMS,
    *PRECISIONS,
    *not_arrays("grad_output", values(2, 3, 11), beside="input"),
    *not_arrays("input", values(2, 4, 5), beside="grad_output"),
    *not_arrays("weight", values(4, 3, 3), beside="grad_output"),
    ({"needs": "input"}, TypeError, f"`needs` must be a sequence of names out of {NAMES}; got needs='input'"),
    ({"needs": 1}, TypeError, f"`needs` must be a sequence of names out of {NAMES}; got needs=1"),
    ({"needs": None}, TypeError, f"`needs` must be a sequence of names out of {NAMES}; got needs=None"),
    ({"needs": ()}, ValueError, f"`needs` must be a sequence of one or more names out of {NAMES}; got needs=()"),
    ({"needs": ["x"]}, ValueError, f"`needs` must be a sequence of one or more names out of {NAMES}; got needs=['x']"),
    (
        {"needs": ("input", "output")},
        ValueError,
        f"`needs` must be a sequence of one or more names out of {NAMES}; got n",
    ),
    (
        {"needs": (True, False, True)},
        ValueError,
        f"`needs` must be a sequence of one or more names out of {NAMES}; got n",
    ),
    (
        {"needs": [["input"]]},
        ValueError,
        f"`needs` must be a sequence of one or more names out of {NAMES}; got needs=[[",
    ),
    ({"input": None}, TypeError, '`input` must be an array where `needs` names "weight"; got None'),
    (
        {"input": None, "needs": ["input"]} | outs(),
        TypeError,
        "`input_length` must be an integer where `input` is None; got None",
    ),
    ({"input_length": 6}, ValueError, "`input_length` must be 5, the length of `input`; got input_length=6"),
    ({"input_length": 0}, ValueError, "`input_length` must be at least 1; got input_length=0"),
    ({"input_length": 5.0}, TypeError, f"`input_length` {INTEGER} input_length=5.0"),
    (
        {"input": None, "needs": ["input"], "input_length": 0} | outs(),
        ValueError,
        "`input_length` must be at least 1; got input_length=0",
    ),
    (
        {"input": None, "needs": ["input"], "input_length": 2**61} | outs(),
        ValueError,
        "`stride` and `dilation` must give an output of less than 2**62 samples; got stride=2, dilation=1 with input",
    ),
    (
        {"input": None, "needs": ["input"], "input_length": 5, "grad_output": values(2, 2, 11)} | outs(),
        ValueError,
        "`grad_output` must be of shape (N, 3, L_out); got shape (2, 2, 11)",
    ),
    (
        {"input": None, "needs": ["input"], "input_length": 5, "grad_output": values(1, 2, 3, 11)} | outs(),
        ValueError,
        "`grad_output` must be of shape (3, L_out); got shape (1, 2, 3, 11)",
    ),
    (
        {"grad_output": values(2, 4, 11)},
        ValueError,
        "`grad_output` must be of shape (2, 3, L_out); got shape (2, 4, 11)",
    ),
    (
        {"grad_output": values(1, 3, 11)},
        ValueError,
        "`grad_output` must be of shape (2, 3, L_out); got shape (1, 3, 11)",
    ),
    ({"grad_output": values(3, 11)}, ValueError, "`grad_output` must be of shape (2, 3, L_out); got shape (3, 11)"),
    ({"grad_output": values(11)}, ValueError, "`grad_output` must be of shape (2, 3, L_out); got shape (11,)"),
    ({"input": values(4, 5)}, ValueError, "`grad_output` must be of shape (3, L_out); got shape (2, 3, 11)"),
    (
        {"grad_output": values(2, 3, 10)},
        ValueError,
        "`grad_output` must have a length between 11 and 12, the output lengths of input length 5, kernel size 3",
    ),
    (
        {"grad_output": values(2, 3, 13)},
        ValueError,
        "`grad_output` must have a length between 11 and 12, the output lengths of input length 5, kernel size 3",
    ),
    (
        {"output_padding": 1},
        ValueError,
        (
            "`grad_output` must have length 12, the output length of input length 5, kernel size 3, "
            "stride 2, padding 0, output_padding 1 and dilation 1; got length 11"
        ),
    ),
    (
        {"output_padding": 0, "padding": (1, 2)},
        ValueError,
        (
            "`grad_output` must have length 8, the output length of input length 5, kernel size 3, "
            "stride 2, padding (1, 2), output_padding 0 and dilation 1; got length 11"
        ),
    ),
    (
        {"input": values(2, 5, 5)},
        ValueError,
        "`input` must have the 4 channels of `weight` (shape (4, 3, 3)); got 5 channels (shape (2, 5, 5))",
    ),
    ({"input": values(2, 4, 0)}, ValueError, "`input` must be at least 1 sample long; got shape (2, 4, 0)"),
    (
        {"input": values(5)},
        ValueError,
        "`input` must be an array of shape (N, C_in, L_in) or (C_in, L_in); got shape (5,)",
    ),
    (
        {"weight": values(4, 3)},
        ValueError,
        "`weight` must be an array of shape (C_in, C_out/groups, K); got shape (4, 3)",
    ),
    (
        {"weight": values(4, 3, 0)},
        ValueError,
        "`weight` must be of shape (C_in, C_out/groups, K) with no size 0; got shape (4, 3, 0)",
    ),
    (
        {"grad_output": values(2, 3, 11, dtype=np.float64)},
        TypeError,
        "`input` must have the dtype of `grad_output`, float64; got float32. Nothing is promoted",
    ),
    (
        {"weight": values(4, 3, 3, dtype=np.float64)},
        TypeError,
        "`weight` must have the dtype of `grad_output`, float32; got float64. Nothing is promoted",
    ),
    ({"stream": 0}, TypeError, "`stream` must be None with NumPy arrays: it orders work on a GPU; got int"),
    *wrong_out("out.input", (2, 4, 5), lambda out: outs(input=out)),
    *wrong_out("out.weight", (4, 3, 3), lambda out: outs(weight=out)),
    *wrong_out("out.bias", (3,), lambda out: outs(bias=out)),
    ({"needs": ["weight"]}, ValueError, "`out.input` must be None where `needs` leaves out 'input'; got numpy.ndarray"),
    (
        {"needs": ["input"]} | outs(input=values(2, 4, 5), bias=values(3)),
        ValueError,
        "`out.bias` must be None where `needs` leaves out 'bias'; got numpy.ndarray",
    ),
    ({"out": [None, None, None]}, TypeError, "`out` must be a Gradients of arrays or None; got out=[None, None, None]"),
    ({"out": (None, None)}, TypeError, "`out` must be a Gradients of arrays or None; got out=(None, None)"),
    *(
        (backward_outs_over(name, operand), ValueError, f"`out.{name}` {OVERLAP} `{operand}`")
        for name in ("input", "weight", "bias")
        for operand in ("grad_output", "input", "weight")
    ),
    (overlapping_outs(), ValueError, f"`out.weight` {OVERLAP} `out.input`"),
]


@refusals(BACKWARD)
@pytest.mark.usefixtures("no_work")
def test_backward_refuses(changes, error, message):
    assert_refused(conv_transpose1d_backward, backward_call() | changes, error, message)


@pytest.mark.parametrize("name", ["grad_output", "weight"])
@pytest.mark.usefixtures("no_work")
def test_backward_needs_its_arrays(name):
    assert_refused(conv_transpose1d_backward, backward_call() | {name: None}, TypeError, f"`{name}` {NO_ARRAY} None")


@pytest.mark.parametrize(
    "out", [values(2, 4, 5), 5, "out", {"input": values(2, 4, 5)}], ids=["array", "5", "str", "dict"]
)
@pytest.mark.usefixtures("no_work")
def test_backward_takes_no_other_out_than_gradients(out):
    message = "`out` must be a Gradients of arrays or None; got"
    assert_refused(conv_transpose1d_backward, backward_call() | {"out": out}, TypeError, message)


# --- output_length ----------------------------------------------------------------------------------------------------

LENGTHS = [
    *INTEGERS,
    *OUTPUT_SIZES,
    ({"input_length": 0}, ValueError, "`input_length` must be at least 1; got input_length=0"),
    ({"input_length": -5}, ValueError, "`input_length` must be at least 1; got input_length=-5"),
    ({"input_length": 5.0}, TypeError, f"`input_length` {INTEGER} input_length=5.0"),
    ({"input_length": np.bool_(True)}, TypeError, f"`input_length` {INTEGER} input_length=np.True_"),
    (
        {"input_length": 2**70},
        ValueError,
        "`input_length` must be at most 4611686018427387903; got input_length=1180591620717411303424",
    ),
    ({"kernel_size": 0}, ValueError, "`kernel_size` must be at least 1; got kernel_size=0"),
    ({"kernel_size": 3.0}, TypeError, f"`kernel_size` {INTEGER} kernel_size=3.0"),
    (
        {"kernel_size": (3, 3)},
        ValueError,
        "`kernel_size` must be an integer or a sequence of one integer; got kernel_size",
    ),
    (
        {"padding": 6},
        ValueError,
        "`padding` must leave an output of at least 0 samples; got padding=6, which crops 6 + 6 of",
    ),
    (
        {"input_length": 2**62 - 1},
        ValueError,
        "`stride` and `dilation` must give an output of less than 2**62 samples; got stride=2, dilation=1 with input",
    ),
    (
        {"output_size": [1, 2, 3, 4]},
        ValueError,
        "`output_size` must be an integer or a sequence of 1 or 2 or 3 integers; got output_size=[1, 2, 3, 4]",
    ),
]


@refusals(LENGTHS)
@pytest.mark.usefixtures("no_work")
def test_output_length_refuses(changes, error, message):
    assert_refused(output_length, {"input_length": 5, "kernel_size": 3, "stride": 2} | changes, error, message)


# --- layers -----------------------------------------------------------------------------------------------------------

LAYERS = [
    *(row for row in INTEGERS if "smaller than" not in row[2]),
    *GROUPS[:4],
    *ALGORITHMS,
    *PRECISIONS,
    ({"in_channels": 0}, ValueError, "`in_channels` must be at least 1; got in_channels=0"),
    ({"in_channels": 4.0}, TypeError, f"`in_channels` {INTEGER} in_channels=4.0"),
    ({"out_channels": -3}, ValueError, "`out_channels` must be at least 1; got out_channels=-3"),
    ({"out_channels": True}, TypeError, f"`out_channels` {INTEGER} out_channels=True"),
    ({"kernel_size": 0}, ValueError, "`kernel_size` must be at least 1; got kernel_size=0"),
    ({"kernel_size": "3"}, TypeError, f"`kernel_size` {INTEGER} kernel_size='3'"),
    (
        {"kernel_size": (3, 3)},
        ValueError,
        "`kernel_size` must be an integer or a sequence of one integer; got kernel_size",
    ),
    ({"groups": 3}, ValueError, "`in_channels` must be divisible by `groups`; got in_channels=4, groups=3"),
    ({"groups": 4}, ValueError, "`out_channels` must be divisible by `groups`; got out_channels=6, groups=4"),
    (
        {"padding_mode": "reflect"},
        ValueError,
        '`padding_mode` must be "zeros", the only mode of a transposed convolution;',
    ),
    (
        {"padding_mode": None},
        TypeError,
        '`padding_mode` must be "zeros", the only mode of a transposed convolution; got',
    ),
    ({"device": "gpu"}, ValueError, '`device` must be one of "cpu", "cuda"; got device=\'gpu\''),
    ({"device": "cuda:0"}, ValueError, '`device` must be one of "cpu", "cuda"; got device=\'cuda:0\''),
    ({"device": None}, TypeError, '`device` must be one of "cpu", "cuda"; got device=None'),
    ({"device": 0}, TypeError, '`device` must be one of "cpu", "cuda"; got device=0'),
    ({"dtype": np.float16}, TypeError, "`dtype` must be float32 or float64; got dtype=<class 'numpy.float16'>"),
    ({"dtype": "int32"}, TypeError, "`dtype` must be float32 or float64; got dtype='int32'"),
    ({"dtype": complex}, TypeError, "`dtype` must be float32 or float64; got dtype=<class 'complex'>"),
    ({"dtype": ">f4"}, TypeError, "`dtype` must be float32 or float64; got dtype='>f4'"),
    ({"dtype": "single precision"}, TypeError, "`dtype` must be float32 or float64; got dtype='single precision'"),
    ({"dtype": None}, TypeError, "`dtype` must be float32 or float64; got dtype=None"),
    ({"dtype": {}}, TypeError, "`dtype` must be float32 or float64; got dtype={}"),
    ({"rng": 0}, TypeError, "`rng` must be a numpy.random.Generator or None; got rng=0"),
    ({"rng": np.random}, TypeError, "`rng` must be a numpy.random.Generator or None; got rng=<module"),
    (
        {"rng": np.random.RandomState(0)},
        TypeError,
        "`rng` must be a numpy.random.Generator or None; got rng=RandomState(",
    ),
]


@refusals(LAYERS)
@pytest.mark.usefixtures("no_work")
def test_a_layer_refuses(changes, error, message):
    call = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2} | changes
    assert_refused(ConvTranspose1d, call, error, message)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("bias", [1, None, "False", values(6)], ids=["1", "None", "str", "array"])
def test_a_layer_refuses_a_bias_that_is_no_boolean(bias):
    call = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "bias": bias}
    assert_refused(ConvTranspose1d, call, TypeError, f"`bias` must be True or False; got bias={bias!r}")


def test_a_layer_on_cuda_is_refused_without_cuda(monkeypatch):
    monkeypatch.delattr(numba_ctconv, "cuda", raising=False)
    monkeypatch.setitem(sys.modules, "numba_ctconv.cuda", None)
    call = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "device": "cuda"}
    assert_refused(
        ConvTranspose1d, call, TypeError, '`device` must be "cpu" where numba.cuda can\'t be used; got "cuda"'
    )


def test_a_layer_refuses_output_padding_when_it_is_used():
    """As torch does: output_size may still override it."""
    layer = ConvTranspose1d(4, 6, 3, stride=2, output_padding=2)
    message = "`output_padding` must be smaller than `stride` or `dilation`; got output_padding=2, stride=2, dilation=1"
    assert_refused(layer, {"input": values(4, 5)}, ValueError, message)
    assert layer(values(4, 5), output_size=12).shape == (6, 12)


WEIGHTS = [
    (values(4, 6, 4), ValueError, "of shape (4, 6, 3); got shape (4, 6, 4)"),
    (values(6, 4, 3), ValueError, "of shape (4, 6, 3); got shape (6, 4, 3)"),
    (
        values(4, 6, 3, dtype=np.float64),
        TypeError,
        "of the layer's dtype float32; convert it with astype; got dtype float64",
    ),
    (
        values(4, 6, 3, dtype=np.float16),
        TypeError,
        "a float32 or float64 array in native byte order; got dtype float16",
    ),
    (values(4, 6, 3, dtype=">f4"), TypeError, "a float32 or float64 array in native byte order; got dtype >f4"),
    (values(4, 6, 3).tolist(), TypeError, "a NumPy array or a CUDA device array; got list"),
    (np.ma.masked_array(values(4, 6, 3)), TypeError, "a plain array; got a numpy.ma.MaskedArray"),
    (0.0, TypeError, "a NumPy array or a CUDA device array; got float"),
    (None, TypeError, "a NumPy array or a CUDA device array; got None"),
]
BIASES = [
    (values(4), ValueError, "of shape (6,); got shape (4,)"),
    (values(1, 6), ValueError, "of shape (6,); got shape (1, 6)"),
    (values(6, dtype=np.float64), TypeError, "of the layer's dtype float32; convert it with astype; got dtype float64"),
    (values(6).tolist(), TypeError, "a NumPy array or a CUDA device array; got list"),
]
ASSIGNED = [("weight", *row) for row in WEIGHTS] + [("bias", *row) for row in BIASES]


def assert_parameters_kept(layer, change, error, message):
    """The change is refused, and both parameters are what they were."""
    before = layer.state_dict()
    with pytest.raises(error) as refusal:
        change()
    assert str(refusal.value).startswith(message), str(refusal.value)
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("name", "value", "error", "message"), ASSIGNED)
def test_a_parameter_assigned_is_refused(name, value, error, message):
    layer = ConvTranspose1d(4, 6, 3)
    assert_parameters_kept(layer, lambda: setattr(layer, name, value), error, f"`{name}` must be {message}")


@pytest.mark.parametrize(("name", "value", "error", "message"), ASSIGNED)
def test_a_parameter_in_a_state_is_refused_and_none_is_taken(name, value, error, message):
    layer = ConvTranspose1d(4, 6, 3)
    state = {"weight": np.zeros((4, 6, 3), np.float32), "bias": np.zeros(6, np.float32)} | {name: value}
    assert_parameters_kept(layer, lambda: layer.load_state_dict(state), error, f"`{name}` must be {message}")


def test_a_layer_stays_with_or_without_a_bias():
    layer = ConvTranspose1d(4, 6, 3)
    message = "`bias` must be an array in a layer made with bias=True; got None"
    assert_parameters_kept(layer, lambda: setattr(layer, "bias", None), ValueError, message)
    layer = ConvTranspose1d(4, 6, 3, bias=False)
    message = "`bias` must be None in a layer made with bias=False; got numpy.ndarray"
    assert_parameters_kept(layer, lambda: setattr(layer, "bias", values(6)), ValueError, message)
    layer.bias = None
    assert layer.bias is None


STATES = [
    (
        {},
        ValueError,
        "`state_dict` must have the keys ['weight', 'bias']; missing keys: ['weight', 'bias'], unexpected keys: []",
    ),
    (
        {"weight": 0},
        ValueError,
        "`state_dict` must have the keys ['weight', 'bias']; missing keys: ['bias'], unexpected keys: []",
    ),
    (
        {"weight": 0, "bias": 0, "running_mean": 0},
        ValueError,
        "`state_dict` must have the keys ['weight', 'bias']; missing keys: [], unexpected keys: ['running_mean']",
    ),
    (
        {"up.weight": 0, "up.bias": 0},
        ValueError,
        "`state_dict` must have the keys ['weight', 'bias']; missing keys: ['weight', 'bias'], unexpected keys: [",
    ),
    ([("weight", 0)], TypeError, "`state_dict` must be a mapping of names to arrays; got state_dict=[('weight', 0)]"),
    (None, TypeError, "`state_dict` must be a mapping of names to arrays; got state_dict=None"),
]


@pytest.mark.parametrize(("state", "error", "message"), STATES)
def test_a_state_with_other_keys_is_refused(state, error, message):
    layer = ConvTranspose1d(4, 6, 3)
    assert_parameters_kept(layer, lambda: layer.load_state_dict(state), error, message)


def test_a_bias_in_the_state_of_a_layer_without_one_is_unexpected():
    layer = ConvTranspose1d(4, 6, 3, bias=False)
    state = ConvTranspose1d(4, 6, 3).state_dict()
    message = "`state_dict` must have the keys ['weight']; missing keys: [], unexpected keys: ['bias']"
    assert_parameters_kept(layer, lambda: layer.load_state_dict(state), ValueError, message)


@pytest.mark.parametrize(
    ("state", "parameters", "error", "message"),
    [
        (None, {}, TypeError, "`state_dict` must be a mapping of names to arrays; got state_dict=None"),
        (
            {},
            {},
            ValueError,
            "`state_dict` must have the keys ['weight']; missing keys: ['weight'], unexpected keys: []",
        ),
        (
            {"weight": values(4, 6, 3), "extra": 0},
            {},
            ValueError,
            "`state_dict` must have the keys ['weight']; missing keys: [], unexpected keys: ['extra']",
        ),
        (
            {"bias": values(6)},
            {},
            ValueError,
            "`state_dict` must have the keys ['weight']; missing keys: ['weight'], unexpected keys: []",
        ),
        ({"weight": [[[1.0]]]}, {}, TypeError, f"`weight` {NO_ARRAY} list. Nested sequences"),
        (
            {"weight": values(4, 6)},
            {},
            ValueError,
            "`weight` must be an array of shape (C_in, C_out/groups, K); got shape (4, 6)",
        ),
        ({"weight": values(4, 6, 3, dtype=int)}, {}, TypeError, f"`weight` {FLOATING} int64"),
        (
            {"weight": values(4, 6, 3)},
            {"groups": 3},
            ValueError,
            "`groups` must divide the 4 input channels of `weight` (shape (4, 6, 3)); got groups=3",
        ),
        ({"weight": values(4, 6, 3)}, {"groups": 0}, ValueError, "`groups` must be at least 1; got groups=0"),
        ({"weight": values(4, 6, 3)}, {"stride": 0}, ValueError, "`stride` must be at least 1; got stride=0"),
        (
            {"weight": values(4, 6, 3), "bias": values(4)},
            {},
            ValueError,
            "`bias` must be of shape (6,); got shape (4,)",
        ),
        ({"weight": values(4, 6, 3), "bias": None}, {}, TypeError, f"`bias` {NO_ARRAY} None"),
        (
            {"weight": values(4, 6, 3), "bias": values(6, dtype=np.float64)},
            {},
            TypeError,
            "`bias` must be of the layer's dtype float32; convert it with astype; got dtype float64",
        ),
    ],
)
def test_no_layer_is_made_from_such_a_state(state, parameters, error, message):
    assert_refused(ConvTranspose1d.from_state_dict, {"state_dict": state} | parameters, error, message)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"input": values(2, 5, 5)},
            ValueError,
            "`input` must have the 4 channels of `weight` (shape (4, 3, 3)); got 5 channels (shape (2, 5, 5))",
        ),
        (
            {"input": values(2, 4, 5, dtype=np.float64)},
            TypeError,
            "`weight` must have the dtype of `input`, float64; got",
        ),
        ({"input": values(2, 4, 5).tolist()}, TypeError, f"`input` {NO_ARRAY} list. Nested sequences are not arrays"),
        ({"output_size": 99}, ValueError, "`output_size` must lie between 11 and 12 for input length 5, kernel size 3"),
        ({"out": values(2, 3, 12)}, ValueError, "`out` must be of shape (2, 3, 11); got shape (2, 3, 12)"),
        ({"stream": 1}, TypeError, "`stream` must be None with NumPy arrays: it orders work on a GPU; got int"),
    ],
)
def test_a_call_of_a_layer_is_refused(changes, error, message, request):
    layer = ConvTranspose1d(4, 3, 3, stride=2)
    request.getfixturevalue("no_work")
    assert_refused(layer, {"input": values(2, 4, 5), "out": values(2, 3, 11)} | changes, error, message)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"grad_output": values(2, 3, 10)},
            ValueError,
            "`grad_output` must have a length between 11 and 12, the output le",
        ),
        (
            {"grad_output": values(2, 2, 11)},
            ValueError,
            "`grad_output` must be of shape (2, 3, L_out); got shape (2, 2, 11)",
        ),
        ({"needs": "weight"}, TypeError, f"`needs` must be a sequence of names out of {NAMES}; got needs='weight'"),
        ({"input": None}, TypeError, '`input` must be an array where `needs` names "weight"; got None'),
        (outs(weight=values(4, 3, 2)), ValueError, "`out.weight` must be of shape (4, 3, 3); got shape (4, 3, 2)"),
        ({"stream": 1}, TypeError, "`stream` must be None with NumPy arrays: it orders work on a GPU; got int"),
    ],
)
def test_backward_of_a_layer_is_refused(changes, error, message, request):
    layer = ConvTranspose1d(4, 3, 3, stride=2)
    request.getfixturevalue("no_work")
    call = {"grad_output": values(2, 3, 11), "input": values(2, 4, 5)} | changes
    assert_refused(layer.backward, call, error, message)


def test_a_layer_shows_its_parameters_without_letting_them_be_written():
    layer = ConvTranspose1d(4, 6, 3)
    for parameter in (layer.weight, layer.bias):
        with pytest.raises(ValueError, match="read-only"):
            parameter[...] = 0


# --- what is taken ----------------------------------------------------------------------------------------------------


class Two:
    """An integer to whoever asks."""

    def __index__(self):
        return 2


class Rate(enum.IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    "two", [2, np.int64(2), np.int32(2), np.uint8(2), np.array(2), Two(), Rate.TWO, [2], (2,), [np.int64(2)], (Two(),)]
)
def test_integers_of_every_kind_are_taken(two):
    assert output_length(5, 3, stride=two) == 11
    assert output_length(two, two, stride=two, padding=two, dilation=two) == 1
    assert output_length(5, 3, stride=3, output_padding=two) == 17
    assert output_length(5, 3, stride=2, padding=(two, two) if not isinstance(two, list | tuple) else (2, 2)) == 7
    x, w = values(2, 4, 5), values(4, 3, 3)
    y = conv_transpose1d(x, w, None, two, two, 0, two, two)
    np.testing.assert_array_equal(y, conv_transpose1d(x, w, None, 2, 2, 0, 2, 2), strict=True)
    layer = ConvTranspose1d(two, two, two, two, two, 0, two, True, two)
    assert repr(layer) == repr(ConvTranspose1d(2, 2, 2, 2, 2, 0, 2, True, 2))
    assert all(type(value) is int for value in (layer.in_channels, layer.kernel_size, layer.stride, layer.padding))


@pytest.mark.parametrize("padding", [[1, -2], (1, -2), (np.int64(1), Two().__index__() - 4)])
def test_a_pair_of_either_sign_is_taken(padding):
    assert output_length(5, 3, stride=2, padding=padding) == 12


@pytest.mark.parametrize("size", [12, [12], (12,), np.int64(12), [2, 3, 12], (0, 0, 12), (None, "C", 12)])
def test_output_sizes_of_every_form_are_taken(size):
    """As in torch, nothing is read of the leading elements."""
    assert conv_transpose1d(values(2, 4, 5), values(4, 3, 3), stride=2, output_size=size).shape == (2, 3, 12)
    assert output_length(5, 3, 2, output_size=size) == 12


def test_output_size_of_torch_is_taken():
    torch = pytest.importorskip("torch")
    assert output_length(5, 3, 2, output_size=torch.Size([2, 3, 12])) == 12
    assert output_length(5, 3, stride=torch.tensor(2)) == 11


def test_output_size_overrides_output_padding():
    assert output_length(5, 3, 2, output_padding=1, output_size=11) == 11
    assert output_length(5, 3, 2, output_padding=7, output_size=12) == 12


def test_an_empty_batch_is_taken():
    x, w = values(0, 4, 5), values(4, 3, 3)
    assert conv_transpose1d(x, w, values(3), stride=2).shape == (0, 3, 11)
    gradients = conv_transpose1d_backward(values(0, 3, 11), x, w, stride=2)
    assert gradients.input.shape == (0, 4, 5)
    assert not gradients.weight.any()
    assert not gradients.bias.any()


def test_an_empty_output_is_taken():
    x, w = values(2, 4, 3), values(4, 3, 2)
    assert conv_transpose1d(x, w, values(3), padding=2).shape == (2, 3, 0)
    gradients = conv_transpose1d_backward(values(2, 3, 0), x, w, padding=2)
    assert [a.shape for a in gradients] == [(2, 4, 3), (4, 3, 2), (3,)]
    assert not any(a.any() for a in gradients)


def test_padding_beyond_the_reach_of_the_taps_is_taken():
    assert conv_transpose1d(values(4, 9), values(4, 3, 3), padding=5).shape == (3, 1)


def test_any_length_is_taken_beside_a_pair():
    x, w = values(4, 5), values(4, 3, 3)
    for size in (0, 1, 7, 50):
        assert conv_transpose1d(x, w, padding=(1, 0), output_size=size).shape == (3, size)
        assert conv_transpose1d_backward(values(3, size), x, w, padding=(1, 0)).input.shape == (4, 5)


def test_the_gradient_of_every_output_padding_is_taken():
    """The window of grad_output is as wide as output_padding may be, wider than output_size's where dilation leads."""
    x, w = values(4, 5), values(4, 3, 3)
    for output_padding in range(4):
        y = conv_transpose1d(x, w, None, 2, 1, output_padding, 1, 4)
        for given in (None, output_padding):
            assert conv_transpose1d_backward(y, x, w, 2, 1, given, 1, 4).weight.shape == w.shape


def test_outs_are_taken_in_part_as_a_plain_tuple_and_interleaved():
    call = backward_call()
    expected = conv_transpose1d_backward(**(call | {"out": None}))
    both = np.zeros((2, 4, 10), np.float32)  # a gradient of x beside another array's samples
    out = (both[..., ::2], None, values(3)[::-1])
    gradients = conv_transpose1d_backward(**(call | {"input": both[..., 1::2], "out": out}))
    assert gradients.input is out[0]
    assert gradients.bias is out[2]
    np.testing.assert_array_equal(gradients.input, expected.input)
    np.testing.assert_array_equal(gradients.bias, expected.bias)


@pytest.mark.parametrize(
    ("function", "call", "source", "out"),
    [
        (conv_transpose1d, forward_call, "input", lambda y: y),
        (conv_transpose1d_backward, backward_call, "grad_output", lambda dx: Gradients(dx, None, None)),
    ],
)
def test_the_memory_of_an_out_is_looked_at_in_every_call(function, call, source, out):
    """What arrays are is checked once for those of the same shapes and strides; where they are, each time."""
    operand, result = call()[source], {"input": (2, 3, 11), "grad_output": (2, 4, 5)}[source]
    buffer = np.zeros(operand.size + np.prod(result), np.float32)

    def run(first):
        given = buffer[first : first + operand.size].reshape(operand.shape)
        return function(**(call() | {source: given, "out": out(buffer[operand.size :].reshape(result))}))

    run(0)
    with pytest.raises(ValueError, match=f"{OVERLAP} `{source}`"):
        run(1)
    buffer.flags.writeable = False
    with pytest.raises(ValueError, match="must be writeable; got a read-only array"):
        run(0)


def test_input_is_not_needed_for_its_own_gradient():
    call = backward_call() | {"out": None}
    expected = conv_transpose1d_backward(**call).input
    call |= {"input": None, "input_length": np.int64(5), "needs": {"input", "bias"}}
    np.testing.assert_array_equal(conv_transpose1d_backward(**call).input, expected, strict=True)


def test_numpy_booleans_and_names_of_dtypes_are_taken():
    assert ConvTranspose1d(4, 6, 3, bias=np.False_).bias is None
    for dtype in ("float64", float, np.float64, np.dtype(np.float64), "f8"):
        assert ConvTranspose1d(4, 6, 3, dtype=dtype).weight.dtype == np.float64


def test_subclasses_of_ndarray_are_taken_as_plain_arrays():
    class Labelled(np.ndarray):
        pass

    x, w = values(2, 4, 5), values(4, 3, 3)
    y = conv_transpose1d(x.view(Labelled), w.view(Labelled))
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, conv_transpose1d(x, w), strict=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda: numba_ctconv.conv_transpose1d(values(1, 2, 5), values(2, 3, 4), output_padding=None),
        lambda: numba_ctconv.output_length(5, 4, output_padding=None),
        lambda: numba_ctconv.ConvTranspose1d(2, 3, 4, output_padding=None),
    ],
    ids=["conv_transpose1d", "output_length", "ConvTranspose1d"],
)
def test_only_backward_derives_the_output_padding(call):
    with pytest.raises(TypeError, match=r"^`output_padding` must be an integer; got output_padding=None"):
        call()
