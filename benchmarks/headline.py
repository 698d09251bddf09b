r"""Compare networks that another work reports with this suite's: what comes from ranks, factors, training, runtime.

    for SEED in 0 1 2; do
        python finetuned/finetune.py --model resnet18 --dataset mnist --data-root DATA --image-size 64 --epochs 3 \
            --seed $SEED --name resnet18-mnist-seed$SEED
    done
    OMP_NUM_THREADS=1 python -m benchmarks.headline --weights finetuned/resnet18-mnist-seed?.safetensors \
        --dataset mnist --data-root DATA --image-size 64

``tdcnn.jsonl`` holds networks of tdcnn, the work this follows for HTD, with the ranks of every layer. The one with the
fewest parameters is rebuilt at exactly these ranks. Then for every dense network of ``--weights``:

    dense                the dense network
    dense, trained       with the same extra training as the compressed networks
    its ranks, its way   TensorLy's ``partial_tucker``; SGD at a constant 0.001 without momentum for 3 epochs
    its ranks, our way   Tucker-2 fitted to data, refit and recalibrated (``shrink``); then trained as ours. A
                         convolution of kernel size 1 becomes two layers in place of three, so it is slightly smaller
    tucker2, htd, mixed  by ``shrink``, with at most its parameters and at most its MACs; then trained
    htd, searched        the same, with the ranks that a search by the adaptive policy chose on validation
    mixed, half          by ``shrink``, with at most half of its parameters and MACs; then trained
    mixed, quarter       the same with a quarter

Our training has the dense network as its teacher, see ``--epochs`` and ``--learning-rate``. The score is the deciding
metric on the test split, which chooses nothing. A second table has the differences from the dense networks and from
the other work's, each the mean over the seeds. Its 95% interval is a bootstrap over the images, paired; the standard
deviation over seeds and a verdict stand beside it.

At the end, all networks of the first seed are timed in turn at ``--timed-size`` pixels, one image at a time. Networks
and scores go into ``--out``. What is there is not made again, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tensorly
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.arms import difference_text, mean_text
from benchmarks.latency import by_tensorly
from common.compression import load_compressed, save_compressed
from common.data import DATASETS, METRICS, DataBundle, load_data
from common.deploy import fold_batchnorm, merge_factors
from common.environment import machine_line
from common.latency import RUNTIMES, measure_latencies
from common.network import profile
from common.network.kinds import Convolution
from common.planning import Budget, Fixed
from common.reporting.reference import Reference, ReferenceNetwork
from common.search import SearchSettings, search_ranks
from common.shrink import shrink
from common.training import TrainingSettings, evaluate_images, train

HERE = Path(__file__).parent
ITS_WAY = TrainingSettings(
    epochs=3,
    learning_rate=0.001,
    schedule="plateau",
    plateau_patience=99,
    momentum=0.0,
    weight_decay=0.0,
    recalibrate=False,
)
"""How tdcnn trains."""
BASELINES = ("dense", "dense, trained")
"""The arms of dense networks; every run has them."""
REFERENCES = (*BASELINES, "its ranks, its way", "its ranks, our way")
"""The arms with which the others are compared."""


@dataclass(frozen=True)
class Dense:
    """A dense network with what all its arms share.

    Attributes:
        name: of its file.
        model: the network.
        data: the splits.
        reference: the network of the other work.
        ours: how we train.
        its_way: how the other work trains.
        trials: of a search.
        logs: folder of a search's log.
    """

    name: str
    model: nn.Module
    data: DataBundle
    reference: ReferenceNetwork
    ours: TrainingSettings
    its_way: TrainingSettings
    trials: int
    logs: Path

    def rebuilt(self) -> nn.Module:
        """Return the other work's network: TensorLy's ``partial_tucker`` at its ranks.

        Raises:
            ValueError: it does not have the parameters that the file states.
        """
        network = copy.deepcopy(self.model)
        with tensorly.backend_context("pytorch"):
            for name, ranks in self.reference.ranks.items():
                layer = network.get_submodule(name)
                if not isinstance(layer, Convolution):
                    raise ValueError(f"layer {name!r} of the reference is no convolution in {self.name}")
                network.set_submodule(name, by_tensorly(layer, ranks))
        found = profile(network, self.data.example()).params
        if found != self.reference.params:
            raise ValueError(
                f"the rebuilt network has {found:,} parameters where the reference states "
                f"{self.reference.params:,}; is {self.name} the same model, with as many classes?"
            )
        return network

    def fixed_ranks(self) -> Fixed:
        """The other work's ranks for this suite's Tucker-2, which is an SVD where the kernel has size 1."""
        ranks: dict[str, int | tuple[int, ...]] = {}
        for name, pair in self.reference.ranks.items():
            kernel = self.model.get_submodule(name).get_parameter("weight").shape[2:]
            ranks[name] = min(pair) if kernel.numel() == 1 else pair
        return Fixed(ranks)

    def within(self, share: float) -> Budget:
        """The budget for ``share`` of the rebuilt network's parameters and MACs."""
        small, whole = (profile(each, self.data.example()) for each in (self.rebuilt(), self.model))
        return Budget(params=share * small.params / whole.params, macs=share * small.macs / whole.macs)

    def shrunk(self, method: str, share: float = 1.0) -> nn.Module:
        """Return our network with at most ``share`` of the rebuilt network's parameters and MACs."""
        return shrink(self.model, list(self.data.calibration), self.within(share), method).model

    def searched(self, method: str) -> nn.Module:
        """Return what a search by the adaptive policy chose within the rebuilt network's parameters and MACs."""
        settings = SearchSettings(method=method, trials=self.trials, budget=self.within(1.0), finetune_top=0)
        found = search_ranks(self.model, self.data, settings, logs=self.logs, run=f"{self.name}-{method}")
        return found.networks[found.best["metric"].trial]


@dataclass(frozen=True)
class Arm:
    """One way from a dense network to a network of the table.

    Attributes:
        build: makes the network before training.
        training: how it is trained; None if it is not.
        is_ours: whether the network is this suite's, and is trained with the dense network as its teacher.
    """

    build: Callable[[Dense], nn.Module]
    training: Callable[[Dense], TrainingSettings] | None
    is_ours: bool = True


ARMS: Mapping[str, Arm] = {
    "dense": Arm(lambda dense: copy.deepcopy(dense.model), None),
    "dense, trained": Arm(lambda dense: copy.deepcopy(dense.model), lambda dense: dense.ours),
    "its ranks, its way": Arm(Dense.rebuilt, lambda dense: dense.its_way, is_ours=False),
    "its ranks, our way": Arm(
        lambda dense: shrink(dense.model, list(dense.data.calibration), dense.fixed_ranks(), "tucker2").model,
        lambda dense: dense.ours,
    ),
    "tucker2": Arm(lambda dense: dense.shrunk("tucker2"), lambda dense: dense.ours),
    "htd": Arm(lambda dense: dense.shrunk("htd"), lambda dense: dense.ours),
    "htd, searched": Arm(lambda dense: dense.searched("htd"), lambda dense: dense.ours),
    "mixed": Arm(lambda dense: dense.shrunk("mixed"), lambda dense: dense.ours),
    "mixed, half": Arm(lambda dense: dense.shrunk("mixed", 0.5), lambda dense: dense.ours),
    "mixed, quarter": Arm(lambda dense: dense.shrunk("mixed", 0.25), lambda dense: dense.ours),
}


class Results:
    """The networks and scores of all arms, each kept in a file.

    Args:
        folder: of the files.
        data: the splits.
    """

    def __init__(self, folder: Path, data: DataBundle) -> None:
        self.folder, self.data, self.metric = folder, data, METRICS[data.metric]
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, seed: str, arm: str, suffix: str = "") -> Path:
        """The file of a network, or of its scores."""
        return self.folder / f"{seed}-{arm.replace(',', '').replace(' ', '-')}{suffix}.safetensors"

    def make(self, dense: Dense, name: str) -> None:
        """Build, train and test the network of one arm, unless that was done."""
        if self.path(dense.name, name, "-test").exists():
            return
        arm = ARMS[name]
        torch.manual_seed(0)
        network = arm.build(dense)
        rows = {"untrained": self._observed(network)}
        if arm.training:
            teacher = dense.model if arm.is_ours else None
            train(network, self.data, arm.training(dense), teacher=teacher, description=f"{dense.name}, {name}")
            rows["trained"] = self._observed(network)
        path = self.path(dense.name, name)
        save_compressed(network, path) if arm.is_ours else save_model(network, str(path))
        save_file(rows, self.path(dense.name, name, "-test"))

    def _observed(self, network: nn.Module) -> Tensor:
        return evaluate_images(network, self.data.test).rows[self.metric.observe].float()

    def network(self, dense: Dense, name: str) -> nn.Module:
        """The network of an arm, after its training."""
        path = self.path(dense.name, name)
        if ARMS[name].is_ours:
            return load_compressed(path)
        network = ARMS[name].build(dense)
        load_model(network, path)
        return network.eval()

    def scores(self, seeds: Sequence[str], arm: str, stage: str) -> list[float]:
        """The deciding metric in percent, for each seed that has this stage."""
        held = (load_file(self.path(seed, arm, "-test")) for seed in seeds)
        return [100 * (self.metric.summarize(rows[stage]) or 0.0) for rows in held if stage in rows]

    def last(self, seed: str, arm: str) -> Tensor:
        """What was observed of each test image at the arm's last stage."""
        rows = load_file(self.path(seed, arm, "-test"))
        return rows.get("trained", rows["untrained"])

    def difference(self, seeds: Sequence[str], arm: str, other: str) -> str:
        """The mean difference over the seeds between two arms, in points, with interval, deviation and verdict."""
        after, before = ([self.last(seed, name) for seed in seeds] for name in (arm, other))
        return difference_text(after, before, self.metric, verdict=True)


def accuracy_table(results: Results, networks: Sequence[Dense], arms: Sequence[str]) -> str:
    """The sizes and scores of all arms."""
    x, seeds = results.data.example(), [dense.name for dense in networks]
    whole = profile(networks[0].model, x)
    lines = []
    for arm in arms:
        costs = [profile(results.network(dense, arm), x) for dense in networks]
        line = [arm]
        for cost in ("params", "macs"):
            line.append(mean_text([100 * (getattr(each, cost) / getattr(whole, cost) - 1) for each in costs]))
        line += [mean_text(results.scores(seeds, arm, stage)) for stage in ("untrained", "trained")]
        lines.append(line)
    test = f"test {results.data.metric}"
    return tabulate(lines, ["", "parameters", "MACs", f"{test}, untrained", "trained"], "pipe", disable_numparse=True)


def difference_table(results: Results, seeds: Sequence[str], arms: Sequence[str]) -> str:
    """The differences between the arms and those of `REFERENCES` on test, in points, each after its training."""
    references = [arm for arm in REFERENCES if arm in arms]
    lines = [
        [arm, *(results.difference(seeds, arm, other) if arm != other else "" for other in references)] for arm in arms
    ]
    return tabulate(lines, ["", *(f"points from {other}" for other in references)], "pipe", disable_numparse=True)


def timing_table(networks: Mapping[str, nn.Module], size: int, runtimes: Sequence[str], rounds: int) -> str:
    """The times of all networks in turn, for each runtime, and the speedups over the dense network."""
    x = torch.randn(1, 3, size, size)
    merged = {arm: merge_factors(fold_batchnorm(network, x), x) for arm, network in networks.items()}
    whole = profile(networks["dense"], x).macs
    columns: dict[str, list[str]] = {
        "": list(networks),
        "MACs": [f"{profile(network, x).macs / whole:.1%}" for network in networks.values()],
    }
    for runtime in runtimes:
        chosen = networks if runtime == "eager" else merged
        found = measure_latencies(
            list(chosen.values()), x, baseline=chosen["dense"], runtime=runtime, rounds=rounds, round_s=0.1
        )
        title = RUNTIMES[runtime].title
        columns[f"{title}, ms"] = [f"{1000 * each.median_s:.2f} ± {500 * each.iqr_s:.2f}" for each in found]
        columns[f"speedup in {title}"] = [f"{each.speedup:.2f}" if each.speedup else "-" for each in found]
    return tabulate(columns, "keys", "pipe", disable_numparse=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help="dense networks, one for each seed")
    parser.add_argument("--model", default="resnet18", help="of the reference and of --weights; default: %(default)s")
    parser.add_argument("--reference", type=Path, default=HERE / "tdcnn.jsonl", help="default: %(default)s")
    parser.add_argument("--dataset", choices=DATASETS, default="mnist", help="default: %(default)s")
    parser.add_argument("--data-root", help="folder of the data set")
    parser.add_argument("--image-size", type=int, help="height and width of the images; default: the data set's")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="maximum number of images of each split; default: all")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all; dense ones always")
    parser.add_argument("--epochs", type=float, default=1.0, help="of our training; default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=0.02, help="of our training; default: %(default)s")
    parser.add_argument("--its-epochs", type=float, default=3.0, help="of its training; default: %(default)s")
    parser.add_argument("--trials", type=int, default=100, help="of the search; default: %(default)s")
    parser.add_argument("--timed-size", type=int, default=224, help="pixels of the timed input; default: %(default)s")
    parser.add_argument("--runtimes", nargs="*", choices=list(RUNTIMES), default=["eager", "onnxruntime"])
    parser.add_argument("--rounds", type=int, default=15, help="timings of each network; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/headline"), help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, test and time every network and print the tables."""
    options = parse(arguments)
    data = load_data(
        options.dataset, options.data_root, options.image_size, batch_size=options.batch_size, limit=options.limit
    )
    reference = Reference.read(options.reference).of(options.model, options.dataset).smallest()
    if reference is None:
        raise SystemExit(f"reference={str(options.reference)!r} holds no network of {options.model}")
    ours = TrainingSettings(epochs=options.epochs, learning_rate=options.learning_rate)
    its_way = replace(ITS_WAY, epochs=options.its_epochs)
    results = Results(options.out, data)
    arms = [arm for arm in ARMS if arm in (*BASELINES, *options.arms)]
    networks = [
        Dense(path.stem, load_compressed(path), data, reference, ours, its_way, options.trials, options.out / "logs")
        for path in options.weights
    ]
    for dense in networks:
        for arm in arms:
            results.make(dense, arm)
    print(f"{machine_line()}\n\nThe reference states {reference.value:.2%} for its network.\n")
    print(accuracy_table(results, networks, arms), end="\n\n")
    print(difference_table(results, [dense.name for dense in networks], arms), end="\n\n", flush=True)
    if options.runtimes:
        timed = {arm: results.network(networks[0], arm) for arm in arms}
        print(timing_table(timed, options.timed_size, options.runtimes, options.rounds))


if __name__ == "__main__":
    main()
