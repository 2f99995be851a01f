"""What ties the engine process to its server: it must end when the server does, and tell where it stands when asked.

Three ties, because each has a gap: the end of standard input, which the server holds open; a look at the parent's id
for a server that is dead already; and the kernel's parent-death signal (prctl(2)), which leaves no time to tidy up and
is set when there is nothing to tidy any more.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import shutil
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""

_ORPHANED = 1


def tie_to_parent(server_pid: int) -> None:
    """Has the kernel end this process when its parent ends. Ends it at once when `server_pid` is its parent no more."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    end_orphan(server_pid)


def end_orphan(server_pid: int, directory: str = "") -> None:
    """Ends this process when `server_pid` is its parent no more, and `directory` with it."""
    if os.getppid() != server_pid:
        _end(directory)


def tie_to_pipe(descriptor: int, directory: str) -> None:
    """Ends this process when the pipe ends, and `directory` with it, which the server can no more.

    The main thread may be inside the device, so a thread watches.
    """
    # What this process starts must not hold the pipe or read from it.
    pipe = os.dup(descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, descriptor)
    os.close(null)
    threading.Thread(target=_end_with, args=(pipe, directory), name="lifeline", daemon=True).start()


def listen_to_signals() -> None:
    """SIGUSR1 writes the stacks of all threads to standard error; SIGINT is the server's business."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with(pipe: int, directory: str) -> None:
    while os.read(pipe, 4096):
        pass
    _end(directory)


def _end(directory: str) -> None:
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(_ORPHANED)
