"""precision= and float32_precision: who decides, for whom, and for how long. What it changes is CUDA's to test."""

import asyncio
import threading

import numpy as np
import pytest

import numba_ctconv as nc
from numba_ctconv.cpu import CpuEngine
from numba_ctconv.precision import chosen

BOTH = ("ieee", "tf32")
X, W = np.ones((2, 4, 5), np.float32), np.ones((4, 3, 3), np.float32)


def setting():
    return chosen(None, BOTH)


def test_ieee_unless_said_otherwise():
    assert setting() == "ieee"
    assert chosen("tf32", BOTH) == "tf32"


def test_the_setting_holds_inside_and_nests():
    with nc.float32_precision("tf32"):
        assert setting() == "tf32"
        assert chosen("ieee", BOTH) == "ieee"  # an argument goes before it
        with nc.float32_precision("ieee"):
            assert setting() == "ieee"
        assert setting() == "tf32"
    assert setting() == "ieee"


def test_the_setting_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), nc.float32_precision("tf32"):
        raise ZeroDivisionError
    assert setting() == "ieee"


def test_the_setting_decorates_any_number_of_calls():
    inside = nc.float32_precision("tf32")(setting)
    assert [inside(), setting(), inside()] == ["tf32", "ieee", "tf32"]


def test_threads_do_not_see_each_others_setting():
    seen = {}
    both_set = threading.Barrier(2)

    def run(name):
        with nc.float32_precision(name):
            both_set.wait(10)
            seen[name] = setting()
            both_set.wait(10)

    with nc.float32_precision("tf32"):
        threads = [threading.Thread(target=run, args=(name,)) for name in BOTH]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert setting() == "tf32"
    assert seen == {"ieee": "ieee", "tf32": "tf32"}


def test_tasks_do_not_see_each_others_setting():
    async def run(name):
        with nc.float32_precision(name):
            await asyncio.sleep(0)  # the other task sets its own
            return setting()

    async def main():
        return await asyncio.gather(*map(run, BOTH))

    assert asyncio.run(main()) == list(BOTH)


@pytest.mark.parametrize(("value", "error"), [("tf23", ValueError), (None, TypeError), (32, TypeError)])
def test_the_setting_is_checked_at_once(value, error):
    with pytest.raises(error, match='`precision` must be one of "ieee", "tf32"; got'):
        nc.float32_precision(value)


def test_numpy_arrays_are_computed_in_full_whatever_is_set_around(monkeypatch):
    seen = []
    forward = CpuEngine.forward

    def spy(self, *arguments):
        seen.append(arguments[6])
        return forward(self, *arguments)

    monkeypatch.setattr(CpuEngine, "forward", spy)
    layer = nc.ConvTranspose1d(4, 3, 3, precision="ieee")
    with nc.float32_precision("tf32"):
        nc.conv_transpose1d(X, W)
        layer(X)
    assert seen == ["ieee", "ieee"]


def test_a_layer_on_the_cpu_refuses_tf32():
    with pytest.raises(ValueError, match='`precision` must be "ieee" or None with NumPy arrays and layers on the CPU'):
        nc.ConvTranspose1d(4, 3, 3, precision="tf32")
