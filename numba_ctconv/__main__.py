"""Lets `python -m numba_ctconv` do what `numba-ctconv` does."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
