r"""Peak signal-to-noise ratio of a compressed denoiser: a network without BatchNorm, whose output is an image.

    python benchmarks/denoiser.py --data-root DATA

It trains a residual chain of 3x3 convolutions (like DnCNN, Zhang et al. 2017, but without BatchNorm) on the luminance
of CIFAR-10 with Gaussian noise, and keeps it in ``results/denoiser.safetensors``. It then keeps parts of the MACs by
each method: on the weights alone, with data, and by ``shrink``. ``DATA`` holds CIFAR-10 as folders of classes in
``train`` and ``test``. Test images are seen once, at the end.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn

from common.calibration import calibrate
from common.calibration.divergence import outputs_on
from common.compression import compress
from common.decomposition import DECOMPOSITIONS
from common.planning import Budget, plan_ranks
from common.progress import track
from common.shrink import shrink_each

SIGMA = 25 / 255
"""Standard deviation of the noise, for values in [0, 1]."""
DEPTH, BATCH = 6, 32
METHODS = (*DECOMPOSITIONS, "mixed")


class Denoiser(nn.Module):
    """Predicts the noise and subtracts it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
        for _ in range(DEPTH - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.noise = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the clean image, ``(N, 1, H, W)``."""
        return x - self.noise(x)


def luminance(folder: Path, count: int) -> Tensor:
    """The luminance of the first images of a seeded shuffle, ``(N, 1, 32, 32)`` in [0, 1]."""
    files = sorted(folder.glob("*/*"))
    random.Random(0).shuffle(files)
    arrays = [np.asarray(Image.open(file).convert("L")) for file in files[:count]]
    return torch.from_numpy(np.stack(arrays))[:, None].float() / 255


def noisy(images: Tensor, seed: int) -> Tensor:
    """The images with noise."""
    return images + SIGMA * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def psnr(clean: Tensor, output: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, for values in [0, 1]."""
    return -10 * (clean - output).square().flatten(1).mean(1).log10()


def trained(images: Tensor, width: int, steps: int, file: Path) -> nn.Module:
    """The trained denoiser, from the file if it exists."""
    torch.manual_seed(0)
    model = Denoiser(width)
    if file.exists():
        model.load_state_dict(safetensors.torch.load_file(file))
        return model.eval()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in track(range(steps), "training", unit="step"):
        clean = images[torch.randint(len(images), (BATCH,), generator=torch.Generator().manual_seed(step))]
        loss = (model(noisy(clean, step)) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    safetensors.torch.save_file(model.state_dict(), file)
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Train, compress, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with train and test, of class folders")
    parser.add_argument("--width", type=int, default=64, help="channels; default: %(default)s")
    parser.add_argument("--steps", type=int, default=1500, help=f"batches of {BATCH}; default: %(default)s")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.7, 0.5, 0.3], help="shares of the MACs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    images = luminance(options.data_root / "train", 10000)
    model = trained(images, options.width, options.steps, options.out / "denoiser.safetensors")
    batches = list(noisy(images[:512], -1).split(64))
    x, moments = batches[0][:1], calibrate(model, batches)
    networks: dict[tuple[str, float], list[nn.Module]] = {}
    budgets = [Budget(macs=kept) for kept in options.kept]
    for method in options.methods:
        for kept, budget, small in zip(
            options.kept, budgets, shrink_each(model, batches, budgets, method), strict=True
        ):
            plain = [
                compress(model, plan_ranks(model, x, method, budget, moments=given), moments=given)
                for given in (None, moments)
            ]
            networks[method, kept] = [*plain, small.model]
    test = luminance(options.data_root / "test", 1000)
    seen = noisy(test, -2).split(100)
    dense = psnr(test, outputs_on(model, seen))
    print(f"noisy {psnr(test, torch.cat(seen)).mean():.2f} dB, dense {dense.mean():.2f} dB, {len(test)} test images")
    rows = []
    for (method, kept), made in networks.items():
        lost = [dense - psnr(test, outputs_on(network, seen)) for network in made]
        half = 1.96 * lost[-1].std() / len(test) ** 0.5
        rows.append([method, f"{kept:.0%}", *(float(each.mean()) for each in lost), float(half)])
    print(tabulate(rows, ["method", "MACs kept", "weights", "with data", "shrink", "95%"], floatfmt=".3f"))
    print("Lost dB on test; the interval is that of the last column, paired.")


if __name__ == "__main__":
    main()
