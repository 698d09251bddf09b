"""Make tables, figures and a report from the logs of finished and running searches."""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from common.files import write_whole
from common.reporting.command_line import add_log_arguments, be_printable, check_left, exit_code, folder, wanted_paths
from common.reporting.frame import Trials, is_accepted
from common.reporting.html.report import SECTIONS, report_page
from common.reporting.reference import Reference
from common.reporting.runs import Log, check_keep, find_logs, opened_logs
from common.reporting.tables import all_tables
from common.reporting.tables.table import TABLE_FORMATS, Table, csv_text
from common.reporting.tables.trials import trials_frame
from common.validation import check_choice

PICTURE_FORMATS = ("png", "pdf", "svg")
FORMATS = (*TABLE_FORMATS, *PICTURE_FORMATS, "html")
DEFAULT_FORMATS = tuple(kind for kind in FORMATS if kind != "svg")
ON_CONSOLE = ("summary", "budgets")
EXAMPLES = """\
examples:
  python analyze_results.py                              every run in logs/, into results/
  python analyze_results.py logs/resnet18.log            one run
  python analyze_results.py --method htd                 only the trials of one method
  python analyze_results.py --keep 0.95                  accept trials that kept 95% of the dense metric; 0 accepts all
  python analyze_results.py --since 2026-11-20           only the trials logged since that day
  python analyze_results.py --format tex --format svg    LaTeX tables and SVG figures, nothing else
  python analyze_results.py --caption '{title}' --label 'tab:{name}'   LaTeX tables with captions and labels
  python analyze_results.py logs more/logs --out paper   the runs of two folders, into paper/
  python analyze_results.py --reference FILE             networks of another work in the Pareto and radar pictures

Reads *.log, and *.json (made by jsonify_logs.py) if the log itself is missing.

exit codes:
  0  done        1  done, but a line was skipped (with --strict only)        130  stopped by Ctrl-C
  2  failed, wholly or in part; the last line says why
"""


def keep_fraction(text: str) -> float:
    """Return the value of ``--keep``.

    Raises:
        argparse.ArgumentTypeError: ``text`` is not a number in [0, 1].
    """
    try:
        return check_keep(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"keep={text} is not allowed; it must be a number in [0, 1]") from None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
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
        help="a trial is accepted if it kept this fraction of the dense metric, in [0, 1] (default: 0.99)",
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=FORMATS,
        help=f"may be repeated (default: {', '.join(DEFAULT_FORMATS)})",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="networks of another work, for the Pareto and radar pictures (JSON lines, see docs/reports.md)",
    )
    what = "in LaTeX tables; {title} and {name} become those of the table"
    parser.add_argument("--caption", default="", metavar="TEXT", help=f"caption {what}, e.g. '{{title}}, CIFAR-10'")
    parser.add_argument("--label", default="", metavar="TEXT", help=f"label {what}, e.g. 'tab:{{name}}'")
    return parser.parse_args(arguments)


def read(options: argparse.Namespace) -> tuple[Trials, list[Log]]:
    """Return the trials that the options select, and the logs that were read.

    Raises:
        OSError: a log is missing or cannot be read.
        ValueError: no trial is selected, or the reference has none of their models. The message states why.
    """
    reference = Reference.read(options.reference) if options.reference else None
    paths = wanted_paths(options)
    logs = opened_logs(find_logs(paths, (".log", ".json")))
    trials = Trials.read(logs, by_name=options.by_name)
    if trials.frame.empty:
        skipped = "".join(f"{line}\n" for log in logs for line in log.sentences())
        raise ValueError(f"{skipped}There is no trial in {', '.join(paths)}; run a notebook first.")
    for name in ("model", "method"):
        for wanted in getattr(options, name) or ():
            check_choice(name, wanted, sorted(trials.frame[name].unique()))
    chosen = trials.only(model=options.model, method=options.method).since(options.since)
    check_left(options, len(chosen.frame))
    return chosen.beside(reference) if reference else chosen, logs


def lead(trials: Trials, keep: float) -> str:
    """Describe the trials in a sentence, e.g. ``120 trials of 2 models in 3 runs (110 ok, ...); 70 kept ...``."""
    frame = trials.frame
    states = ", ".join(f"{number:,} {status}" for status, number in frame["status"].value_counts().items() if number)
    kept = f"{int(is_accepted(frame, keep).sum()):,} kept {keep * 100:g}% of the dense metric or more"
    runs, models = frame["run"].nunique(), frame["model"].nunique()
    return (
        f"{len(frame):,} trial{'s' * (len(frame) > 1)} of {models} model{'s' * (models > 1)} in {runs} "
        f"run{'s' * (runs > 1)} ({states}); {kept}."
    )


def show(tables: Sequence[Table]) -> None:
    """Print the tables that a person reads first, with their notes."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
    for table in tables:
        if table.name in ON_CONSOLE:
            print("", table.title, "", table.console(width), "", *table.notes, sep="\n")


def write(
    trials: Trials, logs: Sequence[Log], tables: Sequence[Table], options: argparse.Namespace
) -> tuple[list[Path], list[str]]:
    """Write the files, and return their paths and a sentence for each picture that could not be drawn.

    Raises:
        OSError: the folder cannot be written.
        ValueError: matplotlib cannot be loaded.
    """
    formats = options.format or DEFAULT_FORMATS
    written = [path for table in tables for path in table.write(options.out, formats, options.caption, options.label)]
    if "csv" in formats:
        written.append(options.out / "trials.csv")
        every = csv_text(trials_frame(trials, options.keep))
        write_whole(written[-1], every.encode(errors="backslashreplace"))
    pictures, failures = {}, []
    kinds = [kind for kind in PICTURE_FORMATS if kind in formats or (kind == "png" and "html" in formats)]
    for name, caption, contents in draw(trials, options.keep, kinds) if kinds else ():
        if isinstance(contents, Exception):
            reason = (str(contents).splitlines() or [""])[0]
            failures.append(f"The picture {name} could not be drawn: {type(contents).__name__}: {reason}")
            pictures[name] = failures[-1], b""
            continue
        pictures[name] = caption, contents.get("png", b"")
        for kind in kinds:
            if kind in formats:
                written.append(options.out / f"{name}.{kind}")
                write_whole(written[-1], contents[kind])
    if "html" in formats:
        command = shlex.join(["python", *map(str, [Path(sys.argv[0]).name, *options.given])])
        skipped = [line for log in logs for line in log.sentences()]
        page = report_page(trials, options.keep, tables, pictures, lead(trials, options.keep), command, skipped)
        written.append(options.out / "report.html")
        write_whole(written[-1], page.encode(errors="backslashreplace"))
    return written, failures


def draw(trials: Trials, keep: float, kinds: Sequence[str]) -> Iterator[tuple[str, str, dict[str, bytes] | Exception]]:
    """Draw each picture; yield its name, its caption and its content by format, or the error that prevented it.

    Raises:
        ValueError: matplotlib cannot be loaded.
    """
    try:
        from common.reporting.figures.gallery import gallery  # takes a second; the tables and --help do not need it
        from common.reporting.figures.style import render
    except ValueError as error:  # matplotlib reads its settings during import
        where = "from MPLBACKEND or a file matplotlibrc"
        raise ValueError(f"matplotlib cannot be loaded with its settings {where}: {error}") from error
    for entry in gallery(trials, keep):
        try:
            figure = entry.draw()
            yield entry.name, entry.caption, {kind: render(figure, kind) for kind in kinds}
        except Exception as error:  # the other pictures can still be drawn
            yield entry.name, entry.caption, error


def left_behind(out: Path, written: Sequence[Path]) -> list[str]:
    """Names of tables and pictures in ``out`` that an earlier analysis wrote and this one did not replace."""
    kinds = {name for _, tables, pictures in SECTIONS for name in (*tables, *pictures)}
    suffixes = {path.suffix for path in written}
    return sorted(
        path.name
        for path in out.iterdir()
        if path.suffix in suffixes and path.stem.split("-")[0] in kinds and path not in written
    )


def analyze(options: argparse.Namespace) -> int:
    """Analyse the logs and return the exit code, see ``--help``.

    Raises:
        OSError: a log cannot be read, or the folder cannot be written.
        ValueError: no trial is selected, or matplotlib cannot be loaded.
    """
    trials, logs = read(options)
    skipped = [line for log in logs for line in log.sentences()]
    print("\n  ".join([lead(trials, options.keep), *skipped]))
    tables = all_tables(trials, options.keep, options.out)
    show(tables)
    options.out.mkdir(parents=True, exist_ok=True)
    written, failures = write(trials, logs, tables, options)
    if left := left_behind(options.out, written):
        print(f"\nfrom an earlier analysis, not of these trials: {', '.join(left)}")
    numbers = {kind: sum(path.suffix == f".{kind}" for path in written) for kind in FORMATS}
    kinds = ", ".join(f"{number} {kind}" for kind, number in numbers.items() if number)
    print(f"\nwrote {len(written)} files into {options.out}: {kinds}")
    if written and written[-1].name == "report.html":
        print(f"open {written[-1]} to see everything on one page")
    if failures:
        print("", *failures, sep="\n", file=sys.stderr)
        return 2
    return 1 if skipped and options.strict else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse the logs and return the exit code, see ``--help``."""
    options = parse(arguments)
    options.given = sys.argv[1:] if arguments is None else arguments
    be_printable()
    return exit_code(partial(analyze, options))


if __name__ == "__main__":
    sys.exit(main())
