"""Convert the logs of runs to JSON files. The logs of all workers of a study become one file."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.files import LONGEST_NAME, replacing
from common.reporting.command_line import add_log_arguments, be_printable, check_left, exit_code, folder, wanted_paths
from common.reporting.facts import method_name
from common.reporting.index import Index
from common.reporting.runs import Log, SkippedLines, find_logs
from common.trials import SCHEMA_VERSION, TrialRecord, iter_trials
from common.validation import check_choice

EXAMPLES = """\
examples:
  python jsonify_logs.py                            every log in logs/, the JSON beside it
  python jsonify_logs.py logs/resnet18.log          one log
  python jsonify_logs.py logs more/logs --out json  two folders of logs, the JSON files into json/
  python jsonify_logs.py --format jsonl             only the trials, one in each line
  python jsonify_logs.py --method htd --since 2026-11-20

Each file holds the latest version of every trial, by number, and lists the lines that held no usable trial. The logs
are only read, so this can run while they grow, and again at any time. The logs of a study's workers become one file
with the study's name. The memory needed is about 150 bytes for each trial.

exit codes:
  0  done        1  done, but a line was skipped (with --strict only)        130  stopped by Ctrl-C
  2  failed, wholly or in part; the last line says why
"""


def write_atomically(path: Path, run: str, index: Index, kind: str) -> None:
    """Write the trials so that a reader sees either the old file or the whole new one.

    Raises:
        OSError: the folder cannot be written, or a log cannot be read.
        ValueError: a log has changed since it was indexed.
    """
    skipped = [group for log in index.logs for group in log.skipped.by_reason()]
    logs = [log.path.name for log in index.logs]
    head = {"schema": SCHEMA_VERSION, "run": run, "logs": logs, "skipped": skipped}
    opening = json.dumps(head, ensure_ascii=False)[:-1] + ', "trials": [\n' if kind == "json" else ""
    between, closing = (b",\n", b"\n]}\n") if kind == "json" else (b"\n", b"\n" if len(index) else b"")
    with replacing(path) as part, part.open("wb") as file:
        # A lone surrogate (from an undecodable file name) has no UTF-8 form; its escape is valid JSON.
        file.write(opening.encode(errors="backslashreplace"))
        for place, trial in enumerate(index.trials()):
            file.write(between + trial if place else trial)
        file.write(closing)


def name_studies(logs: Sequence[Path], by_name: bool) -> dict[Path, str]:
    """Log -> study, for logs that belong to a study.

    The first trial names the study. A log without a trial belongs to the study with the log's name, if there is one.
    For ``by_name`` see `plan_outputs`.

    Raises:
        OSError: a log cannot be read.
    """
    studies: dict[Path, str] = {}
    empty = []
    for log in logs:
        first = next(iter_trials(log, SkippedLines()), None)
        study = first.details.study if first else ""
        if study := study or (re.sub(r"-w\d+$", "", log.stem) if by_name else ""):
            studies[log] = study
        elif first is None:
            empty.append(log)
    return studies | {log: log.stem for log in empty if log.stem in studies.values()}


def plan_outputs(logs: Sequence[Path], out: Path | None, kind: str, by_name: bool) -> dict[Path, list[Path]]:
    """File -> logs from which it is made: one file for all logs of a study.

    If two folders hold logs of the same name and study, each folder holds a different study of that name.

    Args:
        logs: the logs.
        out: folder of the files; None for the folder of a study's first log.
        kind: suffix of the files, without the dot.
        by_name: whether ``<run>-w2.log`` belongs to the study ``<run>`` although its trials name no study.

    Raises:
        OSError: a log cannot be read.
        ValueError: two runs with the same name would become the same file.
    """
    targets: dict[Path, list[Path]] = {}
    owners: dict[Path, tuple[str, Path | None]] = {}
    first_folder: dict[tuple[str, Path | None], Path] = {}
    studies = name_studies(logs, by_name)
    names = Counter((study, log.name) for log, study in studies.items())
    twice = {study for (study, _), count in names.items() if count > 1}
    for log in logs:
        study = studies.get(log, "")
        owner = (study, log.parent if study in twice else None) if study else ("", log)
        name = re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f]', "_", study).strip(".")  # file names cannot hold these characters
        name = name.encode(errors="ignore")[:LONGEST_NAME].decode(errors="ignore") or "study"
        folder = out or first_folder.setdefault(owner, log.parent)
        target = folder / f"{name if study else log.stem}.{kind}"
        if owners.setdefault(target, owner) != owner:
            other = targets[target][0]
            raise ValueError(f"{other} and {log} would both become {target}; convert them into different folders.")
        targets.setdefault(target, []).append(log)
    return targets


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_log_arguments(parser)
    parser.add_argument(
        "--out", type=folder, metavar="FOLDER", help="folder of the files (default: that of a study's first log)"
    )
    parser.add_argument("--format", choices=("json", "jsonl"), default="json", help="default: json")
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace) -> int:
    """Convert the logs and return the exit code, see ``--help``.

    Raises:
        OSError: a log cannot be read, or a folder cannot be written.
        ValueError: no trial is selected, two runs would become the same file, or a log changed meanwhile.
    """
    seen: dict[str, set[str]] = {"model": set(), "method": set()}

    def wanted(record: TrialRecord, time: int) -> bool:
        found = {"model": record.model, "method": method_name(record)}
        for name, value in found.items():
            seen[name].add(value)
        return time >= options.since and all(value in (getattr(options, n) or [value]) for n, value in found.items())

    all_skipped = written = 0
    logs = find_logs(wanted_paths(options))
    for target, paths in plan_outputs(logs, options.out, options.format, options.by_name).items():
        index = Index([Log(path) for path in paths])
        index.fill(wanted, options.by_name)
        if not len(index) and (options.model or options.method or options.since):
            continue
        write_atomically(target, target.stem, index, options.format)
        skipped = sum(log.skipped.total for log in index.logs)
        all_skipped, written = all_skipped + skipped, written + 1
        sources = ", ".join(map(str, paths))
        print(f"{sources} -> {target}: {len(index):,} trials, {skipped:,} lines skipped")
        print("".join(f"  {line}\n" for log in index.logs for line in log.sentences()), end="")
    for name, values in seen.items():
        for value in getattr(options, name) or ():
            check_choice(name, value, sorted(values))
    check_left(options, written)
    return 1 if all_skipped and options.strict else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert the logs and return the exit code, see ``--help``."""
    options = parse(arguments)
    be_printable()
    return exit_code(partial(convert, options))


if __name__ == "__main__":
    sys.exit(main())
