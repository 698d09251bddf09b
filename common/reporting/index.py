"""The positions of the trials in large logs, for copying them in order without holding them in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import BinaryIO

from common.reporting.runs import Log
from common.reporting.store import ColumnStore
from common.reporting.workers import Versions
from common.trials import TrialRecord


class Index:
    """The position of the latest version of each trial, in a few bytes for each.

    Args:
        logs: the logs that `fill` reads.
    """

    def __init__(self, logs: list[Log]) -> None:
        self.logs = logs
        self._places = ColumnStore({"file": "i", "offset": "q", "size": "q", "number": "q", "time": "q"})

    def __len__(self) -> int:
        return len(self._places)

    def fill(self, wanted: Callable[[TrialRecord, int], bool], by_name: bool = False) -> None:
        """Read the logs once and index the trials for which ``wanted(record, time)`` is true.

        Raises:
            OSError: a log cannot be read.
        """
        versions = Versions(by_name)
        for file, log in enumerate(self.logs):
            for record, time, offset, size in log.entries():
                row = versions.place(record, log.path) if wanted(record, time) else None
                if row is not None:
                    self._places.put(row, (file, offset, size, record.trial, time))

    def trials(self) -> Iterator[bytes]:
        """The JSON of each trial in the order of the trials' numbers, starting with the time at which it was logged.

        Raises:
            OSError: a log cannot be read.
            ValueError: a log has changed since it was indexed.
        """
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(log.path.open("rb")) for log in self.logs]
            places = self._places
            for row in sorted(range(len(places)), key=places["number"].__getitem__):
                file, size, time = files[places["file"][row]], places["size"][row], places["time"][row]
                file.seek(places["offset"][row])
                text = file.read(size)
                if b"NaN" in text or b"Infinity" in text:  # JSON has no such numbers
                    text = TrialRecord.from_line(text).to_line().encode(errors="backslashreplace")
                if len(text) < size or text[:1] != b"{":
                    raise ValueError(f"The log {file.name} has changed since it was read; run this again.")
                yield (_time(time) + text[1:]) if time else text


def _time(number: int) -> bytes:
    digits = f"{number:014}"
    date, clock = (digits[:4], digits[4:6], digits[6:8]), (digits[8:10], digits[10:12], digits[12:])
    return f'{{"time": "{"-".join(date)} {":".join(clock)}", '.encode()
