r"""Accuracy of a compressed ResNet-20 on CIFAR-10 before any fine-tuning, by method, allocation and calibration.

    python finetuned/finetune.py --model resnet20 --dataset cifar10 --data-root DATA --epochs 18 --learning-rate 0.3 \
        --patience 18
    python benchmarks/accuracy_before_finetuning.py --data-root DATA

For every method, each step adds to the one before:

    plain        factors approximate the weights; every layer keeps the same fraction of its ranks
    data-aware   factors approximate the outputs on the calibration split; ranks as before
    budget       measured divergence allocates the ranks over the network
    recalibrated BatchNorm's statistics are recomputed on the calibration split
    shrunk       :func:`common.shrink.shrink` at the same budget: improved factors, refit, guarded recalibration

Accuracy is on the test split. The plans see only calibration images, and nothing is chosen by accuracy. The script
writes ``results/accuracy_before_finetuning.{csv,png,pdf}``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import seaborn as sns
import torch
from tabulate import tabulate
from torch import nn

from common.calibration import calibrate, recalibrate_bn
from common.compression import compress, load_compressed
from common.data import DataBundle, load_data
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
from common.shrink import shrink
from common.training import evaluate

METHODS = (*DECOMPOSITIONS, "mixed")
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


def measure(model: nn.Module, data: DataBundle, shares: Sequence[float], methods: Sequence[str]) -> pd.DataFrame:
    """Return a row for every criterion, share, method and step: accuracy in %, and the shares actually kept."""
    x = data.example()
    dense = profile(model, x)
    plain, aware = Decompositions(model), Decompositions(model, calibrate(model, data.calibration))
    candidates = layer_candidates(trace_layers(model, x), aware, "svd")
    divergences = measure_divergences(model, candidates, aware, calibration_inputs(data, 1000))
    rows = []
    cases = [(criterion, kept, method) for criterion in ("params", "macs") for kept in shares for method in methods]
    for criterion, kept, method in track(cases, "measuring", unit="case"):
        budget = Budget(params=kept) if criterion == "params" else Budget(macs=kept)
        steps: dict[str, tuple[RankPlan, Decompositions]] = {}
        if method != "mixed":
            steps["plain"] = uniform_plan(model, x, method, budget, plain), plain
            steps["data-aware"] = uniform_plan(model, x, method, budget, aware), aware
        steps["budget"] = (
            plan_ranks(model, x, method, budget, divergences=divergences, decompositions=aware),
            aware,
        )
        for step, (plan, decompositions) in steps.items():
            small = compress(model, plan, decompositions=decompositions)
            cost = profile(small, x)
            row = {
                "criterion": criterion,
                "kept": kept,
                "method": method,
                "params kept": cost.params / dense.params,
                "MACs kept": cost.macs / dense.macs,
            }
            rows.append({**row, "step": step, "accuracy": 100 * evaluate(small, data.test)["accuracy"]})
            if step == "budget":
                recalibrate_bn(small, data.calibration)
                accuracy = 100 * evaluate(small, data.test)["accuracy"]
                rows.append({**row, "step": "recalibrated", "accuracy": accuracy})
                shrunk = shrink(model, list(data.calibration), budget, method).model
                rows.append({**row, "step": "shrunk", "accuracy": 100 * evaluate(shrunk, data.test)["accuracy"]})
    return pd.DataFrame(rows)


def show(table: pd.DataFrame, dense: float) -> None:
    """Print a table for each criterion."""
    for criterion, part in table.groupby("criterion", sort=False):
        wide = part.pivot_table(index=["method", "step"], columns="kept", values="accuracy", sort=False)
        print(f"\nAccuracy (%) at the share of {criterion} kept; dense {dense:.1f}")
        heads = ["method", "step", *(f"{kept:.0%}" for kept in part.kept.unique())]
        print(tabulate(wide.reset_index().to_numpy().tolist(), heads, floatfmt=".1f"))


def draw(table: pd.DataFrame, dense: float, path: Path) -> list[Path]:
    """Plot accuracy against the share kept: a panel for each criterion and step, a line for each method."""
    with styled():
        grid = sns.relplot(
            table,
            x="kept",
            y="accuracy",
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
            axes.axhline(dense, color="0.4", linewidth=0.8, linestyle="--")
        grid.set_axis_labels("Share kept", "Test accuracy (%)")
        grid.set_titles("{row_name}, {col_name}")
    return save_figure(grid.figure, path)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder that holds CIFAR-10's class folders")
    parser.add_argument("--weights", default="finetuned/resnet20-cifar10.safetensors")
    parser.add_argument("--kept", type=float, nargs="+", default=KEPT, help="shares to keep; default: %(default)s")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    data = load_data("cifar10", options.data_root, batch_size=500)
    model = load_compressed(options.weights)
    dense = 100 * evaluate(model, data.test)["accuracy"]
    table = measure(model, data, options.kept, options.methods)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "accuracy_before_finetuning.csv", index=False)
    show(table, dense)
    print(*draw(table, dense, options.out / "accuracy_before_finetuning"), sep="\n")


if __name__ == "__main__":
    main()
