"""What more threads bring: a second one of Numba's to scatter, and eight Python threads with one of Numba's each.

    pytest bench/test_bench_scaling.py --benchmark-enable     every number of threads
    pytest bench/test_bench_scaling.py --benchmark-disable    only check the results

In each group a round does the same work, whatever the number of threads: the figure in parentheses beside the median of
one thread, over that of eight, is how many times as fast eight are. How well the cores do at that moment shows in the
group of multiply-adds in registers, which share nothing.

The ratio of Numba's threads, block by block with its interval, on any row: `numba-ctconv bench 'conv_tasnet/*'
--algorithm scatter --style function --threads 1,2`, column "× 1 thread".
"""

import concurrent.futures

import numba
import numpy as np
import pytest

from numba_ctconv import ConvTranspose1d, Gradients
from numba_ctconv.benchmark import loops
from numba_ctconv.benchmark.checking import first_mismatch
from numba_ctconv.benchmark.contestants import flops
from numba_ctconv.benchmark.device import threads
from numba_ctconv.benchmark.ours import Ours
from numba_ctconv.benchmark.workloads import Problem, layer_problems
from numba_ctconv.cpu import target

DECODER = Problem("decoder", 1, 512, 1, 4000, 16, stride=8, padding=4, bias=False)
SHARED_OUT = {
    p.name: p.limited(1e8) for p in layer_problems(core=True) if p.name in {"hifigan_v1/up1", "hifigan_v1/up3"}
}
CALLS = 64  # of a round
ROUNDS = 9


@pytest.mark.benchmark(group="scatter to one channel, Numba's threads")
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


def share_out(calls, benchmark):
    """Time rounds of CALLS calls by so many Python threads, each of which makes calls of its own."""

    def work(call):
        for _ in range(CALLS // len(calls)):
            call()

    one = lambda: numba.set_num_threads(1)  # noqa: E731  # of Numba's threads, for each of Python's
    with concurrent.futures.ThreadPoolExecutor(len(calls), initializer=one) as pool:
        benchmark.extra_info["python_threads"] = len(calls)
        benchmark.pedantic(lambda: list(pool.map(work, calls)), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("what", ["forward", "gradients"])
@pytest.mark.parametrize("name", SHARED_OUT)
def test_python_threads_share_a_layer(name, what, count, benchmark):
    problem = SHARED_OUT[name]
    operands = problem.operands()
    benchmark.group = f"{name}, {what}, Python threads"
    benchmark.extra_info["gflop"] = CALLS * flops(problem, what) / 1e9
    layer = ConvTranspose1d.from_state_dict({"weight": operands.weight, "bias": operands.bias}, **problem.parameters)
    results = []
    for _ in range(count):
        if what == "forward":
            results.append({"output": np.empty_like(operands.grad_output)})
        else:
            arrays = zip(Gradients._fields, (operands.input, operands.weight, operands.bias), strict=True)
            results.append({gradient: np.empty_like(array) for gradient, array in arrays})

    def call_into(own):
        if what == "forward":
            return lambda: layer(operands.input, out=own["output"])
        return lambda: layer.backward(operands.grad_output, operands.input, out=Gradients(**own))

    share_out([call_into(own) for own in results], benchmark)
    for own in results:
        mismatch = first_mismatch(problem, operands, own, exact=True)
        assert mismatch is None, str(mismatch)


@pytest.mark.benchmark(group="multiply-adds in registers, Python threads")
@pytest.mark.parametrize("count", [1, 2, 8])
def test_python_threads_multiply_and_add(count, benchmark):
    lanes = target.vector_bytes() // 4
    run = loops.multiply_adds(double=False, lanes=lanes, chains=12)
    sums = [np.zeros(1) for _ in range(count)]
    share_out([lambda own=own: run(1, 600_000, own) for own in sums], benchmark)
    assert all(own[0] > 0 for own in sums)
