"""What the commands do (bench, report, verify, info, warmup), from parsed options to printed lines and exit status.

Called by cli, which owns the options. Tables and verdicts go to stdout, progress and complaints to stderr.
"""

# ruff: noqa: T201  # printing is what a command does

import argparse
import contextlib
import datetime as dt
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import IO

import numba
import numpy as np

from ..cpu.compilation import cache_folder
from ..warmup import DTYPES, PASSES, Sizes, run
from . import cold, machine, measure, peers, report, results, verification
from .cold import Cold
from .contestants import Contestant
from .device import Device, Gpu, find_gpu, threads
from .ours import STYLES, Ours, Style
from .progress import Progress
from .selection import Job, matching, select
from .workloads import layer_problems

QUICK_LIMIT, LIMIT = 0.1, 4.0  # GFLOP
QUICK_BLOCKS, BLOCKS = 5, 9
QUICK_STYLES: tuple[Style, ...] = ("function", "layer")
QUICK_PAUSE = 0.05  # seconds
NO_PEER = "none"


class OptionError(Exception):
    """Options that can't be met; the text says why."""


def bench(options: argparse.Namespace, progress: Progress) -> int:
    """Check and time the rows chosen; 1 where a result is wrong."""
    _require_gpu(options.device)
    if cold.STYLE in (options.style or ()) and options.device != "cpu":
        raise OptionError(
            f"argument --style: {cold.STYLE!r} is about the caches of a CPU; got --device {options.device}"
        )
    quick = options.quick
    limit = options.limit or (QUICK_LIMIT if quick else LIMIT)
    passes = list(dict.fromkeys(what for group in options.passes or [["forward"]] for what in group))
    try:
        jobs, shapeless = select(
            options.rows,
            core=options.core if options.core is not None else not options.rows,
            passes=passes,
            limit=limit * 1e9,
            quick=quick,
        )
    except LookupError as reason:
        raise OptionError(str(reason)) from None
    for name in shapeless:
        print(f"left out: {name}: the model is not trained with this layer", file=sys.stderr)
    if not jobs:
        raise OptionError("none of these rows has a training shape")
    with contextlib.ExitStack() as stack:
        files = {"json": _open(stack, options.json, "a"), "markdown": _open(stack, options.markdown, "w")}
        return _measure(jobs, options, limit, files, progress, stack)


def _measure(
    jobs: Sequence[Job],
    options: argparse.Namespace,
    limit: float,
    files: dict[str, IO[str] | None],
    progress: Progress,
    stack: contextlib.ExitStack,
) -> int:
    progress.announce("starting; kernels compile on their first call")
    counts = options.threads or [numba.get_num_threads()]
    stack.enter_context(threads(max(counts)))
    facts = machine.describe()
    contestants = _contestants(options, counts, progress, stack)
    blocks = options.blocks or (QUICK_BLOCKS if options.quick else BLOCKS)
    settings = {
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "device": options.device,
        "dtype": options.dtype,
        "threads": counts,
        "limit_gflop": limit,
        "blocks": blocks,
    }
    log = report.JsonLines(files["json"], facts, settings) if files["json"] else None
    progress.clear()
    print(machine.headline(facts))
    columns = report.columns([contestant.name for contestant in contestants], counts, ceiling=options.device == "cpu")
    table = report.Table(columns, sys.stdout)
    records, refused = [], 0
    for place, job in enumerate(jobs):
        progress.update(f"{job.problem.name}, {job.what} ({place + 1} of {len(jobs)})")
        outcome = measure.measure(
            job,
            contestants,
            options.dtype,
            blocks=blocks,
            pause=QUICK_PAUSE if options.quick else None,
            progress=progress,
            ceiling=options.device == "cpu",
        )
        progress.clear()
        if isinstance(outcome, measure.Refusal):
            print(outcome, file=sys.stderr)
            refused += 1
            continue
        if not outcome:
            print(f"left out: {job.problem.name} ({job.what}): no contestant takes it", file=sys.stderr)
        for row in outcome:
            record = row.record()
            table.add(record)
            records.append(record)
            if log:
                log.add(record)
    closing = [report.MEANING, *(report.summary(records) or [f"no ratios: no peer of {', '.join(peers.PEERS)} here"])]
    if files["markdown"]:
        lines = [machine.headline(facts), "", report.markdown(records, columns), "", *(f"- {line}" for line in closing)]
        files["markdown"].write("\n".join(lines) + "\n")
    print("\n".join(closing))
    if refused:
        print(f"{refused} of {len(jobs)} rows refused: wrong results are not timed", file=sys.stderr)
    return 1 if refused else 0


def _contestants(
    options: argparse.Namespace, counts: Sequence[int], progress: Progress, stack: contextlib.ExitStack
) -> list[Contestant]:
    ours: list[Contestant] = [
        Cold(algorithm, count) if style == cold.STYLE else Ours(algorithm, options.device, style, count)
        for count in counts
        for algorithm in dict.fromkeys(options.algorithm or ["auto"])
        for style in dict.fromkeys(options.style or (QUICK_STYLES if options.quick else STYLES))
    ]
    wanted = [peer for peer in options.peer or peers.PEERS if peer != NO_PEER and peers.installed(peer)]
    if wanted:
        progress.announce(f"importing {' and '.join(wanted)}")
    return ours + stack.enter_context(peers.contestants(wanted, options.device, counts))


def show_results(options: argparse.Namespace, progress: Progress) -> int:  # noqa: ARG001  # commands have one signature
    """Print a short table of what bench wrote to a file."""
    try:
        text = results.short_table(
            options.file,
            options.rows,
            options.contestant,
            options.threads or [],
            [what for group in options.passes or [] for what in group],
        )
    except (results.UnfitFileError, LookupError) as reason:
        raise OptionError(str(reason)) from None
    print(text)
    return 0


def verify(options: argparse.Namespace, progress: Progress) -> int:
    """Check this installation; 1 where a result is wrong."""
    devices: list[Device] = [options.device] if options.device else ["cpu"]
    if options.device is None:
        gpu = find_gpu()
        if isinstance(gpu, Gpu):
            devices.append("cuda")
        else:
            print(f"cuda: not checked, no GPU ({gpu})")
    else:
        _require_gpu(options.device)
    wrong = 0
    for device in devices:
        start = time.monotonic()
        calls = failures = 0
        for outcome in verification.verify(device, progress):
            calls += 1
            if outcome.wrong:
                failures += 1
                progress.clear()
                print(f"WRONG  {outcome.name}: {outcome.wrong}", flush=True)
        progress.clear()
        verdict = f"{failures} WRONG" if failures else "all equal to the reference, bit by bit"
        print(f"{device}: {calls} calls, {verdict} ({time.monotonic() - start:.1f} s)", flush=True)
        wrong += failures
    return 1 if wrong else 0


def warmup(options: argparse.Namespace, progress: Progress) -> int:
    """Compile all that layers of published models need, where it is not on disk already."""
    _require_gpu(options.device)
    problems = layer_problems(core=not options.rows and not options.all)
    try:
        wanted = matching(options.rows or ("*",), [problem.name for problem in problems], "rows")
    except LookupError as reason:
        raise OptionError(str(reason)) from None
    sizes = list(dict.fromkeys(Sizes.of(problem) for problem in problems if problem.name in wanted))
    dtypes = [np.dtype(name) for name in dict.fromkeys(options.dtype or DTYPES)]
    start = time.monotonic()

    def report_step(text: str, done: int, total: int) -> None:
        if done < total:
            say = progress.update if done else progress.announce
            say(f"{text} ({done + 1} of {total})")

    run(sizes, list(dict.fromkeys(options.passes or PASSES)), dtypes, options.device, report_step)
    progress.clear()
    folder = cache_folder() if options.device == "cpu" else None
    where = f"kept in {folder}" if folder else "for this process alone"
    names = " and ".join(dtype.name for dtype in dtypes)
    print(f"{len(sizes)} layers in {names}: all code compiled, {where} ({time.monotonic() - start:.1f} s)")
    return 0


def info(options: argparse.Namespace, progress: Progress) -> int:  # noqa: ARG001  # commands have one signature
    """Show what the package runs on."""
    progress.announce("starting Numba's threads and loading a kernel; the first time it compiles")
    facts = machine.describe()
    progress.clear()
    print("\n".join(machine.lines(facts)))
    return 0


def _require_gpu(device: Device) -> None:
    if device == "cuda":
        gpu = find_gpu()
        if not isinstance(gpu, Gpu):
            raise OptionError(f"argument --device: no GPU that can be used: {gpu}")


def _open(stack: contextlib.ExitStack, path: pathlib.Path | None, mode: str) -> IO[str] | None:
    if path is None:
        return None
    try:
        return stack.enter_context(path.open(mode, encoding="utf-8"))
    except OSError as reason:
        raise OptionError(f"{path} can't be written: {reason.strerror}") from None
