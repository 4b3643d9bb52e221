"""Every command as a user runs it: what it prints, what it writes, and the exit status that scripts rely on."""

import importlib.metadata
import io
import json
import subprocess
import sys

import numba
import pytest

from numba_ctconv import __version__
from numba_ctconv.benchmark import commands, machine, peers, timing, verification
from numba_ctconv.benchmark.progress import Progress
from numba_ctconv.benchmark.workloads import CASES
from numba_ctconv.cli import main
from numba_ctconv.cpu import CpuEngine

TINY = ["mimi/upsample", "--blocks", "3"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Contestants need no rest where no figure is kept."""
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(commands, "QUICK_PAUSE", 0.0)


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setattr(peers, "torch_installed", lambda: False)


@pytest.fixture
def wrong_kernel(monkeypatch):
    """The last sample of every output is off by one."""
    right = CpuEngine.forward

    def forward(self, *arguments):
        right(self, *arguments)
        output = arguments[-1]
        if output.size:
            output[-1, -1, -1] += 1

    monkeypatch.setattr(CpuEngine, "forward", forward)


def refused(arguments, capsys):
    """The message of options that can't be met."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


# --- bench ------------------------------------------------------------------------------------------------------------


def test_bench_prints_a_table_and_writes_json_and_markdown(tmp_path, capsys):
    json_file, markdown_file = tmp_path / "run.jsonl", tmp_path / "run.md"
    threads = numba.get_num_threads()
    assert main(["bench", *TINY, "--threads", "1", "--json", str(json_file), "--markdown", str(markdown_file)]) == 0
    assert numba.get_num_threads() == threads
    out = capsys.readouterr().out
    assert "mimi/upsample" in out
    assert "1 × 125" in out
    head, *rows = map(json.loads, json_file.read_text(encoding="utf-8").splitlines())
    assert head["machine"]["numba_ctconv"] == __version__
    assert head["machine"]["threads"] == 1
    assert head["options"]["blocks"] == 3
    assert [row["contestant"] for row in rows] == ["auto", "torch"][: len(rows)]
    for row in rows:
        assert row["row"] == "mimi/upsample"
        assert len(row["seconds"]) == 3
        assert sorted(row["seconds"])[1] == row["median"] > 0
        assert row["gflops"] == pytest.approx(2 * 125 * 4 * 512 / row["median"] / 1e9)
    if peers.torch_installed():
        assert rows[0]["times_torch"]["median"] > 0
        assert "geometric mean, times torch:" in out
    assert markdown_file.read_text(encoding="utf-8").count("| mimi/upsample |") == len(rows)


@pytest.mark.usefixtures("no_torch")
def test_bench_without_torch_gives_no_ratios(capsys):
    assert main(["bench", *TINY]) == 0
    out = capsys.readouterr().out
    assert "torch is not installed" in out
    assert "geometric mean" not in out


@pytest.mark.usefixtures("no_torch")
def test_bench_appends_to_a_json_file(tmp_path):
    file = tmp_path / "runs.jsonl"
    for _ in range(2):
        assert main(["bench", *TINY, "--json", str(file)]) == 0
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert ["machine" in record for record in records] == [True, False, True, False]


def test_bench_measures_passes_algorithms_and_dtypes(tmp_path):
    """A layer that torch has to slice, cut to the limit, in float64."""
    file = tmp_path / "run.jsonl"
    options = ["--pass", "forward,grad_input", "--pass", "grad_weight", "--pass", "gradients", "--dtype", "float64"]
    algorithms = ["--algorithm", "gather", "--algorithm", "scatter"]
    assert (
        main(
            [
                "bench",
                "htdemucs_time/dec0",
                "--limit",
                "1e-4",
                "--blocks",
                "1",
                *options,
                *algorithms,
                "--json",
                str(file),
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    assert {row["pass"] for row in rows} == set(peers.PASSES)
    assert {row["contestant"] for row in rows} - {"torch"} == {"gather", "scatter"}
    assert {row["dtype"] for row in rows} == {"float64"}
    for row in rows:
        assert row["input_length"] < row["full_input_length"] == 85995


@pytest.mark.usefixtures("wrong_kernel", "no_torch")
def test_bench_does_not_time_a_wrong_result(monkeypatch, capsys):
    monkeypatch.setattr(timing, "interleaved", lambda *_, **__: pytest.fail("timed"))
    assert main(["bench", *TINY]) == 1
    captured = capsys.readouterr()
    assert "mimi/upsample, forward, auto: not timed: output[0, 511, 249] is" in captured.err
    assert "1 of 1 rows refused" in captured.err


@pytest.mark.usefixtures("wrong_kernel", "no_torch")
def test_bench_goes_on_after_a_wrong_result(capsys):
    assert main(["bench", "diffusion_policy/up0", *TINY, "--pass", "forward,grad_input", "--limit", "0.01"]) == 1
    captured = capsys.readouterr()
    assert "2 of 3 rows refused" in captured.err
    assert "left out: mimi/upsample (grad_input)" in captured.err
    assert "grad_input" in captured.out


@pytest.mark.usefixtures("no_torch")
def test_quick_takes_one_row_of_every_kind(tmp_path):
    file = tmp_path / "run.jsonl"
    assert main(["bench", "--quick", "--limit", "1e-3", "--blocks", "1", "--json", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    assert len({row["row"] for row in rows}) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_row"], "no row matches 'no_such_row'; the rows are: hifigan_v1/up0,"),
        (["hifigan_v1/up2", "--core"], "no row matches 'hifigan_v1/up2'; the core rows are"),
        (["mimi/*", "--pass", "gradients"], "none of these rows has a training shape"),
        (["--pass", "forward,sideways"], "'sideways' is no pass; choose from forward, grad_input"),
        (["--algorithm", "fft"], "invalid choice: 'fft'"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--threads", "0"], "a positive int is expected; got '0'"),
        (["--threads", "100000"], "(NUMBA_NUM_THREADS); got 100000"),
        (["--limit", "nan"], "a positive float is expected; got 'nan'"),
        (["--blocks", "many"], "a positive int is expected; got 'many'"),
        (["--json", "no/such/folder/file"], "can't be written: No such file"),
        (["--core", "--all"], "not allowed with argument"),
    ],
)
def test_bench_refuses_bad_options(arguments, message, capsys):
    assert message in refused(["bench", *arguments], capsys)


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_a_gpu_that_is_not_there_is_refused(command, monkeypatch, capsys):
    monkeypatch.setattr(commands, "find_gpu", lambda: "no driver")
    assert "argument --device: no GPU that can be used: no driver" in refused([command, "--device", "cuda"], capsys)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_checks_everything(monkeypatch, capsys):
    monkeypatch.setattr(commands, "find_gpu", lambda: "no driver")
    assert main(["verify"]) == 0
    out = capsys.readouterr().out
    assert "cuda: not checked, no GPU (no driver)" in out
    calls = len(verification.problems()) * 2 * len(verification.ALGORITHMS) * 2
    assert f"cpu: {calls} calls, all equal to the reference, bit by bit" in out


@pytest.mark.usefixtures("wrong_kernel")
def test_verify_names_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(verification, "problems", lambda: list(CASES[:2]))
    assert main(["verify", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "WRONG  plain, forward, cpu, auto, float32: output[1, 3, 8] is" in out
    assert "WRONG  one_sample, forward, cpu, scatter, float64: output[0, 0, 0] is" in out
    assert "gradients" not in out
    assert "cpu: 24 calls, 12 WRONG" in out


def test_verify_sees_an_element_that_nobody_wrote(monkeypatch, capsys):
    monkeypatch.setattr(verification, "problems", lambda: list(CASES[:1]))
    monkeypatch.setattr(CpuEngine, "grad_bias", lambda *_: None)
    assert main(["verify", "--device", "cpu"]) == 1
    assert "WRONG  plain, gradients, cpu, auto, float32: bias[0] is nan" in capsys.readouterr().out


def test_verify_goes_on_after_a_kernel_that_fails(monkeypatch, capsys):
    def broken(*_):
        message = "does not compile"
        raise RuntimeError(message)

    monkeypatch.setattr(verification, "problems", lambda: list(CASES[:1]))
    monkeypatch.setattr(CpuEngine, "grad_weight", broken)
    assert main(["verify", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "WRONG  plain, gradients, cpu, auto, float32: RuntimeError: does not compile" in out
    assert "cpu: 12 calls, 6 WRONG" in out


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_names_versions_vector_width_threads_and_cache(capsys):
    assert main(["info", "--threads", "1"]) == 0
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts["numba_ctconv"] == __version__
    assert facts["numba"] == numba.__version__
    assert facts["threads"] == "1"
    assert facts["vector bits"] in ("128", "256", "512")
    assert facts["threading layer"] in ("omp", "tbb", "workqueue")
    assert {"cpu", "cpu features", "cache", "gpu"} <= set(facts)


def test_info_without_optional_packages(monkeypatch, capsys):
    def version(name):
        if name in ("torch", "numba-cuda"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "numba_ctconv.cuda", None)  # as if it could not be imported
    monkeypatch.setattr(numba.config, "ENABLE_CUDASIM", 0)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.count("not installed") == 2
    assert "none (import of numba_ctconv.cuda halted" in out


def test_info_says_where_nothing_is_cached(monkeypatch, capsys):
    monkeypatch.setattr(machine, "cache_folder", lambda: None)
    assert main(["info"]) == 0
    assert "none, compiled in memory" in capsys.readouterr().out


# --- all of them ------------------------------------------------------------------------------------------------------


def test_python_m_runs_the_same():
    done = subprocess.run(
        [sys.executable, "-m", "numba_ctconv", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"numba-ctconv {__version__}\n"


@pytest.mark.parametrize("command", [[], ["bench"], ["verify"], ["info"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    assert "usage: numba-ctconv" in capsys.readouterr().out


def test_a_command_is_needed(capsys):
    assert "required: COMMAND" in refused([], capsys)


def test_an_interrupt_ends_cleanly(monkeypatch, capsys):
    threads = numba.get_num_threads()

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "describe", interrupt)
    assert main(["info", "--threads", "1"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert numba.get_num_threads() == threads


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no broken pipes of this kind")
def test_a_reader_that_has_gone_is_no_crash():
    process = subprocess.Popen(
        [sys.executable, "-m", "numba_ctconv", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert "Error" not in errors


def test_importing_the_package_imports_no_benchmark_and_the_benchmark_no_torch():
    program = (
        "import sys, numba_ctconv\n"
        "assert not [m for m in sys.modules if m.startswith(('numba_ctconv.benchmark', 'numba_ctconv.cli', 'torch'))]\n"
        "import numba_ctconv.cli\n"
        "assert 'torch' not in sys.modules and 'numba.cuda' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


class Terminal(io.StringIO):
    def isatty(self):
        """It is one."""
        return True


def test_progress_overwrites_its_line_on_a_terminal_and_is_plain_elsewhere():
    for stream, expected in ((Terminal(), "\r\x1b[Kone\r\x1b[K"), (io.StringIO(), "one\n")):
        progress = Progress(stream)
        progress.announce("one")
        progress.update("too soon after it")
        progress.clear()
        progress.clear()
        assert stream.getvalue() == expected
