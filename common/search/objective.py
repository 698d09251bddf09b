"""What a trial measures: a plan becomes a network, and the network figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.calibration import recalibrate_bn
from common.compression import compress
from common.data import DataBundle
from common.metrics import evaluate
from common.planning.layers import Decompositions
from common.planning.plan import RankPlan
from common.profiling import Latency, Profile, measure_latency, profile

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Measured:
    """A compressed network and its figures; ``metrics`` holds a stage -> metric -> value on validation."""

    network: nn.Module
    metrics: Metrics
    cost: Profile
    latency: Latency


class Objective:
    """Measures plans for one dense network on one data set.

    Args:
        model: the dense network.
        data: calibration is used for BatchNorm, validation for the metrics.
        decompositions: of ``model``.
        latency_batch: how many inputs a timed pass holds.
    """

    def __init__(self, model: nn.Module, data: DataBundle, decompositions: Decompositions, latency_batch: int) -> None:
        self.model, self.data, self.decompositions = model, data, decompositions
        device = next(model.parameters()).device
        self.x = data.example().to(device)
        self.timed = self.x.expand(latency_batch, -1, -1, -1).contiguous()
        self.dense_cost = profile(model, self.x)
        self.dense_metrics = evaluate(model, data.validation)
        self.dense_latency = measure_latency(model, self.timed)

    def build(self, plan: RankPlan) -> nn.Module:
        """The compressed network with its BatchNorm recalibrated."""
        small = compress(self.model, plan, decompositions=self.decompositions)
        recalibrate_bn(small, self.data.calibration)
        return small

    def measure(self, plan: RankPlan) -> Measured:
        """Compress, evaluate raw, recalibrate BatchNorm, evaluate again, count and time."""
        small = compress(self.model, plan, decompositions=self.decompositions)
        metrics = {"raw": evaluate(small, self.data.validation)}
        recalibrate_bn(small, self.data.calibration)
        metrics["recalibrated"] = evaluate(small, self.data.validation)
        return Measured(small, metrics, profile(small, self.x), self.time(small, rounds=7))

    def time(self, network: nn.Module, rounds: int) -> Latency:
        """Latency of ``network``, with the dense one timed in turn."""
        return measure_latency(network, self.timed, baseline=self.model, rounds=rounds)

    def baseline(self) -> dict[str, object]:
        """The dense network's figures, as a trial record holds them."""
        return {
            "params": self.dense_cost.params,
            "macs": self.dense_cost.macs,
            "size_bytes": self.dense_cost.size_bytes,
            "latency": self.dense_latency.to_json(),
            "metrics": {"validation": self.dense_metrics},
        }

    def score(self, metrics: Mapping[str, float], cost: Profile, size_weight: float) -> float:
        """``accuracy / dense accuracy - size_weight * (share of parameters kept + share of MACs kept) / 2``."""
        kept = (cost.params / self.dense_cost.params + cost.macs / self.dense_cost.macs) / 2
        return metrics[self.data.metric] / max(self.dense_metrics[self.data.metric], 1e-12) - size_weight * kept


def calibration_inputs(data: DataBundle, count: int) -> Tensor:
    """The first ``count`` inputs of the calibration split, or all of it where it is smaller: ``(N, C, H, W)``."""
    batches: list[Tensor] = []
    for inputs, _ in data.calibration:
        batches.append(inputs)
        if sum(map(len, batches)) >= count:
            break
    return torch.cat(batches)[:count]
