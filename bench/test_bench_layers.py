"""The core layers of the table, cut short, under pytest-benchmark; each result is held against the reference first.

    pytest bench                        time them
    pytest bench --benchmark-disable    only check them

For ratios to peers, full lengths and reports use `numba-ctconv bench`, which draws from the same table.
"""

import numba
import pytest

from numba_ctconv.benchmark.checking import first_mismatch
from numba_ctconv.benchmark.contestants import flops
from numba_ctconv.benchmark.ours import Ours
from numba_ctconv.benchmark.workloads import layer_problems

LIMIT = 2e7  # floating-point operations of a convolution


def problems(shape):
    return [pytest.param(problem.limited(LIMIT), id=problem.name) for problem in layer_problems(core=True, shape=shape)]


def check_and_time(problem, what, benchmark):
    ours = Ours("auto", "cpu", "layer")
    for exact in (True, False):
        operands = problem.operands(exact=exact)
        run = ours.prepare(problem, what, operands).run
        mismatch = first_mismatch(problem, operands, ours.arrays(what, run()), exact=exact)
        assert mismatch is None, str(mismatch)
    benchmark.extra_info["gflop"] = flops(problem, what) / 1e9  # so that a saved run can be read without the code
    benchmark.extra_info["threads"] = numba.get_num_threads()
    benchmark(run)


@pytest.mark.parametrize("problem", problems("infer"))
def test_forward(problem, benchmark):
    check_and_time(problem, "forward", benchmark)


@pytest.mark.parametrize("problem", problems("train"))
def test_gradients(problem, benchmark):
    check_and_time(problem, "gradients", benchmark)
