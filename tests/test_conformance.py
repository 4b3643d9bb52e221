"""Values worked out by hand from the definition, and operations that other libraries know by other names.

With one channel, taps 1, 10, 100, ... keep the products apart in the digits of a sum, so that a wrong tap, shift or
crop can be read off the number.
"""

from typing import get_args

import numpy as np
import pytest

from numba_ctconv import conv_transpose1d, conv_transpose1d_backward, output_length
from numba_ctconv.checks import Algorithm

TAPS = (1, 10, 100)
LONG_TAPS = (1, 10, 100, 1000, 10000)
# x = 1, 2, 3, 4, 5 through LONG_TAPS with stride 2, uncropped
LONG = (1, 10, 102, 1020, 10203, 2030, 20304, 3040, 30405, 4050, 40500, 5000, 50000)


@pytest.fixture(params=get_args(Algorithm))
def algorithm(request):
    return request.param


def one_channel(x, taps, bias=None, **parameters):
    """The output of a single channel, as a list."""
    bias = None if bias is None else np.array([bias], float)
    return conv_transpose1d(np.array([x], float), np.array([[taps]], float), bias, **parameters)[0].tolist()


# --- forward, by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "taps", "parameters", "expected"),
    [
        ([1, 2], TAPS, {}, [1, 12, 120, 200]),
        ([1, 2], TAPS, {"stride": 2}, [1, 10, 102, 20, 200]),
        ([1, 2], TAPS, {"stride": 3}, [1, 10, 100, 2, 20, 200]),
        ([1, 2], TAPS, {"stride": 4}, [1, 10, 100, 0, 2, 20, 200]),
        ([1, 2], TAPS, {"dilation": 2}, [1, 2, 10, 20, 100, 200]),
        ([1, 2], TAPS, {"stride": 2, "dilation": 2}, [1, 0, 12, 0, 120, 0, 200]),
        ([1, 2], TAPS, {"stride": 2, "dilation": 3}, [1, 0, 2, 10, 0, 20, 100, 0, 200]),
        ([1, 2], (1, 10), {"stride": 4}, [1, 10, 0, 0, 2, 20]),
        ([1, 2], (1, 10), {"stride": 4, "output_padding": 2}, [1, 10, 0, 0, 2, 20, 0, 0]),
        ([1, 2], (1, 10), {"stride": 4, "output_padding": 2, "bias": 7}, [8, 17, 7, 7, 9, 27, 7, 7]),
        ([1, 2], TAPS, {"stride": 2, "padding": 1}, [10, 102, 20]),
        ([1, 2], TAPS, {"stride": 2, "padding": 2}, [102]),
        ([1, 2, 3, 4, 5], TAPS, {"stride": 2, "padding": 4}, [203, 30, 304]),  # crops whole inputs away
        ([1, 2, 3, 4, 5], TAPS, {"stride": 2, "padding": 5}, [30]),
        # what output_padding lets through is a tap, not a zero
        ([1, 1], TAPS, {"stride": 2, "padding": 1, "output_padding": 1}, [10, 101, 10, 100]),
        ([1, 2], TAPS, {"stride": 2, "padding": (1, 0)}, [10, 102, 20, 200]),
        ([1, 2], TAPS, {"stride": 2, "padding": (-2, -1)}, [0, 0, 1, 10, 102, 20, 200, 0]),
        ([1, 2], TAPS, {"stride": 2, "padding": (-1, 3), "bias": 5}, [5, 6, 15]),
        ([1, 2], TAPS, {"stride": 2, "padding": (6, -4), "bias": 5}, [5, 5, 5]),  # nothing but the bias is left
        ([1, 2], TAPS, {"stride": 2, "padding": (5, 0)}, []),
        ([3], TAPS, {"stride": 1000}, [3, 30, 300]),
        ([-1, 1], TAPS, {}, [-1, -9, -90, 100]),
    ],
)
def test_one_channel(x, taps, parameters, expected, algorithm):
    assert one_channel(x, taps, **parameters, algorithm=algorithm) == expected


@pytest.mark.parametrize(
    ("size", "padding", "expected"),
    [
        (4, 1, [10, 102, 20, 200]),
        (3, 1, [10, 102, 20]),
        (5, (0, 99), [1, 10, 102, 20, 200]),
        (2, (1, 0), [10, 102]),
        (7, (-1, 0), [0, 1, 10, 102, 20, 200, 0]),
        (0, (2, 0), []),
    ],
)
def test_one_channel_to_a_given_length(size, padding, expected, algorithm):
    assert one_channel([1, 2], TAPS, stride=2, padding=padding, output_size=size, algorithm=algorithm) == expected


def test_weight_rows_are_inputs_and_columns_outputs(algorithm):
    x = np.array([[1.0], [2.0]])
    weight = np.array([[[1.0], [10.0]], [[100.0], [1000.0]]])
    assert conv_transpose1d(x, weight, algorithm=algorithm).tolist() == [[201.0], [2010.0]]


def test_weight_columns_belong_to_the_group_of_their_row(algorithm):
    x = np.array([[1.0], [2.0]])
    weight = np.array([[[1.0], [10.0]], [[100.0], [1000.0]]])
    y = conv_transpose1d(x, weight, groups=2, algorithm=algorithm)
    assert y.tolist() == [[1.0], [10.0], [200.0], [2000.0]]


def test_depthwise_channels_do_not_mix(algorithm):
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    weight = np.array([[[1.0, 10.0]], [[100.0, 1000.0]]])
    y = conv_transpose1d(x, weight, np.array([0.0, 5.0]), groups=2, algorithm=algorithm)
    assert y.tolist() == [[1.0, 12.0, 20.0], [305.0, 3405.0, 4005.0]]


def test_items_do_not_mix(algorithm):
    y = conv_transpose1d(np.array([[[1.0, 2.0]], [[3.0, 4.0]]]), np.array([[[1.0, 10.0]]]), algorithm=algorithm)
    assert y.tolist() == [[[1.0, 12.0, 20.0]], [[3.0, 34.0, 40.0]]]


# --- gradients, by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grad_output", "parameters", "expected"),
    [
        ([1, 2, 3, 4, 5], {"stride": 2}, ([321, 543], [7, 10, 13], 15)),
        ([1, 2, 3, 4], {"stride": 2, "padding": 1}, ([210, 432], [4, 7, 10], 10)),
        ([1, 2, 3], {"stride": 2, "padding": 1}, ([210, 32], [4, 7, 2], 6)),
        ([1, 2, 3], {"stride": 2, "padding": (0, 2)}, ([321, 3], [7, 2, 3], 6)),
        ([9, 1, 2, 3, 4, 5, 9], {"stride": 2, "padding": (-1, -1)}, ([321, 543], [7, 10, 13], 33)),
        ([1, 2, 3, 4], {}, ([321, 432], [5, 8, 11], 10)),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], {"stride": 2, "dilation": 3}, ([741, 963], [7, 16, 25], 45)),
        ([1, 2, 3, 4, 5, 6, 7], {"stride": 4}, ([321, 765], [11, 14, 17], 28)),
    ],
)
def test_gradients_of_one_channel(grad_output, parameters, expected, algorithm):
    x, weight, dy = np.array([[1.0, 2.0]]), np.array([[TAPS]], float), np.array([grad_output], float)
    gradients = conv_transpose1d_backward(dy, x, weight, **parameters, algorithm=algorithm)
    assert (gradients.input[0].tolist(), gradients.weight[0, 0].tolist(), gradients.bias[0]) == expected


def test_gradients_sum_over_items(algorithm):
    x, dy = np.array([[[1.0]], [[2.0]]]), np.array([[[3.0]], [[4.0]]])
    gradients = conv_transpose1d_backward(dy, x, np.array([[[5.0]]]), algorithm=algorithm)
    assert gradients.input.tolist() == [[[15.0]], [[20.0]]]
    assert gradients.weight.tolist() == [[[11.0]]]
    assert gradients.bias.tolist() == [7.0]


def test_gradients_keep_to_their_group(algorithm):
    x, dy = np.array([[1.0], [2.0]]), np.array([[1.0], [10.0], [100.0], [1000.0]])
    weight = np.array([[[1.0], [2.0]], [[3.0], [4.0]]])
    gradients = conv_transpose1d_backward(dy, x, weight, groups=2, algorithm=algorithm)
    assert gradients.input.tolist() == [[21.0], [4300.0]]
    assert gradients.weight.tolist() == [[[1.0], [10.0]], [[200.0], [2000.0]]]
    assert gradients.bias.tolist() == [1.0, 10.0, 100.0, 1000.0]


# --- crops that other interfaces spell otherwise ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "kept"),
    [
        ((0, 0), slice(0, 13)),  # ONNX VALID
        ((1, 2), slice(1, 11)),  # ONNX SAME_UPPER, Keras and TensorFlow "same": the odd sample comes off the end
        ((2, 1), slice(2, 12)),  # ONNX SAME_LOWER: off the beginning
        ((0, 3), slice(0, 10)),  # causal: no output sample precedes the input sample that it depends on
        ((3, 0), slice(3, 13)),  # anticausal
        ((4, 4), slice(4, 9)),  # only samples that every tap could reach
    ],
)
def test_crops_of_five_taps_at_stride_two(padding, kept, algorithm):
    y = one_channel([1, 2, 3, 4, 5], LONG_TAPS, stride=2, padding=padding, algorithm=algorithm)
    assert y == list(LONG)[kept]


def test_negative_crops_are_negative_pads_of_onnx(algorithm):
    y = one_channel([1, 2, 3, 4, 5], LONG_TAPS, stride=2, padding=(-1, -2), algorithm=algorithm)
    assert y == [0, *LONG, 0, 0]


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel_size", [3, 5, 8])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_crops_give_stride_samples_an_input_sample(kernel_size, stride, dilation):
    """Both splits of the samples that reach beyond stride·L_in, against stuffing with zeros and np.convolve."""
    rng = np.random.default_rng([kernel_size, stride, dilation])
    x, taps = rng.integers(-9, 10, 7).astype(float), rng.integers(-9, 10, kernel_size).astype(float)
    stuffed, spread = np.zeros(6 * stride + 1), np.zeros((kernel_size - 1) * dilation + 1)
    stuffed[::stride], spread[::dilation] = x, taps
    full = np.convolve(stuffed, spread)
    total = (kernel_size - 1) * dilation + 1 - stride
    for left in {total // 2, total - total // 2}:
        y = one_channel(x, taps, stride=stride, dilation=dilation, padding=(left, total - left))
        extended = np.concatenate([np.zeros(max(-left, 0)), full[max(left, 0) :], np.zeros(stride * 7)])
        assert y == extended[: 7 * stride].tolist()


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "output_padding", "expected"),
    [
        (16, 8, 4, 0, 800),  # (K - S)//2: HiFi-GAN, VITS, BigVGAN
        (11, 5, 3, 0, 500),
        (16, 5, 5, 0, 501),  # the same rule with K - S odd: AudioLDM
        (20, 10, 5, 0, 1000),
        (10, 5, 3, 1, 500),  # S//2 + S%2 with output_padding S%2: MelGAN, StyleTTS 2
        (10, 5, 3, 0, 499),  # ceil(S/2) without it: Descript's codec
        (3, 2, 1, 1, 200),  # pooling layer of Kokoro
        (25, 4, 11, 1, 400),  # WaveGAN
        (16, 8, (0, 8), 0, 800),  # causal: EnCodec 24 kHz, Mimi
        (2, 2, 0, 0, 200),  # K = S: GPT-SoVITS
        (12, 2, 15, 0, 180),  # anti-aliasing of BigVGAN: beyond the reach of the taps
    ],
)
def test_length_of_a_hundred_samples(kernel_size, stride, padding, output_padding, expected):
    assert output_length(100, kernel_size, stride, padding, output_padding) == expected


# --- the same operation under other names -----------------------------------------------------------------------------


def test_stride_one_is_the_product_of_polynomials(algorithm):
    assert one_channel([1, 3, 3, 1], (1, 1), algorithm=algorithm) == [1, 4, 6, 4, 1]


def test_one_tap_stuffs_with_zeros(algorithm):
    assert one_channel([1, 2], (1,), stride=3, output_padding=2, algorithm=algorithm) == [1, 0, 0, 2, 0, 0]


def test_as_many_equal_taps_as_the_stride_repeat(algorithm):
    assert one_channel([1, 2, 3], (1, 1), stride=2, algorithm=algorithm) == [1, 1, 2, 2, 3, 3]


def test_a_triangle_interpolates_linearly(algorithm):
    triangle = (0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25)
    y = one_channel([0, 4, 8, 4], triangle, stride=4, padding=3, algorithm=algorithm)
    assert y == [0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4]


def test_complementary_windows_overlap_and_add_to_a_constant(algorithm):
    y = one_channel([1, 1, 1, 1], (1, 3, 3, 1), stride=2, padding=2, algorithm=algorithm)
    assert y == [4, 4, 4, 4, 4, 4]


def test_filter_shared_by_all_channels_through_a_stride_of_zero(algorithm):
    x = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    weight = np.broadcast_to(np.array(TAPS, float), (3, 1, 3))
    y = conv_transpose1d(x, weight, stride=2, groups=3, algorithm=algorithm)
    assert y.tolist() == [[1, 10, 102, 20, 200], [3, 30, 304, 40, 400], [5, 50, 506, 60, 600]]


@pytest.mark.parametrize(
    ("length", "kernel_size", "stride"), [(1, 1, 1), (7, 4, 2), (5, 3, 7), (20, 64, 16), (9, 11, 5)]
)
def test_scipy_upfirdn_is_one_channel(length, kernel_size, stride, algorithm):
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(length)
    x, taps = rng.integers(-9, 10, length).astype(float), rng.integers(-9, 10, kernel_size).astype(float)
    y = one_channel(x, taps, stride=stride, algorithm=algorithm)
    assert y == signal.upfirdn(taps, x, up=stride)[: len(y)].tolist()
    assert len(y) == (length - 1) * stride + kernel_size
