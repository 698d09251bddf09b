"""Hold Ctrl-C and SIGTERM back where they would do damage."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """A ``with`` block in which SIGINT and SIGTERM wait until :meth:`allowed`, :meth:`check` or the block's end.

    Optuna starts a thread that sends a trial's heartbeat. An exception between that start and the block that ends the
    thread would leave it running. The process could then not exit, and the trial would look alive forever.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._allowed = False
        self._held: int | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if error is None:
            self.check()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._allowed:
            self._handlers[number](number, frame)
        else:
            self._held = number

    def check(self) -> None:
        """Let a held-back signal take effect."""
        if self._held is not None:
            number, self._held = self._held, None
            self._handlers[number](number, None)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A ``with`` block in which signals take effect at once."""
        self._allowed = True
        try:
            self.check()
            yield
        finally:
            self._allowed = False
