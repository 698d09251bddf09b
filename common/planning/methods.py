"""What a caller may name as a method: a decomposition, or a choice among them."""

from __future__ import annotations

from typing import NamedTuple

from common.decomposition import DECOMPOSITIONS
from common.planning.rules import Energy, Entropy, Rule
from common.validation import check_choice


class Method(NamedTuple):
    """What a name stands for.

    Attributes:
        name: of the decomposition that plans are called by, or ``mixed``.
        title: as reports write it.
        decompositions: that stand to choice for each layer.
        rule: that is applied where the caller names none.
        only: the one kind of rule that the name allows; None for any.
    """

    name: str
    title: str
    decompositions: tuple[str, ...]
    rule: Rule
    only: type[Rule] | None = None


def method_names() -> tuple[str, ...]:
    """Every name that :func:`method_named` knows."""
    return (*DECOMPOSITIONS, "mixed", "arsvd")


def method_named(name: str) -> Method:
    """The method of that name: a decomposition; ``mixed``, for each layer the best of them; ``arsvd``, SVD by entropy.

    Raises:
        ValueError: there is none.
    """
    check_choice("method", name, method_names())
    if name in DECOMPOSITIONS:
        return Method(name, DECOMPOSITIONS[name].title, (name,), Energy())
    several = {
        "mixed": Method("mixed", "Mixed", tuple(DECOMPOSITIONS), Energy()),
        "arsvd": Method("svd", "ARSVD", ("svd",), Entropy(), only=Entropy),
    }
    return several[name]
