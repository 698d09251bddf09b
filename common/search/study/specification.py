"""What a study holds so that any process can take part in it, and the check that network and data are its own."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from common.data import DataBundle
from common.network.state import distinct_tensors
from common.planning import RankPlan
from common.planning.decompositions import Decompositions
from common.search.settings import SearchSettings

KEY = "blueprint"
SCHEMA_VERSION = 2
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class StudySpecification:
    """A study's own description, the same for all of its workers.

    Attributes:
        settings: how it searches.
        architecture: name of the network.
        weights: file of the dense network, as seen from where the study was begun.
        network: SHA-256 of the network's tensors.
        dataset: the arguments of ``load_data``; empty when the data came from elsewhere.
        data: SHA-256 of the validation split's targets.
        data_aware, sweeps: of the decompositions.
        plans: as JSON, measured before the search's own trials.
        sensitivities: of each layer.
        divergences: layer -> points (squared relative error, divergence).
        baseline: the dense network's figures, as a trial record holds them.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    settings: SearchSettings
    architecture: str
    weights: str
    network: str
    dataset: dict[str, Any]
    data: str
    data_aware: bool
    sweeps: int
    plans: list[dict[str, Any]]
    sensitivities: dict[str, float]
    divergences: dict[str, Points]
    baseline: dict[str, Any]
    schema: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain values for the study's attributes."""
        return _ADAPTER.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, values: Any) -> StudySpecification:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: it is of another version of this code.
        """
        if isinstance(values, dict) and "harms" in values:  # the name of ``divergences`` before version 0.2
            values = {**values, "divergences": values["harms"]}
            del values["harms"]
        try:
            found = _ADAPTER.validate_python(values, strict=False)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"the study was written by another version: {where}: {first['msg']}") from None
        if found.schema != SCHEMA_VERSION:
            raise ValueError(f"the study's schema version {found.schema} is unknown; this is version {SCHEMA_VERSION}")
        return found

    def differences(
        self, settings: SearchSettings, model: nn.Module, data: DataBundle, decompositions: Decompositions | None
    ) -> list[str]:
        """What of these does not match the study; more trials, and other runtimes, may be asked for than before.

        Where the data lies, and how many processes read it, does not matter either.
        """
        ours, theirs = dataclasses.asdict(settings), dataclasses.asdict(self.settings)
        found = [
            f"settings.{name}={ours[name]!r} (it was {theirs[name]!r})"
            for name in ours
            if ours[name] != theirs[name]
            and name != "runtimes"
            and not (name == "trials" and ours[name] > theirs[name])
        ]
        if network_digest(model) != self.network:
            found.append("the dense network's weights")
        if data_digest(data) != self.data:
            found.append("the validation split")
        if data.source and self.dataset:
            found += [
                f"load_data's {name}={value!r} (it was {self.dataset[name]!r})"
                for name, value in data.source.items()
                if name not in ("root", "workers") and value != self.dataset.get(name, value)
            ]
        if decompositions is not None and (bool(decompositions.moments), decompositions.sweeps) != (
            self.data_aware,
            self.sweeps,
        ):
            found.append("the decompositions (with or without data, or another number of sweeps)")
        return found

    def rank_plans(self) -> list[RankPlan]:
        """The plans that are measured first."""
        return [RankPlan.from_json(plan) for plan in self.plans]


_ADAPTER = TypeAdapter(StudySpecification)


def network_digest(model: nn.Module) -> str:
    """SHA-256 of the names and values of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(distinct_tensors(model).items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_digest(data: DataBundle) -> str:
    """SHA-256 of the targets of the validation split. The inputs are left out: resizing differs between processors.

    Of a loader of the user's own the order does not count: it may have a sampler that shuffles.
    """
    digest = hashlib.sha256(f"{data.name} {data.image_size}".encode())
    rows: list[bytes] = []
    for _, targets in data.validation:
        for target in targets.cpu():
            content = target.contiguous().numpy().tobytes()
            if data.source:
                digest.update(content)
            else:
                rows.append(hashlib.sha256(content).digest())
    for row in sorted(rows):
        digest.update(row)
    return digest.hexdigest()


def weights_path(logs: str | Path, run: str) -> Path:
    """Where the dense network of a study is kept for its workers."""
    return Path(logs).resolve() / f"{run}-dense.safetensors"
