"""Several Python threads at once, and Numba's number of threads left as it was found."""

import concurrent.futures
import os
import subprocess
import sys
import threading
import time

import numba
import numpy as np
import pytest

import numba_ctconv as nc
from numba_ctconv.benchmark.workloads import CASES
from numba_ctconv.cpu import blocks, compilation, target
from numba_ctconv.forks import fork

THREADING_LAYERS = ["omp", "workqueue", "tbb"]
MANY_AT_ONCE = """
import concurrent.futures, numpy as np, numba, numba_ctconv as nc
rng = np.random.default_rng(0)
def draw(groups):
    # data of its own for every Python thread, so that memory which they shared would show
    x, w = rng.standard_normal((8, 1, 16, 300)), rng.standard_normal((8, 16, 16 // groups, 4))
    return [(*operands, groups) for operands in zip(x.astype(np.float32), w.astype(np.float32))]
def both(x, w, groups):
    y = nc.conv_transpose1d(x, w, stride=2, groups=groups)
    return y, *nc.conv_transpose1d_backward(y, x, w, stride=2, groups=groups)
problems = draw(1) + draw(16)
expected = [both(*problem) for problem in problems]
assert numba.threading_layer() == {layer!r}, numba.threading_layer()
def call(n):
    k = n % len(problems)
    same = all(map(np.array_equal, both(*problems[k]), expected[k]))
    return same and numba.get_num_threads() == {count}
with concurrent.futures.ThreadPoolExecutor(8, initializer=lambda: numba.set_num_threads({count})) as pool:
    assert all(pool.map(call, range(400)))
assert numba.get_num_threads() == 4
"""
TOGETHER = """
import threading, numpy as np, numba
from numba_ctconv.cpu.compilation import Kernel
# a kernel that waits, for a while, until eight have begun: none may hold the GIL or a lock that another needs
def meet(begun, workers, output):
    own, met, turns = int(output[0]), 0, 0
    while met < 8 and turns < 100_000_000:
        turns += 1
        begun[own] = turns
        met = 0
        for j in range(8):
            met += begun[j] > 0
    for worker in numba.prange(workers):
        output[1 + worker] = met
kernel = Kernel(meet, ["o1", "i", "w1"])
kernel.compile(np.dtype(np.float64))
begun, outputs = np.zeros(8, np.int64), np.zeros((8, 1 + {workers}))
def call(number):
    numba.set_num_threads(1)
    outputs[number] = number
    kernel(begun, {workers}, outputs[number])
threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert (outputs[:, 1:] == 8).all(), outputs
"""


def run(code, layer):
    """Run code in a new process under a threading layer, with four threads."""
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4"}
    environment.pop("NUMBA_DEFAULT_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"this machine has no {layer} threading layer")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def filled():
    """A kernel whose two forms are stand-ins that say which of them ran."""
    ran = []

    def none(values, workers, output):
        """Never compiled."""

    kernel = compilation.Kernel(none, ["r1", "i", "w1"])
    kernel.compiled[np.dtype(np.float64)] = lambda *_: ran.append("serial"), lambda *_: ran.append("parallel")

    def call(workers):
        kernel(np.ones(1), workers, np.ones(1))
        return ran.pop()

    return call


def test_python_threads_share_the_kernels():
    problem = next(p for p in CASES if p.name == "stride_8_kernel_16")
    x, w, b, dy = problem.operands(np.float32, exact=False)

    def both(_):
        y = nc.conv_transpose1d(x, w, b, **problem.parameters)
        return y, nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters)

    y, gradients = both(None)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for other_y, other in pool.map(both, range(64)):
            np.testing.assert_array_equal(other_y, y)
            for one, two in zip(gradients, other, strict=True):
                np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("layer", THREADING_LAYERS)
@pytest.mark.parametrize("count", [1, 4])
def test_python_threads_under_each_threading_layer(layer, count):
    """Numba's "workqueue" aborts the process when two threads enter it; the second one goes without."""
    run(MANY_AT_ONCE.format(layer=layer, count=count), layer)


@pytest.mark.parametrize("layer", THREADING_LAYERS)
@pytest.mark.parametrize("workers", [1, 3])
def test_python_threads_with_one_numba_thread_each_run_at_the_same_time(layer, workers, tmp_path):
    """Also where a caller shares the work out among several: the serial form goes through them one by one."""
    script = tmp_path / "together.py"  # Numba reads the source of what it compiles
    script.write_text(TOGETHER.format(workers=workers))
    run(f"import runpy; runpy.run_path({str(script)!r})", layer)


@pytest.mark.parametrize(
    ("algorithm", "groups", "length"),
    [("tiled", 1, 40_000), ("tiled", 64, 300_000), ("gather", 1, 6000), ("scatter", 1, 3000)],
)
@pytest.mark.parametrize("what", ["output", "input", "weight"])
def test_a_call_lets_other_python_threads_run(what, algorithm, groups, length, numba_threads):
    """No kernel holds the GIL: this thread takes many a turn while another is inside one."""
    x, w = np.ones((1, 64, length), np.float32), np.ones((64, 64 // groups, 8), np.float32)
    y = np.ones((1, 64, 2 * length + 6), np.float32)
    parameters = {"stride": 2, "groups": groups, "algorithm": algorithm}
    dx, dw = np.empty_like(x), np.empty_like(w)  # made here: filling new memory would let others run as well

    def call(x, y, dx):
        if what == "output":
            nc.conv_transpose1d(x, w, out=y, **parameters)
        else:
            out = nc.Gradients(dx if what == "input" else None, dw if what == "weight" else None, None)
            nc.conv_transpose1d_backward(y, x, w, needs=(what,), out=out, **parameters)

    def work():
        numba.set_num_threads(1)
        call(x, y, dx)

    numba_threads(1)
    call(x[..., :9], y[..., :24].copy(), dx[..., :9].copy())  # compiles
    thread = threading.Thread(target=work)
    thread.start()
    begin, turns = time.perf_counter(), 0
    while thread.is_alive():
        time.sleep(0.0005)
        turns += 1
    assert turns >= 4, f"{turns} turns in {time.perf_counter() - begin:.3f} s"


@pytest.mark.parametrize(
    ("what", "groups", "length"),
    [
        ("output", 1, 100_000),
        ("input", 1, 100_000),
        ("weight", 1, 100_000),
        ("output", 64, 300_000),
        ("input", 64, 300_000),
        ("weight", 64, 300_000),
        ("bias", 64, 300_000),
    ],
)
@pytest.mark.parametrize("short", [True, False])
def test_a_short_call_keeps_the_gil(short, what, groups, length, numba_threads, monkeypatch):
    """Each time that it is given up, another thread may keep it: for a call of microseconds that costs more than it."""
    numba_threads(1)
    x, w = np.ones((1, 64, length), np.float32), np.ones((64, 64 // groups, 8), np.float32)
    y = np.ones((1, 64, 2 * length + 6), np.float32)
    monkeypatch.setattr(target, "FEW_PRODUCTS", 10**12 if short else 0)  # so that what is short lasts to be seen
    parameters = {"stride": 2, "groups": groups}
    begun, calls = threading.Event(), []

    def work():
        numba.set_num_threads(1)
        dx, dw = np.empty_like(x), np.empty_like(w)
        made = {"input": dx, "weight": dw, "bias": np.empty(64, np.float32)}
        out = nc.Gradients(*(made[name] if name == what else None for name in made))
        begun.set()
        begin = time.perf_counter()
        if what == "output":
            nc.conv_transpose1d(x, w, out=y, **parameters)
        else:
            nc.conv_transpose1d_backward(y, x, w, needs=(what,), out=out, **parameters)
        calls.append((begin, time.perf_counter()))

    blocks.forward_calls.cache_clear()  # which remember what was short
    blocks.grad_input_calls.cache_clear()
    work()  # compiles
    begun.clear()
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    turns = []
    while thread.is_alive():
        time.sleep(0.001)
        turns.append(time.perf_counter())
    begin, end = calls[-1]
    during = sum(begin < turn < end for turn in turns) - 1  # one may lie between the call's begin and its kernel's
    count, part = (during, 0.3) if short else (len(turns), 0.1)  # most of it, on a machine that is not busy
    assert (count * 0.001 < part * (end - begin)) == short, (count, end - begin)


def test_one_worker_runs_serially(filled, numba_threads):
    numba_threads(1)
    assert filled(1) == filled(3) == "serial"
    numba_threads(2)
    assert filled(1) == "serial"
    assert filled(2) == "parallel"


def test_a_fork_that_lost_its_threads_runs_serially(filled, numba_threads, monkeypatch):
    numba_threads(2)
    monkeypatch.setattr(fork, "threads_lost", True)
    assert filled(2) == "serial"
    assert target.threads() == 1


def test_workqueue_is_entered_by_one_and_left_again(filled, numba_threads, monkeypatch):
    numba_threads(2)
    monkeypatch.setattr(numba, "threading_layer", lambda: "workqueue")
    assert filled(2) == filled(2) == "parallel"
    with compilation._workqueue:
        assert filled(2) == "serial"
    assert filled(2) == "parallel"


@pytest.mark.parametrize("count", [1, 2])
def test_both_forms_of_a_kernel_give_the_same_bits(count, numba_threads):
    problem = next(p for p in CASES if p.name == "stride_8_kernel_16")
    x, w, b, dy = problem.operands(np.float64, exact=False)
    numba_threads(count)
    assert target.threads() == count
    for algorithm in ("auto", "gather", "scatter"):
        results = []
        for alone in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                if alone:
                    patch.setattr(fork, "threads_lost", True)
                y = nc.conv_transpose1d(x, w, b, **problem.parameters, algorithm=algorithm)
                g = nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, algorithm=algorithm)
                results.append((y, *g))
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_number_of_threads_is_left_as_it_was(numba_threads):
    numba_threads(1)
    nc.conv_transpose1d(np.ones((4, 8, 400)), np.ones((8, 8, 4)), stride=2)
    assert numba.get_num_threads() == 1


def test_each_python_thread_has_its_own_number(numba_threads):
    numba_threads(2)
    seen = []

    def other():
        numba.set_num_threads(1)
        seen.append(target.threads())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [1]
    assert target.threads() == 2
