"""Record how a network was built, normalised and compressed.

The record is an attribute of the network. With it, ``load_compressed`` rebuilds the network without the dense weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

_KEY = "_low_rank_provenance"


@dataclass(frozen=True)
class Provenance:
    """Origin of a network.

    Attributes:
        builder: name of the architecture, as ``build_model`` takes it; None for a network from elsewhere.
        arguments: arguments of ``build_model``.
        plan: ``RankPlan`` of a compressed network (see :func:`common.planning.plan_of`); None for a dense one.
        inputs: ``mean`` and ``deviation`` that normalised the pixels in training; empty if unknown.
    """

    builder: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    plan: object | None = None
    inputs: Mapping[str, list[float]] = field(default_factory=dict)


def set_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Attach ``provenance`` to ``model``. ``copy.deepcopy`` keeps it."""
    model.__dict__[_KEY] = provenance


def get_provenance(model: nn.Module) -> Provenance | None:
    """Return the provenance of ``model``; None if neither ``build_model`` nor ``compress`` made the network."""
    found = model.__dict__.get(_KEY)
    return found if isinstance(found, Provenance) else None


def unwrapped(model: nn.Module, *, compressed_too: bool = False) -> nn.Module:
    """Return the network inside parallel, averaging and compiling wrappers.

    Args:
        model: any network.
        compressed_too: whether to look into a wrapper that has a provenance as well, because it was compressed itself.
            The plan in that provenance names layers as the wrapper does.
    """
    parallel = isinstance(model, (nn.DataParallel, DistributedDataParallel, AveragedModel))
    inner = getattr(model, "module" if parallel else "_orig_mod", None)  # torch.compile stores it as _orig_mod
    if not isinstance(inner, nn.Module) or (get_provenance(model) is not None and not compressed_too):
        return model
    return unwrapped(inner, compressed_too=compressed_too)
