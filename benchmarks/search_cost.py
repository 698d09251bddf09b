r"""Cost of a search: images and seconds against those of the earlier method, one worker against two, and a profile.

    python benchmarks/search_cost.py target --weights finetuned/resnet18-mnist.safetensors --dataset mnist \
        --data-root DATA --image-size 64
    python benchmarks/search_cost.py workers --weights ... --dataset ... [--storage postgresql+psycopg://...]
    python benchmarks/search_cost.py profile --weights ... --dataset ...

``target``: both methods look for a network with 12.85% of the parameters and 15.33% of the MACs that loses at most
0.3 points on validation. Ours is one whole search under that budget, including everything before the first trial and
after the last. A trial of the earlier method decomposes the network again, at ranks drawn by the static policy, and
fine-tunes it for three epochs. A few trials with small enough networks are run, and their cost is extrapolated in two
ways: to the 100 trials of its paper, and to the average number of draws until a network is small enough (counted over
20,000 draws without building networks). The latter assumes that this network is always accurate enough, which favours
the earlier method. An image counts once for every pass through a network. Backward passes, which only fine-tuning
needs, are not counted, nor are the sensitivities that the static policy needs, which again favours the earlier method.

``workers``: trials per minute with one worker and with two. ``profile``: the functions that take the most time.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from common.compression import compress, load_compressed
from common.data import DataBundle, load_data
from common.environment import default_device, machine_line
from common.network.shapes import trace_layers
from common.planning import Budget
from common.planning.decompositions import Decompositions
from common.planning.plan import RankPlan
from common.search import SearchSettings, search_ranks
from common.search.policies import POLICIES
from common.search.preparation import measure_sensitivities
from common.search.probabilities import Probabilities
from common.search.space import Space
from common.search.study.attempts import Attempts
from common.training import TrainingSettings, evaluate, train
from common.trials.best import final_metric, is_accepted

ROOT = Path(__file__).resolve().parent.parent

TARGET = Budget(params=1 - 0.8715, macs=1 - 0.8467)
POINTS = 0.003
DRAWS = 20_000
PAPER_TRIALS = 100


class Work:
    """Number of images that passed through a whole network, and seconds."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0


@contextmanager
def counted(model: nn.Module) -> Iterator[Work]:
    """Count the work inside the ``with`` block of networks with the class of ``model``."""
    work = Work()

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if type(module) is type(model):
            work.images += len(inputs[0])

    handle = register_module_forward_pre_hook(count)
    start = time.perf_counter()
    try:
        yield work
    finally:
        work.seconds = time.perf_counter() - start
        handle.remove()


def earlier_method(
    model: nn.Module, data: DataBundle, options: argparse.Namespace
) -> tuple[Work, float, list[tuple[float, float, float]]]:
    """Return the work of a few small trials, the share of draws that are small enough, and the trials' results."""
    x = data.example().to(next(model.parameters()).device)
    decompositions = Decompositions(model)
    settings = SearchSettings(method=options.method, policy="static")
    sensitivities, _ = measure_sensitivities(model, data, decompositions, settings)
    static = POLICIES["static"]
    candidates = static.candidates(trace_layers(model, x), decompositions, options.method)
    space = Space(model, x, decompositions, options.method, candidates=candidates)
    policy = Probabilities(static.first_logits(space, settings, sensitivities))
    generator = torch.Generator().manual_seed(options.seed)
    plans: list[RankPlan] = []
    small = 0
    for _ in range(DRAWS):
        plan = space.plan(policy.sample(generator), "")
        fits = TARGET.allows(space.cost(plan), space.dense)
        small += fits
        if fits and len(plans) < options.measured:
            plans.append(plan)
    plans += [space.plan(policy.sample(generator), "") for _ in range(options.measured - len(plans))]
    reached = []
    with counted(model) as work:
        for index, plan in enumerate(plans):
            network = compress(model, plan, decompositions=Decompositions(model))
            train(network, data, TrainingSettings(epochs=3.0, learning_rate=0.02, seed=index, amp=options.amp))
            params, macs = space.cost(plan)
            accuracy = evaluate(network, data.validation)[data.metric]
            reached.append((params / space.dense[0], macs / space.dense[1], accuracy))
    return work, small / DRAWS, reached


def target(options: argparse.Namespace) -> None:
    """Print both costs and their ratio, and whether our search met the target."""
    model, data = load(options)
    dense = evaluate(model, data.validation)[data.metric]
    how = TrainingSettings(epochs=options.finetune_epochs, learning_rate=0.02, amp=options.amp)
    settings = SearchSettings(
        method=options.method,
        budget=TARGET,
        trials=options.trials,
        finetune_top=1,
        finetune=how,
        keep=max(1 - POINTS / max(dense, 1e-6), 1e-6),
    )
    with tempfile.TemporaryDirectory() as logs, counted(model) as ours:
        found = search_ranks(model, data, settings, logs=logs, run="target", on_trial=lambda _: None)
    tested = [record for record in found.records if "test" in record.metrics]
    reaching = [record for record in tested if is_accepted(record, settings.keep)]
    theirs, share, reached = earlier_method(model, data, options)
    drawn = round(1 / max(share, 1 / DRAWS))
    per_trial = [theirs.images / options.measured, theirs.seconds / options.measured]
    rows = [["this search, all of it", ours.images, ours.seconds], ["the earlier method, a trial", *per_trial]]
    until = f"{'' if share else 'over '}{drawn} trials, until one is small enough"
    for trials, what in ((PAPER_TRIALS, f"{PAPER_TRIALS} trials, as its paper ran it"), (drawn, until)):
        images, seconds = (trials * value for value in per_trial)
        rows.append([f"the earlier method, {what}", images, seconds])
        rows.append(["ratio", images / ours.images, seconds / ours.seconds])
    print(tabulate(rows, ["", "images", "seconds"], floatfmt=",.0f", tablefmt="github"))
    for record in tested:
        kept = record.params / record.baseline.params, record.macs / record.baseline.macs
        last = final_metric(record) or 0.0
        print(
            f"ours: trial {record.trial} has {kept[0]:.2%} of the parameters and {kept[1]:.2%} of the MACs, "
            f"validation {last:.2%} (dense {dense:.2%}), test {record.metrics['test'][data.metric]:.2%} (dense "
            f"{record.baseline.metric(data.metric, 'test'):.2%})"
        )
    if not reaching:
        print(f"ours: NO trial lost at most {POINTS:.1%} on validation, so the costs above cannot be compared")
    for params, macs, accuracy in reached:
        print(f"theirs: {params:.2%} of the parameters, {macs:.2%} of the MACs, validation {accuracy:.2%}")
    print(f"theirs: {share:.3%} of {DRAWS:,} draws are small enough")


def workers(options: argparse.Namespace) -> None:
    """Print the trials per minute with one worker process and with two."""
    model, data = load(options)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 2):
            storage = options.storage or str(Path(folder) / f"{count}.journal")
            run = f"workers-{count}-{time.time():.0f}"
            settings = SearchSettings(method=options.method, budget=TARGET, trials=options.trials, finetune_top=0)
            begun = search_ranks(model, data, settings, logs=folder, run=run, storage=storage, on_trial=_stop)
            command = [sys.executable, "-m", "common.search.study.worker", "--study", run, "--storage", storage]
            command += ["--logs", folder]
            crew = [subprocess.Popen([*command, "--name", str(n)], cwd=ROOT) for n in range(count)]
            statuses = [process.wait() for process in crew]
            if any(statuses):
                raise RuntimeError("a worker failed")
            judged = Attempts(begun.study, options.trials).judged
            trials = sorted(judged.values(), key=lambda trial: trial.number)[1:]
            starts, ends = [t.datetime_start for t in trials], [t.datetime_complete for t in trials]
            seconds = (max(e for e in ends if e) - min(s for s in starts if s)).total_seconds()
            rows.append([count, len(trials), 60 * len(trials) / seconds])
    print(tabulate(rows, ["workers", "trials", "trials per minute"], floatfmt=".1f", tablefmt="github"))
    print(f"two workers: {rows[1][2] / rows[0][2]:.2f}x")


def _stop(_: object) -> None:
    raise KeyboardInterrupt


def profile(options: argparse.Namespace) -> None:
    """Print the functions in which the trials spend the most time."""
    model, data = load(options)
    settings = SearchSettings(method=options.method, budget=TARGET, trials=options.trials, finetune_top=0)
    with tempfile.TemporaryDirectory() as logs:
        search_ranks(model, data, settings, logs=logs, run="p", on_trial=_stop)
        profiler = cProfile.Profile()
        profiler.runcall(search_ranks, model, data, settings, logs=logs, run="p", on_trial=lambda _: None)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def load(options: argparse.Namespace) -> tuple[nn.Module, DataBundle]:
    """Load the network and the data."""
    data = load_data(
        options.dataset, options.data_root, options.image_size, batch_size=options.batch_size, limit=options.limit
    )
    return load_compressed(options.weights).to(default_device()), data


def main(arguments: list[str] | None = None) -> None:
    """Run the part that the command line selects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("target", "workers", "profile"))
    parser.add_argument("--weights", required=True, help="the dense network, from finetuned/finetune.py")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-root", help="folder that holds the data set")
    parser.add_argument("--image-size", type=int, default=32, help="pixels; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="use at most this many images of each split, for both methods")
    parser.add_argument("--method", default="htd", help="default: %(default)s")
    parser.add_argument("--trials", type=int, default=20, help="trials of our search; default: %(default)s")
    parser.add_argument("--finetune-epochs", type=float, default=1.0, help="for our best trial; default: %(default)s")
    parser.add_argument("--measured", type=int, default=3, help="trials of the earlier method; default: %(default)s")
    parser.add_argument("--storage", help="for workers: a database instead of a journal file")
    parser.add_argument("--amp", choices=("auto", "on", "off"), default="auto", help="bfloat16 in all fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(f"{machine_line(default_device())}\n", flush=True)
    {"target": target, "workers": workers, "profile": profile}[options.what](options)


if __name__ == "__main__":
    main()
