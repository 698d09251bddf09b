r"""Compare the accuracy of networks on the test split in PyTorch and, after ``export_onnx``, in ONNX Runtime.

    python benchmarks/exported_accuracy.py logs/resnet18-mnist-trial43.safetensors --dataset mnist --data-root DATA \
        --image-size 64

Each network, dense or compressed, is exported with the defaults of ``export_onnx`` (BatchNorm folded, factors merged,
ranks padded) in each of ``--precisions`` and evaluated on the whole test split. int8 gets its ranges from the
calibration split. All files are timed in turn in ONNX Runtime, one image at a time, beside the first. The script
prints the accuracy, the difference from PyTorch, the size and the time of each file and asserts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tabulate import tabulate

from common.compression import load_compressed
from common.data import load_data
from common.deploy.precision import PRECISIONS
from common.environment import machine_line
from common.shrink.deployment import deployment_table

FORMATS = ("", "", ".4%", "+.4%", ".2f", ".3f", ".2f", "")


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
    print(tabulate(table.to_numpy().tolist(), list(table.columns), "pipe", floatfmt=FORMATS, missingval="-"))


if __name__ == "__main__":
    main()
