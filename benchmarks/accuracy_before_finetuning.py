r"""Accuracy, or Dice, of compressed networks before any fine-tuning, by method, allocation and calibration.

    for SEED in 0 1 2; do
        python finetuned/finetune.py --model resnet20 --dataset cifar10 --data-root DATA --epochs 18 \
            --learning-rate 0.3 --patience 18 --seed $SEED --name resnet20-seed$SEED
    done
    python benchmarks/accuracy_before_finetuning.py --data-root DATA --weights finetuned/resnet20-seed?.safetensors

For every method, each step adds to the one before:

    plain        factors approximate the weights; every layer keeps the same fraction of its ranks
    data-aware   factors approximate the outputs on the calibration split; ranks as before
    budget       measured divergence allocates the ranks over the network
    recalibrated BatchNorm's statistics are recomputed on the calibration split
    shrunk       :func:`common.shrink.shrink` at the same budget: improved factors, refit, guarded recalibration
    not aligned  as before, with any ranks in place of multiples of 16 where layers are wide (with ``--not-aligned``)

The score is the data set's deciding metric on the test split. The plans see only calibration images, and nothing
is chosen by the score. Tables show the mean over the networks and, for more than one, their standard deviation. It
writes ``accuracy_before_finetuning.{csv,png,pdf}``. Rows that the CSV file already holds are not measured again.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import seaborn as sns
import torch
from tabulate import tabulate
from torch import nn

from common.calibration import calibrate, recalibrate_bn
from common.compression import compress, load_compressed
from common.data import DATASETS, DataBundle, load_data
from common.data.loading import UNANNOTATED
from common.decomposition import DECOMPOSITIONS
from common.network import profile
from common.network.shapes import trace_layers
from common.planning import Budget, Fixed, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions
from common.progress import track
from common.reporting.figures.style import save_figure, styled
from common.search.candidates import layer_candidates
from common.search.objective import calibration_inputs
from common.search.sensitivity import measure_divergences
from common.shrink import ShrinkSteps, shrink
from common.training import evaluate

METHODS = (*DECOMPOSITIONS, "mixed")
CRITERIA = ("params", "macs")
KEPT = (0.8, 0.6, 0.5, 0.4, 0.3)


def uniform_plan(
    model: nn.Module, x: torch.Tensor, method: str, budget: Budget, decompositions: Decompositions
) -> RankPlan:
    """Return the plan with the largest common fraction of the ranks, in steps of 0.01, that meets the budget."""
    dense = profile(model, x)
    shapes = trace_layers(model, x)
    best: RankPlan | None = None
    for step in range(1, 101):
        plan = plan_ranks(model, x, method, Fixed(step / 100), decompositions=decompositions)
        costs = [shapes[name].cost(layer) for name, layer in plan.layers.items()]
        whole = [shape.dense_cost for shape in shapes.values()]
        params = dense.params + sum(cost[0] for cost in costs) - sum(cost[0] for cost in whole)
        macs = dense.macs + sum(cost[1] for cost in costs) - sum(cost[1] for cost in whole)
        if params <= (budget.params or 1.0) * dense.params and macs <= (budget.macs or 1.0) * dense.macs:
            best = plan
    if best is None:
        raise ValueError(f"no common fraction of the ranks meets {budget}")
    return best


class Network:
    """One dense network with what all its cases share.

    Args:
        file: its weights.
        data: the splits.
    """

    def __init__(self, file: Path, data: DataBundle) -> None:
        self.name, self.data = file.stem, data
        self.model, self.x = load_compressed(file), data.example()
        self.dense = profile(self.model, self.x)
        self.score = self.measured(self.model)
        self.plain = Decompositions(self.model)
        self.aware = Decompositions(self.model, calibrate(self.model, data.calibration))
        candidates = layer_candidates(trace_layers(self.model, self.x), self.aware, "svd")
        inputs = calibration_inputs(data, 1000)
        self.divergences = measure_divergences(self.model, candidates, self.aware, inputs)

    def measured(self, model: nn.Module) -> float:
        """Measure the deciding metric on the test split, in %."""
        return 100 * evaluate(model, self.data.test)[self.data.metric]

    def rows(self, criterion: str, kept: float, method: str, unaligned: bool) -> list[dict[str, object]]:
        """Measure every step of one case, the last one if ``unaligned``: the score in %, and the shares kept."""
        budget = Budget(params=kept) if criterion == "params" else Budget(macs=kept)
        plans: dict[str, tuple[RankPlan, Decompositions]] = {}
        if method != "mixed":
            plans["plain"] = uniform_plan(self.model, self.x, method, budget, self.plain), self.plain
            plans["data-aware"] = uniform_plan(self.model, self.x, method, budget, self.aware), self.aware
        allocated = plan_ranks(
            self.model, self.x, method, budget, divergences=self.divergences, decompositions=self.aware
        )
        plans["budget"] = allocated, self.aware
        networks = {
            step: compress(self.model, plan, decompositions=decompositions)
            for step, (plan, decompositions) in plans.items()
        }
        networks["recalibrated"] = compress(self.model, allocated, decompositions=self.aware)
        recalibrate_bn(networks["recalibrated"], self.data.calibration)
        images = list(self.data.calibration)
        networks["shrunk"] = shrink(self.model, images, budget, method).model
        if unaligned:
            steps = ShrinkSteps(align=False)
            networks["not aligned"] = shrink(self.model, images, budget, method, steps=steps).model
        found: list[dict[str, object]] = []
        for step, small in networks.items():
            cost = profile(small, self.x)
            found.append(
                {
                    "network": self.name,
                    "dense": self.score,
                    "criterion": criterion,
                    "kept": kept,
                    "method": method,
                    "step": step,
                    "params kept": cost.params / self.dense.params,
                    "MACs kept": cost.macs / self.dense.macs,
                    "score": self.measured(small),
                }
            )
        return found


def measure(
    files: Sequence[Path],
    data: DataBundle,
    wanted: Sequence[tuple[str, float, str]],
    path: Path,
    unaligned: bool = False,
) -> pd.DataFrame:
    """Measure every case that the CSV file at ``path`` does not hold yet; write the file after each.

    Args:
        files: of the networks.
        data: the splits.
        wanted: for each case the criterion, the share to keep and the method.
        path: of the CSV file.
        unaligned: shrink without aligned ranks as well.
    """
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    for file in files:
        cases = list(wanted)
        if len(table):
            of_file = table[table.network == file.stem]
            known = set(zip(of_file.criterion, of_file.kept, of_file.method, strict=True))
            cases = [case for case in cases if case not in known]
        if not cases:
            continue
        network = Network(file, data)
        for case in track(cases, f"measuring {file.stem}", unit="case"):
            table = pd.concat([table, pd.DataFrame(network.rows(*case, unaligned))], ignore_index=True)
            table.to_csv(path, index=False)
    return table


def show(table: pd.DataFrame, metric: str) -> None:
    """Print a table for each criterion."""
    dense = table.groupby("network").dense.first()
    for criterion, part in table.groupby("criterion", sort=False):
        groups = part.groupby(["method", "step", "kept"], sort=False).score
        cells = groups.mean().map("{:.1f}".format)
        if len(dense) > 1:
            cells += groups.std().map(" ± {:.1f}".format)
        wide = cells.unstack("kept")
        title = metric.replace("_", " ").capitalize()
        print(f"\n{title} (%) at the share of {criterion} kept; dense {', '.join(f'{a:.2f}' for a in dense)}")
        print(tabulate(wide.reset_index().to_numpy().tolist(), ["method", "step", *(f"{k:.0%}" for k in wide)]))


def draw(table: pd.DataFrame, metric: str, path: Path) -> list[Path]:
    """Plot the score against the share kept: a panel for each criterion and step, a line for each method."""
    with styled():
        grid = sns.relplot(
            table,
            x="kept",
            y="score",
            hue="method",
            style="method",
            row="criterion",
            col="step",
            kind="line",
            markers=True,
            dashes=False,
            palette="colorblind",
            height=2.0,
            aspect=0.9,
        )
        for axes in grid.axes.flat:
            axes.axhline(table.groupby("network").dense.first().mean(), color="0.4", linewidth=0.8, linestyle="--")
        grid.set_axis_labels("Share kept", f"Test {metric.replace('_', ' ')} (%)")
        grid.set_titles("{row_name}, {col_name}")
    return save_figure(grid.figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="cifar10", help="default: %(default)s")
    parser.add_argument("--data-root", help="folder of the data set")
    parser.add_argument("--image-size", type=int, help="height and width of the images; default: the data set's")
    parser.add_argument("--batch-size", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--unannotated", choices=UNANNOTATED, default="keep", help="of coco; default: %(default)s")
    parser.add_argument("--limit", type=int, help="maximum number of images of each split; default: all")
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help="files of trained networks")
    parser.add_argument("--kept", type=float, nargs="+", default=KEPT, help="shares to keep; default: %(default)s")
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=CRITERIA, help="default: both")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--not-aligned", action="store_true", help="shrink without aligned ranks as well")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    data = load_data(
        options.dataset,
        options.data_root,
        options.image_size,
        batch_size=options.batch_size,
        limit=options.limit,
        unannotated=options.unannotated,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "accuracy_before_finetuning"
    cases = list(itertools.product(options.criteria, options.kept, options.methods))
    table = measure(options.weights, data, cases, path.with_suffix(".csv"), options.not_aligned)
    show(table, data.metric)
    print(*draw(table, data.metric, path), sep="\n")


if __name__ == "__main__":
    main()
