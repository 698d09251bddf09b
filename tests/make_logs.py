"""Writes logs like those of real searches, through the real writer: 4 models x 4 methods x 100 trials.

    python tests/make_logs.py FOLDER

Parameters and MACs are counted from the layers' real shapes and the ranks; metrics and times follow curves like the
measured ones, with noise. The same call writes the same records. Each pair of model and method is searched with two
seeds; the U-Net's HTD is searched by two workers of one study. Failed and pruned trials are among them.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.trials import TrialRecord, TrialWriter

METHODS = {"svd": "svd", "arsvd": "svd", "tucker2": "tucker2", "htd": "htd"}
TITLES = {"svd": "SVD", "arsvd": "ARSVD", "tucker2": "Tucker-2", "htd": "HTD"}
IMAGES = {"accuracy": (100_000, 100_000), "dice": (127, 57)}
"""Metric -> images of validation and of test. An accuracy of five digits is a share of so many."""
BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Layer:
    """A layer's output and input channels, its kernel's side and its output positions."""

    name: str
    out: int
    into: int
    kernel: int = 3
    places: int = 64

    @property
    def params(self) -> int:
        return self.out * self.into * self.kernel**2

    @property
    def full(self) -> int:
        return min(self.out, self.into * self.kernel**2)


@dataclass(frozen=True)
class Network:
    """A dense network: its layers and what it reaches on validation and test."""

    name: str
    dataset: str
    metric: str
    validation: float
    test: float
    layers: tuple[Layer, ...]


def _resnet18() -> Iterator[Layer]:
    yield Layer("conv1", 64, 3, 3, 1024)
    into = 64
    for stage, out in enumerate((64, 128, 256, 512), start=1):
        places = 1024 >> 2 * (stage - 1)
        for block in range(2):
            yield Layer(f"layer{stage}.{block}.conv1", out, into, 3, places)
            yield Layer(f"layer{stage}.{block}.conv2", out, out, 3, places)
            if into != out:
                yield Layer(f"layer{stage}.{block}.downsample.0", out, into, 1, places)
            into = out
    yield Layer("fc", 10, 512, 1, 1)


def _plain(widths: Sequence[int], linear: Sequence[tuple[int, int]]) -> Iterator[Layer]:
    into = 3
    for place, out in enumerate(widths):
        yield Layer(f"features.{place}", out, into, 3, max(1024 >> place, 4))
        into = out
    for place, (out, into) in enumerate(linear):
        yield Layer(f"classifier.{3 * place}", out, into, 1, 1)


def _unet() -> Iterator[Layer]:
    widths = (32, 64, 128, 256, 512)
    into = 1
    for depth, out in enumerate(widths):
        yield Layer(f"down.{depth}.0", out, into, 3, 4096 >> 2 * depth)
        yield Layer(f"down.{depth}.1", out, out, 3, 4096 >> 2 * depth)
        into = out
    for depth, out in reversed(list(enumerate(widths[:-1]))):
        yield Layer(f"up.{depth}.0", out, 2 * out, 3, 4096 >> 2 * depth)
        yield Layer(f"up.{depth}.1", out, out, 3, 4096 >> 2 * depth)
    yield Layer("head", 1, 32, 1, 4096)


NETWORKS = (
    Network("resnet18", "cifar10", "accuracy", 0.948, 0.9453, tuple(_resnet18())),
    Network(
        "vgg16",
        "cifar10",
        "accuracy",
        0.9372,
        0.9341,
        tuple(_plain((64, 64, 128, 128, *[256] * 3, *[512] * 6), ((4096, 512), (4096, 4096), (10, 4096)))),
    ),
    Network(
        "alexnet",
        "imagenette",
        "accuracy",
        0.8815,
        0.8794,
        tuple(_plain((64, 192, 384, 256, 256), ((4096, 4096), (4096, 4096), (10, 4096)))),
    ),
    Network("unet", "brain_tumor", "dice", 0.8427, 0.8391, tuple(_unet())),
)


def factored(layer: Layer, method: str, share: float) -> tuple[list[int], int]:
    """Ranks at a share of the full ones, and the parameters of the factors."""

    def rank(full: int) -> int:
        return max(1, round(share * full))

    o, i, k = layer.out, layer.into, layer.kernel
    if method == "svd" or k == 1:
        r = rank(layer.full)
        return [r], r * (i * k * k + o)
    r_in, r_out = rank(i), rank(o)
    if method == "tucker2":
        return [r_in, r_out], i * r_in + r_in * r_out * k * k + r_out * o
    middle = min(r_in * k, r_out * k, max(r_in, r_out))
    return [r_in, middle, r_out], i * r_in + k * r_in * middle + k * middle * r_out + r_out * o


def _figures(layer: Layer, method: str, kept: float) -> dict[str, Any]:
    """The figures of a factored layer that keeps this share of its parameters."""
    return {
        "error": round(0.3 * (1 - kept), 4),
        "params": kept,
        "macs": kept,
        "dense_params": layer.params,
        "dense_macs": layer.params * layer.places,
        "full": factored(layer, METHODS[method], 1.0)[0],
    }


def _trial(network: Network, method: str, share: float, chance: random.Random) -> dict[str, Any]:
    """Plan and figures of one compressed network, at about this share of each layer's ranks."""
    plan: dict[str, dict[str, Any]] = {}
    figures: dict[str, dict[str, Any]] = {}
    extra = 9610 if network.metric == "accuracy" else 5700  # BatchNorm and biases
    params = macs = extra
    steps = 0
    for layer in network.layers:
        ranks, size = factored(layer, METHODS[method], min(1.0, share * math.exp(chance.gauss(0, 0.3))))
        if size >= layer.params:
            reason = f"at ranks {', '.join(map(str, ranks))} its factors would have {size:,} parameters, "
            plan[layer.name] = {"dense": f"{reason}the layer has {layer.params:,}"}
            size = layer.params
        else:
            plan[layer.name] = {"method": METHODS[method] if layer.kernel > 1 else "svd", "ranks": ranks}
            steps += len(ranks)
            figures[layer.name] = _figures(layer, method, size / layer.params)
        params, macs = params + size, macs + size * layer.places
    dense = sum(layer.params for layer in network.layers) + extra
    dense_macs = sum(layer.params * layer.places for layer in network.layers) + extra
    divergence = {"svd": 1.0, "arsvd": 0.9, "tucker2": 0.75, "htd": 0.6}[method] * chance.uniform(0.8, 1.25)
    loss = min(0.9, 0.012 * divergence * ((dense / params) ** 0.85 - 1))
    stages = {"raw": 1 - min(0.93, 6 * loss), "recalibrated": 1 - 1.6 * loss}
    metrics = {
        stage: {network.metric: round(network.validation * kept, 5), "loss": round(1.5 * (1.06 - kept), 5)}
        for stage, kept in stages.items()
    }
    seconds = 2.0e-4 * steps / 10 + dense_macs / 9e10
    overhead = {"resnet18": 0.05, "vgg16": 0.1, "alexnet": 0.07, "unet": 0.16}.get(network.name, 0.1)
    latency = (macs + overhead * dense_macs) / 9e10 * math.exp(chance.gauss(0, 0.1)) + 4e-6 * steps
    dense_s = seconds * chance.uniform(0.98, 1.02)
    timing = {
        "median_s": latency,
        "iqr_s": latency * chance.uniform(0.01, 0.04),
        "speedup": dense_s / latency,
        "baseline_median_s": dense_s,
        "runtime": "PyTorch eager",
        "threads": 2,
        "batch_size": 1,
        "memory_format": "contiguous",
    }
    halved = {"median_s": latency / 2, "baseline_median_s": 1.15 * dense_s / 2, "speedup": 1.15 * dense_s / latency}
    faster = {**timing, **halved, "runtime": "ONNX Runtime"}
    return {
        "plan": plan,
        "metrics": metrics,
        "params": params,
        "macs": macs,
        "size_bytes": 4 * params + 11_000,
        "latency": timing,
        "details": {"latencies": [timing, faster], "data_aware": True, "layers": figures},
        "baseline": {
            "params": dense,
            "macs": dense_macs,
            "size_bytes": 4 * dense + 9_000,
            "latency": {**timing, "median_s": dense_s, "speedup": None, "baseline_median_s": None},
            "metrics": {"validation": {network.metric: network.validation, "loss": 0.2}},
            "images": dict(zip(("validation", "test"), IMAGES[network.metric], strict=True)),
        },
    }


def _rule(method: str, number: int) -> tuple[str, dict[str, Any], float]:
    """Rule, its settings and the share of the ranks, of the trials before a search."""
    if method == "arsvd":
        tau = 0.15 + 0.1 * number
        return "entropy", {"tau": round(tau, 2), "exponent": 1}, 0.9 * tau**1.5
    if number < len(BUDGETS):
        share = BUDGETS[number]
        return "budget", {"budget": {"params": share}}, share if method == "svd" else share**0.6
    share = (0.1, 0.25, 0.5)[number - len(BUDGETS)]
    return "fixed", {"ranks": share}, share


def _spectrum(layer: Layer) -> list[float]:
    return [round(math.exp(-3.5 * (place / layer.full) ** 0.6), 5) for place in range(layer.full)]


def make_trials(network: Network, method: str, seed: int, trials: int, **fixed: Any) -> Iterator[TrialRecord]:
    """The records of one search: rank rules first, then samples that get better, at last the best four fine-tuned."""
    chance = random.Random(f"{network.name} {method} {seed}")
    records: list[TrialRecord] = []
    sampler, proposer = (("adaptive", "adaptive policy"), ("tpe", "tpe sampler"))[seed % 2]
    for number in range(trials):
        if number < len(BUDGETS) + 3:
            rule, settings, share = _rule(method, number)
            details: dict[str, Any] = {"rule_settings": settings, "sampler": "given"}
        else:
            rule, details = proposer, {"rule_settings": {}, "sampler": sampler}
            share = 0.12 + 0.5 * chance.random() * (1 - 0.7 * number / trials)
        if method == "arsvd" and rule != "entropy":  # a search over taus is ARSVD still
            rule = "entropy"
        made = _trial(network, method, share, chance)
        if number == 0:
            details["spectra"] = {layer.name: _spectrum(layer) for layer in network.layers}
        record = TrialRecord(
            run="",
            trial=number,
            status="ok",
            model=network.name,
            dataset=network.dataset,
            method=METHODS[method],
            method_name=method,
            method_title=TITLES[method],
            rule=rule,
            metric=network.metric,
            seconds=round(chance.uniform(4, 7), 3),
            seed=seed,
            environment={"python": "3.11.7", "torch": "2.13.0", "processor": "Generated", "cores": 2, "threads": 2},
            git_commit="0123456789ab",
            **made | {"details": made["details"] | details},
        )
        fate = chance.random()
        if fate < 0.03 and number:
            record = record.replace(status="failed", metrics={}, latency=None, params=0, macs=0, size_bytes=0)
            record = record.replace(error="RuntimeError: not enough memory", details=details)
        elif fate < 0.12 and number:
            record = record.replace(status="pruned", metrics={"raw": record.metrics["raw"]}, latency=None)
            record = record.replace(details=details)
        records.append(record.replace(**fixed))
        yield records[-1]
    yield from _finalists(network, [record for record in records if record.status == "ok"])


def _finalists(network: Network, records: Sequence[TrialRecord]) -> Iterator[TrialRecord]:
    """The four smallest that kept nearly all, fine-tuned; then tested."""
    dense = network.validation

    def score(record: TrialRecord) -> float:
        lost = 1 - record.metrics["recalibrated"][network.metric] / dense
        return -record.params / record.baseline.params - 8 * lost

    for record in sorted(records, key=score, reverse=True)[:4]:
        recalibrated = record.metrics["recalibrated"][network.metric]
        tuned = round(dense - 0.3 * (dense - recalibrated) + 0.001, 5)
        stages = {**record.metrics, "finetuned": {network.metric: tuned, "loss": 0.21}}
        yield record.replace(metrics=stages, seconds=record.seconds + 60)
        tested = {**stages, "test": {network.metric: round(tuned - 0.003, 5), "loss": 0.22}}
        baseline = record.baseline
        both = {**baseline.metrics, "test": {network.metric: network.test, "loss": 0.21}}
        kept = record.details.layers
        before = {layer.name: layer.params * layer.places / 9e10 for layer in network.layers}
        after = {name: seconds * (kept[name].macs if name in kept else 1.0) for name, seconds in before.items()}
        times = {"runtime": "PyTorch eager", "before": {**before, "rest": 1e-4}, "after": {**after, "rest": 1e-4}}
        record = record.replace(details=record.details.replace(layer_times=times))
        yield record.replace(metrics=tested, seconds=record.seconds + 60, baseline=baseline.replace(metrics=both))


def write_logs(folder: str | Path, trials: int = 100, networks: Sequence[Network] = NETWORKS) -> list[Path]:
    """One log for each model, method and seed, ``trials`` for each model and method; two for the U-Net's HTD."""
    paths = []
    for network in networks:
        for method in METHODS:
            for seed in range(2):
                run = f"{network.name}-{method}-seed{seed}"
                with TrialWriter(folder, run) as writer, TrialWriter(folder, f"{run}-w2") as second:
                    writers = (writer, second) if (network.name, method) == ("unet", "htd") else (writer,)
                    for record in make_trials(network, method, seed, trials // 2):
                        if len(writers) > 1:
                            record = record.replace(details=record.details.replace(study=run))
                        worker = writers[record.trial % len(writers)]
                        worker.write(record.replace(run=worker.run))
                paths += [w.path for w in writers]
                if len(writers) == 1:
                    second.path.unlink()
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=100, help="for each model and method (default: 100)")
    options = parser.parse_args()
    print(*write_logs(options.folder, options.trials), sep="\n")
