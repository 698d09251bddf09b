r"""Compare ARSVD with SVD, Tucker-2 and HTD on dense networks for segmentation, each before and after fine-tuning.

    for SEED in 0 1 2; do
        python finetuned/finetune.py --model unet --dataset coco --data-root DATA --unannotated drop --image-size 128 \
            --width 32 --optimizer adamw --learning-rate 0.002 --batch-size 16 --epochs 40 --patience 40 --seed $SEED \
            --name unet-seed$SEED
    done
    OMP_NUM_THREADS=1 python -m benchmarks.arsvd --weights finetuned/unet-seed?.safetensors --dataset coco \
        --data-root DATA --unannotated drop --image-size 128 --batch-size 16

There are three kinds of groups:

    as published       SVD at one rank for all layers, and ARSVD on the spectra of the weights, with the factors of the
                       weights: as the work ran that this follows. It factors convolutions, leaves transposed ones
                       dense, and replaces a layer only where the factors are smaller
    on outputs         the same ARSVD on the spectra of the layers' outputs, with factors fitted to data
    params and macs    at most a share of the parameters, or of the MACs: SVD, Tucker-2 and HTD at ranks chosen under
                       that budget, and ARSVD at the greatest tau that fits it. The factors of all are fitted to data
                       alike, so that only ranks and decomposition differ. Last comes ``shrink`` by ``mixed``, which
                       refits besides, and recalibrates where that helps

ARSVD's exponent is 1 in its paper and 2 in its code. Every arm has three stages: its network as it is (raw), with
BatchNorm recalibrated on the calibration split, and then trained with the dense network as its teacher. The dense
network goes through the same stages; its row says what the same training makes of it. Training starts from the same
weights whether BatchNorm was recalibrated or not, since it measures the statistics itself.

The metrics are those of the test split, which chooses nothing: all stages are shown. A tumour is missed if an
annotated slice has a Dice of 0. A difference is the mean over the networks. Its 95% interval is a bootstrap over the
images, paired; the standard deviation over networks stands beside it. Where the interval holds 0, the verdict on the
difference from SVD says ``no difference``.

For each dense network, ``--out`` holds one compressed JSON file with sizes, ranks and what was observed of each test
image, and the networks. An arm in that file is not made again, so that an interrupted run continues. The tables can be
made from such files alone, against any arm:

    python -m benchmarks.arsvd --results benchmarks/arsvd-unet-*.json.gz --kept 0.1 0.05 0.02 --reference tucker2
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.arms import difference_text, mean_text
from benchmarks.arsvd_arms import CRITERIA, DENSE, SHRUNK, SIZED, Build, Dense, Group, groups_of
from common.calibration import recalibrate_bn
from common.compression import save_compressed
from common.data import DATASETS, METRICS, DataBundle, load_data
from common.environment import machine_line
from common.files import replacing
from common.network import profile
from common.planning import plan_of
from common.training import TrainingSettings, evaluate_images, train

STAGES = ("raw", "recalibrated", "trained")
SHOWN = {"dice": "Dice", "iou": "IoU", "pixel_accuracy": "pixel accuracy"}


class Observed:
    """What is known of the arms of one dense network.

    Args:
        arms: arm -> its sizes, ranks and what was observed of each test image.
    """

    def __init__(self, arms: dict[str, Any]) -> None:
        self.arms = arms

    @classmethod
    def read(cls, path: Path) -> Observed:
        """Read a file of :class:`Results`."""
        return cls(json.loads(gzip.decompress(path.read_bytes()))["arms"])

    def rows(self, arm: str, stage: str) -> Tensor | None:
        """What was observed of each test image; None if the arm does not have this stage."""
        found = self.arms[arm]["observed"].get(stage)
        return None if found is None else torch.tensor(found)


class Results(Observed):
    """What is known of the arms of one dense network, kept in a file.

    Args:
        folder: of the files.
        dense: the network.
        data: the splits.
        training: how every arm is trained; None if none is.

    Raises:
        SystemExit: the file holds results of other weights, data or training.
    """

    def __init__(self, folder: Path, dense: Dense, data: DataBundle, training: TrainingSettings | None) -> None:
        self.data, self.training = data, training
        self.folder, self.path = folder, folder / f"{dense.name}.json.gz"
        source = {name: value for name, value in data.source.items() if name not in ("root", "workers")}
        how = dataclasses.asdict(training) if training else None
        settings = {"weights": dense.digest, "data": source, "training": how}
        self.settings = json.loads(json.dumps(settings))
        super().__init__({})
        if self.path.exists():
            held = json.loads(gzip.decompress(self.path.read_bytes()))
            if held["settings"] != self.settings:
                raise SystemExit(f"{self.path} holds results of other weights, data or training; give another --out")
            self.arms = held["arms"]

    def make(self, dense: Dense, name: str, build: Build) -> None:
        """Build, test, recalibrate and train the network of one arm, unless that was done."""
        if name in self.arms:
            return
        torch.manual_seed(0)
        start = time.process_time()
        network = build(dense)
        seconds = {"build": time.process_time() - start}
        observed = {}
        if not name.endswith(SHRUNK):  # which decides itself whether to recalibrate
            observed["raw"] = self._observed(network)
            recalibrate_bn(network, dense.batches)
        observed["recalibrated"] = self._observed(network)
        if self.training:
            start = time.process_time()
            train(network, self.data, self.training, teacher=dense.model, description=f"{dense.name}, {name}")
            seconds["train"] = time.process_time() - start
            observed["trained"] = self._observed(network)
        cost, plan = profile(network, dense.x), plan_of(network)
        sizes = {"params": cost.params, "macs": cost.macs, "size_bytes": cost.size_bytes}
        save_compressed(network, self.folder / f"{dense.name}-{re.sub(r'[^a-z0-9.]+', '-', name)}.safetensors")
        self.arms[name] = {
            **sizes,
            "tau": plan.settings.get("tau") if plan else None,
            "layers": plan.layers_as_json() if plan else {},
            "processor_s": seconds,
            "observed": observed,
        }
        content = json.dumps({"settings": self.settings, "arms": self.arms})
        with replacing(self.path) as partial_file:
            partial_file.write_bytes(gzip.compress(content.encode(), mtime=0))

    def _observed(self, network: nn.Module) -> list[Any]:
        """The pixel counts of each test image, ``(N, K, 4)``, see :func:`common.data.tasks.segmentation.areas`."""
        rows: list[Any] = evaluate_images(network, self.data.test).rows[METRICS["dice"].observe].tolist()
        return rows


class Tables:
    """The tables of one group of arms.

    Args:
        results: of each dense network.
        group: the group.
        chosen: see :meth:`Group.named`. Arms that a network lacks are left out.
    """

    def __init__(self, results: Sequence[Observed], group: Group, chosen: Sequence[str]) -> None:
        self.results, self.group = results, group
        self.arms = [name for name in (DENSE, *group.named(chosen)) if all(name in each.arms for each in results)]
        self.stages = [stage for stage in STAGES if self.rows(DENSE, stage)]

    def rows(self, arm: str, stage: str) -> list[Tensor]:
        """What was observed of each test image, for each network; empty if the arm does not have this stage."""
        return [rows for each in self.results if (rows := each.rows(arm, stage)) is not None]

    def metric(self, arm: str, stage: str, name: str) -> str:
        """A metric in percent."""
        return mean_text([100 * (METRICS[name].summarize(rows) or 0.0) for rows in self.rows(arm, stage)])

    def missed(self, arm: str, stage: str) -> str:
        """The number of annotated slices whose tumour is missed."""
        counts = [int(((rows[..., 0] == 0) & (rows[..., 2] > 0)).sum()) for rows in self.rows(arm, stage)]
        if not counts:
            return ""
        return f"{mean(counts):.1f}" + (f" ± {stdev(counts):.1f}" if len(counts) > 1 else "")

    def sizes(self, arm: str) -> list[str]:
        """The taus of the networks, the changes of parameters and MACs, and the mean size of the files."""
        pairs = [(each.arms[arm], each.arms[DENSE]) for each in self.results]
        taus = dict.fromkeys(f"{held['tau']:.4g}" for held, _ in pairs if held["tau"] is not None)
        changes = [mean_text([100 * (held[of] / whole[of] - 1) for held, whole in pairs]) for of in CRITERIA]
        return [", ".join(taus), *changes, f"{mean(held['size_bytes'] for held, _ in pairs) / 1e6:.2f} MB"]

    def difference(self, arm: str, stage: str, other: str, other_stage: str) -> str:
        """The difference in Dice between two arms, with a verdict if the other one is the group's reference."""
        after, before = self.rows(arm, stage), self.rows(other, other_stage)
        is_same = arm == DENSE != other or (arm, stage) == (other, other_stage)
        if is_same or not after or not before:
            return ""
        return difference_text(after, before, METRICS["dice"], verdict=other != DENSE)

    def all_metrics(self) -> str:
        """Sizes, and all metrics at each stage."""
        present = int((self.rows(DENSE, "raw")[0][..., 2] > 0).sum())
        names = [*SHOWN.values(), f"missed of {present}"]
        heads = [
            "",
            "tau",
            *CRITERIA.values(),
            "size",
            *(f"{name}, {stage}" for name in names for stage in self.stages),
        ]
        lines = []
        for arm in self.arms:
            line = [self.short(arm), *self.sizes(arm)]
            line += [self.metric(arm, stage, name) for name in SHOWN for stage in self.stages]
            lines.append(line + [self.missed(arm, stage) for stage in self.stages])
        return tabulate(lines, heads, "pipe", disable_numparse=True)

    def differences(self) -> str:
        """The differences in Dice from the dense network and, at equal sizes, from the reference."""
        pairs = [(stage, DENSE, "raw") for stage in self.stages]
        heads = ["points of Dice", *(f"{stage}, from dense" for stage in self.stages)]
        if "trained" in self.stages:
            pairs.append(("trained", DENSE, "trained"))
            heads.append("trained, from dense trained")
        reference = f"{self.group.key}: {self.group.reference}"
        if reference in self.arms:
            pairs += [(stage, reference, stage) for stage in self.stages[1:]]
            heads += [f"{stage}, from {self.group.reference}" for stage in self.stages[1:]]
        lines = [[self.short(arm), *(self.difference(arm, *pair) for pair in pairs)] for arm in self.arms]
        return tabulate(lines, heads, "pipe", disable_numparse=True)

    def short(self, arm: str) -> str:
        """The name of an arm without the group's key."""
        return arm.removeprefix(f"{self.group.key}: ")

    def __str__(self) -> str:
        return f"{self.group.title}\n\n{self.all_metrics()}\n\n{self.differences()}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    segmented = [name for name, dataset in DATASETS.items() if dataset.task == "segmentation"]
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--weights", type=Path, nargs="+", help="dense networks, one for each seed")
    given.add_argument(
        "--results", type=Path, nargs="+", help="files of an earlier run, one for each seed: only tables"
    )
    add("--dataset", choices=segmented, default="coco", help="default: %(default)s")
    add("--data-root", help="folder of the data set")
    add("--unannotated", choices=("keep", "drop"), default="keep", help="images without annotation; default: keep")
    add("--image-size", type=int, help="height and width of the images; default: the data set's")
    add("--batch-size", type=int, default=16, help="default: %(default)s")
    add("--limit", type=int, help="maximum number of images of each split; default: all")
    add("--ranks", type=int, nargs="*", default=[16, 32, 50, 100, 150], help="of SVD; default: 16 32 50 100 150")
    add("--taus", type=float, nargs="*", default=[0.95, 0.9, 0.85], help="of ARSVD; default: 0.95 0.9 0.85")
    add("--exponents", type=int, nargs="+", choices=(1, 2), default=[2, 1], help="of ARSVD; default: 2 1")
    add("--kept", type=float, nargs="*", default=[0.25, 0.1], help="shares to keep; default: 0.25 0.1")
    add("--arms", nargs="+", default=[], help="beginnings of arms' names, e.g. 'params 0.25'; default: all arms")
    add("--reference", choices=SIZED, default="svd", help="of differences at equal sizes; default: %(default)s")
    add("--finetune-epochs", type=float, default=3.0, help="0 trains nothing; default: %(default)s")
    add("--optimizer", choices=("sgd", "adamw"), default="adamw", help="default: %(default)s")
    add("--learning-rate", type=float, default=0.001, help="default: %(default)s")
    add("--amp", choices=("auto", "on", "off"), default="auto", help="bfloat16 in training; default: auto")
    add("--out", type=Path, default=Path("results/arsvd"), help="default: %(default)s")
    return parser.parse_args(arguments)


def made(
    dense: Dense, data: DataBundle, training: TrainingSettings | None, out: Path, arms: Mapping[str, Build]
) -> Results:
    """The results of all arms of one dense network, and of the network itself."""
    results = Results(out, dense, data, training)
    for name, build in {DENSE: Dense.copied, **arms}.items():
        results.make(dense, name, build)
    return results


def results_of(options: argparse.Namespace, arms: Mapping[str, Build]) -> Sequence[Observed]:
    """Make what the files in ``--out`` do not hold yet, or read ``--results``."""
    if options.results:
        return [Observed.read(path) for path in options.results]
    what = (options.dataset, options.data_root, options.image_size)
    data = load_data(*what, batch_size=options.batch_size, limit=options.limit, unannotated=options.unannotated)
    training = None
    if options.finetune_epochs:
        training = TrainingSettings(
            epochs=options.finetune_epochs,
            optimizer=options.optimizer,
            learning_rate=options.learning_rate,
            amp=options.amp,
        )
    torch.manual_seed(0)  # the calibration images are varied at random, and all arms have the same ones
    batches = list(data.calibration)
    options.out.mkdir(parents=True, exist_ok=True)
    return [made(Dense(path, batches), data, training, options.out, arms) for path in options.weights]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make and test every network, and print and write the tables."""
    options = parse(arguments)
    groups = groups_of(options)
    arms = {name: build for group in groups for name, build in group.named(options.arms).items()}
    if unknown := [each for each in options.arms if not any(name.startswith(each) for name in arms)]:
        raise SystemExit(f"--arms {unknown[0]!r}: no arm begins so; there are {', '.join(arms)}")
    results = results_of(options, arms)
    tables = [Tables(results, group, options.arms) for group in groups if group.named(options.arms)]
    text = "\n\n".join([machine_line(), *map(str, tables)])
    if options.weights:
        (options.out / "tables.md").write_text(f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
