"""How a network came to be: what ``build_model`` was called with, its training's inputs, and its compression's plan.

Kept on the network itself, so that it can be saved and built again without the dense weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

_KEY = "_low_rank_provenance"


@dataclass(frozen=True)
class Provenance:
    """What is known of a network.

    Attributes:
        builder: name of the architecture.
        arguments: it was built with.
        plan: the ``RankPlan`` of a compressed network, see :func:`common.planning.plan_of`; None for a dense one.
        inputs: ``mean`` and ``deviation`` by which pixels became its inputs in training; empty where nobody knows.
    """

    builder: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    plan: object | None = None
    inputs: Mapping[str, list[float]] = field(default_factory=dict)


def set_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Attach ``provenance`` to ``model``; it is carried along by ``copy.deepcopy``."""
    model.__dict__[_KEY] = provenance


def get_provenance(model: nn.Module) -> Provenance | None:
    """What was attached to ``model``; None for a network that neither ``build_model`` nor ``compress`` made."""
    found = model.__dict__.get(_KEY)
    return found if isinstance(found, Provenance) else None
