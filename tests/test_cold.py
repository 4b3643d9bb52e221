"""The contestant whose weights lie in no cache: how much it takes for that, that it takes turns, what it is held to."""

import pytest

from numba_ctconv import ConvTranspose1d
from numba_ctconv.benchmark import ceilings, cold
from numba_ctconv.benchmark.checking import first_mismatch
from numba_ctconv.benchmark.cold import Cold
from numba_ctconv.benchmark.contestants import Traffic
from numba_ctconv.benchmark.workloads import Problem
from numba_ctconv.cli import main

STEP = Problem("step", 1, 64, 32, 4, 16, stride=8, padding=4)  # weights of 128 KB
MEGABYTE = 1024 * 1024


@pytest.fixture
def memory(monkeypatch):
    """Set what the machine has of caches and free memory."""

    def has(cache, free):
        monkeypatch.setattr(cold, "last_cache", lambda: cache)
        monkeypatch.setattr(cold, "_free_memory", lambda: free)
        cold.footprint.cache_clear()

    yield has
    cold.footprint.cache_clear()


@pytest.mark.parametrize(
    ("cache", "free", "expected"),
    [
        (32 * MEGABYTE, 64 * 1024 * MEGABYTE, 64 * MEGABYTE),  # twice the cache
        (400 * MEGABYTE, 64 * 1024 * MEGABYTE, cold.MOST_BYTES),
        (None, 64 * 1024 * MEGABYTE, cold.MOST_BYTES),
        (32 * MEGABYTE, 80 * MEGABYTE, 10 * MEGABYTE),
        (32 * MEGABYTE, None, 64 * MEGABYTE),
    ],
)
def test_weights_are_larger_than_the_cache_and_leave_memory_to_others(memory, cache, free, expected):
    memory(cache, free)
    assert cold.footprint() == expected


def test_the_last_cache_is_the_one_of_the_highest_level(monkeypatch, tmp_path):
    for index, level, size in ((0, 1, "48K"), (1, 1, "32K"), (2, 2, "2048K"), (3, 3, "30M")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    (tmp_path / "index4").mkdir()  # of which nothing is told
    monkeypatch.setattr(cold, "CACHES", tmp_path)
    assert cold.last_cache() == 30 * MEGABYTE
    monkeypatch.setattr(cold, "CACHES", tmp_path / "nowhere")
    assert cold.last_cache() is None


def test_it_takes_what_reads_the_weights_of_short_inputs(memory):
    memory(MEGABYTE, None)
    contestant = Cold("auto", 1)
    assert contestant.takes(STEP, "forward", "float32")
    assert contestant.takes(STEP, "grad_input", "float32")
    assert not contestant.takes(STEP, "grad_weight", "float32")
    assert not contestant.takes(STEP.with_length(1, 17), "forward", "float32")
    assert not contestant.takes(Problem("small", 1, 4, 4, 4, 4), "forward", "float32")  # too many layers


@pytest.mark.parametrize(("what", "method"), [("forward", "__call__"), ("grad_input", "backward")])
def test_layers_of_their_own_weights_take_turns(monkeypatch, memory, what, method):
    memory(MEGABYTE // 4, None)  # four layers
    called, original = [], getattr(ConvTranspose1d, method)

    def counted(layer, *arguments, **options):
        called.append(layer)
        return original(layer, *arguments, **options)

    monkeypatch.setattr(ConvTranspose1d, method, counted)
    contestant, operands = Cold("auto", 1), STEP.operands()
    call = contestant.prepare(STEP, what, operands)
    packed = [next(iter(layer._kept.values())).panels[0] for layer in called]
    assert len({values.ctypes.data for values in packed}) == len(called) == 4
    assert sum(values.nbytes for values in packed) >= cold.footprint()
    for _ in range(4):
        result = contestant.arrays(what, call.run())
        assert first_mismatch(STEP, operands, result, exact=True) is None
    assert called[4:] == called[:4]


@pytest.mark.parametrize("workers", [1, 2])
def test_its_loop_reads_as_much_memory_as_all_weights_take(monkeypatch, memory, numba_threads, workers):
    memory(MEGABYTE, None)
    numba_threads(max(numba_threads.counts))
    read = []

    def sweeps(*, parallel):
        assert parallel == (workers > 1)
        return lambda _count, _repeats, first, *rest: read.append((first.nbytes, [a.size for a in rest[:5]]))

    monkeypatch.setattr(ceilings.loops, "sweeps", sweeps)
    monkeypatch.setattr(ceilings, "_best", lambda run, count: run(count, 1) or 0.5)
    moved = Traffic((1000, 32_768), (2000,))
    assert ceilings.cold_seconds(moved, "float32", workers) == pytest.approx(0.5 * 32_768 * 4 / (2 * MEGABYTE))
    assert read == [(2 * MEGABYTE, [0] * 5)]


def test_the_command_times_it_beside_the_layer_that_is_called_again(memory, monkeypatch, tmp_path, capsys):
    memory(4 * MEGABYTE, None)
    monkeypatch.setattr(ceilings, "TRY_SECONDS", 0.0)
    file = tmp_path / "rows.jsonl"
    options = ["--style", "layer out", "--style", "layer cold", "--peer", "none", "--blocks", "1", "--threads", "1"]
    assert main(["bench", "rave_v2_stream/up2", "rave_v2_stream/up3", *options, "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("rave_v2_stream/up2" in line and "auto layer cold" in line for line in lines) == 1
    assert not [line for line in lines if "rave_v2_stream/up3" in line and "cold" in line]  # 32 samples
    assert '"contestant": "auto layer cold"' in file.read_text(encoding="utf-8")


def test_a_row_that_nobody_takes_is_named(memory, capsys):
    memory(4 * MEGABYTE, None)
    assert main(["bench", "rave_v2_stream/up3", "--style", "layer cold", "--peer", "none", "--blocks", "1"]) == 0
    assert "left out: rave_v2_stream/up3 (forward): no contestant takes it" in capsys.readouterr().err


def test_it_is_about_the_caches_of_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr("numba_ctconv.benchmark.commands._require_gpu", lambda _: None)
    with pytest.raises(SystemExit) as leave:
        main(["bench", "--style", "layer cold", "--device", "cuda"])
    assert leave.value.code == 2
    assert "argument --style: 'layer cold' is about the caches of a CPU" in capsys.readouterr().err
