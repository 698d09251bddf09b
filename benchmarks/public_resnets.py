r"""Accuracy of public CIFAR-10 networks before any fine-tuning, beside BALF on the same networks, images and sizes.

    python benchmarks/public_resnets.py --weights resnet32-cifar10.safetensors --data-root DATA

The weights are those of ResNet-32 or ResNet-44 of akamaster/pytorch_resnet_cifar10 (BSD-2-Clause) as a safetensors
file; ``DATA`` holds CIFAR-10 as class folders of images in ``train`` and ``test``. BALF (davidgonmar/BALF, commit
b11e291) was run with its own allocation and factors on 2,048 training images, and tested on the first 5,000 images of
a seeded shuffle of the test split (``random.Random(0)`` over the sorted files). This script shrinks the networks to
what BALF kept, on the same images. The images are re-encoded as JPEG, which costs the networks about ten points.

It prints accuracies with the paired difference from the dense network, and writes ``public_<weights>.{csv,png,pdf}``.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import seaborn as sns
import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.functional import pad

from common.calibration import recalibrate_bn
from common.calibration.divergence import outputs_on
from common.planning import Budget
from common.reporting.facts import COLORS
from common.reporting.figures.style import save_figure, styled
from common.shrink import ShrinkSteps, shrink_each

MEAN, STD = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
BALF = {  # blocks a stage -> (budget on, kept share of parameters, of MACs, accuracy, accuracy after BatchNorm)
    5: (
        ("params", 0.7997, 0.9081, 81.02, 80.94),
        ("params", 0.6013, 0.8087, 75.56, 76.90),
        ("params", 0.5013, 0.7297, 65.78, 71.90),
        ("params", 0.4021, 0.6580, 46.26, 64.12),
        ("params", 0.3021, 0.5531, 29.80, 50.00),
        ("macs", 0.8549, 0.7993, 79.60, 79.88),
        ("macs", 0.6298, 0.6000, 63.80, 75.30),
        ("macs", 0.5211, 0.4995, 45.94, 69.90),
        ("macs", 0.4259, 0.3993, 17.88, 57.58),
        ("macs", 0.3278, 0.2996, 12.16, 48.86),
    ),
    7: (
        ("params", 0.7927, 0.9007, 80.48, 80.98),
        ("params", 0.6013, 0.7946, 73.42, 78.26),
        ("params", 0.5019, 0.7218, 64.02, 74.04),
        ("params", 0.4022, 0.6340, 45.68, 66.68),
        ("params", 0.3034, 0.5338, 28.64, 55.40),
        ("macs", 0.8692, 0.7983, 79.18, 80.14),
        ("macs", 0.6517, 0.5988, 67.94, 76.04),
        ("macs", 0.5464, 0.4987, 50.72, 72.98),
        ("macs", 0.4370, 0.3999, 24.52, 67.04),
        ("macs", 0.3335, 0.2996, 12.36, 53.56),
    ),
}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: every second pixel, channels padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.stride, self.missing = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + pad(x, (0, 0, 0, 0, self.missing, self.missing)))


class ResNet(nn.Module):
    """The ResNet for 32x32 images of He et al. (2016), with ``blocks`` blocks in each of three stages."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        stages = [
            nn.Sequential(Block(inputs, width, stride), *(Block(width, width, 1) for _ in range(blocks - 1)))
            for inputs, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, 10)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def public_network(file: Path) -> tuple[nn.Module, int]:
    """Read the network from a safetensors file; return it with its number of blocks a stage."""
    weights = safetensors.torch.load_file(file)
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layer1."))
    model = ResNet(blocks)
    model.load_state_dict(weights)
    return model.eval(), blocks


def images(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first images of a seeded shuffle of class folders, normalised, ``(N, 3, 32, 32)``, and their classes."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(file, index) for index, path in enumerate(classes) for file in sorted(path.iterdir())]
    random.Random(0).shuffle(files)
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file, _ in files[:count]]
    inputs = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    return (inputs - MEAN) / STD, torch.tensor([index for _, index in files[:count]])


def hits(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """For each image, whether its class has the greatest logit."""
    return outputs_on(model, inputs.split(500)).argmax(1) == targets


def difference(after: Tensor, before: Tensor) -> tuple[float, float]:
    """The paired difference of two accuracies in points, and half of its 95% interval."""
    change = 100 * (after.double() - before.double())
    return float(change.mean()), float(1.96 * change.std() / len(change) ** 0.5)


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """Shrink the network to each size that BALF kept; return a row for each."""
    model, blocks = public_network(options.weights)
    fitted, labels = images(options.data_root / "train", options.images)
    inputs, targets = images(options.data_root / "test", 5000)
    dense = hits(model, inputs, targets)
    batches = list(zip(fitted.split(256), labels.split(256), strict=True))
    rows = []
    budgets = [
        Budget(params=params) if criterion == "params" else Budget(macs=macs)
        for criterion, params, macs, *_ in BALF[blocks]
    ]
    start = time.perf_counter()
    networks = shrink_each(model, batches, budgets, options.method, steps=ShrinkSteps(seed=options.seed))
    for (criterion, _, _, raw, recalibrated), small in zip(BALF[blocks], networks, strict=True):
        seconds = time.perf_counter() - start
        found = hits(small.model, inputs, targets)
        lost, half = difference(dense, found)
        best = max(raw, recalibrated)
        peer_lost = 100 * float(dense.double().mean()) - best
        rows.append(
            {
                "budget on": criterion,
                "params kept": small.after.params / small.before.params,
                "MACs kept": small.after.macs / small.before.macs,
                "accuracy": 100 * float(found.double().mean()),
                "lost": lost,
                "95%": half,
                "BALF": best,
                "BALF lost": peer_lost,
                "ratio": lost / peer_lost,
                "seconds": seconds,
            }
        )
        print(small, tabulate([rows[-1]], headers="keys", floatfmt=".4g"), sep="\n", flush=True)
        start = time.perf_counter()
    recalibrate_bn(model, fitted.split(256))
    print(
        f"dense {100 * float(dense.double().mean()):.2f}%, its BatchNorm recalibrated "
        f"{100 * float(hits(model, inputs, targets).double().mean()):.2f}%"
    )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> list[Path]:
    """Plot accuracy against the share kept, by this suite and by BALF: a panel for each criterion."""
    title = {"params": "Parameters kept", "macs": "MACs kept"}
    parts = [
        pd.DataFrame(
            {
                "kept": 100 * table["params kept"].where(table["budget on"] == "params", table["MACs kept"]),
                "accuracy": table[column],
                "criterion": table["budget on"].map(title),
                "by": name,
            }
        )
        for name, column in (("shrink", "accuracy"), ("BALF", "BALF"))
    ]
    with styled():
        grid = sns.relplot(
            pd.concat(parts),
            x="kept",
            y="accuracy",
            hue="by",
            style="by",
            col="criterion",
            kind="line",
            markers=True,
            dashes=False,
            palette=COLORS[:2],
            height=2.4,
            aspect=1.15,
        )
        dense = (table["accuracy"] + table["lost"]).mean()
        for axes in grid.axes.flat:
            axes.axhline(dense, color="0.4", linewidth=0.8, linestyle="--")
            axes.annotate("dense", (0.02, dense), (0, 2), ("axes fraction", "data"), "offset points", color="0.4")
        grid.set_titles("{col_name}")
        grid.set_axis_labels("Share kept (%)", "Test accuracy (%)")
        grid.legend.set_title("")
    return save_figure(grid.figure, path)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of ResNet-32 or ResNet-44")
    parser.add_argument("--data-root", type=Path, required=True, help="folder with train and test, of class folders")
    parser.add_argument("--method", default="mixed", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=2048, help="training images; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled positions; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    table = measure(options)
    print(tabulate(table.to_numpy().tolist(), list(table.columns), floatfmt=".4g"))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"public_{options.weights.stem}"
    table.to_csv(path.with_suffix(".csv"), index=False)
    print(*draw(table, path), sep="\n")


if __name__ == "__main__":
    main()
