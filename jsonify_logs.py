"""Turn the logs of runs into JSON files: logs/*.log -> logs/*.json."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.reporting.runs import find_logs
from common.trials import SCHEMA_VERSION, Skipped, TrialRecord, read_log

EXAMPLES = """\
examples:
  python jsonify_logs.py                            every log in logs/, the JSON beside it
  python jsonify_logs.py logs/resnet18.log          one log
  python jsonify_logs.py logs more/logs --out json  two folders of logs, the JSON files into json/

Each JSON file holds the trials in their latest version, by number, and the lines that held no usable trial. The
logs are only read, so this can run while they grow, and again at any time.
"""


def to_document(run: str, trials: Sequence[TrialRecord], skipped: Sequence[Skipped]) -> dict[str, Any]:
    """What the JSON file of one log holds; numbers that are not finite are null, so that any JSON reader takes it."""
    return {
        "schema": SCHEMA_VERSION,
        "run": run,
        "trials": [json.loads(record.to_json()) for record in trials],
        "skipped": [{"line": entry.line, "reason": entry.reason} for entry in skipped],
    }


def write_atomically(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` as JSON so that a reader sees the old file or the new one, never a part of it.

    Raises:
        OSError: the folder cannot be written.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # A lone surrogate (from an undecodable file name) has no UTF-8 form; its escape is valid JSON.
        part.write_bytes(text.encode(errors="backslashreplace"))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def plan_outputs(logs: Sequence[Path], out: Path | None) -> dict[Path, Path]:
    """The JSON file of each log.

    Raises:
        ValueError: two logs of one name would become the same file.
    """
    targets: dict[Path, Path] = {}
    for log in logs:
        target = (out or log.parent) / f"{log.stem}.json"
        if target in targets.values():
            other = next(source for source, taken in targets.items() if taken == target)
            raise ValueError(f"{other} and {log} would both become {target}; convert them into different folders.")
        targets[log] = target
    return targets


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", default=["logs"], help="logs or folders of logs (default: logs)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the JSON goes (default: beside each log)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert the logs; 2 when there is nothing to convert or nowhere to write, else 0."""
    options = parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show must not end the run
    try:
        for log, target in plan_outputs(find_logs(options.paths), options.out).items():
            trials, skipped = read_log(log)
            write_atomically(target, to_document(log.stem, trials, skipped))
            print(f"{log} -> {target}: {len(trials)} trials, {len(skipped)} lines skipped")
            for entry in skipped:
                print(f"  {entry}")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
