"""What the package runs on: versions, processor, vector width, threads, cache folder, GPU.

For `numba-ctconv info` and the head of every report. Nothing here fails where something is missing: that is then said.
torch and onnxruntime are looked up, never imported.
"""

import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any

import llvmlite.binding
import numba
import numpy as np

from .. import __version__
from ..cpu import target
from ..cpu.disk import cache_folder
from ..functional import conv_transpose1d
from .device import Gpu, find_gpu

PACKAGES = ("numba", "llvmlite", "numpy", "numba-cuda", "torch", "onnxruntime")
# Instruction sets that decide the speed of a convolution; LLVM's names.
FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512vl", "avx10.1", "neon", "sve", "sve2")
NO_CACHE = "none, compiled in memory"


def describe() -> dict[str, Any]:
    """Facts by name, of JSON types; compiles or loads one kernel, to see what it runs on."""
    gpu = find_gpu()
    return {
        "numba_ctconv": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": platform.platform(),
        "cpu": cpu_model(),
        "llvm_cpu": numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        "cpu_features": cpu_features(),
        "vector_bits": 8 * target.vector_bytes(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": numba.get_num_threads(),
        "threading_layer": threading_layer(),
        "cache": cache_folder() or NO_CACHE,
        "gpu": gpu._asdict() if isinstance(gpu, Gpu) else None,
        "no_gpu": None if isinstance(gpu, Gpu) else gpu,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts for a reader, one a line."""
    shown = {name: "not installed" if value is None else value for name, value in facts.items()}
    shown["cpu_features"] = " ".join(facts["cpu_features"]) or "unknown"
    gpu = facts["gpu"]
    shown["gpu"] = (
        f"none ({facts['no_gpu']})"
        if gpu is None
        else f"{gpu['name']}, compute capability {gpu['compute_capability']}, driver for CUDA {gpu['driver']}"
    )
    del shown["no_gpu"]
    width = max(map(len, shown))
    return [f"{name.replace('_', ' ') if name != 'numba_ctconv' else name:<{width}}  {shown[name]}" for name in shown]


def headline(facts: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("numba_ctconv", *PACKAGES) if facts[name])
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)} ({facts['threading_layer']})"
    return f"{facts['cpu']}, {threads}, vectors of {facts['vector_bits']} bits, Python {facts['python']}, {versions}"


def gpu_headline(facts: dict[str, Any]) -> str:
    """The GPU in one line."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("numba_ctconv", *PACKAGES) if facts[name])
    gpu = facts["gpu"] or {"name": "no GPU", "compute_capability": "-", "driver": "-"}
    driver = f"driver {facts.get('nvidia_driver') or 'unknown'} for CUDA {gpu['driver']}"
    return (
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {driver}, Python {facts['python']}, {versions}"
    )


HEADLINES = {"cpu": headline, "cuda": gpu_headline}


def version(package: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor as its maker calls it, as far as the system tells."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Which of FEATURES the code may use: NUMBA_CPU_FEATURES where that is set, else the host's."""
    if numba.config.CPU_FEATURES is not None:
        on = {feature[1:] for feature in numba.config.CPU_FEATURES.split(",") if feature.startswith("+")}
    else:
        try:
            on = {name for name, present in llvmlite.binding.get_host_cpu_features().items() if present}
        except RuntimeError:  # LLVM can't tell on this machine
            on = set()
        if not numba.config.ENABLE_AVX:
            on = {name for name in on if not name.startswith("avx")}
    return [name for name in FEATURES if name in on]


def run_a_kernel() -> None:
    """Start Numba's threads and have one kernel of the package compiled or loaded."""
    conv_transpose1d(np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32))


def threading_layer() -> str:
    """The layer that Numba's threads run on, which is known once they have started."""
    run_a_kernel()
    try:
        return str(numba.threading_layer())
    except ValueError:
        return "not started"
