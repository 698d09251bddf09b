r"""Error of every layer's output on test images, by method and rank, in two checkouts of this repository.

    git worktree add ../before b742b8a
    python benchmarks/layer_errors.py ../before . --weights finetuned/resnet20-seed0.safetensors \
        --dataset cifar10 --data-root DATA

Each layer alone is factored at five fractions of its ranks, data-aware and improved, as ``compress`` does it by
default. Its error is ``||y - y'||^2 / Var(y)`` on 64 test images, which no fit has seen, spread evenly over the split.
Calibration images are not augmented, so that both are of one distribution (``--augment on``: as the suite's own data
give them; black borders of shifted images then weigh in the fit, not in the test). The table shows the ratio of the
second checkout's error to the first's: its geometric mean, its greatest value, the number of cases in which it is more
than 1% greater, and the greatest error of those. Errors below 1e-6 are rounding and count as equal.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from common.decomposition import DECOMPOSITIONS

SHARES = (0.1, 0.2, 0.35, 0.5, 0.7)
ROUNDING = 1e-6
CHILD = """
import sys
import torch
import common.torchvision_compat
from common.calibration import calibrate
from common.compression import compress, load_compressed
from common.data import load_data
from common.decomposition import DECOMPOSITIONS
from common.network.shapes import trace_layers
from common.planning import RankPlan
from common.planning.decompositions import Decompositions, layer_method

weights, dataset, root, images, size, methods, unannotated, augment, *shares = sys.argv[1:]
options = {"image_size": int(size)} if size != "0" else {}
options |= {"unannotated": unannotated, "augment": augment == "on"}
data = load_data(dataset, root or None, batch_size=int(images), **options)
model = load_compressed(weights).eval()
torch.manual_seed(0)  # the same images in both checkouts, whatever loading drew
decompositions = Decompositions(model, calibrate(model, [next(iter(data.calibration))[0]]), sweeps=2)
tests = torch.cat([batch[0] for batch in data.test])  # in the order of the classes
x = tests[torch.linspace(0, len(tests) - 1, min(len(tests), 64)).long()]
del tests
shapes = trace_layers(model, x[:1])
known = [each for each in methods.split(",") if each in DECOMPOSITIONS]
seen = {}
handles = [
    model.get_submodule(name).register_forward_hook(
        lambda _, i, o, name=name: seen.update({name: (i[0].clone(), o.clone())})  # the next layer may work in place
    )
    for name in shapes
]
with torch.no_grad():
    model(x)
    for handle in handles:
        handle.remove()
    print("layer,method,share,error")
    for name, shape in shapes.items():
        given, wanted = seen[name]
        channel = 1 if wanted.dim() == 4 else wanted.dim() - 1
        others = [axis for axis in range(wanted.dim()) if axis != channel]
        variance = (wanted - wanted.mean(others, keepdim=True)).square().mean()
        for method in dict.fromkeys(layer_method(each, shape) for each in known):
            for share in map(float, shares):
                ranks = decompositions.get(name, method).fraction(share)
                plan = RankPlan({name: decompositions.plan(name, method, ranks)}, method, "fixed")
                small = compress(model, plan, decompositions=decompositions).eval()
                error = (small.get_submodule(name)(given) - wanted).square().mean() / variance
                print(f"{name},{method},{share},{float(error)}", flush=True)
"""


def errors(checkout: Path, options: argparse.Namespace) -> pd.DataFrame:
    """Run one checkout; return its table of errors."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    root = str(options.data_root.resolve()) if options.data_root else ""
    settings = [options.weights.resolve(), options.dataset, root, options.images, options.image_size]
    settings += [",".join(options.methods), options.unannotated, options.augment, *options.shares]
    command = [sys.executable, "-W", "ignore", "-c", CHILD, *map(str, settings)]
    done = subprocess.run(command, env=environment, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    return pd.read_csv(io.StringIO(done.stdout))


def main(arguments: list[str] | None = None) -> None:
    """Measure both checkouts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs=2, help="folders of the old and of the new checkout")
    parser.add_argument("--weights", type=Path, required=True, help="file of a trained network")
    parser.add_argument("--dataset", required=True, help="its data set, see load_data")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--image-size", type=int, default=0, help="in pixels; default: that of the data set")
    parser.add_argument("--unannotated", default="keep", help="coco: keep or drop; default: %(default)s")
    parser.add_argument(
        "--augment", choices=("on", "off"), default="off", help="calibration images; default: %(default)s"
    )
    parser.add_argument("--methods", nargs="+", default=tuple(DECOMPOSITIONS), help="default: those that both know")
    parser.add_argument("--images", type=int, default=1024, help="calibration images; default: %(default)s")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the ranks; default: %(default)s")
    options = parser.parse_args(arguments)
    before = errors(options.checkouts[0], options)
    options.methods = [method for method in options.methods if method in {*before.method}]  # no time for others
    after = errors(options.checkouts[1], options)
    table = before.merge(after, on=["layer", "method", "share"], suffixes=(" before", " after"), validate="1:1")
    ratio = table["error after"].clip(lower=ROUNDING) / table["error before"].clip(lower=ROUNDING)
    table = table.assign(ratio=ratio, worse=ratio > 1.01)
    rows = [
        [
            method,
            len(part),
            float(np.exp(np.log(part.ratio).mean())),
            part.ratio.max(),
            int(part.worse.sum()),
            f"{part[part.worse]['error after'].max():.2g}" if part.worse.any() else "",
        ]
        for method, part in table.groupby("method", sort=False)
    ]
    heads = ["method", "cases", "mean ratio", "greatest", "more than 1% worse", "their greatest error"]
    print(tabulate(rows, heads, floatfmt=".3f", disable_numparse=[5]))
    if table.worse.any():
        worst = table[table.worse].sort_values("ratio", ascending=False).head(20)
        print(tabulate(worst.to_numpy().tolist(), list(worst.columns), floatfmt=".4g"))


if __name__ == "__main__":
    main()
