"""What a second thread brings to scatter where it has to cut time: one item, one output channel.

    pytest bench/test_bench_scaling.py --benchmark-enable     both numbers of threads
    pytest bench/test_bench_scaling.py --benchmark-disable    only check the results

The ratio, block by block with its interval, on any row: `numba-ctconv bench 'conv_tasnet/*' --algorithm scatter
--style function --threads 1,2`, column "× 1 thread".
"""

import numba
import pytest

from numba_ctconv.benchmark.checking import first_mismatch
from numba_ctconv.benchmark.device import threads
from numba_ctconv.benchmark.ours import Ours
from numba_ctconv.benchmark.workloads import Problem

DECODER = Problem("decoder", 1, 512, 1, 4000, 16, stride=8, padding=4, bias=False)


@pytest.mark.parametrize("count", [1, 2])
def test_scatter_forward_to_one_channel(count, benchmark):
    if count > numba.config.NUMBA_NUM_THREADS:
        pytest.skip(f"Numba has {numba.config.NUMBA_NUM_THREADS} thread")
    contestant = Ours("scatter", "cpu", "function", count)
    operands = DECODER.operands(gradients=False)
    call = contestant.prepare(DECODER, "forward", operands)
    with threads(count):
        mismatch = first_mismatch(DECODER, operands, contestant.arrays("forward", call.run()), exact=True)
        assert mismatch is None, str(mismatch)
        benchmark.extra_info["gflop"] = DECODER.flops / 1e9
        benchmark.extra_info["threads"] = count
        benchmark(call.run)
