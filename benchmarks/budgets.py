"""Plan 1000 random budgets on ResNet18, VGG16 and the U-Net; count plans above budget, or below it by over 1%.

    python benchmarks/budgets.py

Each budget limits parameters, MACs or both, for a random method. Three in four are between 1% and 100%. The others are
between 0.01% and 1%, and often cannot be met. The suite must then refuse the budget and name the smallest possible
share; the benchmark requests that share, and the plan must meet it. Every hundredth plan is built, to check that the
planned costs are those of the network. The script prints the counts and asserts nothing.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from common.compression import compress
from common.models import build_model
from common.network import Profile, profile
from common.network.shapes import trace_layers
from common.planning import Budget, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions
from common.planning.methods import timed_methods
from common.progress import track

METHODS = (*timed_methods(), "mixed")


class CountedNetwork:
    """A network with its dense cost; computes the shares of the cost that a plan keeps."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x
        self.dense: Profile = profile(model, x)
        self.shapes = trace_layers(model, x)
        self.decompositions = Decompositions(model)

    def plan(self, method: str, budget: Budget) -> RankPlan:
        """Plan the ranks under a budget."""
        return plan_ranks(self.model, self.x, method, budget, decompositions=self.decompositions)

    def shares(self, plan: RankPlan) -> tuple[float, float]:
        """Return the shares of parameters and MACs that a plan keeps, computed from the plan alone."""
        saved = np.zeros(2)
        for name, layer in plan.layers.items():
            saved += np.subtract(self.shapes[name].dense_cost, self.shapes[name].cost(layer))
        return 1 - saved[0] / self.dense.params, 1 - saved[1] / self.dense.macs

    def measured(self, plan: RankPlan) -> tuple[float, float]:
        """Return the same shares, counted on the compressed network."""
        small = profile(compress(self.model, plan, decompositions=self.decompositions), self.x)
        return small.params / self.dense.params, small.macs / self.dense.macs


def random_budget(generator: np.random.Generator) -> Budget:
    """Draw a budget for parameters, MACs or both.

    It is uniform in 1%..100% in three of four cases, and log-uniform in 0.01%..1% otherwise.
    """
    if generator.random() < 0.25:
        params, macs = (10 ** generator.uniform(-4, -2, 2)).tolist()
    else:
        params, macs = generator.uniform(0.01, 1, 2).tolist()
    return (Budget(params=params), Budget(macs=macs), Budget(params=params, macs=macs))[generator.integers(3)]


def verdict(network: CountedNetwork, method: str, budget: Budget, build: bool) -> str:
    """Plan one budget and return the result in a few words; with ``build``, also build and count the network."""
    try:
        plan = network.plan(method, budget)
    except ValueError as error:
        least = re.search(r"(params|macs)=(\d\.\d+)$", str(error))
        if least is None:
            return "refused, the two together"
        share = float(least[2])
        reachable = network.plan(method, Budget(params=share) if least[1] == "params" else Budget(macs=share))
        kept = network.shares(reachable)[least[1] == "macs"]
        return "refused, least met" if kept <= float(least[2]) else "refused, least NOT met"
    shares = network.shares(plan)
    if build and not np.allclose(shares, network.measured(plan), atol=1e-9):
        return "planned and counted cost differ"
    room = [
        asked - kept for asked, kept in zip((budget.params, budget.macs), shares, strict=True) if asked is not None
    ]
    if min(room) < 0:
        return "exceeded"
    least_room = min(room)
    return "within 1%" if least_room <= 0.01 or not plan.factored else "missed by over 1%"


def main() -> None:
    """Plan all budgets and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budgets",
        type=int,
        default=1000,
        help="number of budgets for the three networks together; default: %(default)s",
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    rows = []
    for name, size in (("resnet18", 224), ("vgg16", 224), ("unet", 128)):
        start = time.perf_counter()
        network = CountedNetwork(build_model(name, 1 if name == "unet" else 10).eval(), torch.randn(1, 3, size, size))
        counts: Counter[str] = Counter()
        share = options.budgets // 3 + (name == "resnet18") * (options.budgets % 3)
        for index in track(range(share), name, unit="budget"):
            method = str(generator.choice(METHODS))
            counts[verdict(network, method, random_budget(generator), build=index % 100 == 0)] += 1
        rows += [[name, what, number, time.perf_counter() - start] for what, number in sorted(counts.items())]
    print(tabulate(rows, ["network", "budget", "count", "seconds for all"], floatfmt=".0f"))


if __name__ == "__main__":
    main()
