r"""Compare the accuracy of networks on the test split in PyTorch and, after ``export_onnx``, in ONNX Runtime.

    python benchmarks/exported_accuracy.py logs/resnet18-mnist-trial43.safetensors --dataset mnist --data-root DATA \
        --image-size 64

Each network, dense or compressed, is exported with the defaults of ``export_onnx`` (BatchNorm folded, factors merged,
ranks padded) in each of ``--precisions`` and evaluated on the whole test split. int8 gets its ranges from the
calibration split. All files are timed in turn in ONNX Runtime, one image at a time, beside the first. The script
prints the accuracy, the difference from PyTorch with its 95% interval (paired by images, in points), the size and the
time of each file and asserts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tabulate import tabulate
from torch import nn

from common.compression import load_compressed
from common.data import DataBundle, load_data
from common.deploy import OnnxNetwork
from common.deploy.precision import PRECISIONS
from common.environment import machine_line
from common.shrink.deployment import deployment_table
from common.training import evaluate_images, paired_difference

FORMATS = ("", "", ".4%", "+.4%", ".2f", ".3f", ".2f", "", "")


def interval(path: Path, network: nn.Module, data: DataBundle) -> str:
    """Return the 95% interval of a file's difference from the network in PyTorch, in points; empty without a file."""
    if not path.exists():
        return ""
    file, whole = (evaluate_images(each, data.test) for each in (OnnxNetwork(path), network))
    found = paired_difference(file, whole, data.metric)
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"


def main(arguments: list[str] | None = None) -> None:
    """Evaluate and time every file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", type=Path, help="networks, dense or compressed (*.safetensors)")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-root", help="folder that holds the data set")
    parser.add_argument("--image-size", type=int, help="pixels; default: that of the data set")
    parser.add_argument(
        "--unannotated", default="keep", help="coco: keep or drop images without annotation; default: keep"
    )
    parser.add_argument("--limit", type=int, help="use at most this many images of each split")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=15, help="timings of each file; default: %(default)s")
    options = parser.parse_args(arguments)
    data = load_data(
        options.dataset, options.data_root, options.image_size, limit=options.limit, unannotated=options.unannotated
    )
    print(f"{machine_line()}\n")
    networks = {path.stem: load_compressed(path) for path in options.weights}
    with tempfile.TemporaryDirectory() as folder:
        table = deployment_table(networks, data, Path(folder) / "file", options.precisions, options.rounds)
        table.insert(
            len(table.columns) - 1,
            "95% interval",
            [
                interval(Path(folder) / f"file-{title}-{precision}.onnx", network, data)
                for title, network in networks.items()
                for precision in options.precisions
            ],
        )
    print(tabulate(table.to_numpy().tolist(), list(table.columns), "pipe", floatfmt=FORMATS, missingval="-"))


if __name__ == "__main__":
    main()
