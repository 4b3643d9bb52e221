"""What the CPU engine has to know of forks. Imported with the package, so that none that comes after goes unnoticed.

The engine itself is imported at its first use: defining its kernels takes longer than importing all the rest.
"""

import os
import threading

import numba

# Held while kernels are defined or compile. A fork waits for it: a child in the middle of another thread's import or
# compilation could never import, compile or load anything.
compiling = threading.RLock()


class Fork:
    """Whether this process is a fork that Numba's threads did not survive."""

    def __init__(self) -> None:
        self.threads_lost = False
        self._from_main_thread = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_parent=compiling.release, after_in_child=self._in_child)

    def _before(self) -> None:
        compiling.acquire()
        self._from_main_thread = threading.current_thread() is threading.main_thread()

    def _in_child(self) -> None:
        """GNU's OpenMP can't be used in a child, where Numba ends the process; TBB only where the main thread forked.

        "workqueue" starts its threads anew, and so does a child of a process whose threads had not started.
        """
        compiling.release()
        try:
            layer = numba.threading_layer()
        except ValueError:
            return
        if layer == "omp" or (layer == "tbb" and not self._from_main_thread):
            self.threads_lost = True


fork = Fork()
