r"""Compare the samplers of the rank search at the same budgets and numbers of trials, before fine-tuning.

    python finetuned/finetune.py --model resnet20 --dataset cifar10 --data-root DATA --epochs 18 --learning-rate 0.3 \
        --patience 18
    python benchmarks/search.py --weights finetuned/resnet20-cifar10.safetensors --dataset cifar10 --data-root DATA

There is one search for each share of the MACs to keep, each sampler and each seed. All searches have the same number
of trials. All trials are fully measured (without pruning) on the same images; the options set how many images of
calibration and validation are used. A rank rule has only one plan and no seed. The search chooses a trial on
validation: among those that differ from the best only by chance, the one with the least loss. This trial is fine-tuned
on the whole training split and evaluated on the whole test split.

The script prints a table (mean and standard deviation over the seeds) and the best sampler at each budget, and writes
``results/search-<dataset>.{csv,md,png,pdf}``. After an interruption, the same command continues. Finished searches are
read from their logs, so other settings need another ``--out``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import seaborn as sns
from tabulate import tabulate
from torch import nn

from common.compression import load_compressed
from common.data import DataBundle, load_data
from common.environment import default_device, machine_line
from common.planning import Budget
from common.planning.decompositions import Decompositions
from common.reporting.figures.style import save_figure, styled
from common.search import SearchSettings, search_ranks
from common.search.finalists import best_first
from common.search.policies import POLICIES
from common.search.preparation import decompose_for_search
from common.training import TrainingSettings, evaluate
from common.trials import TrialRecord, read_log

SAMPLERS = tuple(POLICIES)


def search(
    model: nn.Module, data: DataBundle, decompositions: Decompositions, settings: SearchSettings, logs: Path, run: str
) -> list[TrialRecord]:
    """Return the trials of one search. If it was finished before, read them from its log.

    Raises:
        ValueError: the log has another number of trials or another dense network.
    """
    try:
        found = search_ranks(
            model, data, settings, decompositions=decompositions, logs=logs, run=run, on_trial=lambda _: None
        )
    except ValueError as error:
        if "has a log" not in str(error):
            raise
        records = read_log(logs / f"{run}.log")[0]
        dense = evaluate(model, data.validation)[data.metric]
        known = records[0].baseline.metric(data.metric)
        if len(records) != settings.places or abs(dense - known) > 1e-6:
            raise ValueError(
                f"{logs / run}.log holds {len(records)} trials of a network with {known:.2%}, not "
                f"{settings.places} of one with {dense:.2%}; give another --out"
            ) from None
        return records
    if not found.finished:
        raise KeyboardInterrupt
    return found.records


def load(options: argparse.Namespace) -> DataBundle:
    """Load the data. Of calibration and validation, which every trial reads, only a part is used."""

    def up_to(limit: int | None) -> DataBundle:
        what = (options.dataset, options.data_root, options.image_size)
        return load_data(*what, batch_size=options.batch_size, unannotated=options.unannotated, limit=limit)

    data = up_to(None)
    if options.calibration:
        data = replace(data, calibration=up_to(options.calibration).calibration, source={})
    if options.validation:
        data = replace(data, validation=up_to(options.validation).validation, source={})
    return data


def compare(options: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return a row for every search, a row for every trial with the best metric so far, and the metric's name."""
    data = load(options)
    model = load_compressed(options.weights).to(default_device())
    how = TrainingSettings(
        epochs=options.finetune_epochs,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        amp=options.amp,
    )
    decompositions = decompose_for_search(model, data, seed=0)
    logs = options.out / f"search-{options.dataset}-logs"
    dense = [100 * evaluate(model, part)[data.metric] for part in (data.validation, data.test)]
    print(machine_line())
    print(f"dense: {dense[0]:.2f}% on validation, {dense[1]:.2f}% on test", flush=True)
    images = sum(len(targets) for _, targets in data.validation)
    rows, curves = [], []
    for budget in options.budgets:
        for sampler in options.samplers:
            for seed in options.seeds[:1] if POLICIES[sampler].has_single_plan else options.seeds:
                settings = SearchSettings(
                    method=options.method,
                    policy=sampler,
                    budget=Budget(macs=budget),
                    trials=options.trials,
                    climb=1.0,
                    finetune_top=1,
                    finetune=how,
                    seed=seed,
                )
                run = f"{options.dataset}-{options.method}-{budget:g}-{sampler}-{seed}"
                records = [r for r in search(model, data, decompositions, settings, logs, run) if r.status == "ok"]
                values = [100 * record.metrics["recalibrated"][data.metric] for record in records]
                row = {"MACs kept": budget, "sampler": sampler, "seed": seed}
                tested = best_first((r for r in records if "test" in r.metrics), images)[0]
                chosen, test = (100 * tested.metrics[stage][data.metric] for stage in ("recalibrated", "test"))
                seconds = sum(record.seconds for record in records)
                best = max(values)
                rows.append({**row, "validation": best, "chosen": chosen, "test": test, "seconds": seconds})
                so_far = pd.Series(values).cummax().tolist()
                so_far += so_far[-1:] * (options.trials - len(so_far))
                curves += [{**row, "trial": index + 1, "best": value} for index, value in enumerate(so_far)]
                print(
                    f"{run}: {best:.2f}% on validation, the chosen {chosen:.2f}% and {test:.2f}% on test, "
                    f"{seconds:.0f} s",
                    flush=True,
                )
    return pd.DataFrame(rows), pd.DataFrame(curves), data.metric


def summary(rows: pd.DataFrame, metric: str) -> str:
    """Format a table of mean and standard deviation of each sampler at each budget, and name the best sampler."""
    lines = []
    for sampler, part in rows.groupby("sampler", sort=False):
        line: list[str] = [str(sampler)]
        for column in ("validation", "test"):
            for _, cell in part.groupby("MACs kept", sort=False):
                values = cell[column]
                spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
                line.append(f"{values.mean():.2f}{spread}")
        lines.append(line)
    budgets = [f"{budget:.0%}" for budget in rows["MACs kept"].unique()]
    heads = [f"{metric} (%)", *(f"validation, {budget}" for budget in budgets), *(f"test, {b}" for b in budgets)]
    text = tabulate(lines, heads, tablefmt="github", disable_numparse=True)
    for budget, at_budget in rows.groupby("MACs kept", sort=False):
        ranked = at_budget.groupby("sampler")["validation"].mean().sort_values(ascending=False)
        text += f"\n\n{budget:.0%} of the MACs: {ranked.index[0]} is ahead with {ranked.iloc[0]:.2f}%"
        if len(ranked) > 1:
            text += f", then {ranked.index[1]} with {ranked.iloc[1]:.2f}%"
    return text


def draw(curves: pd.DataFrame, metric: str, path: Path) -> list[Path]:
    """Plot the best metric so far against trials, with a panel for each budget. Bands are standard deviations."""
    with styled():
        grid = sns.relplot(
            curves,
            x="trial",
            y="best",
            hue="sampler",
            style="sampler",
            col="MACs kept",
            kind="line",
            errorbar="sd",
            palette="colorblind",
            height=2.6,
            aspect=0.9,
            facet_kws={"sharey": False},
        )
        grid.set_axis_labels("Trials", f"Best validation {metric} so far (%)")
        grid.set_titles("{col_name:.0%} of the MACs kept")
    return save_figure(grid.figure, path)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="the dense network, from finetuned/finetune.py")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-root", help="folder that holds the data set")
    parser.add_argument("--image-size", type=int, default=32, help="pixels; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=250, help="default: %(default)s")
    parser.add_argument("--calibration", type=int, help="maximum number of calibration images; default: all")
    parser.add_argument("--validation", type=int, help="maximum number of validation images; default: all")
    parser.add_argument(
        "--unannotated",
        choices=("keep", "drop"),
        default="keep",
        help="coco: images without annotation; default: keep",
    )
    parser.add_argument("--method", default="htd", help="default: %(default)s")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=(0.5, 0.25, 0.15), help="shares of the MACs to keep"
    )
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS, help="default: all")
    parser.add_argument("--trials", type=int, default=100, help="trials of each search; default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument(
        "--finetune-epochs", type=float, default=1.0, help="for the chosen trial; default: %(default)s"
    )
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=0.02, help="for fine-tuning; default: %(default)s")
    parser.add_argument("--amp", choices=("auto", "on", "off"), default="auto", help="bfloat16 in fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("results"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Compare, print and draw."""
    options = parse_arguments(arguments)
    rows, curves, metric = compare(options)
    stem = options.out / f"search-{options.dataset}"
    rows.to_csv(stem.with_suffix(".csv"), index=False)
    text = summary(rows, metric)
    stem.with_suffix(".md").write_text(text + "\n")
    print(text, *draw(curves, metric, stem), sep="\n")


if __name__ == "__main__":
    main()
