"""What the commands do: bench, verify and info, from parsed options to printed lines and an exit status.

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

from . import machine, measure, peers, report, timing, verification
from .device import Device, Gpu, find_gpu
from .progress import Progress

QUICK_LIMIT, LIMIT = 0.1, 4.0  # GFLOP
QUICK_BLOCKS, BLOCKS = 5, 9
QUICK_PAUSE = 0.05  # seconds


class OptionError(Exception):
    """Options that can't be met; the text says why."""


def bench(options: argparse.Namespace, progress: Progress) -> int:
    """Check and time the rows chosen; 1 where a result is wrong."""
    _require_gpu(options.device)
    quick = options.quick
    limit = options.limit or (QUICK_LIMIT if quick else LIMIT)
    passes = list(dict.fromkeys(what for group in options.passes or [["forward"]] for what in group))
    try:
        jobs, shapeless = measure.select(
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
    jobs: Sequence[measure.Job],
    options: argparse.Namespace,
    limit: float,
    files: dict[str, IO[str] | None],
    progress: Progress,
    stack: contextlib.ExitStack,
) -> int:
    progress.announce("starting; kernels compile on their first call")
    facts = machine.describe()
    contestants: list[peers.Contestant] = [
        peers.Ours(algorithm, options.device) for algorithm in dict.fromkeys(options.algorithm or ["auto"])
    ]
    if peers.torch_installed():
        progress.announce("importing torch")
    torch = stack.enter_context(peers.torch_contestant(options.device, facts["threads"]))
    if torch is not None:
        contestants.append(torch)
    blocks = options.blocks or (QUICK_BLOCKS if options.quick else BLOCKS)
    settings = {
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "device": options.device,
        "dtype": options.dtype,
        "limit_gflop": limit,
        "blocks": blocks,
    }
    log = report.JsonLines(files["json"], facts, settings) if files["json"] else None
    progress.clear()
    print(machine.headline(facts))
    table = report.Table(jobs, [contestant.name for contestant in contestants], sys.stdout)
    rows, refused = [], 0
    for place, job in enumerate(jobs):
        progress.update(f"{job.problem.name}, {job.what} ({place + 1} of {len(jobs)})")
        outcome = measure.measure(
            job,
            contestants,
            options.dtype,
            blocks=blocks,
            pause=QUICK_PAUSE if options.quick else timing.PAUSE,
            progress=progress,
        )
        progress.clear()
        if isinstance(outcome, measure.Refusal):
            print(outcome, file=sys.stderr)
            refused += 1
            continue
        for row in outcome:
            table.add(row)
            rows.append(row)
            if log:
                log.add(row)
    if files["markdown"]:
        files["markdown"].write(report.markdown(rows, machine.headline(facts)))
    print(report.MEANING)
    for line in report.summary(rows) if torch is not None else ["torch is not installed for this device: no ratios"]:
        print(line)
    if refused:
        print(f"{refused} of {len(jobs)} rows refused: wrong results are not timed", file=sys.stderr)
    return 1 if refused else 0


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
