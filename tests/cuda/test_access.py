"""What a call may touch and when: DLPack, halves, refusals after which the next call works, memory that runs out."""

import copy
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from numba import cuda

import numba_ctconv as nc
from numba_ctconv.benchmark.workloads import Problem
from numba_ctconv.checks import BFLOAT16
from numba_ctconv.cuda import ENGINE, CudaEngine, arrays, dlpack, producers, queues

PROBLEM = Problem("access", 2, 3, 4, 5, 4, stride=2, padding=1)
simulated = pytest.mark.skipif(not queues.SIMULATED, reason="its arrays lie in host memory")


def on_device(operands):
    return [cuda.to_device(array) for array in operands]


@pytest.fixture
def no_work(monkeypatch):
    """Kernels and allocation fail the test."""

    def refuse(*_args, **_kwargs):
        pytest.fail("work was done for a call that is refused")

    for name in ("forward", "grad_input", "grad_weight", "grad_bias", "empty"):
        monkeypatch.setattr(CudaEngine, name, refuse)


# --- DLPack -----------------------------------------------------------------------------------------------------------


class Exporting:
    """A device array with DLPack's protocol alone; in the simulator NumPy makes its capsules."""

    def __init__(self, host, where=(2, 0), newest=(1, 0)):
        self.host = host
        self.newest = newest
        self.streams = []
        self.__dlpack_device__ = lambda: where

    def __dlpack__(self, *, stream, **versions):
        if self.newest is None and versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        capsule = self.host.__dlpack__(**versions)
        self.streams.append(stream)  # of exports that were made: an older NumPy refuses a version, and is asked again
        return capsule


def newest_versions():
    """Versions of the protocol that this NumPy can export in."""
    try:
        np.zeros(1).__dlpack__(max_version=(1, 0))
    except TypeError:
        return [None]
    return [None, (1, 0)]


versions = pytest.mark.parametrize("newest", newest_versions(), ids=str)


@simulated
@versions
@pytest.mark.parametrize(
    "layout",
    [
        np.copy,
        lambda a: np.ascontiguousarray(a.T).T,
        lambda a: np.repeat(a, 3, axis=-1)[..., ::3],
        lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    ],
    ids=["contiguous", "transposed", "sliced", "reversed"],
)
def test_dlpack_alone_is_enough(forward, operands, expected, newest, layout):
    x, w, b = (Exporting(layout(a), newest=newest) for a in operands[:3])
    result = forward(x, w, b)
    assert type(result) is type(cuda.device_array(1))
    np.testing.assert_array_equal(result.copy_to_host(), expected)


@simulated
@versions
def test_dlpack_says_where_out_is(forward, operands, expected, newest):
    out = Exporting(np.full_like(expected, np.nan), newest=newest)
    assert forward(*on_device(operands[:3]), out=out) is out
    np.testing.assert_array_equal(out.host, expected)


@simulated
def test_a_producer_orders_its_work_before_the_launch_stream(forward, operands, monkeypatch):
    monkeypatch.setattr(queues, "stream_of", lambda _: 0)
    x, w, b = (Exporting(a) for a in operands[:3])
    forward(x, w, b)
    forward(x, w, b, stream=96)
    assert x.streams == [dlpack.UNORDERED, dlpack.LEGACY_STREAM, dlpack.UNORDERED, 96]
    assert x.streams == w.streams == b.streams


@simulated
def test_a_producer_orders_its_work_before_a_layer_copies_it(operands):
    layer = nc.ConvTranspose1d(3, 4, 4, device="cuda")
    layer.weight = weight = Exporting(operands[1])
    assert weight.streams == [dlpack.UNORDERED, dlpack.LEGACY_STREAM]


@simulated
@pytest.mark.skipif((1, 0) not in newest_versions(), reason="NumPy exports no read-only arrays")
def test_dlpack_says_what_is_read_only(forward, operands, expected):
    frozen = [a.copy() for a in (*operands[:3], expected)]
    for array in frozen:
        array.flags.writeable = False
    *given, out = map(Exporting, frozen)
    np.testing.assert_array_equal(forward(*given).copy_to_host(), expected)
    with pytest.raises(ValueError, match="`out` must be writeable"):
        forward(*given, out=out)


@simulated
def test_memory_is_kept_by_the_capsule(forward, operands):
    class Copying(Exporting):
        """A library that exports a copy, which lives as long as its capsule."""

        def __dlpack__(self, *, stream, **versions):
            self.streams.append(stream)
            return self.host.copy().__dlpack__(**versions)

    x, w, b, _ = operands
    view = ENGINE.operands({"input": Copying(x)})["input"]
    _ = [np.full_like(x, np.nan) for _ in range(100)]  # whatever is freed is written over
    np.testing.assert_array_equal(view.copy_to_host(), x)
    np.testing.assert_array_equal(forward(Copying(x), Copying(w), Copying(b)).copy_to_host(), forward(x, w, b))


@pytest.mark.parametrize("where", [(1, 0), (3, 0), (10, 0)], ids=["host", "pinned", "another accelerator"])
def test_dlpack_of_other_memory_is_no_device_array(forward, operands, where):
    x, w, b, _ = operands
    with pytest.raises(TypeError, match="`input` must be a NumPy array or a CUDA device array; got"):
        forward(Exporting(x, where), Exporting(w), Exporting(b))


@simulated
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.complex64])
def test_dlpack_of_other_dtypes_is_refused(forward, operands, dtype):
    x, w, b, _ = operands
    with pytest.raises(TypeError, match=f"array in native byte order; got dtype {np.dtype(dtype)}"):
        forward(Exporting(x), Exporting(w.astype(dtype)), Exporting(b))


def test_the_dtypes_of_dlpack():
    def dtype(*kind):
        return dlpack._dtype(dlpack._DataType(*kind))

    assert dtype(4, 16, 1) is BFLOAT16
    assert [dtype(2, bits, 1) for bits in (16, 32, 64)] == [np.float16, np.float32, np.float64]
    assert dtype(2, 32, 4) == np.dtype("V16")  # vectors of four
    assert dtype(7, 8, 1) == np.dtype("V1")  # float8


@simulated
def test_what_a_library_does_not_export_is_refused(forward, operands):
    class Hiding(Exporting):
        def __dlpack__(self, **_):
            raise BufferError("conjugated")

    x, w, b, _ = operands
    with pytest.raises(TypeError, match="`weight` must be an array that its library exports by DLPack"):
        forward(Exporting(x), Hiding(w), Exporting(b))


# --- halves -----------------------------------------------------------------------------------------------------------


def halves():
    pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is in ml_dtypes")
    return np.dtype(np.float16), np.dtype("bfloat16")


class Interface:
    """An array of an unknown library, by version 2 of the interface: no stream, no strides."""

    def __init__(self, host):
        self.memory = ENGINE.upload(host)
        address = arrays.memory_of(self.memory).address
        self.__cuda_array_interface__ = {
            "version": 2, "shape": host.shape, "typestr": host.dtype.str, "data": (address, False)
        }  # fmt: skip


@pytest.mark.parametrize("place", [0, 1], ids=["float16", "bfloat16"])
def test_halves_are_taken_from_numba_and_by_the_interface(operands, place):
    dtype = halves()[place]
    given = [a.astype(dtype) for a in operands[:3]]
    for kind in (ENGINE.upload, Interface):
        views = ENGINE.operands(dict(zip(("input", "weight", "bias"), map(kind, given), strict=True)))
        for view, host in zip(views.values(), given, strict=True):
            assert view.dtype == dtype
            assert view.dtype.name == dtype.name
            assert view.shape == host.shape
            assert view.strides == host.strides
    result = ENGINE.empty((2, 3), ENGINE.operands({"input": ENGINE.upload(given[0])})["input"].dtype, given[0],
                          queues.Queue(0, 0))  # fmt: skip
    assert result.dtype == dtype


@pytest.mark.parametrize("place", [0, 1], ids=["float16", "bfloat16"])
def test_a_layer_on_cuda_holds_halves(place):
    dtype = halves()[place]
    layer = nc.ConvTranspose1d(3, 4, 4, device="cuda", dtype=dtype.name)
    assert layer.dtype == dtype
    state = layer.state_dict()
    assert {array.dtype for array in state.values()} == {dtype}
    for other in (nc.ConvTranspose1d.from_state_dict(state, device="cuda"), copy.deepcopy(layer)):
        for name, array in other.state_dict().items():
            np.testing.assert_array_equal(array, state[name])
    layer.weight = 2 * state["weight"]
    np.testing.assert_array_equal(ENGINE.download(layer.weight), 2 * state["weight"])
    layer.weight = ENGINE.upload(state["weight"])
    np.testing.assert_array_equal(ENGINE.download(layer.weight), state["weight"])
    with pytest.raises(TypeError, match=f"`bias` must be of the layer's dtype {dtype}"):
        layer.bias = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match="`weight` must be a plain array"):
        layer.weight = np.ma.masked_array(state["weight"])


def test_a_layer_on_the_cpu_holds_none():
    with pytest.raises(TypeError, match="`dtype` must be float32 or float64; got"):
        nc.ConvTranspose1d(3, 4, 4, dtype=np.float16)
    with pytest.raises(TypeError, match="`weight` must be a float32 or float64 array"):
        nc.ConvTranspose1d.from_state_dict({"weight": np.zeros((3, 4, 4), np.float16)})


def test_halves_are_not_mixed(forward, operands):
    half, brain = halves()
    x, w, b = (ENGINE.upload(a.astype(half)) for a in operands[:3])
    with pytest.raises(TypeError, match="`weight` must have the dtype of `input`, float16; got bfloat16"):
        forward(x, ENGINE.upload(operands[1].astype(brain)), b)
    with pytest.raises(TypeError, match="`weight` must have the dtype of `input`, float32; got float16"):
        forward(cuda.to_device(operands[0]), w, b)


def test_results_in_bfloat16_need_a_dtype_or_an_out(monkeypatch):
    monkeypatch.delitem(sys.modules, "ml_dtypes", raising=False)
    with pytest.raises(TypeError, match="`out` must be given for bfloat16 arrays of an unknown library"):
        producers.NUMBA.empty((2, 3), BFLOAT16, queues.Queue(0, 0))


# --- refusals, and what they leave ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"layout": "sparse_coo"}, "`input` must be a tensor in dense memory; got layout sparse_coo"),
        (
            {"is_neg": lambda: True},
            "`input` must be a tensor in dense memory; got a view that is negated",
        ),
        ({"requires_grad": True}, "`input` must be a tensor that autograd does not follow; .* value.detach()"),
        ({"dtype": "torch.int8"}, "`input` must be a float16, .* array in native byte order; got dtype int8"),
        ({"dtype": "torch.float8_e5m2"}, "`input` must be a float16, .* array in native byte order; got dtype"),
    ],
)
def test_refuses_tensors_of_torch_that_attributes_do_not_tell(forward, operands, monkeypatch, attributes, said):
    tensor = SimpleNamespace(
        is_cuda=True, requires_grad=False, layout="strided", dtype="torch.float32", shape=(2, 3, 5),
        device=SimpleNamespace(index=0), is_neg=lambda: False, stride=lambda: (15, 5, 1), data_ptr=lambda: 64,
    )  # fmt: skip
    vars(tensor).update(attributes)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Tensor=SimpleNamespace, strided="strided"))
    with pytest.raises(TypeError, match=said):
        forward(tensor, *on_device(operands[1:3]))


@pytest.mark.usefixtures("no_work")
def test_refuses_a_stream_of_another_context_before_it_waits_for_any(forward, operands, monkeypatch):
    monkeypatch.setattr(queues, "belongs", lambda _: False)
    monkeypatch.setattr(queues, "wait", lambda *_: pytest.fail("waited"))
    with pytest.raises(ValueError, match="`stream` must be a stream of device 0, where the arrays are"):
        forward(*on_device(operands[:3]), stream=96)


def test_after_refusals_the_next_call_works(forward, operands, expected):
    x, w, b = on_device(operands[:3])
    out = cuda.to_device(np.full_like(expected, np.nan))
    refused = [
        ({"bias": operands[2]}, TypeError),
        ({"weight": cuda.to_device(operands[1].astype(np.float64))}, TypeError),
        ({"stream": object()}, TypeError),
        ({"out": x}, ValueError),
        ({"algorithm": "fast"}, ValueError),
        ({"precision": "fp8"}, ValueError),
    ]
    for changes, error in refused:
        call = {"input": x, "weight": w, "bias": b, "out": out} | changes
        with pytest.raises(error):
            nc.conv_transpose1d(**call, **PROBLEM.forward_parameters)
        assert np.isnan(out.copy_to_host()).all()
        np.testing.assert_array_equal(forward(x, w, b).copy_to_host(), expected)


@pytest.fixture
def full(monkeypatch):
    """A GPU on which so many arrays fit, and then none."""
    device_array = cuda.device_array

    def run_out(after):
        left = iter(range(after))

        def limited(*given, **options):
            if next(left, None) is None:
                raise queues.DriverError(2, "Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
            return device_array(*given, **options)

        monkeypatch.setattr(cuda, "device_array", limited)
        return lambda: monkeypatch.setattr(cuda, "device_array", device_array)

    return run_out


def test_memory_that_runs_out_is_named_and_the_next_call_works(forward, operands, expected, full):
    x, w, b = on_device(operands[:3])
    again = full(0)
    with pytest.raises(MemoryError, match=rf"an array of {expected.nbytes} bytes .* on device 0: .*OUT_OF_MEMORY"):
        forward(x, w, b)
    again()
    np.testing.assert_array_equal(forward(x, w, b).copy_to_host(), expected)


@pytest.mark.parametrize("fit", [0, 1])
def test_no_gradient_is_begun_where_not_all_of_them_fit(backward, operands, full, fit):
    x, w, _, dy = on_device(operands)
    begun = cuda.to_device(np.full(4, np.nan, np.float32))
    full(fit)
    with pytest.raises(MemoryError, match="does not fit on device 0"):
        backward(dy, x, w, out=nc.Gradients(None, None, begun))
    assert np.isnan(begun.copy_to_host()).all()


def test_other_errors_of_the_driver_stay_what_they_are(forward, monkeypatch, operands):
    def fail(*_given, **_options):
        raise queues.DriverError(700, "CUDA_ERROR_ILLEGAL_ADDRESS")

    given = on_device(operands[:3])
    monkeypatch.setattr(cuda, "device_array", fail)
    with pytest.raises(queues.DriverError, match="ILLEGAL_ADDRESS"):
        forward(*given)


# --- a call that a graph can hold -------------------------------------------------------------------------------------


def test_a_call_with_out_allocates_and_waits_for_nothing(forward, backward, operands, monkeypatch):
    """What a GPU shows by capturing the call (test_gpu.py): here, nothing asks for memory or waits."""
    x, w, b, dy = on_device(operands)
    layer = nc.ConvTranspose1d.from_state_dict(
        {"weight": operands[1], "bias": operands[2]}, **PROBLEM.parameters, device="cuda"
    )
    out = cuda.to_device(np.zeros_like(operands[3]))
    gradients = nc.Gradients(*(cuda.to_device(np.zeros_like(a)) for a in operands[:3]))
    kinds = ("device_array", "to_device", "synchronize", "default_stream", "event", "pinned_array", "mapped_array")
    for name in kinds:
        monkeypatch.setattr(cuda, name, lambda *_, name=name, **__: pytest.fail(name))
    for algorithm in ("gather", "scatter"):
        forward(x, w, b, out=out, algorithm=algorithm)
        backward(dy, x, w, out=gradients, algorithm=algorithm)
    layer(x, out=out)
    layer.backward(dy, x, out=gradients)
