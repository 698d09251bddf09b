"""What a study stores so that any process can take part, and checks that a network and data belong to it."""

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

SPECIFICATION = "blueprint"
"""A study's attribute that holds its specification. It keeps its first name, so that older studies are found."""
SCHEMA_VERSION = 2
Points = list[tuple[float, float]]
"""Measured points (squared relative error, divergence in nats) of one layer."""


@dataclass(frozen=True)
class StudySpecification:
    """The description of a study, which all of its workers read.

    Attributes:
        settings: of the search.
        architecture: name of the network.
        weights: path of the dense network's file, on the machine where the study was begun.
        network: SHA-256 of the network's tensors.
        dataset: the arguments of ``load_data``; empty if the data came from elsewhere.
        data: SHA-256 of the validation split's targets.
        data_aware: whether the decompositions have moments.
        sweeps: number of improving sweeps of the decompositions.
        plans: the given plans as JSON, which are measured first.
        sensitivities: layer -> its sensitivity.
        divergences: layer -> its points (squared relative error, divergence).
        baseline: the dense network's figures, in the form of a trial record.
        schema: version of this description.
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
        """Convert to plain values for the study's attribute."""
        return _ADAPTER.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, values: Any) -> StudySpecification:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: another version of this code wrote it, and this one cannot read it.
        """
        if isinstance(values, dict) and "harms" in values:  # the name of ``divergences`` before version 0.2
            values = {**values, "divergences": values["harms"]}
            del values["harms"]
        _check_policy(values)
        if isinstance(values, dict) and isinstance(values.get("settings"), dict):  # without those of other versions
            known = {field.name for field in dataclasses.fields(SearchSettings)}
            values = {**values, "settings": {k: value for k, value in values["settings"].items() if k in known}}
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
        """What does not match the study, as parts of an error message; empty if everything does.

        More trials, other runtimes and another ``finetune_dense`` than before are allowed, as are another folder of
        the data and another number of processes that read it.
        """
        ours, theirs = dataclasses.asdict(settings), dataclasses.asdict(self.settings)
        found = [
            f"settings.{name}={ours[name]!r} (it was {theirs[name]!r})"
            for name in ours
            if ours[name] != theirs[name]
            and name not in ("runtimes", "finetune_dense")
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
        """The given plans, which are measured first.

        Raises:
            ValueError: the study holds something else in their place.
        """
        try:
            return [RankPlan.from_json(plan) for plan in self.plans]
        except OverflowError as error:
            raise ValueError(f"the study holds a plan that is not one: {error}") from None


_ADAPTER = TypeAdapter(StudySpecification)


def _check_policy(values: Any) -> None:
    """Raise a ValueError if the study draws from the static policy of an earlier version, which had other levels."""
    settings = values.get("settings") if isinstance(values, dict) else None
    if isinstance(settings, dict) and settings.get("policy") == "static" and "static_beta" in settings:
        raise ValueError(
            "the study was begun with policy='static' of an earlier version, which drew sizes of layers; this version "
            "draws ranks of inputs and outputs and cannot continue it; name another run"
        )


def network_digest(model: nn.Module) -> str:
    """SHA-256 of the names and values of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(distinct_tensors(model).items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_digest(data: DataBundle) -> str:
    """SHA-256 of the targets of the validation split. The inputs do not count: resizing differs between processors.

    If the user made the loader, the order does not count either, because its sampler may shuffle.
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
    """Path of the file that keeps a study's dense network for its workers."""
    return Path(logs).resolve() / f"{run}-dense.safetensors"
