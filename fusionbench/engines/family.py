"""A worker's process and those that its strategy starts: they end together, with the run at the latest."""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def enter() -> None:
    """The first step of a worker: a process group of its own, which dies with the fork server.

    When memory runs out the kernel takes the worker, and not the runner or somebody's browser.
    """
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    _let_the_server_end()
    die_with_parent()  # the fork server
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def end(pid: int) -> None:
    """Kill what is left of the process group of the worker ``pid``, which may have ended itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def end_all() -> None:
    """Kill the groups of all processes forked from this one, the fork server: the runner is gone.

    The kernel kills the workers by itself (see enter), but not what they have started.
    """
    me, mine = os.getpid(), Path("/proc/self/cmdline").read_bytes()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == me and (stat.parent / "cmdline").read_bytes() == mine:  # forked: it runs no other program
                end(int(stat.parent.name))


def oom_kills() -> int:
    """How many processes the kernel has killed since it was started because memory ran out; 0 where nobody says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _let_the_server_end() -> None:
    """Close this worker's copy of the pipe by which the fork server knows that the runner lives.

    multiprocessing hands one to every worker: with it a hanging job would keep the server, and the server the job.
    """
    server: Any = forkserver._forkserver
    alive, server._forkserver_alive_fd = server._forkserver_alive_fd, None
    if alive is not None:
        os.close(alive)


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when its parent ends; if ``parent``, or whoever it was, is gone, end now."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1 if parent is None else os.getppid() != parent:
        os._exit(1)
