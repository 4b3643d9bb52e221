"""`numba-ctconv accuracy`: the errors that it finds are those of the rounding that each number format asks for."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

import numba_ctconv as nc
from numba_ctconv.benchmark import accuracy
from numba_ctconv.benchmark.device import host_has
from numba_ctconv.benchmark.progress import Progress
from numba_ctconv.cli import main
from numba_ctconv.cuda import queues

simulated = pytest.mark.skipif(not queues.SIMULATED, reason="there is a GPU")
ROW = "gpt_sovits_v2/up3"
OTHER = "bigvgan_v2_44k_512x/aa_up_C24"
BITS = {"tf32": 10, "float16": 10, "bfloat16": 7}  # after the point


def rounding(values, bits):
    """The root mean square of errors spread evenly over half a last place to either side, over that of the values."""
    place = 2.0 ** (np.floor(np.log2(np.abs(values[values != 0]))) - bits)
    return np.sqrt(np.mean(place**2) / 12 / np.mean(values**2))


@pytest.fixture(scope="module")
def records():
    """By result."""
    return {record["result"]: record for record in accuracy.measure(accuracy.chosen([ROW]), Progress())}


def expected(name):
    """The errors of independent roundings of both factors and, in halves, of the sum."""
    (problem,) = accuracy.chosen([ROW])
    x, w, b, dy = problem.operands(exact=False)
    gradients = nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters)
    results = {"output": nc.conv_transpose1d(x, w, b, **problem.forward_parameters)}
    results |= {"input": gradients.input, "weight": gradients.weight}
    factors = {"output": (x, w), "input": (dy, w), "weight": (dy, x)}
    for result, own in factors.items():
        rounded = [*own, results[result]] if name != "tf32" else own
        yield result, np.sqrt(sum(rounding(values, BITS[name]) ** 2 for values in rounded))


@pytest.mark.parametrize("name", BITS)
def test_errors_are_those_of_rounding_to_nearest(records, name):
    """Cutting factors off would double them; leaving one of two factors unrounded would take 0.7 of them."""
    if not host_has(accuracy.KINDS[name]):
        pytest.skip("NumPy's bfloat16 is in ml_dtypes")
    for result, rms in expected(name):
        error = records[result][name]
        assert error.rms == pytest.approx(rms, rel=0.1), result
        assert 3 * rms < error.largest < 10 * rms, result


def test_float32_in_full_is_far_below(records):
    for record in records.values():
        assert 3e-8 < record["float32"].rms < 2e-7
        assert record["tf32"].rms > 1000 * record["float32"].rms
    assert {result: record["terms"] for result, record in records.items()} == {"output": 65, "input": 64, "weight": 64}


def test_rows_are_cut_but_not_the_terms_of_an_output():
    problems = accuracy.chosen([])
    assert [problem.name for problem in problems] == list(accuracy.ROWS)
    assert [accuracy.terms(problem, "output") for problem in problems] == [65, 257, 1025, 4097]
    for problem in accuracy.chosen(["*"]):
        assert problem.output_length >= accuracy.CUT_LENGTH, problem.name


@simulated
def test_the_command_says_that_no_gpu_computed(monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "host_has", lambda kind: kind.name != "bfloat16")
    monkeypatch.setattr(accuracy, "ROWS", (OTHER,))
    assert main(["accuracy"]) == 0
    first, head, _, *rows, meaning = capsys.readouterr().out.splitlines()
    assert first == "emulated: no GPU computed this"
    assert head.split() == ["row", "result", "terms", *accuracy.KINDS]
    assert [row.split()[:3] for row in rows] == [
        [OTHER, name, terms] for name, terms in (("output", "6"), ("input", "12"), ("weight", "64"))
    ]
    assert all(row.endswith(" -") for row in rows)  # bfloat16
    assert meaning == accuracy.MEANING


@simulated
def test_without_a_gpu_a_process_that_emulates_is_started():
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, "-m", "numba_ctconv", "accuracy", OTHER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    first, second, *rows = done.stdout.splitlines()
    assert first.startswith("no GPU that can be used: ")
    assert second == "emulated: no GPU computed this"
    assert sum(row.startswith(OTHER) for row in rows) == 3
