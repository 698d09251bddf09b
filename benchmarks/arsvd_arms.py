"""The arms of :mod:`benchmarks.arsvd`: a dense network compressed by ARSVD, SVD, Tucker-2, HTD and ``shrink``."""

from __future__ import annotations

import argparse
import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from common.calibration import calibrate
from common.compression import compress, load_compressed
from common.environment import default_device
from common.network import Profile, profile
from common.network.batches import Batch
from common.network.kinds import Convolution
from common.network.shapes import trace_layers
from common.planning import Budget, Entropy, Fixed, LayerPlan, RankPlan, Rule, plan_ranks
from common.planning.decompositions import Decompositions
from common.search.policies.largest import largest_within
from common.shrink import shrink

SWEEPS = 2
"""Of alternating least squares, for the factors of Tucker-2 and HTD: as many as ``compress`` makes by itself."""
CRITERIA = {"params": "parameters", "macs": "MACs"}
DENSE, SHRUNK = "dense", "shrink by mixed"
SIZED = ("svd", "tucker2", "htd")
"""Methods with ranks chosen under a budget, whose arms have their names."""


class Dense:
    """A dense network with what its arms share: each layer is decomposed once, by its weight and on data.

    Args:
        path: file of the network.
        batches: of the calibration split.
    """

    def __init__(self, path: Path, batches: Sequence[Batch]) -> None:
        self.name, self.batches = path.stem, batches
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.model = load_compressed(path).to(default_device())
        self.x = batches[0][0][:1].to(default_device())

    @cached_property
    def cost(self) -> Profile:
        """Of the network."""
        return profile(self.model, self.x)

    @cached_property
    def of_weights(self) -> Decompositions:
        """Of the layers' weights alone."""
        return Decompositions(self.model)

    @cached_property
    def on_data(self) -> Decompositions:
        """Of the layers' outputs on the calibration split."""
        return Decompositions(self.model, calibrate(self.model, self.batches), SWEEPS)

    def spectra(self, of: str) -> Decompositions:
        """The decompositions whose spectra are those of ``weights`` or ``outputs``."""
        return self.of_weights if of == "weights" else self.on_data

    def planned(self, method: str, rule: Rule, decompositions: Decompositions) -> RankPlan:
        """See :func:`common.planning.plan_ranks`."""
        return plan_ranks(self.model, self.x, method, rule, decompositions=decompositions)

    def is_convolution(self, name: str) -> bool:
        """Whether a layer is a convolution that is not transposed."""
        return isinstance(self.model.get_submodule(name), Convolution)

    def svd_at(self, rank: int) -> nn.Module:
        """SVD of the weights of all convolutions at one rank, or at a layer's greatest if that is smaller."""
        full = {name: self.of_weights.get(name, "svd").max_ranks[0] for name in self.convolutions}
        plan = self.planned("svd", Fixed({name: min(rank, most) for name, most in full.items()}), self.of_weights)
        return compress(self.model, plan, decompositions=self.of_weights)

    @cached_property
    def convolutions(self) -> tuple[str, ...]:
        """The names of the convolutions."""
        return tuple(name for name in trace_layers(self.model, self.x) if self.is_convolution(name))

    def arsvd_at(self, tau: float, exponent: int, of: str) -> nn.Module:
        """ARSVD of all convolutions, with ranks and factors both of ``weights`` or both on ``outputs``."""
        chosen = self.spectra(of)
        plan = self.planned("arsvd", Entropy(tau, exponent), chosen)
        dense = LayerPlan(reason="the work that this follows leaves it dense")
        layers = {name: layer if name in self.convolutions else dense for name, layer in plan.layers.items()}
        return compress(self.model, replace(plan, layers=layers), decompositions=chosen)

    def within(self, budget: Budget, method: str) -> nn.Module:
        """The network of a method under a budget, with factors fitted to data."""
        plan = self.planned(method, budget, self.on_data)
        return compress(self.model, plan, decompositions=self.on_data)

    def arsvd_within(self, budget: Budget, exponent: int, of: str) -> nn.Module:
        """ARSVD at the greatest tau within a budget, with factors fitted to data.

        Raises:
            ValueError: no tau fits.
        """

        def plans_at(tau: float) -> list[RankPlan]:
            rule = Entropy(tau, exponent, only_if_smaller=False)
            plan = self.planned("arsvd", rule, self.spectra(of))
            moments = self.on_data.moments  # factors fitted to data have a bias, which counts
            layers = {name: replace(layer, shift=name in moments) for name, layer in plan.layers.items()}
            return [replace(plan, layers=layers)]

        whole = self.cost.params_in_use, self.cost.macs
        found = largest_within(plans_at, trace_layers(self.model, self.x), whole, budget)
        if found is None:
            raise ValueError(f"{budget} cannot be met by ARSVD on the spectra of {of}, whatever tau")
        return compress(self.model, replace(found.plans[0], layers=found.layers), decompositions=self.on_data)

    def copied(self) -> nn.Module:
        """A copy of the network itself."""
        return copy.deepcopy(self.model)

    def shrunk(self, budget: Budget) -> nn.Module:
        """The best network that the suite makes within a budget without training."""
        return shrink(self.model, self.batches, budget, "mixed").model


Build = Callable[[Dense], nn.Module]


@dataclass(frozen=True)
class Group:
    """Arms that one table compares.

    Attributes:
        key: beginning of the arms' names.
        title: of the table.
        arms: name without ``key`` -> how to make the network of a dense one.
        reference: the arm from which the others are said to differ; empty for none.
    """

    key: str
    title: str
    arms: Mapping[str, Build]
    reference: str = ""

    def named(self, chosen: Sequence[str]) -> dict[str, Build]:
        """Full name -> arm, for those whose full name begins with one of ``chosen``; for all without ``chosen``."""
        named = {f"{self.key}: {name}": build for name, build in self.arms.items()}
        return {name: build for name, build in named.items() if not chosen or name.startswith(tuple(chosen))}


def groups_of(options: argparse.Namespace) -> list[Group]:
    """All groups, with the ranks, taus and shares of the command line."""
    kinds = [(exponent, tau) for exponent in options.exponents for tau in options.taus]
    arsvd: dict[str, dict[str, Build]] = {
        of: {
            f"arsvd, exponent {p}, tau {tau:g}": partial(Dense.arsvd_at, tau=tau, exponent=p, of=of)
            for p, tau in kinds
        }
        for of in ("weights", "outputs")
    }
    svd: dict[str, Build] = {f"svd, rank {rank}": partial(Dense.svd_at, rank=rank) for rank in options.ranks}
    groups = [
        Group("as published", "As published: ranks and factors of the weights", {**svd, **arsvd["weights"]}),
        Group("on outputs", "ARSVD on the outputs' spectra, with factors fitted to data", arsvd["outputs"]),
    ]
    for criterion, title in CRITERIA.items():
        for share in options.kept:
            budget = Budget(**{criterion: share})
            arms: dict[str, Build] = {
                f"arsvd of {of}, exponent {p}": partial(Dense.arsvd_within, budget=budget, exponent=p, of=of)
                for of in ("weights", "outputs")
                for p in options.exponents
            }
            arms |= {method: partial(Dense.within, budget=budget, method=method) for method in SIZED}
            arms[SHRUNK] = partial(Dense.shrunk, budget=budget)
            groups.append(
                Group(f"{criterion} {share:g}", f"At most {share:.0%} of the {title}", arms, options.reference)
            )
    return groups
