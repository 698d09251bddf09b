"""Networks that another work reports, read from a file, so that pictures can set a run beside them.

The file has one JSON object on each line. ``docs/reports.md`` lists its keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.files import read_bounded
from common.validation import sentence

MOST_BYTES = 64 * 2**20
"""The greatest size of such a file."""
COSTS = {"params_kept": "params", "macs_kept": "macs"}
"""Column of the trials -> the cost that a reference states."""
Count = Annotated[int, Field(gt=0, lt=2**63, strict=True)]


class ReferenceNetwork(BaseModel):
    """One network of another work. Keys that are not listed here are ignored.

    Attributes:
        model: name of the model, as in a trial's record.
        params: number of parameters.
        ranks: layer -> its ranks; empty for the dense network.
        macs: multiply-accumulates of one input; None if unknown.
        dataset: name of the data set; empty if the network belongs to any.
        metric: name of the metric.
        value: the metric, in [0, 1]. In the file, it stands under the metric's name.
    """

    model_config = ConfigDict(frozen=True)

    model: Annotated[str, Field(min_length=1)]
    params: Count
    ranks: dict[str, tuple[Count, ...]]
    macs: Count | None = None
    dataset: str = ""
    metric: str = "accuracy"
    value: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="before")
    @classmethod
    def _take_value(cls, values: Any) -> Any:
        """Take the value from under the metric's name."""
        if not isinstance(values, Mapping):
            return values
        metric = values.get("metric", "accuracy")
        if not isinstance(metric, str):
            raise ValueError(f"metric={metric!r}: it must be the name of a metric")
        if "value" not in values and metric not in values:
            raise ValueError(f"there is no key {metric!r}, which must hold the metric in [0, 1]")
        return {"value": values.get(metric), **values}


@dataclass(frozen=True)
class Reference:
    """The networks of another work.

    Attributes:
        name: how pictures call it: the file's name without its suffix.
        networks: in the order of the file.
    """

    name: str
    networks: tuple[ReferenceNetwork, ...]

    @classmethod
    def read(cls, path: str | Path) -> Reference:
        """Read a file of networks.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no network, or a line is not one. The message names the line.
        """
        networks = []
        for number, line in enumerate(read_bounded(path, MOST_BYTES).split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                networks.append(ReferenceNetwork.model_validate_json(line))
            except ValidationError as error:
                raise ValueError(f"reference={str(path)!r}, line {number}: {sentence(error)}") from None
        if not networks:
            raise ValueError(f"reference={str(path)!r} holds no network; it must have a JSON object on each line")
        return cls(Path(path).stem, tuple(networks))

    def of(self, model: str, dataset: str, metric: str = "accuracy") -> Reference:
        """The networks of one model on one data set, by one metric. Those without a data set belong to every one."""
        chosen = (
            each
            for each in self.networks
            if each.model == model and each.dataset in ("", dataset) and each.metric == metric
        )
        return Reference(self.name, tuple(chosen))

    def with_dense(self, params: int, value: float) -> Reference:
        """Let a run's dense network stand in for that of a file without one; its MACs are unknown.

        Args:
            params: number of parameters of the run's dense network.
            value: its metric.
        """
        if self.dense or not self.networks:
            return self
        first = self.networks[0]
        stand_in = ReferenceNetwork(model=first.model, params=params, ranks={}, metric=first.metric, value=value)
        return Reference(self.name, (*self.networks, stand_in))

    @property
    def dense(self) -> ReferenceNetwork | None:
        """The first dense network; None if there is none."""
        return next((each for each in self.networks if not each.ranks), None)

    @property
    def compressed(self) -> tuple[ReferenceNetwork, ...]:
        """The networks that are not dense."""
        return tuple(each for each in self.networks if each.ranks)

    def smallest(self, keep: float = 0.0) -> ReferenceNetwork | None:
        """The network with the fewest parameters, and among equals with the best metric; None if there is none.

        Args:
            keep: it must have kept this fraction of the dense metric, where the dense network is known.
        """
        least = keep * self.dense.value if self.dense else 0.0
        kept = [each for each in self.compressed if each.value >= least]
        return min(kept, key=lambda each: (each.params, -each.value), default=None)

    def points(self, cost: str) -> list[tuple[float, float]]:
        """The compressed networks in percent: (share of the dense network's cost, metric).

        Args:
            cost: ``params_kept`` or ``macs_kept``, as the columns of the trials are called.

        Returns:
            Nothing for any other cost, or if that of the dense network is unknown.
        """
        name = COSTS.get(cost, "")
        whole = getattr(self.dense, name, None)
        known = [each for each in self.compressed if getattr(each, name, None) is not None]
        return [(100 * getattr(each, name) / whole, 100 * each.value) for each in known if whole]

    def gains(self, keep: float) -> dict[str, float] | None:
        """The axes of a radar for `smallest`; None if no network or no dense network is known.

        Args:
            keep: see `smallest`.

        Returns:
            The metric over the dense network's, and the removed fractions of parameters and MACs. The speedup and the
            size of the file are NaN: another work timed under its own conditions.
        """
        dense, best = self.dense, self.smallest(keep)
        if dense is None or best is None:
            return None
        return {
            "metric": best.value / dense.value if dense.value else math.nan,
            "params": 1 - best.params / dense.params,
            "macs": 1 - best.macs / dense.macs if best.macs and dense.macs else math.nan,
            "speedup": math.nan,
            "size": math.nan,
        }
