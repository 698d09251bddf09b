r"""Peers on a trained network: accuracy before fine-tuning, seconds to decompose, and speed in one runtime.

    OMP_NUM_THREADS=1 python -m benchmarks.peers --weights finetuned/resnet20-cifar10.safetensors --dataset cifar10 \
        --data-root DATA --kept 0.5

Every peer factors the convolutions whose kernel is larger than 1 x 1, at the greatest common fraction of the ranks (in
steps of 0.01) that keeps at most ``--kept`` of the network's parameters or MACs. The first convolution stays dense,
because three input channels have no rank to spare; FasterAI's rows include it once, as FasterAI does by itself.

    TensorLy        ``partial_tucker`` over both channel modes, at its defaults and at one iteration
    TensorLy-Torch  ``FactorizedConv`` by Tucker, at its defaults, run by factors
    FasterAI        ``Conv_Decomposer`` by Tucker and by SVD (``pip install --no-deps fasterai einops``; else left out)
    ours            Tucker-2 of the weights at TensorLy's ranks; ``shrink`` with that budget, by Tucker-2 and ``mixed``

Only ``shrink`` sees data: the calibration split. *Recalibrated* means that BatchNorm's statistics were measured again
on the same split; ``shrink`` does that itself where it helps. The score is the deciding metric on the test split, with
the paired 95% interval of the difference from the dense network. All networks are timed in turn with the dense one,
after BatchNorm was folded and factors were merged. The script asserts nothing.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tensorly
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.latency import by_tensorly, by_tltorch
from common.calibration import recalibrate_bn
from common.compression import compress, load_compressed
from common.data import DATASETS, DataBundle, load_data
from common.deploy import fold_batchnorm, merge_factors
from common.environment import machine_line
from common.latency import RUNTIMES, measure_latencies
from common.network import profile
from common.network.kinds import Convolution
from common.planning import Budget, Fixed, plan_ranks
from common.progress import track
from common.shrink import shrink
from common.training import Evaluation, evaluate_images, paired_difference

CRITERIA = ("params", "macs")
HEADS = ("", "parameters", "MACs", "test", "recalibrated", "points from dense, the better of both", "decomposed in")
Maker = Callable[[float], nn.Module]
"""Fraction of the ranks to keep -> a network."""


def spatial_layers(model: nn.Module) -> list[str]:
    """The names of the convolutions whose kernel is larger than one, in their order."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Convolution) and max(module.kernel_size) > 1 and module.groups == 1
    ]


def common_ranks(model: nn.Module, kept: float) -> dict[str, tuple[int, int]]:
    """For every such convolution but the first, the fraction ``kept`` of its ranks of inputs and outputs."""
    ranks = {}
    for name in spatial_layers(model)[1:]:
        layer = model.get_submodule(name)
        assert isinstance(layer, Convolution)
        ranks[name] = (max(1, int(kept * layer.in_channels)), max(1, int(kept * layer.out_channels)))
    return ranks


def replaced(model: nn.Module, replace: Callable[[Convolution, tuple[int, int]], nn.Module], kept: float) -> nn.Module:
    """Replace every convolution but the first by what ``replace`` makes of it.

    Args:
        model: the dense network.
        replace: (layer, ranks of inputs and outputs) -> its replacement.
        kept: fraction of both ranks to keep.
    """
    network = copy.deepcopy(model)
    for name, ranks in common_ranks(model, kept).items():
        layer = network.get_submodule(name)
        assert isinstance(layer, Convolution)
        network.set_submodule(name, replace(layer, ranks))
    return network.eval()


def our_tucker(model: nn.Module, x: Tensor, kept: float) -> nn.Module:
    """Return this suite's Tucker-2 of the weights of the same layers, at the same fraction of the ranks."""
    return compress(model, plan_ranks(model, x, "tucker2", Fixed(common_ranks(model, kept))))


def by_fasterai(model: nn.Module, method: str, whole: bool, kept: float) -> nn.Module:
    """Let FasterAI factor the network; ``whole`` includes the first convolution."""
    decomposer: Any = importlib.import_module("fasterai.misc.conv_decomposer").Conv_Decomposer()
    exclude = [] if whole else spatial_layers(model)[:1]
    network: nn.Module = decomposer.decompose(model, percent_removed=1 - kept, method=method, exclude=exclude)
    return network.eval()


def makers(model: nn.Module, x: Tensor) -> Iterator[tuple[str, Maker, Maker]]:
    """For each peer its title, what makes a network quickly to see its size, and what makes it in earnest."""
    quick = partial(replaced, model, partial(by_tensorly, iterations=1))
    yield "TensorLy, defaults", quick, partial(replaced, model, by_tensorly)
    yield "TensorLy, one iteration", quick, quick
    yield (
        "TensorLy-Torch, defaults",
        partial(replaced, model, by_tltorch),
        partial(replaced, model, partial(by_tltorch, decompose=True)),
    )
    if importlib.util.find_spec("fasterai"):
        for method in ("tucker", "svd"):
            for whole in (True, False):
                make = partial(by_fasterai, model, method, whole)
                yield f"FasterAI, {method}{'' if whole else ', stem dense'}", make, make
    yield "ours, Tucker-2 of the weights", quick, partial(our_tucker, model, x)


def greatest_fraction(make: Maker, x: Tensor, criterion: str, most: float) -> float:
    """The greatest fraction of the ranks, in steps of 0.01, with at most ``most`` parameters or MACs.

    A fraction at which the peer fails counts as too large.

    Raises:
        ValueError: there is none.
    """
    low, high = 0, 100
    while low < high:
        middle = (low + high + 1) // 2
        try:
            fits = getattr(profile(make(middle / 100), x), criterion) <= most
        except RuntimeError:  # FasterAI's iterations fail where one rank exceeds the other's times the kernel
            fits = False
        low, high = (middle, high) if fits else (low, middle - 1)
    if not low:
        raise ValueError(f"no fraction of the ranks keeps {criterion} to {most:,.0f}")
    return low / 100


def _shrunk(model: nn.Module, batches: list[tuple[Tensor, Tensor]], budget: Budget, method: str) -> nn.Module:
    return shrink(model, batches, budget, method).model


class Table:
    """The rows of all networks.

    Args:
        model: the dense network.
        data: the splits.
    """

    def __init__(self, model: nn.Module, data: DataBundle) -> None:
        self.model, self.data, self.x = model, data, data.example()
        self.whole, self.dense = profile(model, self.x), self.tested(model)
        self.networks: dict[str, nn.Module] = {"dense": model}
        self.rows: list[list[str]] = [["dense", "100%", "100%", self.score(self.dense), "", "", ""]]

    def tested(self, network: nn.Module) -> Evaluation:
        """Evaluate on the test split."""
        return evaluate_images(network, self.data.test)

    def score(self, found: Evaluation) -> str:
        """The deciding metric in percent."""
        return f"{100 * found.metrics[self.data.metric]:.2f}%"

    def add(self, title: str, make: Callable[[], nn.Module], recalibrates: bool = True) -> None:
        """Make, time and test a network.

        Args:
            title: of its row.
            make: makes it.
            recalibrates: whether to measure it again with BatchNorm recalibrated.
        """
        start = time.process_time()
        network = make()
        seconds = time.process_time() - start
        cost = profile(network, self.x)
        found = [self.tested(network)]
        if recalibrates:
            recalibrate_bn(network, self.data.calibration)
            found.append(self.tested(network))
        better = max(found, key=lambda each: each.metrics[self.data.metric])
        gap = paired_difference(better, self.dense, self.data.metric)
        self.networks[title] = network
        self.rows.append(
            [
                title,
                f"{cost.params / self.whole.params:.1%}",
                f"{cost.macs / self.whole.macs:.1%}",
                self.score(found[0]),
                self.score(found[1]) if recalibrates else "",
                f"{100 * gap.value:+.2f} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]",
                f"{seconds:.1f} s",
            ]
        )

    def timed(self, runtime: str, rounds: int) -> list[list[str]]:
        """The rows with each network's time in turn with the dense one, and its speedup."""
        merged = [merge_factors(fold_batchnorm(network, self.x), self.x) for network in self.networks.values()]
        found = measure_latencies(merged, self.x, baseline=merged[0], runtime=runtime, rounds=rounds, round_s=0.1)
        return [
            [*row, f"{1000 * each.median_s:.3f} ms", f"{each.speedup:.2f}" if each.speedup else "-"]
            for row, each in zip(self.rows, found, strict=True)
        ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="a trained dense network")
    parser.add_argument("--dataset", choices=DATASETS, required=True)
    parser.add_argument("--data-root", help="folder of the data set")
    parser.add_argument("--image-size", type=int, help="height and width of the images; default: the data set's")
    parser.add_argument("--batch-size", type=int, default=250, help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="maximum number of images of each split; default: all")
    parser.add_argument("--kept", type=float, default=0.5, help="share to keep; default: %(default)s")
    parser.add_argument("--criterion", choices=CRITERIA, default="params", help="of what; default: %(default)s")
    parser.add_argument("--methods", nargs="+", default=["tucker2", "mixed"], help="of shrink; default: both")
    parser.add_argument("--runtime", choices=list(RUNTIMES), default="onnxruntime", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each network; default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, test and time every network and print the table."""
    options = parse(arguments)
    tensorly.set_backend("pytorch")
    data = load_data(
        options.dataset, options.data_root, options.image_size, batch_size=options.batch_size, limit=options.limit
    )
    model = load_compressed(options.weights)
    table = Table(model, data)
    most = options.kept * getattr(table.whole, options.criterion)
    for title, quick, make in track(list(makers(model, table.x)), "peers", unit="peer"):
        kept = greatest_fraction(quick, table.x, options.criterion, most)
        table.add(title, partial(make, kept))
    budget = Budget(**{options.criterion: options.kept})
    batches = list(data.calibration)
    for method in options.methods:
        table.add(f"ours, shrink by {method}", partial(_shrunk, model, batches, budget, method), recalibrates=False)
    title = RUNTIMES[options.runtime].title
    print(f"{machine_line()}\n")
    rows = table.timed(options.runtime, options.rounds)
    print(tabulate(rows, [*HEADS, f"time in {title}", "speedup"], "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
