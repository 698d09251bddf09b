"""Make the summary table and the figures of finished runs out of their logs."""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from common.choices import check_choice
from common.reporting import figures
from common.reporting.runs import Run, check_keep, load_runs
from common.reporting.tables import format_summary, summary_notes, summary_table
from common.trials import TrialRecord

EXAMPLES = """\
examples:
  python analyze_results.py                              every run in logs/, into results/
  python analyze_results.py logs/resnet18.log            one run
  python analyze_results.py --method htd                 only what one decomposition reached
  python analyze_results.py logs --keep 0.95             accept trials that kept 95% of the dense metric
  python analyze_results.py logs more/logs --out paper   the runs of two folders, into paper/

Reads *.log, and *.json (made by jsonify_logs.py) where the log itself is not there.
"""


def keep_fraction(text: str) -> float:
    """The value of ``--keep``.

    Raises:
        argparse.ArgumentTypeError: ``text`` is not a number in (0, 1].
    """
    try:
        return check_keep(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"keep={text} is not allowed; it must be a number in (0, 1]") from None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", default=["logs"], help="logs or folders of logs (default: logs)")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: results")
    parser.add_argument(
        "--keep",
        type=keep_fraction,
        default=0.99,
        metavar="FRACTION",
        help="a trial is accepted when it kept this fraction of the dense metric, in (0, 1] (default: 0.99)",
    )
    parser.add_argument("--model", help="only the trials of this model")
    parser.add_argument("--method", help="only the trials of this decomposition, e.g. htd")
    return parser.parse_args(arguments)


def markdown(formatted: pd.DataFrame, notes: Sequence[str], keep: float) -> str:
    """The summary as a Markdown page; a ``|`` inside a name would end its cell and is escaped."""
    cells = formatted.map(lambda text: text.replace("|", "\\|"))
    table = tabulate(list(cells.to_numpy()), list(cells.columns), tablefmt="github", disable_numparse=True)
    rule = f"A trial is accepted when it kept at least {keep * 100:g}% of the dense metric on validation."
    listed = "".join(f"- {note}\n" for note in notes)
    return f"# Summary\n\n{rule} `(val)`: measured on validation, not on test.\n\n{table}\n" + (
        listed and f"\n{listed}"
    )


def describe(run: Run) -> str:
    """One line on what a run holds, and one for each line of its log that was skipped."""
    counts = Counter(record.status for record in run.trials)
    states = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    return "\n  ".join([f"{run.path}: {len(run.trials)} trials ({states or 'none'})", *run.skipped])


def write_results(records: Sequence[TrialRecord], keep: float, out: Path) -> list[Path]:
    """Print the summary, write it and the figures into ``out``, and return the files.

    Raises:
        OSError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    summary, notes = summary_table(records, keep), summary_notes(records, keep)
    formatted = format_summary(summary)
    print(tabulate(list(formatted.to_numpy()), list(formatted.columns), disable_numparse=True))
    print("".join(f"\n{note}" for note in notes))
    table, page = out / "summary.csv", out / "summary.md"
    summary.to_csv(table, index=False, lineterminator="\n")
    page.write_text(markdown(formatted, notes, keep), encoding="utf-8", newline="\n")
    radar = figures.save_figure(figures.radar(records, keep), out / "radar")
    pareto = figures.save_figure(figures.pareto(records), out / "pareto")
    return [table, page, *radar, *pareto]


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse the logs; 2 when they hold no trial or nothing can be written, else 0."""
    options = parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show must not end the run
    try:
        runs = load_runs(options.paths)
        print("\n".join(map(describe, runs)), end="\n\n")
        records = [record for run in runs for record in run.trials]
        if not records:
            raise ValueError(f"There is no trial in {', '.join(map(str, options.paths))}; run a notebook first.")
        for name in ("model", "method"):
            if wanted := getattr(options, name):
                check_choice(name, wanted, sorted({getattr(record, name) for record in records}))
                records = [record for record in records if getattr(record, name) == wanted]
        written = write_results(records, options.keep, options.out)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(f"wrote {path}" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
