"""compute-sanitizer: NVIDIA's checks of memory accesses and races, around the quick checks of verify in a new process.

Called by `numba-ctconv verify` on a GPU. It slows kernels down manyfold, so it sees a few tiny problems only.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

TOOLS = ("memcheck", "racecheck")
COMMAND = "compute-sanitizer"
FOUND = 86  # its exit status where it finds something
LONGEST = 100  # seconds; both tools and the rows of a benchmark are to fit into eight minutes
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


class Verdict(NamedTuple):
    """What came of a tool."""

    text: str
    wrong: bool


def run(tool: str) -> Verdict:
    """Run the quick checks under a tool; where that can't be done, the text says why."""
    program = find()
    if program is None:
        return Verdict(f"not checked, {COMMAND} is not installed", wrong=False)
    # calls of the driver that ask and are refused are no finding
    options = ["--tool", tool, "--error-exitcode", str(FOUND)]
    options += ["--report-api-errors", "no"] if tool == "memcheck" else []
    checks = [sys.executable, "-m", "numba_ctconv", "verify", "--device", "cuda", "--quick"]
    try:
        done = subprocess.run(  # noqa: S603  # our own program, and NVIDIA's
            [program, *options, *checks], capture_output=True, text=True, errors="replace", check=False, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return Verdict(f"not checked, not done after {LONGEST} s", wrong=False)
    except OSError as reason:
        return Verdict(f"not checked, {program}: {reason.strerror}", wrong=False)
    return verdict(done.returncode, done.stdout + done.stderr)


def verdict(status: int, printed: str) -> Verdict:
    """What an exit status and all that was printed say."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    counts = [int(number) for number in SUMMARY.findall(printed)]
    wrong = [line for line in lines if line.startswith("WRONG")]
    if status == FOUND or any(counts):
        told = next((line for line in lines if "=========" in line and re.search("Error|Invalid|hazard", line)), "")
        return Verdict(f"{max(counts, default=1)} findings: {told.lstrip('= ')}", wrong=True)
    if wrong:
        return Verdict(f"results differ under it: {wrong[0]}", wrong=True)
    if status == 0 and counts:
        return Verdict("nothing found", wrong=False)
    return Verdict(
        f"not checked, it did not run to its end (status {status}): {lines[-1] if lines else ''}", wrong=False
    )


def find() -> str | None:
    """Where the program is: on the path, or in the toolkit."""
    folders = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    paths = [str(pathlib.Path(folder) / "bin") for folder in folders if folder]
    return shutil.which(COMMAND) or shutil.which(COMMAND, path=os.pathsep.join(paths))
