"""The command-line arguments that both scripts share."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from unicodedata import category


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select logs and trials: ``paths``, ``logs``, ``model``, ``method``, ``since`` etc."""
    parser.add_argument("paths", nargs="*", metavar="LOG", help="logs or folders of logs (default: logs)")
    parser.add_argument("--logs", action="append", default=[], metavar="LOG", help="the same, may be repeated")
    parser.add_argument("--model", action="append", help="only the trials of this model; may be repeated")
    parser.add_argument("--method", action="append", help="only the trials of this method, e.g. htd; may be repeated")
    parser.add_argument(
        "--since",
        type=moment,
        default=0,
        metavar="TIME",
        help="only the trials logged since this time, e.g. 2026-11-20 or 2026-11-20T16:00",
    )
    parser.add_argument(
        "--by-name",
        action="store_true",
        help="take <run>-w2.log for the log of a worker of <run>, although its trials name no study",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a line was skipped")


def moment(text: str) -> int:
    """Return a date, or a date and a time, as the number YYYYMMDDhhmmss in this machine's time.

    Raises:
        argparse.ArgumentTypeError: ``text`` is neither.
    """
    try:
        found = datetime.fromisoformat(text)
        local = found if found.tzinfo is None else found.astimezone()
        return int(local.strftime("%Y%m%d%H%M%S"))
    except (ValueError, OverflowError):
        allowed = "it must be a date, or a date and a time, e.g. 2026-11-20 or 2026-11-20T16:00"
        raise argparse.ArgumentTypeError(f"since={text} is not allowed; {allowed}") from None


def wanted_paths(options: argparse.Namespace) -> list[str]:
    """Return the logs and folders that were named, or the folder ``logs`` if none was."""
    return [*options.paths, *options.logs] or ["logs"]


def check_left(options: argparse.Namespace, left: object) -> None:
    """Raise if the options select no trial.

    Raises:
        ValueError: ``left`` is empty or 0. The message names the options that were given.
    """
    given = [f"--{name}" for name in ("model", "method", "since") if getattr(options, name)]
    if given and not left:
        what = "it" if len(given) == 1 else "one of them"
        raise ValueError(f"No trial matches {' and '.join(given)} as given; leave {what} out.")


class _Visible:
    """A stream that escapes control characters, with which a stranger's log could command the terminal."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.reconfigure(errors="backslashreplace")
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(visible(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def visible(text: str) -> str:
    r"""Escape every character that is no part of a text for people, such as ``\x1b``. Line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character in "\n\t" or category(character)[0] != "C"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def be_printable() -> None:
    """Make ``print`` escape control characters, and characters that this terminal cannot show."""
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            setattr(sys, name, _Visible(stream))


def exit_code(run: Callable[[], int]) -> int:
    """Call ``run`` and return its exit code; print the error and return 2 if it fails, or 130 after Ctrl-C."""
    try:
        return run()
    except KeyboardInterrupt:
        print("stopped; some files may not have been written", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def folder(text: str) -> Path:
    """Return the path of a folder to write into.

    Raises:
        argparse.ArgumentTypeError: there is a file with that name.
    """
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"out={text} is not allowed; it must be a folder, but it is a file")
    return path
