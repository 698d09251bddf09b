r"""ONNX files of a public CIFAR-10 network in float32, float16 and int8: accuracy, size and time.

    python benchmarks/precisions.py --weights resnet32-cifar10.safetensors --data-root DATA

The network, its images and their shuffle are those of ``benchmarks/public_resnets.py``. The dense network and what
``shrink`` makes of it at each of ``--keep`` (shares of the parameters) are exported in every precision. int8 gets its
ranges from the first 512 of the training images. All test images count; ``95%`` is half of the paired interval of the
difference from the same network in PyTorch. The files are timed in turn, one image at a time. Speedups are relative to
the dense float32 file. The script asserts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tabulate import tabulate

from benchmarks.public_resnets import difference, hits, images, public_network
from common.deploy import OnnxNetwork, export_onnx
from common.deploy.precision import PRECISIONS
from common.environment import machine_line
from common.latency import measure_files
from common.planning import Budget
from common.shrink import shrink

HEADS = ("network", "precision", "accuracy, %", "difference", "95%", "MB", "ms", "speedup")
FORMATS = ("", "", ".2f", "+.2f", ".2f", ".3f", ".3f", ".2f")
TEST_IMAGES = 10_000


def measure(options: argparse.Namespace) -> list[list[object]]:
    """Export and examine every network; return the rows of the table."""
    dense, _ = public_network(options.weights)
    fitted, labels = images(options.data_root / "train", options.images)
    inputs, targets = images(options.data_root / "test", TEST_IMAGES)
    networks = {"dense": dense}
    for share in options.keep:
        batches = list(zip(fitted.split(256), labels.split(256), strict=True))
        networks[f"{share:.0%} of the parameters"] = shrink(dense, batches, Budget(params=share), options.method).model
    rows: list[list[object]] = []
    files: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, network in networks.items():
            in_torch = hits(network, inputs, targets)
            for precision in options.precisions:
                ranges = fitted.split(64) if precision == "int8" else None
                path = Path(folder) / f"{len(files)}.onnx"
                files.append(export_onnx(network, path, inputs[:1], precision=precision, batches=ranges))
                found = hits(OnnxNetwork(path), inputs, targets)
                size = path.stat().st_size / 1e6
                rows.append([name, precision, 100 * float(found.double().mean()), *difference(found, in_torch), size])
        times = measure_files(files, inputs[:1], baseline=files[0], rounds=options.rounds)
    return [[*row, latency.median_s * 1e3, latency.speedup] for row, latency in zip(rows, times, strict=True)]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of ResNet-32 or ResNet-44")
    parser.add_argument("--data-root", type=Path, required=True, help="folder with train and test, of class folders")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.5], help="shares of the parameters to keep")
    parser.add_argument("--method", default="mixed", help="default: %(default)s")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--images", type=int, default=2048, help="training images; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=31, help="timings of each file; default: %(default)s")
    options = parser.parse_args(arguments)
    print(f"{machine_line()}\n")
    print(tabulate(measure(options), HEADS, "pipe", floatfmt=FORMATS, missingval="-"))


if __name__ == "__main__":
    main()
