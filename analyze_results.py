"""Make tables, figures and one report out of the logs of finished and of growing runs."""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.reporting.command_line import add_log_arguments, be_printable, check_left, folder, wanted_paths
from common.reporting.frame import Trials, is_accepted
from common.reporting.html.report import SECTIONS, report_page
from common.reporting.runs import Log, check_keep, find_logs
from common.reporting.tables import all_tables
from common.reporting.tables.table import TABLE_FORMATS, Table
from common.validation import check_choice

PICTURE_FORMATS = ("png", "pdf", "svg")
FORMATS = (*TABLE_FORMATS, *PICTURE_FORMATS, "html")
DEFAULT_FORMATS = tuple(kind for kind in FORMATS if kind != "svg")
ON_CONSOLE = ("summary", "budgets")
EXAMPLES = """\
examples:
  python analyze_results.py                              every run in logs/, into results/
  python analyze_results.py logs/resnet18.log            one run
  python analyze_results.py --method htd                 only what one decomposition reached
  python analyze_results.py --keep 0.95                  accept trials that kept 95% of the dense metric; 0 accepts all
  python analyze_results.py --since 2026-11-20           only what was logged since that day
  python analyze_results.py --format tex --format svg    LaTeX tables and SVG figures, nothing else
  python analyze_results.py logs more/logs --out paper   the runs of two folders, into paper/

Reads *.log, and *.json (made by jsonify_logs.py) where the log itself is not there.

exit codes:
  0  done        1  done, but --strict and a line was passed over        130  stopped by Ctrl-C
  2  nothing done, or not all of it; the last line says why
"""


def keep_fraction(text: str) -> float:
    """The value of ``--keep``.

    Raises:
        argparse.ArgumentTypeError: ``text`` is not a number in [0, 1].
    """
    try:
        return check_keep(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"keep={text} is not allowed; it must be a number in [0, 1]") from None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_log_arguments(parser)
    parser.add_argument("--out", type=folder, default=Path("results"), metavar="FOLDER", help="default: results")
    parser.add_argument(
        "--keep",
        type=keep_fraction,
        default=0.99,
        metavar="FRACTION",
        help="a trial is accepted when it kept this fraction of the dense metric, in [0, 1] (default: 0.99)",
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=FORMATS,
        help=f"may be repeated (default: {', '.join(DEFAULT_FORMATS)})",
    )
    return parser.parse_args(arguments)


def read(asked: argparse.Namespace) -> tuple[Trials, list[Log]]:
    """The trials that were asked for, and the logs that were read.

    Raises:
        OSError: a log is not there or cannot be read.
        ValueError: no trial is left; the sentence says what there is.
    """
    paths = wanted_paths(asked)
    logs = [Log(path) for path in find_logs(paths, (".log", ".json"))]
    trials = Trials.read(logs, by_name=asked.by_name)
    if trials.frame.empty:
        passed = "".join(f"{line}\n" for log in logs for line in log.sentences())
        raise ValueError(f"{passed}There is no trial in {', '.join(paths)}; run a notebook first.")
    for name in ("model", "method"):
        for wanted in getattr(asked, name) or ():
            check_choice(name, wanted, sorted(trials.frame[name].unique()))
    chosen = trials.only(model=asked.model, method=asked.method).since(asked.since)
    check_left(asked, len(chosen.frame))
    return chosen, logs


def lead(trials: Trials, keep: float) -> str:
    """One sentence on what is there, e.g. ``120 trials of 2 models: 110 ok, 10 failed; 70 kept ...``."""
    frame = trials.frame
    states = ", ".join(f"{number:,} {status}" for status, number in frame["status"].value_counts().items() if number)
    kept = f"{int(is_accepted(frame, keep).sum()):,} kept {keep * 100:g}% of the dense metric or more"
    runs, models = frame["run"].nunique(), frame["model"].nunique()
    return (
        f"{len(frame):,} trial{'s' * (len(frame) > 1)} of {models} model{'s' * (models > 1)} in {runs} "
        f"run{'s' * (runs > 1)} ({states}); {kept}."
    )


def show(tables: Sequence[Table]) -> None:
    """The tables that a person reads first, and what must be known to read them."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
    for table in tables:
        if table.name in ON_CONSOLE:
            print("", table.console(width), "", *table.notes, sep="\n")


def write(
    trials: Trials, logs: Sequence[Log], tables: Sequence[Table], asked: argparse.Namespace
) -> tuple[list[Path], list[str]]:
    """Every file that was asked for, and a sentence for each picture that could not be drawn.

    Raises:
        OSError: the folder cannot be written.
        ValueError: matplotlib cannot be loaded.
    """
    formats = asked.format or DEFAULT_FORMATS
    written = [path for table in tables for path in table.write(asked.out, formats)]
    pictures, failures = {}, []
    kinds = [kind for kind in PICTURE_FORMATS if kind in formats or (kind == "png" and "html" in formats)]
    for name, caption, contents in draw(trials, asked.keep, kinds) if kinds else ():
        if isinstance(contents, Exception):
            reason = (str(contents).splitlines() or [""])[0]
            failures.append(f"The picture {name} could not be drawn: {type(contents).__name__}: {reason}")
            pictures[name] = failures[-1], b""
            continue
        pictures[name] = caption, contents.get("png", b"")
        for kind in kinds:
            if kind in formats:
                written.append(asked.out / f"{name}.{kind}")
                written[-1].write_bytes(contents[kind])
    if "html" in formats:
        command = shlex.join(["python", *map(str, [Path(sys.argv[0]).name, *asked.given])])
        passed = [line for log in logs for line in log.sentences()]
        page = report_page(tables, pictures, lead(trials, asked.keep), command, passed)
        written.append(asked.out / "report.html")
        written[-1].write_bytes(page.encode(errors="backslashreplace"))
    return written, failures


def draw(trials: Trials, keep: float, kinds: Sequence[str]) -> Iterator[tuple[str, str, dict[str, bytes] | Exception]]:
    """Name, caption and content by kind of each picture; in place of the content what prevented it.

    Raises:
        ValueError: matplotlib cannot be loaded.
    """
    try:
        from common.reporting.figures.gallery import gallery  # a second that the tables and --help need not wait for
        from common.reporting.figures.style import render
    except ValueError as error:  # matplotlib reads its settings when it is imported
        where = "from MPLBACKEND or a file matplotlibrc"
        raise ValueError(f"matplotlib cannot be loaded with its settings {where}: {error}") from error
    for entry in gallery(trials, keep):
        try:
            figure = entry.draw()
            yield entry.name, entry.caption, {kind: render(figure, kind) for kind in kinds}
        except Exception as error:  # one picture that cannot be drawn must not cost the others
            yield entry.name, entry.caption, error


def left_behind(out: Path, written: Sequence[Path]) -> list[str]:
    """Names of tables and pictures in ``out`` that an analysis wrote before and this one did not write again."""
    kinds = {name for _, tables, pictures in SECTIONS for name in (*tables, *pictures)}
    suffixes = {path.suffix for path in written}
    return sorted(
        path.name
        for path in out.iterdir()
        if path.suffix in suffixes and path.stem.split("-")[0] in kinds and path not in written
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse the logs; the exit codes are those of ``--help``."""
    asked = parse(arguments)
    asked.given = sys.argv[1:] if arguments is None else arguments
    be_printable()
    try:
        trials, logs = read(asked)
        passed = [line for log in logs for line in log.sentences()]
        print("\n  ".join([lead(trials, asked.keep), *passed]))
        tables = all_tables(trials, asked.keep, asked.out)
        show(tables)
        asked.out.mkdir(parents=True, exist_ok=True)
        written, failures = write(trials, logs, tables, asked)
    except KeyboardInterrupt:
        print("stopped; not everything is written", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if left := left_behind(asked.out, written):
        print(f"\nfrom an earlier analysis, not of these trials: {', '.join(left)}")
    numbers = {kind: sum(path.suffix == f".{kind}" for path in written) for kind in FORMATS}
    kinds = ", ".join(f"{number} {kind}" for kind, number in numbers.items() if number)
    print(f"\nwrote {len(written)} files into {asked.out}: {kinds}")
    if written and written[-1].name == "report.html":
        print(f"open {written[-1]} for all of it in one page")
    if failures:
        print("", *failures, sep="\n", file=sys.stderr)
        return 2
    return 1 if passed and asked.strict else 0


if __name__ == "__main__":
    sys.exit(main())
