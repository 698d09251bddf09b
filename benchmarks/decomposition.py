"""Decomposing ResNet18 and VGG16, against TensorLy and TensorLy-Torch, in one run.

    python benchmarks/decomposition.py

Every convolution of ResNet18 with a kernel is decomposed by Tucker-2 at a third of its ranks: by TensorLy's
``partial_tucker`` and TensorLy-Torch's ``FactorizedConv``, each with its defaults, and by this suite. Then 100
different plans for the whole network are made from what is there already. VGG16 comes whole, in a process of its own,
so that its peak memory can be read. Prints the ratios; asserts nothing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tensorly
import tltorch
import torch
from tabulate import tabulate
from torch import Tensor, nn

from common.checkpoints import load_compressed
from common.compression import compress
from common.decomposition import Tucker2
from common.models import build_model
from common.planning import plan_ranks
from common.planning.layers import Decompositions, factorable_layers

Timed = tuple[float, float]  # seconds, relative error


def relative_error(approximation: Tensor, weight: Tensor) -> float:
    """In the Frobenius norm."""
    return float((weight - approximation).norm() / weight.norm())


def by_tensorly(weight: Tensor, ranks: tuple[int, int]) -> Timed:
    """``partial_tucker`` over both channel modes."""
    start = time.perf_counter()
    (core, factors), _ = tensorly.decomposition.partial_tucker(weight, rank=[ranks[1], ranks[0]], modes=[0, 1])
    seconds = time.perf_counter() - start
    return seconds, relative_error(tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1]), weight)


def by_tltorch(layer: nn.Conv2d, ranks: tuple[int, int]) -> Timed:
    """``FactorizedConv`` by Tucker, the kernel's modes at full rank."""
    start = time.perf_counter()
    factorized = tltorch.FactorizedConv.from_conv(
        layer, rank=[ranks[1], ranks[0], *layer.kernel_size], factorization="tucker", decompose_weights=True
    )
    seconds = time.perf_counter() - start
    return seconds, relative_error(factorized.weight.to_tensor().detach(), layer.weight.detach())


def by_this_suite(weight: Tensor, ranks: tuple[int, int]) -> Timed:
    """``Tucker2`` with two sweeps: the HOSVD at all ranks, and improved factors at the given ones."""
    start = time.perf_counter()
    decomposition = Tucker2(weight, sweeps=2)
    decomposition.factors(ranks)
    seconds = time.perf_counter() - start
    return seconds, relative_error(decomposition.reconstruct(ranks), weight)


def compare(model: nn.Module) -> float:
    """Print layer by layer; returns TensorLy's seconds for the network."""
    rows: list[list[Any]] = []
    for name, layer in factorable_layers(model).items():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            weight = layer.weight.detach()
            ranks = (max(1, layer.in_channels // 3), max(1, layer.out_channels // 3))
            theirs, torchs, ours = by_tensorly(weight, ranks), by_tltorch(layer, ranks), by_this_suite(weight, ranks)
            rows.append([name, "x".join(map(str, ranks)), *theirs, *torchs, *ours, ours[1] / theirs[1] - 1])
    heads = [
        "layer",
        "ranks",
        "TensorLy s",
        "error",
        "tltorch s",
        "error",
        "here s",
        "error",
        "error above TensorLy's",
    ]
    formats = ("", "", ".3f", ".4f", ".3f", ".4f", ".3f", ".4f", "+.2%")
    print(tabulate(rows, heads, floatfmt=formats))
    totals = [sum(row[column] for row in rows) for column in (2, 4, 6)]
    worst = max(row[8] for row in rows)
    print(f"\nwhole network: TensorLy {totals[0]:.1f} s, tltorch {totals[1]:.1f} s, here {totals[2]:.2f} s")
    print(f"here {totals[0] / totals[2]:.0f} times faster than TensorLy; greatest error above its own: {worst:+.2%}")
    return float(totals[0])


def hundred_plans(model: nn.Module, tensorly_seconds: float) -> None:
    """Time 100 plans for the whole network, and 100 compressed networks."""
    x = torch.randn(1, 3, 224, 224)
    for method in ("svd", "tucker2", "htd"):
        start = time.perf_counter()
        kept = Decompositions(model)
        for index in range(100):
            plan = plan_ranks(model, x, method, "fixed", ranks=0.05 + 0.005 * index, decompositions=kept)
            compress(model, plan, decompositions=kept)
        seconds = time.perf_counter() - start
        print(
            f"100 plans and networks by {method}: {seconds:.1f} s, {seconds / tensorly_seconds:.2f} of TensorLy's one "
            "(decomposition included)"
        )


def vgg16() -> None:
    """Decompose VGG16 whole, its Linear layers included, and say what that took."""
    model = build_model("vgg16", 1000).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    kept = Decompositions(model)
    plan = plan_ranks(model, torch.randn(1, 3, 224, 224), "htd", "fixed", ranks=0.25, decompositions=kept)
    planned = time.perf_counter()
    compress(model, plan, decompositions=kept)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"VGG16 whole, HTD at a quarter of the ranks: decomposed and planned in {planned - start:.1f} s, built in "
        f"{seconds - (planned - start):.1f} s; peak memory {peak:.2f} GiB ({before:.2f} GiB before)"
    )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a trained ResNet18 (*.safetensors); random weights without")
    parser.add_argument("--vgg16", action="store_true", help="only the part on VGG16")
    options = parser.parse_args()
    if options.vgg16:
        vgg16()
        return
    torch.manual_seed(0)
    tensorly.set_backend("pytorch")
    model = load_compressed(options.weights) if options.weights else build_model("resnet18", 1000).eval()
    print(f"torch {torch.__version__}, TensorLy {tensorly.__version__}, {torch.get_num_threads()} threads\n")
    hundred_plans(model, compare(model))
    subprocess.run([sys.executable, __file__, "--vgg16"], check=True)


if __name__ == "__main__":
    main()
