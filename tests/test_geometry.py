"""The plan of a layer and the lengths of its output, against brute force."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import numba_ctconv as nc
from numba_ctconv.geometry import Crops, crops_of, geometry_of, geometry_to, plan

steps = st.integers(1, 40)


@given(st.integers(1, 60), steps, steps)
def test_every_tap_stands_in_its_phase_once(kernel_size, stride, dilation):
    layer = plan(kernel_size, stride, dilation)
    placed = [(k, r) for r in range(stride) for k in layer.taps(r)]
    assert sorted(placed) == [(k, k * dilation % stride) for k in range(kernel_size)]
    for k, r in placed:
        assert layer.phase(k) == r
        assert layer.shift(k) * stride + r == k * dilation


@given(st.integers(1, 30), st.integers(1, 30), steps, steps)
def test_the_full_length_is_one_past_the_last_product(input_length, kernel_size, stride, dilation):
    reached = {t * stride + k * dilation for t in range(input_length) for k in range(kernel_size)}
    assert plan(kernel_size, stride, dilation).full_length(input_length) == max(reached) + 1


@given(st.integers(1, 30), st.integers(1, 30), steps, steps, st.integers(-20, 20), st.integers(0, 99))
def test_crops_and_length_decide_each_other(input_length, kernel_size, stride, dilation, left, length):
    layer = plan(kernel_size, stride, dilation)
    to = geometry_to(layer, left, input_length, length)
    assert geometry_of(layer, to.crops, input_length) == to
    assert to.output_length == length


def test_an_integer_padding_is_a_pair_of_crops():
    assert crops_of(3, 1) == Crops(3, 2)
    assert crops_of(Crops(-1, 4)) == Crops(-1, 4)


def test_a_plan_has_no_length_in_its_key():
    plan.cache_clear()
    for input_length in range(1, 200):
        nc.output_length(input_length, 16, stride=8, padding=4)
    assert plan.cache_info().currsize == 1


@pytest.mark.parametrize(
    ("arguments", "keywords", "expected"),
    [
        ((80, 16), {"stride": 8, "padding": 4}, 640),
        ((80, 11), {"stride": 5, "padding": 3}, 400),
        ((80, 10), {"stride": 5, "padding": 3, "output_padding": 1}, 400),
        ((80, 10), {"stride": 5, "padding": (0, 5)}, 400),
        ((80, 3), {"dilation": 8, "padding": 8}, 80),
        ((1, 1), {}, 1),
        ((5, 3), {"stride": 2, "padding": (-7, -4)}, 22),
        ((3, 2), {"padding": 2}, 0),
        ((5, 3), {"stride": 4, "padding": 1, "output_size": 20}, 20),
        ((5, 3), {"stride": 4, "padding": 1, "output_size": (2, 3, 17)}, 17),
        ((5, 3), {"stride": 4, "padding": (2, 0), "output_size": [0]}, 0),
    ],
)
def test_output_length(arguments, keywords, expected):
    assert nc.output_length(*arguments, **keywords) == expected
