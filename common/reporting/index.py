"""Where the trials of large logs stand, so that they can be copied in order without being held in memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import BinaryIO

from common.reporting.runs import Log
from common.reporting.workers import Versions
from common.trials import TrialRecord, parse_record


@dataclass
class Index:
    """Where the latest version of each trial stands, in a few bytes each: file, offset, size, number and time."""

    logs: list[Log]
    files: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    times: array[int] = field(default_factory=lambda: array("q"))

    def fill(self, wanted: Callable[[TrialRecord, int], bool], by_name: bool = False) -> None:
        """Go through the logs once, for the trials that are wanted by their record and the time of their line.

        Raises:
            OSError: a log cannot be read.
        """
        columns = (self.files, self.offsets, self.sizes, self.numbers, self.times)
        versions = Versions(by_name)
        for file, log in enumerate(self.logs):
            for record, time, offset, size in log.entries():
                row = versions.place(record, log.path) if wanted(record, time) else None
                if row is None:
                    continue
                for column, value in zip(columns, (file, offset, size, record.trial, time), strict=True):
                    if row == len(column):
                        column.append(value)
                    else:
                        column[row] = value

    def trials(self) -> Iterator[bytes]:
        """The JSON of each trial, by number, with the time at which it was logged in front.

        Raises:
            OSError: a log cannot be read.
            ValueError: a log was changed since it was indexed.
        """
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(log.path.open("rb")) for log in self.logs]
            for row in sorted(range(len(self.numbers)), key=self.numbers.__getitem__):
                file = files[self.files[row]]
                file.seek(self.offsets[row])
                text = file.read(self.sizes[row])
                if b"NaN" in text or b"Infinity" in text:  # JSON has no such numbers
                    text = parse_record(text).to_json().encode(errors="backslashreplace")
                if len(text) < self.sizes[row] or text[:1] != b"{":
                    raise ValueError(f"The log {file.name} was changed while it was read; run this again.")
                yield (_time(self.times[row]) + text[1:]) if self.times[row] else text


def _time(number: int) -> bytes:
    digits = f"{number:014}"
    date, clock = (digits[:4], digits[4:6], digits[6:8]), (digits[8:10], digits[10:12], digits[12:])
    return f'{{"time": "{"-".join(date)} {":".join(clock)}", '.encode()
