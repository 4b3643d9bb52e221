"""Forked children: they run the kernels serially, without a second compilation, whatever their parent did."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

LAYERS = ["omp", "workqueue", "tbb"]
START = """
import os, signal, sys, threading
import numba, numpy as np
from numba.core import event
import numba_ctconv as nc
from numba_ctconv.cpu import compilation, grad_weight, target
signal.alarm(300)  # a child that waits for ever fails
rng = np.random.default_rng(0)
x, w = rng.standard_normal((2, 8, 300)), rng.standard_normal((8, 8, 4))
def results():
    y = nc.conv_transpose1d(x, w, stride=2)
    return [y, *nc.conv_transpose1d_backward(y, x, w, stride=2)]
def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
def status_of_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 7)
        except BaseException as reason:
            print(repr(reason), file=sys.stderr, flush=True)
            os._exit(8)
    return os.waitpid(pid, 0)[1]
"""


def run(code, layer, start=START, **environment):
    """Run code after START in a new process under a threading layer."""
    command = [sys.executable, "-c", start + code]
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"} | environment
    environment.pop("NUMBA_DEFAULT_NUM_THREADS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"this machine has no {layer} threading layer")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("layer", LAYERS)
def test_a_child_runs_the_kernels_of_its_parent_and_compiles_nothing(layer):
    """Numba itself ends a child of "omp" as soon as that enters a parallel function."""
    run(
        """
expected = results()
assert numba.threading_layer() == os.environ["NUMBA_THREADING_LAYER"]
def work():
    compilations = event.RecordingListener()
    with event.install_listener("numba:compile", compilations):
        found = [results()]
        other = threading.Thread(target=lambda: found.append(results()))
        other.start()
        other.join()
    assert target.threads() == (1 if numba.threading_layer() == "omp" else 2)
    assert not compilations.buffer, compilations.buffer
    return len(found) == 2 and same(found[0], expected) and same(found[1], expected)
assert status_of_child(work) == 0
assert status_of_child(lambda: status_of_child(work) == 0) == 0  # a grandchild
assert same(results(), expected)
""",
        layer,
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_a_child_of_a_process_without_threads_starts_its_own(layer):
    run("assert status_of_child(lambda: results() and target.threads() == 2) == 0", layer)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_child_forked_by_another_thread_runs_the_kernels(layer):
    """While the main thread is in a parallel region, and with TBB, which expects the main thread to fork."""
    run(
        """
expected = results()
stop, statuses = threading.Event(), []
def fork():
    for _ in range(10):
        statuses.append(status_of_child(lambda: same(results(), expected)))
    stop.set()
forking = threading.Thread(target=fork)
forking.start()
while not stop.is_set():
    results()
forking.join()
assert statuses == [0] * 10, statuses
""",
        layer,
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_a_child_that_is_the_first_to_use_the_package_runs_the_kernels(layer):
    """The parent ran Numba's threads for itself; the engine is not imported before the fork."""
    begin, end = START.split("from numba_ctconv.cpu")
    run(
        """
source = "import numba\\ndef total(x):\\n    s = 0.0\\n    for j in numba.prange(x.size): s += x[j]\\n    return s"
exec(source)
assert numba.njit(parallel=True)(total)(np.ones(10)) == 10
assert numba.threading_layer() == os.environ["NUMBA_THREADING_LAYER"]
assert "numba_ctconv.cpu" not in sys.modules
assert status_of_child(lambda: len(results()) == 4) == 0
""",
        layer,
        start=begin + end.partition("\n")[2],
    )


def test_a_fork_waits_for_an_import_of_the_engine():
    """Else the child would wait for ever for the lock of a module that nobody goes on to import."""
    run(
        """
from numba_ctconv import dispatch, forks
held = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("numba_ctconv.cpu"):
            held.append(forks.compiling._is_owned())
sys.meta_path.insert(0, Finder())
dispatch.cpu_engine()
assert held and all(held)
""",
        "omp",
        start=START.partition("from numba_ctconv.cpu")[0],
    )


def test_a_child_forked_while_workqueue_is_busy_runs_serially():
    run(
        """
expected = results()
inside, leave = threading.Event(), threading.Event()
def busy():
    with compilation._workqueue:
        inside.set()
        leave.wait()
thread = threading.Thread(target=busy)
thread.start()
inside.wait()
assert same(results(), expected)  # here, too, nothing waits
assert status_of_child(lambda: same(results(), expected)) == 0
leave.set()
thread.join()
""",
        "workqueue",
    )


def test_a_fork_waits_for_a_compilation(tmp_path):
    """Else the child would wait for ever for Numba's compiler lock, whose owner it does not have."""
    run(
        """
compiling, begun = grad_weight.sum_channels, threading.Event()
class Begun(event.Listener):
    def on_start(self, event):
        begun.set()
    def on_end(self, event):
        pass
def compile_it():
    with event.install_listener("numba:compile", Begun()):
        compiling.compile(np.dtype(np.float32))
thread = threading.Thread(target=compile_it)
thread.start()
begun.wait()
def work():
    signal.alarm(60)
    assert np.dtype(np.float32) in compiling.compiled
    dy = np.ones((1, 2, 3))
    gradients = nc.conv_transpose1d_backward(dy, None, np.ones((1, 2, 1)), needs=("bias",), input_length=3)
    return np.array_equal(gradients.bias, [3, 3])
assert status_of_child(work) == 0
thread.join()
""",
        "omp",
        NUMBA_CACHE_DIR=str(tmp_path),
    )
