"""Train a dense network; its weights and a JSON of how it was made land in this folder.

Examples:
    python finetuned/finetune.py --model resnet18 --dataset digits
    python finetuned/finetune.py --model resnet18 --dataset mnist --data-root data --image-size 64 --epochs 3

Interrupted? The same command goes on from the last whole epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import torch  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from common.checkpoints import save_compressed  # noqa: E402
from common.choices import check_choice, sentence  # noqa: E402
from common.data import DATASETS, load_data  # noqa: E402
from common.environment import default_device, describe_environment  # noqa: E402
from common.metrics import evaluate  # noqa: E402
from common.models import CLASSIFIERS, build_model  # noqa: E402
from common.profiling import profile  # noqa: E402
from common.training import EpochLog, TrainingSettings, train  # noqa: E402
from common.trials import git_commit  # noqa: E402


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; every default is shown by ``--help``."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    settings = TrainingSettings(epochs=3, patience=5)
    parser.add_argument("--model", required=True, help=f"one of {', '.join(CLASSIFIERS)}")
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--data-root", help="folder that holds the data set; digits needs none")
    parser.add_argument("--download", action="store_true", help="fetch the data set into --data-root")
    parser.add_argument("--image-size", type=int, default=32, help="pixels, height and width; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="use at most this many images of each split")
    parser.add_argument("--pretrained", help="torchvision's weights to start from, e.g. DEFAULT")
    parser.add_argument("--epochs", type=float, default=settings.epochs, help="default: %(default)s")
    parser.add_argument(
        "--learning-rate", type=float, default=settings.learning_rate, help="peak; default: %(default)s"
    )
    parser.add_argument("--weight-decay", type=float, default=settings.weight_decay, help="default: %(default)s")
    parser.add_argument("--label-smoothing", type=float, default=settings.label_smoothing, help="default: %(default)s")
    parser.add_argument("--patience", type=int, default=settings.patience, help="epochs; default: %(default)s")
    parser.add_argument("--amp", choices=("auto", "on", "off"), default=settings.amp, help="bfloat16; default: auto")
    parser.add_argument("--seed", type=int, default=settings.seed, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the weights; default: finetuned/")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Path:
    """Train as the command line says; returns the path of the weights."""
    options = parse_arguments(arguments)
    values = vars(options)
    settings = TrainingSettings(
        **{f.name: values[f.name] for f in dataclasses.fields(TrainingSettings) if f.name in values}
    )
    check_choice("model", options.model, CLASSIFIERS)
    data = load_data(
        options.dataset,
        options.data_root,
        options.image_size,
        batch_size=options.batch_size,
        seed=options.seed,
        limit=options.limit,
        download=options.download,
    )
    torch.manual_seed(options.seed)
    model = build_model(options.model, data.num_classes, weights=options.pretrained).to(default_device())
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{options.model}-{options.dataset}"
    checkpoint = stem.with_suffix(".checkpoint")

    def show(entry: EpochLog) -> None:
        print(
            f"epoch {entry['epoch']:g} of {settings.epochs:g}: train loss {entry['train_loss']:.4f}, validation "
            f"accuracy {entry['accuracy']:.2%}, {entry['seconds'] / 60:.1f} min",
            flush=True,
        )

    history = train(model, data, settings, checkpoint=checkpoint, description=stem.name, on_epoch=show)
    minutes = sum(entry["seconds"] for entry in history) / 60
    test = evaluate(model, data.test)
    cost = profile(model, data.example().to(next(model.parameters()).device))
    weights = save_compressed(model, stem.with_suffix(".safetensors"))
    made = {
        "command": [sys.executable.rsplit("/", 1)[-1], "finetuned/finetune.py", *(arguments or sys.argv[1:])],
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in values.items()},
        "image_size": data.image_size,
        "history": history,
        "test": test,
        "params": cost.params,
        "macs": cost.macs,
        "minutes": round(minutes, 2),
        "environment": describe_environment(),
        "git_commit": git_commit(FOLDER),
    }
    stem.with_suffix(".json").write_text(json.dumps(made, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    print(f"test accuracy {test['accuracy']:.2%}; wrote {weights} and {stem.with_suffix('.json').name}")
    return weights


if __name__ == "__main__":
    try:
        main()
    except ValidationError as error:
        sys.exit(f"finetune.py: {sentence(error)}")
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"finetune.py: {error}")
