"""Run a function in a process of its own, with limits on its memory and time."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.forked import PROCESSES

Outcome = tuple[str, str]
"""The name of the exception's class (empty without one), and its message or the result as text."""


def limited(function: Callable[..., Any], *arguments: Any, extra_bytes: int = 2**30, seconds: float = 60.0) -> Outcome:
    """Call ``function`` in another process that gets ``extra_bytes`` of memory beyond what it has at its start.

    A function that needs more raises a MemoryError, or torch's RuntimeError; one that hangs makes the test fail.
    """
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_call, args=(theirs, extra_bytes, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(seconds), f"{function.__name__} hangs"
        outcome: Outcome = ours.recv()
    finally:
        process.kill()
        process.join()
    return outcome


def limit_memory(extra_bytes: int) -> None:
    """Let this process have this much more memory than it has now."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - read at once, without other objects
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + extra_bytes, now + extra_bytes))


def _call(answer: Connection, extra_bytes: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    limit_memory(extra_bytes)
    warnings.simplefilter("error")
    try:
        answer.send(("", str(function(*arguments))))
    except Exception as error:  # the test looks at it
        answer.send((type(error).__name__, str(error)))
