"""Says on stderr what is going on: a line that overwrites itself on a terminal, plain lines elsewhere.

Used by the commands. Tables and verdicts go to stdout, so that they can be redirected alone.
"""

import shutil
import sys
import time
from typing import TextIO


class Progress:
    """Reports of progress, thinned out so that nothing is drowned."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to `stream`, stderr by default."""
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._interval = 0.1 if self._terminal else 2.0
        self._last = time.monotonic()
        self._shown = False

    def announce(self, text: str) -> None:
        """Say at once what is about to take long."""
        self._last = time.monotonic()
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{text[:width]}")
            self._shown = True
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def update(self, text: str) -> None:
        """Say it if the last report is some time ago."""
        if time.monotonic() - self._last >= self._interval:
            self.announce(text)

    def clear(self) -> None:
        """Take the overwritten line away, before something else is printed."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
