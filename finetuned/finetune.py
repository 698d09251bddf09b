r"""Train a network, dense or factorized; write its weights, a JSON file on the training, and the training curves.

Examples:
    python finetuned/finetune.py --model resnet18 --dataset digits
    python finetuned/finetune.py --model resnet18 --dataset mnist --data-root data --image-size 64 --epochs 3
    python finetuned/finetune.py --model unet --dataset coco --data-root data/brain_tumor --image-size 128 \
        --unannotated drop --width 32 --optimizer adamw --learning-rate 0.002 --batch-size 16 --epochs 40
    python finetuned/finetune.py --model resnet18 --dataset cifar10 --data-root data --method svd --ranks 4 \
        --dense finetuned/resnet18-cifar10.safetensors
    torchrun --nproc-per-node 4 finetuned/finetune.py --model resnet34 --dataset imagefolder --data-root imagenet

After an interruption, the same command continues from the last whole epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from common.compression import (
    compress,
    load_compressed,
    save_compressed,
)
from common.data import DATASETS, DataBundle, load_data
from common.data.normalization import check_normalization
from common.decomposition import DECOMPOSITIONS
from common.environment import default_device, describe_environment, git_commit
from common.files import check_name, check_writable, replacing
from common.models import MODELS, build_model, check_image_size
from common.network import profile
from common.planning import Fixed, plan_ranks
from common.reporting import figures
from common.training import (
    EpochLog,
    TrainingSettings,
    distributed,
    evaluate,
    train,
)
from common.validation import check_choice, sentence

FOLDER = Path(__file__).resolve().parent
MODEL_OPTIONS = {
    "weights": "pretrained",
    "stem": "stem",
    "width": "width",
    "depth": "depth",
    "upsampling": "upsampling",
}
"""Argument of ``build_model`` -> command-line option that sets it."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ``--help`` shows every default."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_data(parser)
    _add_network(parser)
    _add_training(parser)
    options = parser.parse_args(arguments)
    if (options.method is None) != (options.ranks is None):
        parser.error("--method and --ranks must be given together")
    if options.dense is not None and options.method is None:
        parser.error("--dense needs --method and --ranks, since a dense network is trained from scratch")
    options.build_with = {}
    if options.model in MODELS:
        values = {argument: getattr(options, option) for argument, option in MODEL_OPTIONS.items()}
        defaults = {argument: parser.get_default(option) for argument, option in MODEL_OPTIONS.items()}
        options.build_with = MODELS[options.model].pick(values, defaults)
    return options


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options for the data."""
    add = parser.add_argument
    rootless = " and ".join(name for name, dataset in DATASETS.items() if not dataset.layout)
    fetched = ", ".join(name for name, dataset in DATASETS.items() if dataset.downloads)
    add("--dataset", required=True, help=f"one of {', '.join(DATASETS)}")
    add("--data-root", help=f"folder that holds the data set; {rootless} need none")
    add("--download", action="store_true", help=f"fetch the data set into --data-root ({fetched})")
    add("--image-size", type=int, help="height and width in pixels; default: that of the data set")
    add("--batch-size", type=int, default=128, help="for all processes together; default: %(default)s")
    add("--limit", type=int, help="use at most this many images of each split")
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="random changes to images; default: that of the data set",
    )
    add("--unannotated", default="keep", help="coco: keep images without annotation, or drop them; default: keep")
    add("--workers", type=int, help="processes that read images; default: that of the data set")


def _add_network(parser: argparse.ArgumentParser) -> None:
    """Add the options for the network."""
    add = parser.add_argument
    add("--model", required=True, help=f"one of {', '.join(MODELS)}")
    add("--pretrained", help="torchvision's weights to start from, e.g. DEFAULT")
    add("--stem", default="imagenet", help="resnet18, resnet34: imagenet, or cifar for 32 x 32; default: imagenet")
    add("--width", type=int, default=64, help="unet: channels of its first level; default: %(default)s")
    add("--depth", type=int, default=4, help="unet: number of times it halves the image; default: %(default)s")
    add("--upsampling", default="transposed", help="unet: transposed or bilinear; default: %(default)s")
    add("--method", choices=tuple(DECOMPOSITIONS), help="train the factorized architecture")
    add("--ranks", type=_ranks, help="its ranks: a whole number, or a fraction of each layer's full rank such as 0.25")
    add("--dense", type=Path, help="dense weights from whose factors to start; default: random weights")


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options for training and for the files."""
    add, default = parser.add_argument, TrainingSettings(epochs=3, patience=5)
    add("--epochs", type=float, default=default.epochs, help="default: %(default)s")
    add("--optimizer", choices=("sgd", "adamw"), default=default.optimizer, help="default: %(default)s")
    add("--learning-rate", type=float, default=default.learning_rate, help="peak rate; default: %(default)s")
    add("--schedule", choices=("one-cycle", "plateau"), default=default.schedule, help="default: %(default)s")
    add("--weight-decay", type=float, default=default.weight_decay, help="default: %(default)s")
    add("--ema", type=float, default=default.ema, help="decay of averaged weights, e.g. 0.998; default: %(default)s")
    add("--label-smoothing", type=float, default=default.label_smoothing, help="default: %(default)s")
    add("--patience", type=int, default=default.patience, help="epochs without progress; default: %(default)s")
    add("--amp", choices=("auto", "on", "off"), default=default.amp, help="bfloat16; default: auto")
    add("--seed", type=int, default=default.seed, help="default: %(default)s")
    add("--name", help="name of the files; default: model, data set and ranks")
    add("--out", type=Path, default=FOLDER, help="folder for the weights; default: finetuned/")


def _ranks(text: str) -> float | int:
    """Read a rank, or a fraction of the full rank if there is a decimal point."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor a fraction such as 0.25") from None


def _digest(file: Path) -> str:
    """A short digest of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:12]


def build(options: argparse.Namespace, data: DataBundle) -> nn.Module:
    """Build the network that the options describe, on this machine's device."""
    torch.manual_seed(options.seed)
    model = build_model(options.model, data.num_classes, **options.build_with).to(default_device())
    if options.method is None:
        return model
    if options.dense is not None:
        model = load_compressed(options.dense, model)
        check_normalization(model, data.normalization)
    plan = plan_ranks(model, data.example().to(default_device()), options.method, Fixed(options.ranks))
    print(plan, flush=True)
    return compress(model, plan)


def report(
    options: argparse.Namespace, model: nn.Module, data: DataBundle, history: list[EpochLog], stem: Path
) -> None:
    """Evaluate the network on the test split; write the weights, the JSON file and the training curves."""
    test = evaluate(model, data.test)
    cost = profile(model, data.example().to(next(model.parameters()).device))
    weights = save_compressed(model, stem.with_name(f"{stem.name}.safetensors"))
    made = {
        "command": [sys.executable.rsplit("/", 1)[-1], "finetuned/finetune.py", *sys.argv[1:]],
        "options": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
            if name != "build_with"
        },
        "image_size": data.image_size,
        "history": history,
        "test": test,
        "params": cost.params,
        "macs": cost.macs,
        "minutes": round(sum(entry["seconds"] for entry in history) / 60, 2),
        "environment": describe_environment(),
        "git_commit": git_commit(FOLDER),
    }
    with replacing(stem.with_name(f"{stem.name}.json")) as partial:
        partial.write_text(json.dumps(made, indent=2) + "\n")
    figures.save_figure(figures.training_curves(history), stem.with_name(f"{stem.name}-training"))
    print(f"test {data.metric} {test[data.metric]:.2%}; wrote {weights}, its .json and its training curves")


def main(arguments: list[str] | None = None) -> Path:
    """Train the network that the command line describes; return the path of the weights."""
    options = parse_arguments(arguments)
    values: dict[str, Any] = vars(options)
    settings = TrainingSettings(
        **{field.name: values[field.name] for field in dataclasses.fields(TrainingSettings) if field.name in values}
    )
    check_choice("model", options.model, MODELS)
    if options.name is not None:
        check_name("name", options.name)
    check_writable(options.out, "out")
    with distributed.first_process_first() if options.download else nullcontext():
        data = load_data(
            options.dataset,
            options.data_root,
            options.image_size,
            batch_size=options.batch_size,
            seed=options.seed,
            limit=options.limit,
            download=options.download,
            augment=options.augment,
            normalize="imagenet" if options.pretrained else "dataset",
            unannotated=options.unannotated,
            workers=options.workers,
        )
    if MODELS[options.model].task != data.task:
        raise ValueError(f"model={options.model!r} cannot learn {data.task}, the task of dataset={options.dataset!r}")
    check_image_size(options.model, data.image_size, **options.build_with)
    model = build(options, data)
    factorized = f"-{options.method}-{options.ranks}" if options.method else ""
    stem = options.out / (options.name or f"{options.model}-{options.dataset}{factorized}")
    start = f"-{_digest(options.dense)}" if options.dense else ""  # another start is another training
    checkpoint = options.out / f"{stem.name}{start}.checkpoint"

    def show(entry: EpochLog) -> None:
        if distributed.rank() == 0:
            print(
                f"epoch {entry['epoch']:g} of {settings.epochs:g}: train loss {entry['train_loss']:.4f}, validation "
                f"{data.metric} {entry[data.metric]:.2%}, {entry['seconds'] / 60:.1f} min",
                flush=True,
            )

    history = train(model, data, settings, checkpoint=checkpoint, description=stem.name, on_epoch=show)
    if distributed.rank() == 0:
        report(options, model, data, history, stem)
        checkpoint.unlink(missing_ok=True)
    return stem.with_name(f"{stem.name}.safetensors")


if __name__ == "__main__":
    try:
        with distributed.processes():
            main()
    except ValidationError as error:
        sys.exit(f"finetune.py: {sentence(error)}")
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"finetune.py: {error}")
