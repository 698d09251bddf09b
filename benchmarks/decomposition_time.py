"""CPU time and memory of planning and compression, in several checkouts of this repository in turn.

    git worktree add ../before b742b8a
    python benchmarks/decomposition_time.py ../before .

Each case runs in a process of its own on one thread. It plans torchvision's network, with random weights, under
``Budget(params=0.5)``, and compresses it: either by two separate calls, each of which decomposes the layers, or with
one ``Decompositions`` for both. Times are seconds of the processor, so other jobs on the machine change them less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

from common.progress import track

CASES = (("alexnet", "svd"), ("resnet50", "mixed"), ("vgg16_bn", "mixed"))
CHILD = """
import json, resource, sys, time
import torch
import common.torchvision_compat
from torchvision import models
from common.compression import compress
from common.planning import Budget, plan_ranks
from common.planning.decompositions import Decompositions

name, method, shared = sys.argv[1], sys.argv[2], sys.argv[3] == "shared"
torch.set_num_threads(1)
torch.manual_seed(0)
model, x = models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)
given = {"decompositions": Decompositions(model)} if shared else {}
times = [time.process_time()]
plan = plan_ranks(model, x, method, Budget(params=0.5), **given)
times.append(time.process_time())
compress(model, plan, **given)
times.append(time.process_time())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([times[1] - times[0], times[2] - times[1], peak]))
"""


def measured(checkout: Path, name: str, method: str, calls: str) -> tuple[float, float, float]:
    """Return the seconds to plan and to compress, and the peak memory in GiB."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", CHILD, name, method, calls]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{checkout}: {name} by {method} failed: {done.stderr.strip()[-1000:]}")
    plan, compress, peak = json.loads(done.stdout.splitlines()[-1])
    return plan, compress, peak


def main(arguments: list[str] | None = None) -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs="+", help="folders of checkouts; the first is the reference")
    parser.add_argument(
        "--case",
        nargs=2,
        action="append",
        metavar=("NETWORK", "METHOD"),
        help=f"may be repeated; default: {', '.join(' '.join(case) for case in CASES)}",
    )
    options = parser.parse_args(arguments)
    rows: list[list[object]] = []
    cases = [(*case, calls) for case in options.case or CASES for calls in ("separate", "shared")]
    for name, method, calls in track(cases, "measuring", unit="case"):
        reference: tuple[float, float] | None = None
        for checkout in options.checkouts:
            plan, compress, peak = measured(checkout, name, method, calls)
            reference = reference or (plan + compress, peak)
            ratios = [(plan + compress) / reference[0], peak / reference[1]]
            rows.append([name, method, calls, str(checkout), plan, compress, peak, *ratios])
    heads = ["network", "method", "calls", "checkout", "plan (s)", "compress (s)", "peak (GiB)", "time", "memory"]
    print(tabulate(rows, heads, floatfmt=("", "", "", "", ".1f", ".1f", ".2f", ".2f", ".2f")))


if __name__ == "__main__":
    main()
