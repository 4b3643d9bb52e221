"""The layers of published models that stand in workloads.jsonl: what warmup prepares for and the benchmark measures."""

import functools
import importlib.resources
import json
from typing import Any


@functools.cache
def layers() -> tuple[dict[str, Any], ...]:
    """The rows of the file: a layer each, with the batch and length of training and inference."""
    text = importlib.resources.files(__package__).joinpath("workloads.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())
