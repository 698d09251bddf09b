r"""Compare the samplers of the rank search at the same budgets and numbers of trials, before fine-tuning.

    python finetuned/finetune.py --model resnet20 --dataset cifar10 --data-root DATA --epochs 18 --learning-rate 0.3 \
        --patience 18
    python benchmarks/search.py --weights finetuned/resnet20-cifar10.safetensors --dataset cifar10 --data-root DATA

There is one search for each dense network, share of the MACs to keep, sampler and seed. All searches have the same
number of trials. All trials are fully measured (without pruning) on the same images; the options set how many images
of calibration and validation are used. A rank rule has only one plan and no seed.

A search sees one half of validation, every second image, and chooses a trial on it: among those that keep to the
budget and differ from the best only by chance, the one with the least loss. The greatest of many measurements is
partly luck. So the table has the trial's metric on the other half, which chose nothing. The trial is then refitted,
fine-tuned on the whole training split and evaluated on the whole test split. The difference to the budget's own
allocation (``budget`` alone) on test is paired by images and averaged over networks and seeds, with its 95% interval.
Where the interval holds 0, the table says ``no difference``; of several networks, for how many the sign is the same.

The plans of ``static`` are used as they are drawn; the table says how many kept to the budget. ``vbmf`` is also
measured at the size that its own rule chooses.

The script prints a table for each budget (mean and standard deviation over networks and seeds) and writes
``results/search-<dataset>.{csv,md,png,pdf}``. After an interruption, the same command continues. Finished searches are
read from their logs, so other settings need another ``--out``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from safetensors.torch import load_file, save_file
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import arms
from common.calibration import recalibrate_bn, refit
from common.compression import compress, load_compressed, save_compressed
from common.data import METRICS, DataBundle, load_data
from common.data.batching import BatchDataset, make_loader
from common.data.bundle import Loader
from common.environment import default_device, machine_line
from common.network import profile
from common.network.batches import Batch
from common.network.modes import random_state_kept
from common.planning import VBMF, Budget, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions
from common.reporting.figures.style import save_figure, styled
from common.search import SearchSettings, search_ranks
from common.search.finalists import best_first
from common.search.policies import POLICIES
from common.search.preparation import decompose_for_search
from common.search.study.records import plan_of_record
from common.training import Evaluation, TrainingSettings, evaluate, evaluate_images, train
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


class Half(BatchDataset):
    """Every second image of a data set, from ``part`` on."""

    def __init__(self, whole: BatchDataset, part: int) -> None:
        self.whole, self.indices = whole, range(part, len(whole), 2)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        return self.whole[[self.indices[index] for index in indices]]


def load(options: argparse.Namespace) -> tuple[DataBundle, Loader]:
    """Load the data, and the half of validation that no search sees.

    Of calibration and validation, which every trial reads, only a part is used. The bundle has one half of validation,
    every second image, on which trials are chosen. The other half is returned beside it.
    """

    def up_to(limit: int | None) -> DataBundle:
        what = (options.dataset, options.data_root, options.image_size)
        return load_data(*what, batch_size=options.batch_size, unannotated=options.unannotated, limit=limit)

    data = up_to(None)
    calibration = up_to(options.calibration).calibration if options.calibration else data.calibration
    validation = up_to(options.validation).validation if options.validation else data.validation
    assert isinstance(validation, DataLoader)
    assert isinstance(validation.dataset, BatchDataset)
    choosing, reporting = (make_loader(Half(validation.dataset, part), options.batch_size) for part in (0, 1))
    return replace(data, calibration=calibration, validation=choosing, source={}), reporting


@dataclass(frozen=True)
class Found:
    """A network that a search chose.

    Attributes:
        row: what the table is made of.
        tested: what was observed of it on the test split; None if no trial keeps to the budget.
        curve: for each trial the metric on the half that chooses, NaN if the trial exceeds the budget.
    """

    row: dict[str, Any]
    tested: Evaluation | None
    curve: list[float] = field(default_factory=list)


class Comparison:
    """The searches on one dense network.

    Args:
        options: of the command line.
        weights: file of the dense network.
        data: its validation split chooses.
        reporting: the other half of validation.
    """

    def __init__(self, options: argparse.Namespace, weights: Path, data: DataBundle, reporting: Loader) -> None:
        self.options, self.name, self.data, self.reporting = options, weights.stem, data, reporting
        self.model = load_compressed(weights).to(default_device())
        self.decompositions = decompose_for_search(self.model, data, seed=0)
        self.macs = profile(self.model, data.example()).macs
        self.logs = options.out / f"search-{options.dataset}-logs"
        self.training = TrainingSettings(
            epochs=options.finetune_epochs,
            optimizer=options.optimizer,
            learning_rate=options.learning_rate,
            amp=options.amp,
        )

    def run_name(self, what: str) -> str:
        """The name of a search's log, or of another network's files."""
        return f"{self.options.dataset}-{self.name}-{self.options.method}-{what}"

    def search(self, budget: float, sampler: str, seed: int) -> Found:
        """Run one search, and measure the trial that it chose."""
        settings = SearchSettings(
            method=self.options.method,
            policy=sampler,
            budget=Budget(macs=budget),
            trials=self.options.trials,
            climb=1.0,
            finetune_top=1,
            finetune_dense=False,  # searches are compared with each other
            finetune=self.training,
            seed=seed,
        )
        run = self.run_name(f"{budget:g}-{sampler}-{seed}")
        records = search(self.model, self.data, self.decompositions, settings, self.logs, run)
        measured = [record for record in records if record.status == "ok"]
        metric = self.data.metric
        values = [100 * record.metrics["recalibrated"][metric] for record in measured]
        fits = [record.macs <= budget * self.macs for record in measured]
        curve = [value if fit else math.nan for value, fit in zip(values, fits, strict=True)]
        row = {"network": self.name, "budget": budget, "sampler": sampler, "seed": seed, "trials": len(records)}
        within = [record for record, fit in zip(measured, fits, strict=True) if fit]
        row |= {"within": len(within), "seconds": sum(record.seconds for record in records)}
        if not within:
            print(f"{run}: no trial keeps to the budget", flush=True)
            return Found(row, None, curve)
        images = self.data.validation_images()
        chosen = best_first((record for record in within if "test" in record.metrics), images)[0]
        plain = self.recalibrated(plan_of_record(chosen), seed)
        tuned = load_compressed(self.logs / str(chosen.details.weights))
        row["chosen"] = 100 * chosen.metrics["recalibrated"][metric]
        return Found(*self.measured(row, run, plain, tuned, chosen.macs), curve)

    def vbmf(self) -> Found:
        """Measure the network of the rule ``VBMF`` at the size that the rule itself chooses."""
        x, run = self.data.example(), self.run_name("vbmf-own")
        plan = plan_ranks(self.model, x, self.options.method, VBMF(), decompositions=self.decompositions)
        plain = self.recalibrated(plan, 0)
        file = self.logs / f"{run}.safetensors"
        if not file.exists():
            tuned = compress(self.model, plan, decompositions=self.decompositions.with_sweeps(2))
            refit(tuned, self.model, self.data.calibration)
            train(tuned, self.data, self.training, teacher=self.model, description=run)
            save_compressed(tuned, file)
        row: dict[str, Any] = {
            "network": self.name,
            "budget": None,
            "sampler": "vbmf",
            "seed": 0,
            "trials": 1,
            "within": 1,
        }
        row |= {"chosen": 100 * evaluate(plain, self.data.validation)[self.data.metric]}
        return Found(*self.measured(row, run, plain, load_compressed(file), profile(plain, x).macs))

    def recalibrated(self, plan: RankPlan, seed: int) -> nn.Module:
        """The network of a plan with BatchNorm recalibrated, as a trial measures it."""
        small = compress(self.model, plan, decompositions=self.decompositions)
        with random_state_kept(default_device(), seed):
            recalibrate_bn(small, self.data.calibration)
        return small

    def measured(
        self, row: dict[str, Any], run: str, plain: nn.Module, tuned: nn.Module, macs: int
    ) -> tuple[dict[str, Any], Evaluation]:
        """Complete a row by the other half of validation before fine-tuning, and by the test split after it."""
        metric, file = METRICS[self.data.metric], self.logs / f"{run}-test.safetensors"
        if not file.exists():
            tested = evaluate_images(tuned.to(default_device()), self.data.test)
            save_file({"rows": tested.rows[metric.observe].contiguous()}, file)
        rows = load_file(file)["rows"]
        reported, test = evaluate(plain, self.reporting)[metric.name], metric.summarize(rows)
        row |= {"kept": 100 * macs / self.macs, "validation": 100 * reported, "test": 100 * (test or 0.0)}
        print(
            f"{run}: {row['chosen']:.2f}% on the half of validation that chose it, {row['validation']:.2f}% on the "
            f"other, {row['test']:.2f}% on test, {row['kept']:.1f}% of the MACs",
            flush=True,
        )
        return row, Evaluation({}, {metric.observe: rows})


def compare(options: argparse.Namespace) -> tuple[list[Found], str]:
    """Run every search; return what each found, and the metric's name. The rule VBMF without a budget comes last."""
    data, reporting = load(options)
    print(machine_line(default_device()))
    found, own = [], []
    for weights in options.weights:
        network = Comparison(options, weights, data, reporting)
        dense = [100 * evaluate(network.model, part)[data.metric] for part in (data.validation, reporting, data.test)]
        print(f"{network.name}, dense: {dense[0]:.2f}% and {dense[1]:.2f}% on the halves of validation, ", end="")
        print(f"{dense[2]:.2f}% on test", flush=True)
        for budget in options.budgets:
            for sampler in options.samplers:
                for seed in options.seeds[:1] if POLICIES[sampler].has_single_plan else options.seeds:
                    found.append(network.search(budget, sampler, seed))
        if "vbmf" in options.samplers:
            own.append(network.vbmf())
    return found + own, data.metric


def mean_text(values: pd.Series) -> str:
    """The mean of some figures and, of several, their standard deviation; empty for none."""
    known = values.dropna()
    if not len(known):
        return ""
    return f"{known.mean():.2f}" + (f" ± {known.std():.2f}" if len(known) > 1 else "")


def difference_text(group: Sequence[Found], alone: Mapping[str, Evaluation], metric: str) -> str:
    """The difference on test between a sampler and `budget` alone, each network against its own.

    Args:
        group: what the sampler found at one budget.
        alone: network -> what `budget` alone reached there.
        metric: name of the metric.
    """
    pairs = [
        (each.tested, alone[each.row["network"]]) for each in group if each.tested and each.row["network"] in alone
    ]
    if not pairs:
        return ""
    chosen = METRICS[metric]
    after, before = ([each.rows[chosen.observe] for each in group] for group in zip(*pairs, strict=True))
    return arms.difference_text(after, before, chosen, verdict=True)


def summary(found: Sequence[Found], metric: str) -> str:
    """Format a table for each budget: means and standard deviations over networks and seeds, and differences."""
    heads = ["", "MACs kept (%)", "trials within", f"validation {metric} (%)", f"test {metric} (%)", "from `budget`"]
    texts = []
    for budget in dict.fromkeys(each.row["budget"] for each in found):
        at_budget = [each for each in found if each.row["budget"] == budget]
        alone = {e.row["network"]: e.tested for e in at_budget if e.row["sampler"] == "budget" and e.tested}
        lines = []
        for sampler in dict.fromkeys(each.row["sampler"] for each in at_budget):
            group = [each for each in at_budget if each.row["sampler"] == sampler]
            rows = pd.DataFrame([each.row for each in group])
            rows = rows.reindex(columns=[*rows, *({"kept", "validation", "test"} - set(rows))])
            line = [sampler, mean_text(rows["kept"]), f"{rows['within'].sum()} of {rows['trials'].sum()}"]
            line += [mean_text(rows["validation"]), mean_text(rows["test"])]
            lines.append([*line, "" if sampler == "budget" else difference_text(group, alone, metric)])
        title = "No budget: the size that the rule chooses" if budget is None else f"{budget:.0%} of the MACs"
        texts.append(f"{title}\n\n" + tabulate(lines, heads, tablefmt="github", disable_numparse=True))
    return "\n\n".join(texts)


def curves_of(found: Sequence[Found], trials: int) -> pd.DataFrame:
    """A row for each trial with the best metric so far, on the half of validation that chooses."""
    curves = []
    for each in found:
        so_far = pd.Series(each.curve, dtype=float).cummax().tolist()
        so_far += so_far[-1:] * (trials - len(so_far))
        what = {"MACs kept": each.row["budget"], "sampler": each.row["sampler"], "seed": each.row["seed"]}
        curves += [{**what, "trial": index + 1, "best": value} for index, value in enumerate(so_far)]
    return pd.DataFrame(curves)


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
        grid.set_axis_labels("Trials", f"Best {metric} so far (%),\nhalf that chooses")
        grid.set_titles("{col_name:.0%} of the MACs kept")
    return save_figure(grid.figure, path)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", type=Path, nargs="+", required=True, help="dense networks, e.g. one for each seed"
    )
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
    found, metric = compare(options)
    stem = options.out / f"search-{options.dataset}"
    pd.DataFrame([each.row for each in found]).to_csv(stem.with_suffix(".csv"), index=False)
    text = summary(found, metric)
    stem.with_suffix(".md").write_text(text + "\n")
    curves = curves_of([each for each in found if each.curve], options.trials)
    print(text, *draw(curves, metric, stem), sep="\n")


if __name__ == "__main__":
    main()
