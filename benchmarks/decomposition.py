"""Compare the decomposition of ResNet18 with TensorLy and TensorLy-Torch; also decompose VGG16.

    python benchmarks/decomposition.py

The first part decomposes every convolution of ResNet18 with a kernel above 1 x 1 by Tucker-2 at a third of its ranks.
It uses TensorLy's ``partial_tucker`` (on NumPy, its default backend, and on PyTorch) and TensorLy-Torch's
``FactorizedConv``, each with its defaults, and this suite with one sweep. The second part makes 100 plans and networks
for each method from one decomposition. The third part decomposes VGG16 in a separate process, to measure its peak
memory. The script prints the ratios and asserts nothing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

import tensorly
import tltorch
import torch
from tabulate import tabulate
from torch import Tensor, nn

from common.compression import compress, load_compressed
from common.decomposition import Tucker2
from common.models import build_model
from common.network.layers import factorable_layers
from common.planning import Fixed, plan_ranks
from common.planning.decompositions import Decompositions

Timed = tuple[float, float]  # seconds, relative error
PEERS = {"TensorLy on NumPy (its default)": 2, "TensorLy on PyTorch": 4, "TensorLy-Torch": 6}
"""Peer -> column of its seconds in the table."""


def relative_error(approximation: Tensor, weight: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return float((weight - approximation).norm() / weight.norm())


def by_tensorly(weight: Tensor, ranks: tuple[int, int], backend: str) -> Timed:
    """Run TensorLy's ``partial_tucker`` over both channel modes."""
    with tensorly.backend_context(backend):
        tensor = tensorly.tensor(weight.numpy())
        start = time.perf_counter()
        (core, factors), _ = tensorly.decomposition.partial_tucker(tensor, rank=[ranks[1], ranks[0]], modes=[0, 1])
        seconds = time.perf_counter() - start
        approximation = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
        return seconds, relative_error(torch.as_tensor(approximation), weight)


def by_tltorch(layer: nn.Conv2d, ranks: tuple[int, int]) -> Timed:
    """Run TensorLy-Torch's ``FactorizedConv`` with Tucker, with the kernel's modes at full rank."""
    tensorly.set_backend("pytorch")
    start = time.perf_counter()
    factorized = tltorch.FactorizedConv.from_conv(
        layer, rank=[ranks[1], ranks[0], *layer.kernel_size], factorization="tucker", decompose_weights=True
    )
    seconds = time.perf_counter() - start
    return seconds, relative_error(factorized.weight.to_tensor().detach(), layer.weight.detach())


def by_this_suite(weight: Tensor, ranks: tuple[int, int]) -> Timed:
    """Run this suite's ``Tucker2`` with one sweep."""
    start = time.perf_counter()
    decomposition = Tucker2(weight, sweeps=1)
    decomposition.factors(ranks)
    seconds = time.perf_counter() - start
    return seconds, relative_error(decomposition.reconstruct(ranks), weight)


def compare(model: nn.Module) -> float:
    """Print time and error by layer; return TensorLy's seconds for the network on PyTorch, its faster backend."""
    rows: list[list[Any]] = []
    for name, layer in factorable_layers(model).items():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            weight = layer.weight.detach()
            ranks = (max(1, layer.in_channels // 3), max(1, layer.out_channels // 3))
            numpy, pytorch = (by_tensorly(weight, ranks, backend) for backend in ("numpy", "pytorch"))
            peers = (*numpy, *pytorch, *by_tltorch(layer, ranks))
            ours = by_this_suite(weight, ranks)
            rows.append([name, "x".join(map(str, ranks)), *peers, *ours, ours[1] / numpy[1] - 1])
    heads = [
        "layer",
        "ranks",
        "TensorLy on NumPy, s",
        "error",
        "on PyTorch, s",
        "error",
        "tltorch, s",
        "error",
        "here, s",
        "error",
        "above TensorLy's",
    ]
    print(tabulate(rows, heads, floatfmt=("", "", *(".3f", ".4f") * 4, "+.2%")))
    totals = {peer: sum(row[column] for row in rows) for peer, column in PEERS.items()}
    ours_s = sum(row[8] for row in rows)
    print(
        f"\nwhole network here: {ours_s:.2f} s; greatest error above TensorLy's: {max(row[10] for row in rows):+.2%}"
    )
    for peer, seconds in totals.items():
        print(f"{peer}: {seconds:.1f} s, {seconds / ours_s:.0f} times as long")
    return totals["TensorLy on PyTorch"]


def hundred_plans(model: nn.Module, tensorly_seconds: float) -> None:
    """Time 100 plans and 100 compressed networks for each method, including one decomposition."""
    x = torch.randn(1, 3, 224, 224)
    for method in ("svd", "tucker2", "htd"):
        start = time.perf_counter()
        decompositions = Decompositions(model)
        for index in range(100):
            plan = plan_ranks(model, x, method, Fixed(0.05 + 0.005 * index), decompositions=decompositions)
            compress(model, plan, decompositions=decompositions)
        seconds = time.perf_counter() - start
        print(
            f"100 plans and networks by {method}, including the decomposition: {seconds:.1f} s, "
            f"{seconds / tensorly_seconds:.2f} times TensorLy's time for one network"
        )


def vgg16() -> None:
    """Decompose VGG16 with its Linear layers; print time and peak memory."""
    model = build_model("vgg16", 1000).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    decompositions = Decompositions(model)
    plan = plan_ranks(model, torch.randn(1, 3, 224, 224), "htd", Fixed(0.25), decompositions=decompositions)
    planned = time.perf_counter()
    compress(model, plan, decompositions=decompositions)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"VGG16 whole, HTD at a quarter of the ranks: decomposed and planned in {planned - start:.1f} s, built in "
        f"{seconds - (planned - start):.1f} s; peak memory {peak:.2f} GiB ({before:.2f} GiB before)"
    )


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a trained ResNet18 (*.safetensors); default: random weights")
    parser.add_argument("--vgg16", action="store_true", help="run only the part on VGG16")
    options = parser.parse_args()
    if options.vgg16:
        vgg16()
        return
    torch.manual_seed(0)
    model = load_compressed(options.weights) if options.weights else build_model("resnet18", 1000).eval()
    print(f"torch {torch.__version__}, TensorLy {tensorly.__version__}, {torch.get_num_threads()} threads\n")
    hundred_plans(model, compare(model))
    subprocess.run([sys.executable, __file__, "--vgg16"], check=True)


if __name__ == "__main__":
    main()
