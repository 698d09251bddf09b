"""Account for every parameter: the modules that a plan leaves as they are, their size, and the reasons."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from common.network.counting import Operations
from common.network.kinds import FactorableLayer
from common.network.shapes import LayerShape, dense_reason
from common.planning.plan import Untouched

_NEVER_RUNS = "a pass in evaluation mode never runs it; budgets do not count it"
_READ_ONLY = "its weight is used without calling it"
_OTHER_KIND = "no decomposition serves this kind"
_JOINT = "its projections are one weight; common.network.attention.separate_projections makes layers of them"
_MAX_NAMED = 5
"""The most parts that an error message names; they are the largest."""
_MIN_SHARE = 0.01
"""The smallest fraction of the parameters that an error message names as an obstacle."""


def used_parameters(model: nn.Module, operations: Operations) -> int:
    """Count the parameters that a pass in evaluation mode reads."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name in operations.used)


def untouched_modules(model: nn.Module, planned: Collection[str], operations: Operations) -> tuple[Untouched, ...]:
    """Group the modules that have parameters but no plan by class and reason, largest group first."""
    total = max(1, sum(parameter.numel() for parameter in model.parameters()))
    groups: dict[tuple[str, str], list[tuple[str, int, int]]] = {}  # (class, reason) -> (name, parameters, MACs)
    covered = tuple(f"{name}." for name in planned)
    idle: tuple[str, ...] = ()
    for name, module in model.named_modules():
        inside = {f"{name}.{own}" if name else own for own, _ in module.named_parameters()}
        if name in planned or not inside or name.startswith((*covered, *idle)):
            continue
        if not inside & operations.used:
            idle = (*idle, f"{name}.")
            size = sum(parameter.numel() for parameter in module.parameters())
            groups.setdefault((_kind(module), _NEVER_RUNS), []).append((name, size, 0))
        elif size := sum(parameter.numel() for parameter in module.parameters(recurse=False)):
            macs = operations.by_module.get(name, 0) - sum(
                operations.by_module.get(f"{name}.{child}" if name else child, 0)
                for child, _ in module.named_children()
            )
            groups.setdefault((_kind(module), _reason(module)), []).append(
                (name or "the network itself", size, max(macs, 0))
            )
    untouched = [
        Untouched(
            kind,
            tuple(name for name, _, _ in members),
            sum(size for _, size, _ in members) / total,
            sum(macs for _, _, macs in members) / max(1, operations.macs),
            reason,
        )
        for (kind, reason), members in groups.items()
    ]
    return tuple(sorted(untouched, key=lambda group: -group.params))


def _reason(module: nn.Module) -> str:
    """Why the parameters of a module stay as they are."""
    if isinstance(module, nn.MultiheadAttention):
        return _JOINT
    return _READ_ONLY if isinstance(module, FactorableLayer) else _OTHER_KIND


def _kind(module: nn.Module) -> str:
    """The module's class, or the original class of a scripted module."""
    scripted = getattr(module, "original_name", None)
    return f"scripted {scripted}" if scripted else type(module).__name__


def nothing_to_factor(model: nn.Module, untouched: tuple[Untouched, ...]) -> str:
    """The message for a network in which no layer can be factored."""
    text = "nothing can be factored: a pass calls no convolution and no Linear"
    if "ScriptModule" in type(model).__name__:
        return f"{text}; the network is a {type(model).__name__}: compress before scripting"
    return "; ".join([text, *map(str, untouched[:_MAX_NAMED])])


def budget_obstacles(model: nn.Module, shapes: Mapping[str, LayerShape], untouched: tuple[Untouched, ...]) -> str:
    """Name what stays dense under any budget, largest parts first; empty if no such part is large."""
    total = max(1, sum(parameter.numel() for parameter in model.parameters()))
    parts = [
        (shape.dense_cost[0] / total, f"{name} ({shape.dense_cost[0] / total:.1%} of the parameters): {reason}")
        for name, shape in shapes.items()
        if (reason := dense_reason(shape))
    ]
    parts += [(group.params, str(group)) for group in untouched]
    parts = sorted((part for part in parts if part[0] >= _MIN_SHARE), key=lambda part: -part[0])
    return "; ".join(text for _, text in parts[:_MAX_NAMED])
