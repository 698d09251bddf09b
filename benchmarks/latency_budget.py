r"""Compare budgets of latency with budgets of MACs at equal divergence, and predicted with measured times.

    python benchmarks/latency_budget.py
    python benchmarks/latency_budget.py --weights finetuned/resnet18-cifar10.safetensors --dataset cifar10 \
        --data-root DATA --image-size 48

Each network is planned by each method under a budget of MACs, with ranks in multiples of 16 (of 4 in ResNet-20). Then
it is planned under the smallest budget of latency whose plan has no more divergence (the sum of the layers' squared
errors). Both networks are timed in turn with the dense one. Their times are also predicted from the table of measured
operations, which is kept in this machine's cache.

The weights are either random, with spectra that decay like those of trained layers, or trained. For trained weights,
divergences are measured on the calibration split, and the tables state the accuracy on the test split, with BatchNorm
recalibrated and without fine-tuning.

A gain over 1 means that the budget of latency gives the faster network. An error is the predicted over the measured
time, minus 1. ``error`` is that of the prediction with which the plan was made. For ``in turn``, the dense network and
the table's small networks are timed again, in turn with the planned ones, and the prediction uses these times. So it
ignores how much faster or slower the machine has become since its table was made. MACs are counted before factors are
merged for ONNX Runtime. The script prints the figures and asserts nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from common.calibration import recalibrate_bn
from common.compression import compress, load_compressed
from common.data import DataBundle, load_data
from common.environment import machine_line
from common.latency import (
    NetworkLatencies,
    available_runtimes,
    measure_latencies,
    measured_latencies,
    operation_runtimes,
)
from common.latency.references import reference_plans, with_random_factors
from common.models import build_model
from common.network import profile
from common.network.layers import factorable_layers
from common.network.shapes import trace_layers
from common.network.weights import convolution_weight, set_convolution_weight
from common.planning import Budget, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions
from common.planning.methods import timed_methods
from common.planning.options import Divergences, divergence_of_errors
from common.search.candidates import layer_candidates
from common.search.objective import calibration_inputs
from common.search.preparation import decompose_for_search
from common.search.sensitivity import measure_divergences
from common.training import evaluate

METHODS = (*timed_methods(), "mixed")
SIZES = {"resnet18": 224, "vgg16": 224, "alexnet": 224, "unet": 256, "resnet20": 32}
DECAY = 0.6
LARGEST_BASIS = 10_000
"""Maximum number of channels for which a random basis is drawn. VGG16's first Linear layer would take minutes."""
BISECTIONS = 10
HEADS = (
    "network",
    "batch",
    "runtime",
    "method",
    "budget",
    "divergence",
    "MACs ratio",
    "ms",
    "predicted",
    "error",
    "in turn",
    "speedup",
    "share",
    "gain",
    "accuracy",
)


@dataclass(frozen=True)
class Setting:
    """A dense network, its batch, and the decompositions, latencies and divergences for both."""

    name: str
    model: nn.Module
    x: Tensor
    kept: Decompositions
    latencies: NetworkLatencies
    round_to: int
    divergences: Divergences | None = None
    data: DataBundle | None = None

    def plan(self, method: str, budget: Budget) -> RankPlan:
        """Plan the ranks under a budget."""
        timed = budget.latency is not None
        return plan_ranks(
            self.model,
            self.x,
            method,
            replace(budget, round_to=1 if timed else self.round_to),
            divergences=self.divergences,
            latencies=self.latencies if timed else None,
            decompositions=self.kept,
        )

    def divergence(self, plan: RankPlan) -> float:
        """Sum of the layers' measured divergences or, if none are measured, of their squared relative errors."""
        total = 0.0
        for name, layer in plan.factored.items():
            error = self.kept.get(name, str(layer.method)).relative_error(layer.ranks)
            total += divergence_of_errors(np.array(error**2), (self.divergences or {}).get(name)).item()
        return total

    def accuracy(self, network: nn.Module) -> float | None:
        """Accuracy on the test split in %, with BatchNorm recalibrated; None without data."""
        if self.data is None:
            return None
        recalibrate_bn(network, self.data.calibration)
        return 100 * evaluate(network, self.data.test)[self.data.metric]

    def equal_divergence(self, method: str, divergence: float) -> RankPlan:
        """Return the plan with at most this divergence under the smallest budget of latency."""
        low, high = 0.0, 1.0
        best = self.plan(method, Budget(latency=1.0, runtime=self.latencies.table.conditions.runtime))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            try:
                plan = self.plan(method, Budget(latency=middle, runtime=self.latencies.table.conditions.runtime))
            except ValueError:  # no plan is this fast
                low = middle
                continue
            if self.divergence(plan) <= divergence:
                best, high = plan, middle
            else:
                low = middle
        return best


def with_decaying_spectra(model: nn.Module, decay: float = DECAY) -> nn.Module:
    """Scale the i-th direction of each layer's channels by ``i ** -decay``, in random bases; return ``model``."""
    with torch.no_grad():
        for layer in factorable_layers(model).values():
            weight = convolution_weight(layer)
            for mode in (0, 1):
                size = weight.shape[mode]
                if size > LARGEST_BASIS:
                    continue
                basis = torch.linalg.qr(torch.randn(size, size))[0]
                scales = torch.arange(1, size + 1) ** -decay
                mixing = basis * (scales / scales.square().mean().sqrt()) @ basis.T
                weight = torch.tensordot(mixing, weight, dims=([1], [mode])).movedim(0, mode)
            set_convolution_weight(layer, weight)
    return model


def measure(setting: Setting, shares: list[float], methods: list[str], rounds: int, round_s: float) -> list[list[Any]]:
    """Plan and time one network in one runtime; return the rows of the table."""
    runtime = setting.latencies.table.conditions.runtime
    plans: list[tuple[str, str, RankPlan]] = []
    for method in methods:
        for share in shares:
            by_macs = setting.plan(method, Budget(macs=share))
            plans.append((method, f"macs={share:g}", by_macs))
            by_latency = setting.equal_divergence(method, setting.divergence(by_macs))
            plans.append((method, f"latency={by_latency.settings['latency']:.3f}", by_latency))
    networks = [compress(setting.model, plan, decompositions=setting.kept) for *_, plan in plans]
    shapes = trace_layers(setting.model, setting.x)
    references = reference_plans(shapes, setting.latencies.table.known_methods(shapes))
    timed = [*networks, *(with_random_factors(setting.model, reference) for reference in references)]
    found = measure_latencies(
        timed, setting.x, baseline=setting.model, runtime=runtime, rounds=rounds, round_s=round_s
    )
    small = [(reference, latency.median_s) for reference, latency in zip(references, found[len(plans) :], strict=True)]
    before = setting.latencies.whole
    now = setting.latencies.table.calibrated(shapes, found[0].baseline_median_s or before.seconds, small)
    dense = profile(setting.model, setting.x)
    rows: list[list[Any]] = []
    for index, ((method, budget, plan), network) in enumerate(zip(plans, networks, strict=True)):
        latency = found[index]
        predicted = [setting.latencies.table.network_seconds(shapes, whole, plan.layers) for whole in (before, now)]
        ratio = dense.macs / profile(network, setting.x).macs
        share_of = latency.speedup / ratio if latency.speedup is not None else None
        gain = found[index - 1].median_s / latency.median_s if index % 2 else None
        times = [latency.median_s * 1000, predicted[0] * 1000, *(each / latency.median_s - 1 for each in predicted)]
        head = [setting.name, len(setting.x), latency.runtime, method, budget]
        cells = [*head, setting.divergence(plan), ratio, *times, latency.speedup, share_of, gain]
        rows.append([*cells, setting.accuracy(network)])
    return rows


Subject = tuple[nn.Module, Tensor, Decompositions, Divergences | None, DataBundle | None]
"""A network, the batch on which it is timed, its decompositions, its measured divergences and its data."""


def random_network(name: str, options: argparse.Namespace) -> Subject:
    """Build a network with random weights and decaying spectra."""
    model = with_decaying_spectra(build_model(name, {"unet": 1, "resnet20": 10}.get(name, 1000))).eval()
    side = 16 if options.tiny else SIZES[name]
    return model, torch.randn(options.batch, 3, side, side), Decompositions(model), None, None


def trained_network(options: argparse.Namespace) -> Subject:
    """Load the network of ``--weights`` and its data, decompose it and measure its divergences."""
    data = load_data(options.dataset, options.data_root, options.image_size, limit=options.limit)
    model = load_compressed(options.weights).eval()
    print(f"dense: {evaluate(model, data.test)[data.metric]:.2%} on the test split\n")
    kept = decompose_for_search(model, data, seed=0)
    candidates = layer_candidates(trace_layers(model, data.example()), kept, "svd")
    divergences = measure_divergences(model, candidates, kept, calibration_inputs(data, 1000))
    return model, data.example().expand(options.batch, -1, -1, -1).contiguous(), kept, divergences, data


def main() -> None:
    """Measure what the options select and print a table for each network and runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runtimes = list(operation_runtimes())
    here = [name for name in runtimes if name in available_runtimes()]
    parser.add_argument("--networks", nargs="+", choices=list(SIZES), default=["resnet18"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runtimes", nargs="+", choices=runtimes, default=here)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.25], help="shares of the MACs to keep")
    parser.add_argument(
        "--round-to",
        type=int,
        default=16,
        help="multiple to which to round ranks under a budget of MACs; default: %(default)s",
    )
    parser.add_argument("--rounds", type=int, default=15, help="timings of each network; default: %(default)s")
    parser.add_argument("--round-s", type=float, default=0.1, help="minimum seconds of a timing; default: %(default)s")
    parser.add_argument("--cache", help="folder of the latency tables; default: the user's cache")
    parser.add_argument("--weights", help="a trained network, from finetuned/finetune.py, instead of random ones")
    parser.add_argument("--dataset", help="data set of the trained network")
    parser.add_argument("--data-root", help="folder that holds the data set")
    parser.add_argument("--image-size", type=int, help="pixels; default: that of the data set")
    parser.add_argument("--limit", type=int, help="use at most this many images of each split")
    parser.add_argument("--tiny", action="store_true", help="use a small network, to test whether everything runs")
    options = parser.parse_args()
    if options.weights and not options.dataset:
        parser.error("--weights needs --dataset, to measure divergence and accuracy on")
    torch.manual_seed(0)
    print(f"{machine_line()}\n")
    formats = ("", "", "", "", "", ".3f", ".2f", ".2f", ".2f", "+.1%", "+.1%", ".2f", ".2f", ".2f", ".2f")
    names = [Path(options.weights).stem] if options.weights else ["resnet20"] if options.tiny else options.networks
    for name in names:
        model, x, kept, divergences, data = (
            trained_network(options) if options.weights else random_network(name, options)
        )
        for runtime in options.runtimes:
            timed = options.methods[0] if len(options.methods) == 1 else "mixed"
            latencies = measured_latencies(model, x, runtime, timed, folder=options.cache)
            round_to = 4 if name.startswith("resnet20") else options.round_to
            setting = Setting(name, model, x, kept, latencies, round_to, divergences, data)
            rows = measure(setting, options.shares, options.methods, options.rounds, options.round_s)
            print(tabulate(rows, HEADS, "pipe", floatfmt=formats, missingval="-"), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
