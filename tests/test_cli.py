"""Every command as a user runs it: what it prints, what it writes, and the exit status that scripts rely on."""

import importlib.metadata
import io
import json
import subprocess
import sys

import numba
import pytest

from numba_ctconv import __version__
from numba_ctconv.benchmark import ceilings, commands, machine, on_cpu, peers, timing, verification
from numba_ctconv.benchmark.contestants import PASSES
from numba_ctconv.benchmark.progress import Progress
from numba_ctconv.benchmark.workloads import CASES
from numba_ctconv.cli import main
from numba_ctconv.cpu import CpuEngine, target

TINY = ["mimi/upsample", "--blocks", "3"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Contestants need no rest where no figure is kept."""
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(on_cpu, "QUICK_PAUSE", 0.0)
    monkeypatch.setattr(ceilings, "TRY_SECONDS", 0.0)
    monkeypatch.setattr(ceilings, "TRIES", 1)


@pytest.fixture
def no_peers(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda _: False)


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
    present = [peer for peer in peers.PEERS if peers.installed(peer)]
    assert [row["contestant"] for row in rows] == ["auto", "auto layer", "auto layer out", *present]
    products = 2 * (125 * 4 - 2) * 512  # but for two that are cropped
    for row in rows:
        assert row["row"] == "mimi/upsample"
        assert row["threads"] == 1
        assert len(row["seconds"]) == 3
        assert sorted(row["seconds"])[1] == row["median"] > 0
        assert row["flops"] == products
        assert row["bytes"] == 4 * 512 * (125 + 4 + 250)
        assert row["gflops"] == pytest.approx(products / row["median"] / 1e9)
        assert row["of_peak"] == pytest.approx(row["gflops"] / row["peak_gflops"])
        assert row["floor_seconds"] == max(products / row["peak_gflops"] / 1e9, row["loop_seconds"])
        assert row["of_floor"] == row["floor_seconds"] / row["median"]
    for peer in present:
        assert rows[0][f"times_{peer}"]["median"] > 0
        assert f"× {peer}" in out
        assert rows[-1][f"times_{peer}"] is None
    if present:
        assert rows[0]["times_best"]["median"] <= rows[0][f"times_{present[0]}"]["median"]
        assert "geometric mean, times best" in out
    assert markdown_file.read_text(encoding="utf-8").count("| mimi/upsample |") == len(rows)
    assert "cache" not in head["machine"]  # a folder of the user's is nobody's business


@pytest.mark.usefixtures("no_peers")
def test_bench_without_peers_gives_no_ratios(capsys):
    assert main(["bench", *TINY]) == 0
    out = capsys.readouterr().out
    assert "no ratios: no peer of torch, onnxruntime here" in out
    assert "geometric mean" not in out
    assert "× best" not in out.splitlines()[1]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="there is one thread")
def test_bench_times_numbers_of_threads_against_each_other(tmp_path, capsys):
    file = tmp_path / "run.jsonl"
    threads = numba.get_num_threads()
    chosen = ["--style", "layer", "--style", "function", "--peer", "none"]
    assert main(["bench", *TINY, "--threads", "1,2", *chosen, "--algorithm", "scatter", "--json", str(file)]) == 0
    assert numba.get_num_threads() == threads
    head, *rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert head["options"]["threads"] == [1, 2]
    assert [(row["contestant"], row["threads"]) for row in rows] == [
        (name, count) for count in (1, 2) for name in ("scatter layer", "scatter")
    ]
    assert [row["times_one_thread"] is not None for row in rows] == [False, False, True, True]
    assert "× 1 thread" in capsys.readouterr().out


@pytest.mark.usefixtures("no_peers")
def test_bench_appends_to_a_json_file(tmp_path):
    file = tmp_path / "runs.jsonl"
    for _ in range(2):
        assert main(["bench", *TINY, "--style", "function", "--json", str(file)]) == 0
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
    assert {row["pass"] for row in rows} == set(PASSES)
    names = {f"{algorithm}{style}" for algorithm in ("gather", "scatter") for style in ("", " layer", " layer out")}
    assert {row["contestant"] for row in rows} - {"torch"} == names
    assert {row["dtype"] for row in rows} == {"float64"}
    for row in rows:
        assert row["input_length"] < row["full_input_length"] == 85995


@pytest.mark.usefixtures("wrong_kernel", "no_peers")
def test_bench_does_not_time_a_wrong_result(monkeypatch, capsys):
    monkeypatch.setattr(timing, "interleaved", lambda *_, **__: pytest.fail("timed"))
    assert main(["bench", *TINY]) == 1
    captured = capsys.readouterr()
    assert "mimi/upsample, forward, auto: not timed: output[0, 511, 249] is" in captured.err
    assert "1 of 1 rows refused" in captured.err


@pytest.mark.usefixtures("wrong_kernel", "no_peers")
def test_bench_goes_on_after_a_wrong_result(capsys):
    assert main(["bench", "diffusion_policy/up0", *TINY, "--pass", "forward,grad_input", "--limit", "0.01"]) == 1
    captured = capsys.readouterr()
    assert "2 of 3 rows refused" in captured.err
    assert "left out: mimi/upsample (grad_input)" in captured.err
    assert "grad_input" in captured.out


@pytest.mark.usefixtures("no_peers")
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
        (["--threads", "1,100000"], "(NUMBA_NUM_THREADS); got 100000"),
        (["--style", "fast"], "invalid choice: 'fast'"),
        (["--peer", "jax"], "invalid choice: 'jax'"),
        (["--limit", "nan"], "a positive float is expected; got 'nan'"),
        (["--blocks", "many"], "a positive int is expected; got 'many'"),
        (["--json", "no/such/folder/file"], "can't be written: No such file"),
        (["--core", "--all"], "not allowed with argument"),
    ],
)
def test_bench_refuses_bad_options(arguments, message, capsys):
    assert message in refused(["bench", *arguments], capsys)


@pytest.fixture
def results_file(tmp_path):
    """Two rows, with and without ratios, two numbers of threads, of a run whose figures are known."""
    facts = machine.describe() | {"cpu": "Model 1", "threads": 2}
    options = {"started": "2026-01-02T03:04:05+00:00", "limit_gflop": 1.0, "blocks": 9}
    lines = [{"machine": facts, "options": options}]
    ratio = {"median": 2.0, "low": 1.5, "high": 2.5}
    for name, threads, seconds in (
        ("hifigan_v1/up0", 1, 0.5),
        ("hifigan_v1/up0", 2, 0.25),
        ("hifigan_v2/up0", 2, 0.125),
    ):
        record = {
            "row": name, "pass": "forward", "batch": 1, "input_length": 8, "full_batch": 1, "full_input_length": 9,
            "dtype": "float32", "threads": threads, "contestant": "auto layer", "median": seconds, "spread": 0.0,
            "gflops": 12.5, "of_peak": 0.75, "of_floor": 0.75, "times_torch": ratio, "times_onnxruntime": None,
            "times_best": ratio, "times_one_thread": None,
        }  # fmt: skip
        lines.append(record)
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return file


def test_report_makes_the_table_of_the_core_rows(results_file, capsys):
    assert main(["report", str(results_file), "--threads", "2"]) == 0
    head, _, *table, _, means = capsys.readouterr().out.splitlines()
    assert head.startswith("Model 1, 2 threads")
    assert "2026-01-02; auto layer, float32, layers cut to 1 GFLOP, medians of 9 blocks." in head
    assert table == [
        "| layer | N × L | ms | GFLOP/s | of peak | × torch |",
        "| :-- | --: | --: | --: | --: | --: |",
        "| hifigan_v1/up0 | 1 × 8 | 250.0 | 12.5 | 75 % | 2.00 |",
    ]
    assert "times best 2.00, torch 2.00 (auto layer, forward, 2 threads, 2 rows); slower than the best: none" in means


def test_report_shows_the_rows_that_are_named_and_what_differs_between_them(results_file, capsys):
    assert main(["report", str(results_file), "hifigan*"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| hifigan")]
    assert [line.split(" | ")[:2] for line in table] == [
        ["| hifigan_v1/up0", "1"], ["| hifigan_v1/up0", "2"], ["| hifigan_v2/up0", "2"],
    ]  # fmt: skip


def test_report_takes_the_last_record_of_a_row(results_file, capsys):
    lines = results_file.read_text(encoding="utf-8").splitlines()
    again = json.loads(lines[2]) | {"median": 0.001}
    results_file.write_text("\n".join([*lines, lines[0], json.dumps(again)]), encoding="utf-8")
    assert main(["report", str(results_file), "--threads", "2"]) == 0
    assert "| 1.000 | 12.5 |" in capsys.readouterr().out


def test_report_of_what_bench_wrote(tmp_path, capsys):
    file = tmp_path / "run.jsonl"
    assert main(["bench", *TINY, "--json", str(file)]) == 0
    capsys.readouterr()
    assert main(["report", str(file), "--contestant", "auto layer out", "--pass", "forward"]) == 0
    assert "| mimi/upsample | 1 × 125 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contestant", "fft"], "no rows of that kind; it holds auto layer (forward, threads 1), auto layer (f"),
        (["--threads", "3"], "no rows of that kind"),
        (["--threads", "none"], "a positive int is expected; got 'none'"),
        (["--pass", "gradients"], "no rows of that kind"),
        (["no_such_row"], "no row matches 'no_such_row'; the rows of the file are: hifigan_v1/up0, hifigan_v2/up0"),
    ],
)
def test_report_refuses_what_the_file_does_not_hold(arguments, message, results_file, capsys):
    assert message in refused(["report", str(results_file), *arguments], capsys)


def test_report_refuses_other_files(results_file, tmp_path, capsys):
    assert "can't be read: No such file" in refused(["report", str(tmp_path / "none")], capsys)
    text = results_file.read_text(encoding="utf-8")
    for content, message in (
        ("", "holds no results"),
        ("# Results", "is not a file that `numba-ctconv bench --json` wrote"),
        ('{"row": "a"}', "is not a file that"),
        (text + text.replace("Model 1", "Model 2"), "different machines or versions: cpu differs"),
    ):
        results_file.write_text(content, encoding="utf-8")
        assert message in refused(["report", str(results_file)], capsys)


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
    calls = 2 * 2 * 2 * len(verification.ALGORITHMS)
    assert f"cpu: {calls} calls, {calls // 2} WRONG" in out


def test_verify_sees_an_element_that_nobody_wrote(monkeypatch, capsys):
    monkeypatch.setattr(verification, "problems", lambda: list(CASES[:1]))
    monkeypatch.setattr(CpuEngine, "grad_bias", lambda *_: None)
    assert main(["verify", "--device", "cpu"]) == 1
    assert "WRONG  plain, gradients, cpu, gather, float32: bias[0] is nan" in capsys.readouterr().out


def test_verify_goes_on_after_a_kernel_that_fails(monkeypatch, capsys):
    def broken(*_):
        message = "does not compile"
        raise RuntimeError(message)

    monkeypatch.setattr(verification, "problems", lambda: list(CASES[:1]))
    monkeypatch.setattr(CpuEngine, "grad_weight", broken)
    assert main(["verify", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "WRONG  plain, gradients, cpu, auto, float32: RuntimeError: does not compile" in out
    calls = 2 * 2 * len(verification.ALGORITHMS)
    assert f"cpu: {calls} calls, {calls // 2} WRONG" in out


# --- accuracy ---------------------------------------------------------------------------------------------------------


def test_accuracy_refuses_rows_that_do_not_exist(capsys):
    assert "no row matches 'nothing'" in refused(["accuracy", "nothing"], capsys)


def test_accuracy_needs_what_emulates(monkeypatch, capsys):
    monkeypatch.setattr(commands, "find_gpu", lambda: "no driver")
    monkeypatch.setattr(numba.config, "ENABLE_CUDASIM", 1)
    monkeypatch.setitem(sys.modules, "numba_ctconv.cuda", None)  # as if it could not be imported
    assert "import of numba_ctconv.cuda halted" in refused(["accuracy", "mimi/upsample"], capsys)


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_names_versions_vector_width_threads_and_cache(capsys):
    assert main(["info", "--threads", "1"]) == 0
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts["numba_ctconv"] == __version__
    assert facts["numba"] == numba.__version__
    assert facts["threads"] == "1"
    assert facts["vector bits"] == str(8 * target.vector_bytes())
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


@pytest.mark.parametrize("command", [[], ["bench"], ["report"], ["verify"], ["accuracy"], ["info"]])
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
        "assert not {'torch', 'onnxruntime', 'onnx', 'numba.cuda'} & set(sys.modules)\n"
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
