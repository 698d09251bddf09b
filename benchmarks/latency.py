"""Time dense and compressed networks in turn; print the speedups and their shares of the ratio of MACs.

    python benchmarks/latency.py

The cases are ResNet18 at 224 px with 87.15% fewer parameters and 84.67% fewer MACs, VGG16 and AlexNet at 224 px with a
tenth of the parameters and 69% and 53% fewer MACs, the U-Net at 256 px with 75% fewer MACs, and MONAI's residual U-Net
for volumes of 64 voxels a side with half of the MACs. ``alexnet-convolutions`` has no budget for parameters. Nearly
all of them are in the Linear layers, which spend their time on reading weights rather than on MACs. Each network is
compressed by every method under its budget. Then two peers factor the convolutions that Tucker-2 factors, at the same
ranks: TensorLy-Torch's ``FactorizedConv`` and TensorLy's ``partial_tucker``. Weights are random, which does not change
the time.

In ``eager``, the networks run unchanged. In the other runtimes, all networks, including dense ones and peers, have
BatchNorm folded and factors merged, and MACs are counted after that. The MACs of this suite's Tucker-2 at the same
ranks are used for the peers, although TensorLy-Torch computes more and keeps the BatchNorm after its layers. A share
of 1 means that time fell as much as MACs. The spread is that of the speedups of single rounds. If it is over a
quarter, no speedup is stated. The dense network is also timed against itself. The script prints the figures and
asserts nothing.

Budgets limit parameters and MACs. With ``--latency``, they also limit the time to a share of the dense network's, as
predicted from measured operations for one image in the first of ``--runtimes``. This shows the effect of a budget for
both MACs and latency. With ``--in-turn``, all networks in all runtimes take turns, so a drift of the machine's speed
changes no ratio between runtimes.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median, quantiles
from typing import Any

import tensorly
import tltorch
import torch
from monai.networks.nets.unet import UNet
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from common.compression import compress
from common.decomposition import DECOMPOSITIONS
from common.deploy import fold_batchnorm, merge_factors
from common.environment import machine_line
from common.latency import RUNTIMES, Latency, available_runtimes, measure_latencies, measured_latencies
from common.models import build_model
from common.network import Profile, profile
from common.network.kinds import CONVOLUTIONS, Convolution
from common.planning import Budget, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions
from common.planning.methods import timed_methods

METHODS = (*DECOMPOSITIONS, "mixed")
AS_THEY_ARE = ("eager",)
"""Runtimes in which the networks are timed without folding and merging."""
BEST_OF = ("channels_last", "compile")
"""Runtimes whose better time counts as PyTorch's."""
HEADS = (
    "network",
    "batch",
    "runtime",
    "by",
    "params",
    "MACs ratio",
    "ms",
    "iqr",
    "spread",
    "peak MiB",
    "speedup",
    "share",
)


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input and its budget."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    budget: Budget


def _volume_unet(*channels: int) -> nn.Module:
    """Return MONAI's residual U-Net for volumes."""
    return UNet(3, 1, 2, channels, strides=(2,) * (len(channels) - 1), num_res_units=2)


CASES = {
    "resnet18": Case(partial(build_model, "resnet18", 1000), (3, 224, 224), Budget(params=0.1285, macs=0.1533)),
    "vgg16": Case(partial(build_model, "vgg16", 1000), (3, 224, 224), Budget(params=0.1, macs=0.31)),
    "alexnet": Case(partial(build_model, "alexnet", 1000), (3, 224, 224), Budget(params=0.1, macs=0.47)),
    "alexnet-convolutions": Case(partial(build_model, "alexnet", 1000), (3, 224, 224), Budget(macs=0.47)),
    "unet": Case(partial(build_model, "unet", 1), (3, 256, 256), Budget(macs=0.25)),
    "volume-unet": Case(partial(_volume_unet, 32, 64, 128, 256), (1, 64, 64, 64), Budget(macs=0.5)),
}
TINY = {
    "resnet20": Case(partial(build_model, "resnet20", 10), (3, 16, 16), Budget(macs=0.5)),
    "unet": Case(partial(build_model, "unet", 1, width=8, depth=1), (3, 16, 16), Budget(macs=0.5)),
    "volume-unet": Case(partial(_volume_unet, 8, 16), (1, 8, 8, 8), Budget(macs=0.5)),
}


def by_tltorch(layer: Convolution, ranks: tuple[int, ...], decompose: bool = False) -> nn.Module:
    """Return a Tucker ``FactorizedConv`` with full rank in the kernel's modes, run by factors.

    Its factors are random, or those of the layer's weight with ``decompose``.
    """
    factorized = tltorch.FactorizedConv.from_conv(
        layer,
        rank=[ranks[1], ranks[0], *layer.kernel_size],
        factorization="tucker",
        implementation="factorized",  # the default computes the dense kernel in each pass
        decompose_weights=decompose,
    )
    if not decompose:
        factorized.weight.normal_(0, 0.02)
    return factorized


def by_tensorly(layer: Convolution, ranks: tuple[int, ...], iterations: int = 100) -> nn.Module:
    """Return three convolutions with the factors of ``partial_tucker`` over both channel modes.

    ``iterations`` is its greatest number of them; 100 is its default.
    """
    inner, outer = ranks
    kind = CONVOLUTIONS[len(layer.kernel_size) - 1]
    weight = layer.weight.detach()
    (core, (left, right)), _ = tensorly.decomposition.partial_tucker(
        weight, rank=[outer, inner], modes=[0, 1], n_iter_max=iterations
    )
    first = kind(layer.in_channels, inner, 1, bias=False)
    middle = kind(inner, outer, 1, bias=False)
    for setting in ("kernel_size", "stride", "padding", "dilation"):
        setattr(middle, setting, getattr(layer, setting))
    last = kind(outer, layer.out_channels, 1, bias=layer.bias is not None)
    with torch.no_grad():
        first.weight.copy_(right.T.reshape(first.weight.shape))
        middle.weight = nn.Parameter(core)
        last.weight.copy_(left.reshape(last.weight.shape))
        if layer.bias is not None:
            last.get_parameter("bias").copy_(layer.bias)
    return nn.Sequential(first, middle, last)


PEERS = {"tltorch tucker": by_tltorch, "TensorLy tucker": by_tensorly}


def with_peer(peer: str, dense: nn.Module, small: nn.Module, plan: RankPlan) -> nn.Module:
    """Copy ``small``, and let a peer factor every convolution that Tucker-2 factors, at the same ranks."""
    changed = copy.deepcopy(small)
    for name, layer in plan.factored.items():
        module = dense.get_submodule(name)
        if layer.method == "tucker2" and isinstance(module, Convolution) and module.groups == 1:
            changed.set_submodule(name, PEERS[peer](module, layer.ranks))
    return changed.eval()


def compressed(
    budget: Budget, dense: nn.Module, x: Tensor, methods: Sequence[str], round_to: int
) -> dict[str, nn.Module]:
    """Compress the network by every method, and by the peers if Tucker-2 is among the methods."""
    kept = Decompositions(dense)
    networks: dict[str, nn.Module] = {}
    for method in methods:
        latencies = None if budget.latency is None else measured_latencies(dense, x, budget.runtime, method)
        plan = plan_ranks(
            dense, x, method, replace(budget, round_to=round_to), latencies=latencies, decompositions=kept
        )
        networks[method] = compress(dense, plan, decompositions=kept)
        if method == "tucker2":
            networks |= {peer: with_peer(peer, dense, networks[method], plan) for peer in PEERS}
    return networks


class Table:
    """The rows of one network, including its better time in PyTorch."""

    def __init__(self, name: str, dense: Profile) -> None:
        self.name, self.dense = name, dense
        self.rows: list[list[Any]] = []
        self.best: dict[tuple[int, str], tuple[list[Any], Latency]] = {}

    def add(self, what: str, cost: Profile, latency: Latency) -> None:
        """Add one network in one runtime."""
        ratio = self.dense.macs / cost.macs
        size = [what, cost.params / self.dense.params, ratio]
        speedup = latency.speedup
        share = speedup / ratio if speedup is not None else None
        peak = latency.peak_bytes / 2**20 if latency.peak_bytes is not None else None
        times = [latency.median_s * 1000, latency.iqr_s * 1000, latency.spread, peak]
        key = (latency.batch_size, what)
        self.rows.append([self.name, latency.batch_size, latency.runtime, *size, *times, speedup, share])
        if latency.runtime in (RUNTIMES[name].title for name in BEST_OF):
            known = self.best.get(key)
            if known is None or latency.median_s < known[1].median_s:
                self.best[key] = (size, latency)

    def best_rows(self) -> list[list[Any]]:
        """Return rows of the better time of `BEST_OF` against the dense network's better time."""
        rows = []
        for (batch, _), (size, latency) in self.best.items():
            dense = self.best[batch, "dense"][1]
            steady = not (latency.note or dense.note)
            speedup = dense.median_s / latency.median_s if steady else None
            share = speedup / size[2] if speedup is not None else None
            times = [latency.median_s * 1000, latency.iqr_s * 1000, None, None]
            rows.append([self.name, batch, "better of PyTorch", *size, *times, speedup, share])
        return rows


def measure(name: str, case: Case, options: argparse.Namespace) -> list[list[Any]]:
    """Time one network and its compressed versions; return the rows of the table."""
    dense = case.make().eval()
    image = torch.randn(1, *case.shape)
    budget = case.budget
    if options.latency is not None:
        budget = replace(budget, latency=options.latency, runtime=options.runtimes[0])
    networks = {"dense": dense, **compressed(budget, dense, image, options.methods, options.round_to)}
    merged = {what: merge_factors(fold_batchnorm(network, image), image) for what, network in networks.items()}
    table = Table(name, profile(dense, image))
    for batch in options.batches:
        x = image.expand(batch, *case.shape).contiguous()
        for runtime in options.runtimes:
            chosen = networks if runtime in AS_THEY_ARE else merged
            costs = {what: profile(network, image) for what, network in chosen.items()}
            costs |= {peer: costs["tucker2"] for peer in PEERS if peer in costs}
            found = measure_latencies(
                list(chosen.values()),
                x,
                baseline=chosen["dense"],
                runtime=runtime,
                rounds=options.rounds,
                round_s=options.round_s,
            )
            for (what, cost), latency in zip(costs.items(), found, strict=True):
                table.add(what, cost, latency)
    return table.rows + table.best_rows()


def in_turn(name: str, case: Case, options: argparse.Namespace) -> list[list[Any]]:
    """Time every network in every runtime, all in turn, one image at a time; return the rows of the table.

    Speedups are medians of the rounds' ratios to the dense network in the first runtime: the whole way from there.
    """
    dense = case.make().eval()
    x = torch.randn(1, *case.shape)
    networks = {"dense": dense, **compressed(case.budget, dense, x, options.methods, options.round_to)}
    passes = {}
    for runtime in map(RUNTIMES.__getitem__, options.runtimes):
        for what, network in networks.items():
            with runtime.passing():
                passes[runtime.title, what] = runtime, runtime.prepare(network, x)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in passes}
    for _ in range(options.rounds):
        for key, (runtime, run) in passes.items():
            with runtime.passing():
                timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
                seconds[key].append(timer.timeit(options.passes).median)
    first = next(iter(seconds.values()))
    rows = []
    for (runtime_title, what), own in seconds.items():
        low, ratio, high = quantiles([whole / part for whole, part in zip(first, own, strict=True)], n=4)
        rows.append([name, 1, runtime_title, what, median(own) * 1000, ratio, f"{low:.2f}-{high:.2f}"])
    return rows


def main() -> None:
    """Measure what the options select and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*timed_methods(), "mixed"])
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=available_runtimes())
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--round-to", type=int, help="multiple to which to round ranks; default: 16, or 4 with --tiny")
    parser.add_argument("--latency", type=float, help="share of the time to keep, in the first of --runtimes")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each network; default: %(default)s")
    parser.add_argument("--round-s", type=float, default=0.2, help="minimum seconds of a timing; default: %(default)s")
    parser.add_argument("--in-turn", action="store_true", help="time all runtimes in turn, one image at a time")
    parser.add_argument("--passes", type=int, default=5, help="with --in-turn: of each timing; default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="use small networks, to test whether everything runs")
    options = parser.parse_args()
    options.round_to = options.round_to or (4 if options.tiny else 16)
    torch.manual_seed(0)
    tensorly.set_backend("pytorch")
    print(f"{machine_line()}, TensorLy {tensorly.__version__}, TensorLy-Torch {tltorch.__version__}\n")
    formats = ("", "", "", "", ".2%", ".2f", ".2f", ".2f", ".0%", ".1f", ".2f", ".2f")
    if options.in_turn:
        for name in options.networks:
            rows = in_turn(name, CASES[name], options)
            heads = ["network", "batch", "runtime", "by", "ms", "speedup", "middle half"]
            print(tabulate(rows, heads, "pipe", floatfmt=("", "", "", "", ".2f", ".2f", "")), end="\n\n")
        return
    for name, case in TINY.items() if options.tiny else ((name, CASES[name]) for name in options.networks):
        print(
            tabulate(measure(name, case, options), HEADS, "pipe", floatfmt=formats, missingval="-"),
            end="\n\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
