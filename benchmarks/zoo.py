r"""Run networks from other libraries through every step (plan, compress, train, save, load, export) and check each.

    python -m benchmarks.zoo                                   # networks that results/zoo.jsonl does not hold yet
    python -m benchmarks.zoo --only 'timm/*nfnet*' --again

Each network runs in a separate process, with limits on time and memory, and adds a line to the file. The outcomes:

    right            every check passes: full rank reproduces the dense outputs, plans keep to their budgets, a loaded
                     network gives the outputs of the saved one, and so on
    untouched        the same, but the network has no layer that can be factored
    clearly refused  the suite refuses the network with an error message of its own
    WRONG            anything else; the exit code is then 1
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.zoo_examination import Record, examine
from benchmarks.zoo_networks import NETWORKS

ROOT = Path(__file__).resolve().parent.parent


def run_isolated(command: list[str], seconds: float) -> Record:
    """Run ``command`` in a process and return the record in its last line of output, or a record of the failure."""
    started = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, cwd=ROOT)
        record: Record = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
        problem = f"exit code {done.returncode}; {(done.stderr.strip().splitlines() or [''])[-1]}"
    except subprocess.TimeoutExpired:
        record, problem = {}, f"took more than {seconds:.0f} s"
    except (IndexError, ValueError):
        record, problem = {}, "printed no record"
    failed = {"outcome": "WRONG", "seconds": time.perf_counter() - started, "steps": {"process": f"WRONG: {problem}"}}
    return record or failed


def read(path: Path) -> dict[str, Record]:
    """Return the last record of each network in the file, by name."""
    lines = path.read_text().splitlines() if path.is_file() else []
    whole = [line for line in lines if line.endswith("}")]  # the last line may be incomplete
    return {record["network"]: record for record in map(json.loads, whole)}


def table(records: Mapping[str, Record]) -> str:
    """Format one row for each network, and the counts of the outcomes."""
    rows = []
    for name, record in records.items():
        steps = record["steps"]
        said = [f"{step}: {text}" for step, text in steps.items() if text.startswith(("WRONG", "refused", "not run"))]
        kept = [record.get(f"kept {method}") for method in ("svd", "mixed")]
        export = steps.get("export", "").split(":")[0]
        numbers = [record.get("share"), *kept, record.get("error")]
        shown = (said or [""])[0].replace("|", "/").replace("\n", " ")[:160]
        rows.append([name, record["outcome"], *numbers, export, record["seconds"], shown])
    heads = ["network", "outcome", "can be factored", "kept by svd", "by mixed", "largest error", "ONNX", "s", "why"]
    outcomes = [record["outcome"] for record in records.values()]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(sorted(outcomes)))
    formats = ("", "", ".1%", ".1%", ".1%", ".0e", "", ".0f", "")
    return f"{tabulate(rows, heads, 'pipe', floatfmt=formats)}\n\n{len(rows)} networks: {counts}"


def main(arguments: list[str] | None = None) -> int:
    """Examine the selected networks and print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="pattern of network names, e.g. 'timm/*'")
    parser.add_argument(
        "--file", type=Path, default=ROOT / "results" / "zoo.jsonl", help="file of records, one line for each network"
    )
    parser.add_argument("--again", action="store_true", help="also examine networks that the file already holds")
    parser.add_argument("--seconds", type=float, default=1200, help="time limit for one network; default: 1200")
    parser.add_argument("--gib", type=float, default=12, help="memory limit for one network; default: 12")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # run a single network in this process
    options = parser.parse_args(arguments)
    if options.one:
        resource.setrlimit(resource.RLIMIT_AS, (int(options.gib * 2**30),) * 2)
        torch.set_num_threads(1)
        print(json.dumps(examine(NETWORKS[options.one])))
        return 0
    names = fnmatch.filter(NETWORKS, options.only)
    done = read(options.file)
    for name in names:
        if options.again or name not in done:
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "benchmarks.zoo",
                "--one",
                name,
                "--gib",
                str(options.gib),
            ]
            record = {"network": name, **run_isolated(command, options.seconds)}
            with options.file.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{record['outcome']:16}{record['seconds']:6.0f} s  {name}", file=sys.stderr, flush=True)
    found = {name: record for name, record in read(options.file).items() if name in names}
    print(table(found))
    return int(any(record["outcome"] == "WRONG" for record in found.values()))


if __name__ == "__main__":
    sys.exit(main())
