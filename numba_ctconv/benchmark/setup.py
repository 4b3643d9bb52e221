"""What the commands ask of a device before they measure there; on_cpu and on_gpu answer."""

import argparse
import contextlib
from typing import Any, NamedTuple, Protocol

from .contestants import Contestant
from .measure import Target
from .progress import Progress
from .report import Column
from .selection import Jobs

NO_PEER = "none"


class OptionError(Exception):
    """Options that can't be met; the text says why."""


class Setup(NamedTuple):
    """All that a run has on its device."""

    facts: dict[str, Any]  # of the machine
    settings: dict[str, Any]  # of the run, beside those of every device
    contestants: list[Contestant]
    target: Target
    columns: list[Column]
    meaning: str


class Bench(Protocol):
    """A device's part of the command: on_cpu or on_gpu."""

    def jobs_of(self, options: argparse.Namespace) -> Jobs:
        """How jobs are made of rows; refuses options that the device has no use for."""

    def opened(self, options: argparse.Namespace, progress: Progress) -> contextlib.AbstractContextManager[Setup]:
        """All that a run has there, until it ends."""
