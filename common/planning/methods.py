"""The names that a caller may give as a method: a decomposition, or several to choose from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from common.decomposition import DECOMPOSITIONS
from common.planning.rules import Energy, Entropy, Rule
from common.validation import check_choice


class Method(NamedTuple):
    """The meaning of a method's name.

    Attributes:
        name: the method's name in plans: a decomposition, or ``mixed``.
        title: its name in reports.
        decompositions: the candidates for each layer.
        rule: the default rank rule.
        only: the only class of rules that the method allows; None for any rule.
    """

    name: str
    title: str
    decompositions: tuple[str, ...]
    rule: Rule
    only: type[Rule] | None = None


def method_names() -> tuple[str, ...]:
    """The names of all methods."""
    return (*DECOMPOSITIONS, "mixed", "arsvd")


def decomposing_methods() -> tuple[str, ...]:
    """The names of the methods that go with every rank rule: the decompositions, and ``mixed``."""
    return tuple(name for name in method_names() if method_named(name).only is None)


def method_named(name: str) -> Method:
    """Look up a method: a decomposition, ``mixed`` (the best one for each layer) or ``arsvd`` (SVD by entropy).

    Raises:
        ValueError: the name is unknown.
    """
    check_choice("method", name, method_names())
    if name in DECOMPOSITIONS:
        return Method(name, DECOMPOSITIONS[name].title, (name,), Energy())
    several = {
        "mixed": Method("mixed", "Mixed", tuple(DECOMPOSITIONS), Energy()),
        "arsvd": Method("svd", "ARSVD", ("svd",), Entropy(), only=Entropy),
    }
    return several[name]


def method_of(method: str, rule: str) -> tuple[str, Method]:
    """The name by which a user selects a plan's method, and what it means: ``arsvd`` is SVD by the rule of entropy.

    Args:
        method: the method of the plan.
        rule: name of the plan's rank rule.

    Raises:
        ValueError: the method is unknown.
    """
    for name in method_names():
        found = method_named(name)
        if found.only and (found.name, found.only.name) == (method, rule):
            return name, found
    return method, method_named(method)


def timed_methods() -> tuple[str, ...]:
    """The decompositions whose times are tabulated for budgets of latency: those without depthwise factors."""
    return tuple(name for name, kind in DECOMPOSITIONS.items() if not kind.depthwise)


def decompositions_of(name: str) -> tuple[str, ...]:
    """The decompositions that a method stands for; ``arsvd``, which names a rule as well, is not allowed.

    Raises:
        ValueError: ``name`` is no decomposition and not ``mixed``.
    """
    check_choice("method", name, decomposing_methods())
    return method_named(name).decompositions


def method_for(decompositions: Iterable[str]) -> str:
    """The method of a plan whose layers have these decompositions: the only one, or ``mixed`` for none or several."""
    found = set(decompositions)
    return found.pop() if len(found) == 1 else "mixed"
