r"""Compare the accuracy of networks on the test split in PyTorch and, after ``export_onnx``, in ONNX Runtime.

    python benchmarks/exported_accuracy.py logs/resnet18-mnist-trial43.safetensors --dataset mnist --data-root DATA \
        --image-size 64

Each network, dense or compressed, is exported with the defaults of ``export_onnx`` (BatchNorm folded, factors merged,
ranks padded) and evaluated on the whole test split. The script prints both figures and their difference and asserts
nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch
from tabulate import tabulate
from torch import Tensor, nn

from common.compression import load_compressed
from common.data import load_data
from common.deploy import export_onnx, onnx_session
from common.deploy.onnx_files import INPUT
from common.environment import machine_line
from common.training import evaluate


class Exported(nn.Module):
    """An ONNX Runtime session that is called like the network."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        super().__init__()
        self.session = session
        self.place = nn.Parameter(torch.empty(0))  # shows the device for inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``."""
        (logits,) = self.session.run(None, {INPUT: x.numpy()})
        return torch.from_numpy(logits)


def main(arguments: list[str] | None = None) -> None:
    """Evaluate every network twice and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", type=Path, help="networks, dense or compressed (*.safetensors)")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-root", help="folder that holds the data set")
    parser.add_argument("--image-size", type=int, help="pixels; default: that of the data set")
    parser.add_argument(
        "--unannotated", default="keep", help="coco: keep or drop images without annotation; default: keep"
    )
    parser.add_argument("--limit", type=int, help="use at most this many images of each split")
    options = parser.parse_args(arguments)
    data = load_data(
        options.dataset, options.data_root, options.image_size, limit=options.limit, unannotated=options.unannotated
    )
    print(f"{machine_line()}\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in options.weights:
            network = load_compressed(path)
            file = export_onnx(network, Path(folder) / f"{path.stem}.onnx", data.example())
            torch_value = 100 * evaluate(network, data.test)[data.metric]
            onnx_value = 100 * evaluate(Exported(onnx_session(file)), data.test)[data.metric]
            rows.append([path.name, torch_value, onnx_value, onnx_value - torch_value, file.stat().st_size / 1e6])
    heads = ["network", f"{data.metric} in PyTorch, %", "in ONNX Runtime, %", "difference, points", "MB of the file"]
    print(tabulate(rows, heads, "pipe", floatfmt=("", ".3f", ".3f", "+.3f", ".2f")))


if __name__ == "__main__":
    main()
