"""Command lines forked from one process that has everything imported: 20 of them start in the time of two.

Reads commands from stdin, one JSON array of folder and arguments a line, and runs each there, in a session of its own.
Prints its pid and, when it has ended, its exit code. Its fork server is forked, too; it is the real one otherwise.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import util
from pathlib import Path

from fusionbench import cli

spawn: Callable[[bytes, list[bytes], list[int]], int] = util.spawnv_passfds


def spawn_or_fork(path: bytes, arguments: list[bytes], passed: list[int]) -> int:
    """What multiprocessing starts; the fork server without importing torch again."""
    code = os.fsdecode(arguments[-1])
    if "forkserver" not in code:
        return spawn(path, arguments, passed)
    if pid := os.fork():
        return pid
    for file in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if file > 2 and file not in passed:
            with suppress(OSError):  # the one that listed the folder
                os.close(file)
    with suppress(SystemExit):
        exec(code, {})  # noqa: S102
    atexit._run_exitfuncs()
    os._exit(0)


def run(folder: str, arguments: list[str]) -> int:
    """Fork a command line; returns its pid."""
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["fusionbench", *arguments]
    code: int | str | None = 0
    try:
        cli.main()
    except SystemExit as leaving:
        code = leaving.code
    atexit._run_exitfuncs()
    os._exit(int(code or 0))


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    util.spawnv_passfds = spawn_or_fork  # type: ignore[assignment]
    importlib.import_module("fusionbench.engines.nursery")
    importlib.import_module("fusionbench.session")
    for line in sys.stdin:
        where, *command = json.loads(line)
        child = run(where, command)
        say(child)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
