"""Every contestant computes what the reference does, whatever way a layer has to be told to it."""

import contextlib

import numba
import pytest

from numba_ctconv.benchmark import peers
from numba_ctconv.benchmark.checking import first_mismatch
from numba_ctconv.benchmark.contestants import PASSES, results
from numba_ctconv.benchmark.ours import STYLES, Ours
from numba_ctconv.benchmark.workloads import CASES, Problem, layer_problems

PROBLEMS = [
    Problem("plain", 2, 3, 4, 7, 3),
    Problem("padding_and_output_padding", 2, 6, 4, 9, 10, stride=5, padding=3, output_padding=1, groups=2),
    Problem("dilation", 1, 3, 3, 10, 3, dilation=4, padding=4, bias=False),
    Problem("causal", 2, 3, 2, 7, 10, stride=5, padding=(0, 5)),
    Problem("two_crops", 1, 5, 5, 13, 12, stride=2, groups=5, bias=False, padding=(15, 3)),
]


@contextlib.contextmanager
def peer(name):
    if not peers.installed(name):
        pytest.skip(f"{name} is not installed")
    with peers.contestants([name], "cpu", [1]) as found:
        yield found[0]


def check(contestant, problem, what):
    operands = problem.operands(exact=False, gradients=what != "forward")
    call = contestant.prepare(problem, what, operands)
    call.set_up()
    for _ in range(2):  # the second time in memory that is used again
        result = call.run()
        call.finish()
        arrays = contestant.arrays(what, result)
        assert set(arrays) >= set(results(problem, what))
        assert first_mismatch(problem, operands, arrays, exact=False) is None


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("style", STYLES)
def test_ours_in_every_style(style, what, problem):
    check(Ours("auto", "cpu", style), problem, what)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("what", PASSES)
def test_torch(what, problem):
    with peer("torch") as torch:
        assert torch.takes(problem, what, "float32")
        check(torch, problem, what)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_onnxruntime(problem):
    with peer("onnxruntime") as onnxruntime:
        assert onnxruntime.takes(problem, "forward", "float32")
        check(onnxruntime, problem, "forward")


def test_onnxruntime_takes_every_row_forward_and_nothing_that_it_cannot_do():
    contestant = peers.Onnxruntime(None, None, 1)
    for problem in layer_problems():
        assert contestant.takes(problem, "forward", "float32")
        assert not contestant.takes(problem, "forward", "float64")
        assert not contestant.takes(problem, "gradients", "float32")
    named = {problem.name: problem for problem in CASES}
    for case in ("unbatched", "extended_both_ends", "output_size_in_window"):
        assert not contestant.takes(named[case], "forward", "float32")


def test_styles_have_names_of_their_own_and_set_their_threads(numba_threads):
    contestants = [Ours("scatter", "cpu", style, 1) for style in STYLES]
    assert [contestant.name for contestant in contestants] == ["scatter", "scatter layer", "scatter layer out"]
    numba_threads(numba_threads.counts[-1])
    contestants[0].prepare(PROBLEMS[0], "forward", PROBLEMS[0].operands()).set_up()
    assert numba.get_num_threads() == 1


def test_a_layer_writes_into_the_same_array_only_if_it_is_given_one():
    problem = PROBLEMS[0]
    for style, same in (("layer", False), ("layer out", True)):
        for what, name in (("forward", "output"), ("gradients", "weight")):
            contestant = Ours("auto", "cpu", style)
            call = contestant.prepare(problem, what, problem.operands())
            first, second = (contestant.arrays(what, call.run())[name] for _ in range(2))
            assert (first is second) == same


def test_peers_put_torch_back_as_it_was():
    if not peers.installed("torch"):
        pytest.skip("torch is not installed")
    import torch  # noqa: PLC0415  # optional

    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    with peers.contestants(peers.PEERS, "cpu", [1, 2]) as found:
        assert [contestant.threads for contestant in found if contestant.name == "torch"] == [1, 2]
        found[0].prepare(PROBLEMS[0], "forward", PROBLEMS[0].operands()).set_up()
        assert torch.get_num_threads() == 1
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == before


def test_a_peer_that_is_not_installed_is_no_contestant(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda _: False)
    with peers.contestants(peers.PEERS, "cpu", [1]) as found:
        assert found == []
