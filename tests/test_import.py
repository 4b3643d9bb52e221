"""What `import numba_ctconv` loads, and that neither CUDA, torch nor a writable folder has to be there."""

import os
import subprocess
import sys
import textwrap

BLOCK = """
import sys
class Absent:
    names = {names!r}
    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
USE = """
import numpy as np
import numba_ctconv
y = numba_ctconv.conv_transpose1d(np.ones((1, 2, 5)), np.ones((2, 3, 4)), stride=2)
assert y.shape == (1, 3, 12)
layer = numba_ctconv.ConvTranspose1d(2, 3, 4)
layer.backward(layer(np.ones((2, 5), np.float32)), np.ones((2, 5), np.float32))
"""


def run(code, **environment):
    """What a new process prints that runs `code`."""
    inherited = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_neither_torch_nor_cuda_is_loaded():
    loaded = run(USE + "import sys; print(*sys.modules)").split()
    unwanted = ("torch", "cupy", "numba.cuda", "numba_cuda", "cuda", "hypothesis", "pytest")
    assert [name for name in loaded if name in unwanted or name.startswith(("numba.cuda.", "numba_ctconv.cuda"))] == []
    assert "numba_ctconv.benchmark" not in loaded
    assert "numba_ctconv.cli" not in loaded


def test_an_engine_is_imported_at_its_first_use():
    """Defining the kernels takes longer than importing all the rest."""
    seen = run("import sys, numba_ctconv; print(*sys.modules)").split()
    assert [name for name in seen if name.startswith(("numba_ctconv.cpu", "numba_ctconv.cuda"))] == []
    assert "numba_ctconv.cpu.tiled" in run(USE + "import sys; print(*sys.modules)").split()


def test_it_works_where_neither_cuda_nor_torch_is_installed():
    absent = {"numba.cuda", "numba_cuda", "cuda", "cuda.bindings", "cuda.core", "torch", "cupy"}
    run(BLOCK.format(names=absent) + USE)


def test_a_device_array_without_cuda_says_what_to_install():
    run(
        BLOCK.format(names={"numba.cuda", "numba_cuda"})
        + """
import numba_ctconv
class OnDevice:
    __cuda_array_interface__ = {"shape": (1, 2, 3), "typestr": "<f4", "data": (64, False), "version": 3}
try:
    numba_ctconv.conv_transpose1d(OnDevice(), OnDevice())
except TypeError as error:
    assert "`input` must be a NumPy array" in str(error), error
    assert 'pip install "numba-ctconv[cuda]"' in str(error), error
else:
    raise AssertionError("not refused")
"""
    )


def test_where_no_cache_can_be_written_it_compiles_in_memory_and_says_so_once(tmp_path):
    nowhere = tmp_path / "file"
    nowhere.touch()
    out = run(
        """
import warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as said:
"""
        + textwrap.indent(USE, "    ")
        + """
(warning,) = said
assert warning.category is RuntimeWarning
print(warning.message)
from numba_ctconv.cpu import disk
assert disk.cache_folder() is None
""",
        NUMBA_CACHE_DIR=str(nowhere / "below"),
        NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator",
    )
    assert "NUMBA_CACHE_DIR" in out


def test_it_works_where_that_warning_is_an_error(tmp_path):
    """The call that would warn fails; the next one works."""
    nowhere = tmp_path / "file"
    nowhere.touch()
    run(
        """
import numpy as np
import numba_ctconv
dy, w = np.ones((1, 2, 3)), np.ones((1, 2, 1))
def call():
    return numba_ctconv.conv_transpose1d_backward(dy, None, w, needs=("bias",), input_length=3).bias
try:
    call()
except RuntimeWarning:
    assert (call() == 3).all()
else:
    raise AssertionError("no warning")
""",
        NUMBA_CACHE_DIR=str(nowhere / "below"),
        NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator",
    )


def test_importing_takes_little_beside_numba():
    """At most 60 ms, or a third of what Numba takes on a slower machine; the best of five processes."""
    code = """
from time import perf_counter
start = perf_counter()
import numba
middle = perf_counter()
import numba_ctconv
print(middle - start, perf_counter() - middle)
"""
    times = [tuple(map(float, run(code).split())) for _ in range(5)]
    numba_alone, ours = (min(column) for column in zip(*times, strict=True))
    assert ours < max(0.06, numba_alone / 3)
