"""Networks that another work reports, read from a file, so that pictures can set a run beside them.

The file has one JSON object on each line. ``docs/reports.md`` lists its keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.files import read_bounded
from common.reporting.fronts import pareto_front
from common.validation import sentence

MOST_BYTES = 64 * 2**20
"""The greatest size of such a file."""
Count = Annotated[int, Field(gt=0, lt=2**63, strict=True)]


class ReferenceNetwork(BaseModel):
    """One network of another work. Keys that are not listed here are ignored.

    Attributes:
        model: name of the model, as in a trial's record.
        params: number of parameters.
        macs: multiply-accumulates of one input; None if unknown.
        accuracy: as that work measured it, in [0, 1].
        ranks: layer -> its ranks; empty for the dense network.
        dataset: name of the data set; empty if the file is for one data set alone.
    """

    model_config = ConfigDict(frozen=True)

    model: Annotated[str, Field(min_length=1)]
    params: Count
    macs: Count | None = None
    accuracy: Annotated[float, Field(ge=0, le=1)]
    ranks: dict[str, tuple[Count, ...]]
    dataset: str = ""

    @property
    def is_dense(self) -> bool:
        """Whether no layer is factored."""
        return not self.ranks


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

    def of(self, model: str, dataset: str) -> Reference:
        """The networks of one model on one data set. Those without a data set belong to every one."""
        chosen = (each for each in self.networks if each.model == model and each.dataset in ("", dataset))
        return Reference(self.name, tuple(chosen))

    def with_dense(self, params: int, accuracy: float) -> Reference:
        """Let a run's dense network stand in for that of a file without one; its MACs are unknown.

        Args:
            params: number of parameters of the run's dense network.
            accuracy: of the same network.
        """
        if self.dense or not self.networks:
            return self
        stand_in = ReferenceNetwork(model=self.networks[0].model, params=params, accuracy=accuracy, ranks={})
        return Reference(self.name, (*self.networks, stand_in))

    @property
    def dense(self) -> ReferenceNetwork | None:
        """The first dense network; None if there is none."""
        return next((each for each in self.networks if each.is_dense), None)

    @property
    def compressed(self) -> tuple[ReferenceNetwork, ...]:
        """The networks that are not dense."""
        return tuple(each for each in self.networks if not each.is_dense)

    def smallest(self, keep: float = 0.0) -> ReferenceNetwork | None:
        """The network with the fewest parameters, and among equals with the best accuracy; None if there is none.

        Args:
            keep: it must have kept this fraction of the dense accuracy, where the dense network is known.
        """
        least = keep * self.dense.accuracy if self.dense else 0.0
        kept = [each for each in self.compressed if each.accuracy >= least]
        return min(kept, key=lambda each: (each.params, -each.accuracy), default=None)

    def front(self, cost: str) -> list[tuple[float, float]]:
        """The Pareto front in percent: (share of the dense network's cost, accuracy).

        Args:
            cost: ``params`` or ``macs``.

        Returns:
            Nothing if that cost of the dense network is unknown.
        """
        whole = getattr(self.dense, cost, None)
        known = [each for each in self.compressed if getattr(each, cost) is not None]
        return pareto_front([(100 * getattr(each, cost) / whole, 100 * each.accuracy) for each in known if whole])

    def gains(self, keep: float) -> dict[str, float] | None:
        """The axes of a radar for `smallest`; None if no network or no dense network is known.

        Args:
            keep: see `smallest`.

        Returns:
            The accuracy over the dense network's, and the removed fractions of parameters and MACs. The speedup and
            the size of the file are NaN: another work timed under its own conditions.
        """
        dense, best = self.dense, self.smallest(keep)
        if dense is None or best is None:
            return None
        return {
            "metric": best.accuracy / dense.accuracy if dense.accuracy else math.nan,
            "params": 1 - best.params / dense.params,
            "macs": 1 - best.macs / dense.macs if best.macs and dense.macs else math.nan,
            "speedup": math.nan,
            "size": math.nan,
        }
