"""What both scripts ask for on the command line."""

from __future__ import annotations

import argparse
import io
import sys
from datetime import datetime
from pathlib import Path


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose logs and trials: ``paths``, ``logs``, ``model``, ``method``, ``since`` and the rest."""
    parser.add_argument("paths", nargs="*", metavar="LOG", help="logs or folders of logs (default: logs)")
    parser.add_argument("--logs", action="append", default=[], metavar="LOG", help="the same, may be repeated")
    parser.add_argument("--model", action="append", help="only the trials of this model; may be repeated")
    parser.add_argument("--method", action="append", help="only those of this method, e.g. htd; may be repeated")
    parser.add_argument(
        "--since",
        type=moment,
        default=0,
        metavar="TIME",
        help="only those logged since, e.g. 2026-11-20 or 2026-11-20T16:00",
    )
    parser.add_argument(
        "--by-name", action="store_true", help="<run>-w2.log is a worker of <run>, though its trials name no study"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a line was passed over")


def moment(text: str) -> int:
    """A date, or a date and a time, as the number YYYYMMDDhhmmss.

    Raises:
        argparse.ArgumentTypeError: ``text`` is neither.
    """
    try:
        return int(datetime.fromisoformat(text).strftime("%Y%m%d%H%M%S"))
    except ValueError:
        allowed = "it must be a date, or a date and a time, e.g. 2026-11-20 or 2026-11-20T16:00"
        raise argparse.ArgumentTypeError(f"since={text} is not allowed; {allowed}") from None


def wanted_paths(asked: argparse.Namespace) -> list[str]:
    """The logs and folders that were named, else the folder ``logs``."""
    return [*asked.paths, *asked.logs] or ["logs"]


def check_left(asked: argparse.Namespace, left: object) -> None:
    """Raise unless something is left of what the options choose.

    Raises:
        ValueError: nothing is ``left``; the sentence names the options that were given.
    """
    given = [f"--{name}" for name in ("model", "method", "since") if getattr(asked, name)]
    if given and not left:
        what = "it" if len(given) == 1 else "one of them"
        raise ValueError(f"No trial is left with {' and '.join(given)} as given; leave {what} out.")


def be_printable() -> None:
    """Write the escape of a character that this terminal cannot show, instead of ending the run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def folder(text: str) -> Path:
    """A path to write into.

    Raises:
        argparse.ArgumentTypeError: there is a file of that name.
    """
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"out={text} is not allowed; it must be a folder, and there is a file")
    return path
