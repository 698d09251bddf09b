"""Count the denormal weights of a network after training, and time layers with denormal weights beside usual ones.

``python -m tests.faults.denormals``
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common.compression import compress
from common.deploy import export_onnx
from common.deploy.sessions import onnx_session
from common.environment import machine_line
from common.planning import Fixed, plan_ranks
from common.training import TrainingSettings, train
from tests.networks import tiny_cnn, tiny_digits

TINY = 1e-41
"""Times weights of about 0.05: below the least normal number of single precision, 1.2e-38."""


def denormals(model: nn.Module) -> int:
    """How many numbers in the network's parameters and buffers are denormal."""
    tiny = torch.finfo(torch.float32).tiny
    values = [t for t in model.state_dict().values() if t.dtype == torch.float32]
    return sum(int(((t != 0) & (t.abs() < tiny)).sum()) for t in values)


def milliseconds(run: Callable[[], object], repeats: int = 30) -> float:
    """Median time of a call."""
    seconds = []
    for number in range(repeats + 5):
        start = time.perf_counter()
        run()
        if number >= 5:
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def session_of(layer: nn.Module, x: Tensor, folder: str) -> Callable[[], object]:
    session = onnx_session(export_onnx(layer, Path(folder) / "layer.onnx", x), 1)
    return lambda: session.run(None, {session.get_inputs()[0].name: x.numpy()})


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=20.0, help="of training; default: %(default)s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(machine_line())
    model = tiny_cnn(width=32)
    train(model, tiny_digits(limit=600), TrainingSettings(epochs=options.epochs, weight_decay=0.1, amp="off"))
    x = torch.randn(1, 3, 8, 8)
    small = compress(model, plan_ranks(model, x, "htd", Fixed(0.5)))
    print(f"denormal numbers after {options.epochs:g} epochs: {denormals(model)} dense, {denormals(small)} compressed")
    layers: dict[str, tuple[nn.Module, Tensor]] = {
        "Conv2d 64x64x3x3, 32x32": (nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 32, 32)),
        "Linear 1024x1024, batch 8": (nn.Linear(1024, 1024), torch.randn(8, 1024)),
        "BatchNorm2d 64, 32x32": (nn.BatchNorm2d(64).eval(), torch.randn(1, 64, 32, 32)),
    }
    print(f"{'layer':28}{'PyTorch ms':>12}{'denormal':>10}{'ONNX Runtime ms':>17}{'denormal':>10}")
    for name, (layer, inputs) in layers.items():
        row = f"{name:28}"
        with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            found = []
            for scale in (1.0, TINY):
                for parameter in layer.parameters():
                    parameter.mul_(scale)
                found += [milliseconds(partial(layer, inputs)), milliseconds(session_of(layer, inputs, folder))]
        print(f"{row}{found[0]:>12.3f}{found[2]:>10.3f}{found[1]:>17.3f}{found[3]:>10.3f}")


if __name__ == "__main__":
    main()
