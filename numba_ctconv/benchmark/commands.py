"""What the commands (bench, report, verify, accuracy, info, warmup) do: from options to printed lines and exit status.

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

from ..cpu.disk import cache_folder
from ..warmup import DTYPES, PASSES, Sizes, run
from . import accuracy as costs
from . import machine, measure, on_cpu, on_gpu, peers, report, results, sanitizer, verification
from .device import Device, Gpu, find_gpu
from .progress import Progress
from .selection import Job, matching, select
from .setup import Bench, OptionError, Setup
from .workloads import layer_problems

QUICK_BLOCKS, BLOCKS = 5, 9


BENCHES: dict[Device, Bench] = {"cpu": on_cpu, "cuda": on_gpu}


def bench(options: argparse.Namespace, progress: Progress) -> int:
    """Check and time the rows chosen; 1 where a result is wrong, or one of ours could not be timed."""
    jobs_of = BENCHES[options.device].jobs_of(options)
    _require_gpu(options.device)
    passes = list(dict.fromkeys(what for group in options.passes or [["forward"]] for what in group))
    try:
        jobs, shapeless = select(
            options.rows,
            core=options.core if options.core is not None else not options.rows,
            passes=passes,
            jobs_of=jobs_of,
            quick=options.quick,
        )
    except LookupError as reason:
        raise OptionError(str(reason)) from None
    for name in shapeless:
        print(f"left out: {name}: the model is not trained with this layer", file=sys.stderr)
    if not jobs:
        raise OptionError("none of these rows has a training shape")
    with contextlib.ExitStack() as stack:
        files = {"json": _open(stack, options.json, "a"), "markdown": _open(stack, options.markdown, "w")}
        setup = stack.enter_context(BENCHES[options.device].opened(options, progress))
        return _measure(jobs, options, setup, files, progress)


def _measure(
    jobs: Sequence[Job],
    options: argparse.Namespace,
    setup: Setup,
    files: dict[str, IO[str] | None],
    progress: Progress,
) -> int:
    blocks = options.blocks or (QUICK_BLOCKS if options.quick else BLOCKS)
    settings = {
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "device": options.device,
        "dtype": options.dtype,
        **setup.settings,
        "blocks": blocks,
    }
    log = report.JsonLines(files["json"], setup.facts, settings) if files["json"] else None
    progress.clear()
    headline = machine.HEADLINES[options.device](setup.facts)
    print(headline)
    table = report.Table(setup.columns, sys.stdout)
    records: list[report.Record] = []
    refused = unfit = 0
    for place, job in enumerate(jobs):
        progress.update(f"{job.problem.name}, {job.what} ({place + 1} of {len(jobs)})")
        outcome = measure.measure(job, setup.contestants, options.dtype, setup.target, blocks=blocks, progress=progress)
        progress.clear()
        for refusal in outcome.refusals:
            print(refusal, file=sys.stderr)
            unfit += refusal.contestant not in setup.target.peers
            if log and setup.target.forgiving:
                log.add(refusal.record())
        if not outcome.rows:
            refused += bool(outcome.refusals)
            if not outcome.refusals:
                print(f"left out: {job.problem.name} ({job.what}): no contestant takes it", file=sys.stderr)
        for row in outcome.rows:
            record = row.record()
            table.add(record)
            records.append(record)
            if log:
                log.add(record)
    compared = any(contestant.name in setup.target.peers for contestant in setup.contestants)
    nobody = "no row has a peer and one of ours" if compared else f"no peer of {', '.join(peers.PEERS)} here"
    closing = [setup.meaning, *(report.summary(records) or [f"no ratios: {nobody}"])]
    if files["markdown"]:
        lines = [headline, "", report.markdown(records, setup.columns), "", *(f"- {line}" for line in closing)]
        files["markdown"].write("\n".join(lines) + "\n")
    print("\n".join(closing))
    if refused:
        print(f"{refused} of {len(jobs)} rows refused: wrong results are not timed", file=sys.stderr)
    return 1 if refused or unfit else 0


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
    among = verification.quick_problems() if options.quick else None
    algorithms = verification.QUICK_ALGORITHMS if options.quick else verification.ALGORITHMS
    wrong = 0
    for device in devices:
        start = time.monotonic()
        calls = failures = 0
        for outcome in verification.verify(device, progress, among=among, algorithms=algorithms):
            calls += 1
            if outcome.wrong:
                failures += 1
                progress.clear()
                print(f"WRONG  {outcome.name}: {outcome.wrong}", flush=True)
        progress.clear()
        verdict = f"{failures} WRONG" if failures else "all equal to the reference, bit by bit"
        print(f"{device}: {calls} calls, {verdict} ({time.monotonic() - start:.1f} s)", flush=True)
        wrong += failures
    if "cuda" in devices and not options.quick:
        wrong += _sanitized(progress)
    return 1 if wrong else 0


def _sanitized(progress: Progress) -> int:
    """Run the quick checks again under compute-sanitizer's tools; how many found something."""
    found = 0
    for tool in sanitizer.TOOLS:
        progress.announce(f"cuda: the quick checks under {tool}")
        start = time.monotonic()
        verdict = sanitizer.run(tool)
        progress.clear()
        mark = "WRONG  " if verdict.wrong else ""
        print(f"{mark}cuda, {tool}: {verdict.text} ({time.monotonic() - start:.1f} s)", flush=True)
        found += verdict.wrong
    return found


def accuracy(options: argparse.Namespace, progress: Progress) -> int:
    """Show what the number formats of a GPU cost in accuracy; where there is none, by emulation."""
    try:
        problems = costs.chosen(options.rows)
    except LookupError as reason:
        raise OptionError(str(reason)) from None
    gpu = find_gpu()
    if not isinstance(gpu, Gpu) and not numba.config.ENABLE_CUDASIM:
        print(f"no GPU that can be used: {gpu}", flush=True)
        return costs.emulate(options.rows)
    print(f"measured on {gpu.name}" if isinstance(gpu, Gpu) else "emulated: no GPU computed this")
    table = report.Table(costs.COLUMNS, sys.stdout)
    try:
        for record in costs.measure(problems, progress):
            progress.clear()
            table.add(record)
    except ImportError as reason:
        raise OptionError(str(reason)) from None
    print(costs.MEANING)
    return 0


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
