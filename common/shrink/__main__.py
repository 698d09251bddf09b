r"""Make a trained network smaller and faster, and write it as ONNX files with a report.

Examples:
  your own network and images; build() of my_module.py returns the trained network:
    python -m common.shrink --network my_module:build --dataset imagefolder --data-root photos --params 0.5
  the same with weights from a file, and images that the network takes in [0, 1]:
    python -m common.shrink --network my_module:build --weights weights.safetensors --dataset imagefolder \
        --data-root photos --normalize unit --macs 0.4
  your own loaders: loaders() returns (train, validation, test), or one loader of inputs without targets:
    python -m common.shrink --network my_module:build --dataset my_module:loaders --params 0.5
  a network that finetuned/finetune.py trained; its file names the architecture:
    python -m common.shrink --weights resnet18-digits.safetensors --dataset digits --params 0.3
  masks in COCO's format, and a budget of time in ONNX Runtime on this machine:
    python -m common.shrink --network my_module:build --dataset coco --data-root scans --latency 0.5

  the same, then fine-tune the small network for ten epochs with the dense one as its teacher:
    python -m common.shrink --network my_module:build --dataset imagefolder --data-root photos --macs 0.3 \
        --finetune-epochs 10

A network is named in one of these ways; SOURCE/NAME, such as timm/resnet18, asks one source alone:
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from common.compression import save_compressed
from common.data import DATASETS, load_data
from common.data.loading import NORMALIZATIONS, UNANNOTATED
from common.files import check_writable
from common.functions import names_function
from common.latency import operation_runtimes
from common.latency.measuring import check_rounds
from common.models import NETWORK_SOURCES
from common.planning import Budget
from common.planning.methods import decomposing_methods, decompositions_of
from common.reporting.command_line import exit_code
from common.shrink.deployment import deployed_files, files_table
from common.shrink.finetuning import DENSE_TUNED, finetuned, remove_checkpoints
from common.shrink.loading import load_examples, load_network
from common.shrink.report import Report, report_title
from common.shrink.shrinking import ShrinkSteps, shrink
from common.training import TrainingSettings
from common.validation import sentence

INCOMPLETE = 1
"""Exit code when the network was made, but a file of it could not be written or its fine-tuning failed."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    sources = "\n".join(f"  {source.name:12} {source.title}" for source in NETWORK_SOURCES.values())
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m common.shrink",
        description=summary,
        epilog=f"{examples}{sources}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_network(parser)
    _add_data(parser)
    _add_budget(parser)
    return parser.parse_args(arguments)


def _add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the network").add_argument
    add("--network", metavar="NAME", help="module:function of yours, or the name of an architecture; see below")
    add("--weights", metavar="FILE", help="safetensors file of the network's state dict")
    add("--pretrained", action="store_true", help="download published weights of the architecture")


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the data").add_argument
    add("--dataset", required=True, metavar="NAME", help=f"module:function of yours, or one of {', '.join(DATASETS)}")
    add(
        "--data-root",
        metavar="FOLDER",
        help="folder of the data set; imagefolder: train/<class>/, val/<class>/, or <class>/",
    )
    add("--image-size", type=int, metavar="PIXELS", help="height and width; default: that of the data set")
    add("--normalize", choices=NORMALIZATIONS, default="dataset", help="scale of the inputs; default: %(default)s")
    add("--unannotated", choices=UNANNOTATED, default="keep", help="coco: images without annotation; default: keep")
    add("--images", type=int, default=512, help="images for calibration; default: %(default)s")
    add("--batch-size", type=int, default=32, help="default: %(default)s")
    add("--limit", type=int, help="use at most this many images of each split")
    add("--workers", type=int, help="processes that read images; default: that of the data set")
    add("--seed", type=int, default=0, help="default: %(default)s")


def _add_budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the small network", "Give at least one share of the dense network to keep.")
    add, methods = group.add_argument, ", ".join(decomposing_methods())
    add("--params", type=float, metavar="SHARE", help="share of the parameters to keep, in (0, 1]")
    add("--macs", type=float, metavar="SHARE", help="share of the multiply-accumulates to keep")
    add("--latency", type=float, metavar="SHARE", help="share of the time to keep; layers are timed here first")
    add("--runtime", choices=operation_runtimes(), default="onnxruntime", help="of --latency; default: %(default)s")
    add("--method", default="mixed", help=f"one of {methods}; default: %(default)s, the best for each layer")
    add(
        "--finetune-epochs", type=float, default=0.0, metavar="N", help="fine-tune it, and the dense network beside it"
    )
    add("--learning-rate", type=float, default=0.02, help="of fine-tuning; default: %(default)s")
    add("--amp", choices=("auto", "on", "off"), default="auto", help="fine-tune in bfloat16; default: %(default)s")
    add("--out", type=Path, default=Path("small"), metavar="FOLDER", help="for the files; default: %(default)s")
    add("--rounds", type=int, default=15, help="timings of each file; default: %(default)s")


def finetuning(options: argparse.Namespace) -> TrainingSettings | None:
    """Return how to fine-tune; None for not at all.

    Raises:
        ValueError: an option is not allowed.
    """
    if not options.finetune_epochs:
        return None
    try:
        return TrainingSettings(
            epochs=options.finetune_epochs, learning_rate=options.learning_rate, amp=options.amp, seed=options.seed
        )
    except ValidationError as error:
        raise ValueError(f"--finetune-epochs or --learning-rate: {sentence(error)}") from None


def run(options: argparse.Namespace, command: str) -> int:
    """Shrink the network that the options name, write the files, print the report; return the exit code.

    Raises:
        ValueError: an option is not allowed, or the budget cannot be met.
        OSError: a file is missing or cannot be written.
    """
    budget = Budget(options.params, options.macs, options.latency, options.runtime)
    decompositions_of(options.method)
    check_rounds(options.rounds)
    settings = finetuning(options)
    out = check_writable(options.out, "out")
    examples = load_examples(
        options.dataset, options.data_root, images=options.images, augment=False, **_loading(options)
    )
    if settings and examples.data is None:
        raise ValueError("finetune_epochs needs targets, and the data has none; leave --finetune-epochs out")
    dense = load_network(
        options.network,
        options.weights,
        examples,
        pretrained=options.pretrained,
        seed=options.seed,
        device=torch.device("cpu") if budget.latency is not None else None,  # where layers can be timed
    )
    steps = ShrinkSteps(seed=options.seed)
    found = shrink(dense, examples.batches, budget, options.method, steps=steps, task=examples.task)
    weights = [save_compressed(found.model, out / "small.safetensors")]
    tuned: dict[str, nn.Module] = {}
    complete = True
    if settings and examples.data:
        # Networks learn from images that vary at random, where the data set has such changes.
        named = names_function(options.dataset)
        varied = examples.data if named else load_data(options.dataset, options.data_root, **_loading(options))
        tuned, history = finetuned(dense, found.model, varied, settings, checkpoints=out)
        complete = bool(history)
    large = {"dense": dense} | {title: tuned[title] for title in tuned if title == DENSE_TUNED}
    small = {"small": found.model} | {title: tuned[title] for title in tuned if title not in large}
    weights += [save_compressed(network, out / f"{title}.safetensors") for title, network in tuned.items()]
    files = deployed_files(large, ["float32"], out) + deployed_files(small, ["float32", "int8"], out)
    table = files_table(files, examples, options.rounds, found.measure)
    title = report_title(options.network or Path(options.weights).name, options.dataset, budget, options.method)
    report = Report(title, command, found, table, examples)
    print(report.text())
    made = [*weights, *(file.path for file in files if file.path.exists()), *report.write(out)]
    print(f"\nwrote {', '.join(map(str, made))}")
    remove_checkpoints(out)
    return 0 if complete and table["Latency (ms)"].notna().all() else INCOMPLETE


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    """The options that say how a named data set is loaded."""
    names = ("image_size", "batch_size", "limit", "seed", "normalize", "unannotated", "workers")
    return {name: getattr(options, name) for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; print an error in a sentence, and return the exit code."""
    options = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: run(options, shlex.join(["python", "-m", "common.shrink", *given])))


if __name__ == "__main__":
    sys.exit(main())
