"""What ties the engine process to its server: it must end when the server does, and tell where it stands when asked.

Three ties, because each has a gap: the kernel's parent-death signal (prctl(2)), a look at the parent's id for a server
that died before that was set, and the end of standard input, which the server holds open.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
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
    if os.getppid() != server_pid:
        os._exit(_ORPHANED)


def tie_to_pipe(descriptor: int) -> None:
    """Ends this process when the pipe ends. The main thread may be inside the device, so a thread watches."""
    # What this process starts must not hold the pipe or read from it.
    pipe = os.dup(descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, descriptor)
    os.close(null)
    threading.Thread(target=_exit_at_end, args=(pipe,), name="lifeline", daemon=True).start()


def listen_to_signals() -> None:
    """SIGUSR1 writes the stacks of all threads to standard error; SIGINT is the server's business."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _exit_at_end(pipe: int) -> None:
    while os.read(pipe, 4096):
        pass
    os._exit(_ORPHANED)
