"""Turn the logs of runs into JSON files, the logs of one study's workers into one."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.files import replacing
from common.reporting.command_line import add_log_arguments, be_printable, check_left, folder, wanted_paths
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
  python jsonify_logs.py --format jsonl             one trial a line and nothing else
  python jsonify_logs.py --method htd --since 2026-11-20

Each file holds the trials in their latest version, by number, and says which lines held no usable trial. The logs are
only read, so this can run while they grow, and again at any time. The workers of one study become one file, named
after the study; a log of any size needs about 150 bytes of memory for each of its trials.

exit codes:
  0  done        1  done, but --strict and a line was passed over        130  stopped by Ctrl-C
  2  nothing done, or not all of it; the last line says why
"""


def write_atomically(path: Path, run: str, index: Index, kind: str) -> None:
    """Write the trials so that a reader sees the old file or the new one, never a part of it.

    Raises:
        OSError: the folder cannot be written, or a log not be read.
        ValueError: a log was changed since it was indexed.
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
    """The study of each log that has one: the one that its first trial names.

    Without a trial yet, a log goes with the study whose name it bears. ``by_name`` as in `plan_outputs`.

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
    """The file that each log becomes: one for all logs of a study.

    A study whose name two folders hold the same log of is one study in each folder.

    Args:
        logs: the logs.
        out: folder of the files; None is that of a study's first log.
        kind: their suffix, without the dot.
        by_name: whether ``<run>-w2.log`` goes with ``<run>.log`` though its trials name no study.

    Raises:
        OSError: a log cannot be read.
        ValueError: two runs of one name would become the same file.
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
        name = re.sub(r'[/\\:*?"<>|\0]', "_", study).strip(".") or "study"  # which no file can have in its name
        folder = out or first_folder.setdefault(owner, log.parent)
        target = folder / f"{name if study else log.stem}.{kind}"
        if owners.setdefault(target, owner) != owner:
            other = targets[target][0]
            raise ValueError(f"{other} and {log} would both become {target}; convert them into different folders.")
        targets.setdefault(target, []).append(log)
    return targets


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_log_arguments(parser)
    parser.add_argument(
        "--out", type=folder, metavar="FOLDER", help="where the files go (default: beside a study's first log)"
    )
    parser.add_argument("--format", choices=("json", "jsonl"), default="json", help="default: json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert the logs; the exit codes are those of ``--help``."""
    asked = parse(arguments)
    be_printable()
    seen: dict[str, set[str]] = {"model": set(), "method": set()}

    def wanted(record: TrialRecord, time: int) -> bool:
        found = {"model": record.model, "method": method_name(record)}
        for name, value in found.items():
            seen[name].add(value)
        return time >= asked.since and all(value in (getattr(asked, n) or [value]) for n, value in found.items())

    passed = written = 0
    try:
        logs = find_logs(wanted_paths(asked))
        for target, paths in plan_outputs(logs, asked.out, asked.format, asked.by_name).items():
            index = Index([Log(path) for path in paths])
            index.fill(wanted, asked.by_name)
            if not len(index) and (asked.model or asked.method or asked.since):
                continue
            write_atomically(target, target.stem, index, asked.format)
            skipped = sum(log.skipped.total for log in index.logs)
            passed, written = passed + skipped, written + 1
            sources = ", ".join(map(str, paths))
            print(f"{sources} -> {target}: {len(index):,} trials, {skipped:,} lines skipped")
            print("".join(f"  {line}\n" for log in index.logs for line in log.sentences()), end="")
        for name, values in seen.items():
            for value in getattr(asked, name) or ():
                check_choice(name, value, sorted(values))
        check_left(asked, written)
    except KeyboardInterrupt:
        print("stopped; not everything is written", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if passed and asked.strict else 0


if __name__ == "__main__":
    sys.exit(main())
