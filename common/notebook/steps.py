"""The steps that the notebooks share: from a validated config to data, a dense network, plans and a search."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.compression import load_compressed, save_compressed
from common.data import DataBundle, load_data
from common.data.normalization import check_normalization
from common.environment import default_device
from common.models import build_model, check_image_size, relatives
from common.network import profile
from common.network.provenance import get_provenance
from common.network.shapes import LayerShape, trace_layers
from common.notebook.colab import RunKeeper
from common.notebook.config import CompareConfig, ExperimentConfig
from common.notebook.live import LivePicture
from common.planning import Budget, Entropy, Fixed, RankPlan, plan_ranks
from common.planning.costs import plan_cost
from common.planning.decompositions import Decompositions
from common.planning.methods import decompositions_of
from common.reporting import figures
from common.search import SearchResult, search_ranks
from common.search.finalists import ENDINGS, REFITTED, network_file
from common.search.policies.largest import largest_within
from common.search.preparation import decompose_for_search
from common.search.study.specification import weights_path
from common.training import EpochLog, train
from common.trials import TrialLines, TrialRecord, log_path
from common.validation import check_choice

COMPARED = ("svd", "tucker2", "htd")
"""Methods to compare with ARSVD at equal budgets."""
IMAGENET_CLASSES = 1000


def load_data_of(config: ExperimentConfig | CompareConfig) -> DataBundle:
    """Load the data set that the config names, see :func:`common.data.load_data`."""
    return load_data(
        config.dataset,
        config.data_root,
        config.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        limit=config.limit,
        download=config.download,
        **config.load_options(),
    )


def dense_network(config: ExperimentConfig, name: str, data: DataBundle) -> tuple[nn.Module, list[EpochLog]]:
    """Return the dense network and the history of its training.

    Args:
        config: names the weights, or the settings for training. A run that was stopped continues with its own network
            or with its unfinished training.
        name: the notebook's architecture. The config may name another one of its family.
        data: the data set to train on. If there are weights, nothing is trained and the history is empty.

    Raises:
        ValueError: the weights belong to another architecture or to inputs of another scale; the config's model is not
            of the family of ``name``; the images are too small for it; the network lacks a feature that the config
            names, or cannot have its ranks or budgets; or the network was never trained.
    """
    model = _untrained(config, name, data)
    if weights := config.weights or _weights_of_run(config):
        model = load_compressed(weights, model)
        check_normalization(model, data.normalization)
        return model, []
    if not config.dense_epochs:
        _check_head(model, config, data)
        return model.eval(), []
    settings = config.training_settings(config.dense_epochs, config.dense_learning_rate)
    description = f"dense {config.model or name}"
    if config.run is None:
        return model, train(model, data, settings, description=description)
    run, keeper = config.run, RunKeeper(config.logs)
    checkpoint = _checkpoint_of_run(config.logs, run)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    history = train(
        model,
        data,
        settings,
        checkpoint=checkpoint,
        description=description,
        on_epoch=lambda _: keeper.keep(run),
    )
    save_compressed(model, weights_path(config.logs, run))
    keeper.keep(run, now=True)
    return model, history


def _untrained(config: ExperimentConfig, name: str, data: DataBundle) -> nn.Module:
    """Check that the architecture fits the config and the data, and build it on this machine's device."""
    if config.model is not None:
        check_choice("model", config.model, relatives(name))
        name = config.model
    arguments = config.model_arguments(name)
    check_image_size(name, data.image_size, **arguments)
    torch.manual_seed(config.seed)
    model = build_model(name, data.num_classes, **arguments)
    for feature in config.feature_list:
        check_choice("distill_features", feature, dict(model.named_modules()))
    _check_plans(config, model, data.example())
    return model.to(default_device())


def _check_plans(config: ExperimentConfig, model: nn.Module, x: torch.Tensor) -> None:
    """Raise a ValueError if no plan for this architecture can have the ranks and budgets of the config."""
    if config.rank_list:
        try:
            plan_ranks(model, x, "svd", Fixed(max(config.rank_list)))
        except ValueError as error:
            raise ValueError(f"svd_ranks={config.svd_ranks!r}: {error}") from None
    shapes, dense = trace_layers(model, x), _dense_cost(model, x)
    wanted = (
        ("compare_at", config.compare_at, COMPARED, 0),
        ("budget_params", config.budget_params, (config.method,), 0),
        ("budget_macs", config.budget_macs, (config.method,), 1),
    )
    for name, share, methods, index in wanted:
        if share is None:
            continue
        for method in methods:
            least = plan_cost(shapes, dense, _least_plan(model, x, shapes, method, index))[index] / dense[index]
            if share < least:
                raise ValueError(f"{name}={share}: {method} keeps at least {least:.4f}, at rank 1")


def _least_plan(
    model: nn.Module, x: torch.Tensor, shapes: Mapping[str, LayerShape], method: str, cost: int
) -> RankPlan:
    """Return the plan with the least parameters (cost 0) or MACs (cost 1): rank 1, by each layer's smallest method."""
    plans = [plan_ranks(model, x, each, Fixed(1)) for each in decompositions_of(method)]
    layers = {
        name: min((plan.layers[name] for plan in plans), key=lambda layer: shape.cost(layer)[cost])
        for name, shape in shapes.items()
    }
    return RankPlan(layers, method, Fixed.name)


def _dense_cost(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Return the parameters and MACs that a pass uses. Budgets are fractions of them."""
    cost = profile(model, x)
    return cost.params_in_use, cost.macs


def _check_head(model: nn.Module, config: ExperimentConfig, data: DataBundle) -> None:
    """Raise a ValueError if a part of the network was never trained."""
    provenance = get_provenance(model)
    arguments = config.model_arguments(provenance.builder) if provenance and provenance.builder else {}
    if arguments.get("weights") is None or data.num_classes != IMAGENET_CLASSES:
        raise ValueError(
            "dense_epochs=0.0 leaves the network untrained, and its weights, or those of its head for "
            f"{data.num_classes} classes, would be random; give weights, or pretrained with a set of ImageNet's "
            f"{IMAGENET_CLASSES:,} classes, or train it"
        )


def _weights_of_run(config: ExperimentConfig) -> Path | None:
    """Return the file with the dense network of a run that was started before; None if there is none."""
    if config.run is None or not log_path(config.logs, config.run, new=False).exists():
        return None
    weights = weights_path(config.logs, config.run)
    return weights if weights.exists() else None


def _checkpoint_of_run(logs: str, run: str) -> Path:
    """Return the checkpoint of the dense network's training. It is kept until the first trial is logged."""
    return weights_path(logs, run).with_suffix(".checkpoint")


def decompose(config: ExperimentConfig, model: nn.Module, data: DataBundle) -> Decompositions:
    """Decompose the layers, to preserve their outputs on the calibration split or their weights alone."""
    return decompose_for_search(model, data, config.seed, config.data_aware)


def rule_plans(
    config: ExperimentConfig, model: nn.Module, data: DataBundle, decompositions: Decompositions
) -> list[RankPlan]:
    """Return the plans with which to compare the search.

    These are SVD at each of the fixed ranks, and ARSVD at each tau with each exponent of its entropy. If
    ``compare_at`` is a share of the parameters, the methods in ``COMPARED`` follow at that budget, and then ARSVD at
    the greatest tau that fits it, with each exponent.
    """
    x = data.example().to(default_device())
    fixed = [plan_ranks(model, x, "svd", Fixed(rank), decompositions=decompositions) for rank in config.rank_list]
    adaptive = [
        plan_ranks(model, x, "arsvd", Entropy(tau, exponent), decompositions=decompositions)
        for exponent in config.exponent_list
        for tau in config.tau_list
    ]
    if config.compare_at is None:
        return [*fixed, *adaptive]
    budget = Budget(params=config.compare_at)
    equal = [plan_ranks(model, x, method, budget, decompositions=decompositions) for method in COMPARED]
    filling = [arsvd_within(config.compare_at, model, x, decompositions, each) for each in config.exponent_list]
    return [*fixed, *adaptive, *equal, *filling]


def arsvd_within(
    budget: float, model: nn.Module, x: torch.Tensor, decompositions: Decompositions, exponent: int = 1
) -> RankPlan:
    """Return ARSVD's largest plan over all taus that fits a budget, or its plan at tau 0 if none fits.

    Warns:
        UserWarning: no plan fits the budget.

    Args:
        budget: the share of the parameters to keep, in (0, 1].
        model: the dense network.
        x: example input ``(N, C, H, W)``.
        decompositions: of ``model``.
        exponent: of the entropy, 1 or 2.
    """
    shapes, dense = trace_layers(model, x), _dense_cost(model, x)

    def candidates(tau: float) -> list[RankPlan]:
        rule = Entropy(tau, exponent, only_if_smaller=False)
        return [plan_ranks(model, x, "arsvd", rule, decompositions=decompositions)]

    found = largest_within(candidates, shapes, dense, Budget(params=budget))
    rule = Entropy(found.share if found else 0.0, exponent)
    plan = plan_ranks(model, x, "arsvd", rule, decompositions=decompositions)
    if found is None:
        kept = plan_cost(shapes, dense, plan)[0] / dense[0]
        warnings.warn(f"ARSVD keeps {kept:.1%} of the parameters at tau 0, more than {budget:.1%}", stacklevel=2)
    return plan


def search(
    config: ExperimentConfig,
    model: nn.Module,
    data: DataBundle,
    plans: Sequence[RankPlan],
    decompositions: Decompositions,
) -> SearchResult:
    """Run the search that the config describes, see :func:`common.search.search_ranks`.

    In a notebook, a picture of metric against cost stays above the trials' lines. It shows this process's trials so
    far, and at the end all trials, which are those before an interruption too if the search continues one. On Colab,
    the run is then copied to Drive.
    """
    provenance = get_provenance(model)
    name = provenance.builder if provenance else None
    picture, keeper, lines = LivePicture(figures.pareto), RunKeeper(config.logs), TrialLines()
    picture.show([])

    def on_trial(record: TrialRecord) -> None:
        lines(record)
        picture.add(record)
        keeper.forget(_checkpoint_of_run(config.logs, record.run))
        keeper.keep(record.run)

    result = search_ranks(
        model,
        data,
        config.search_settings(),
        plans=plans,
        decompositions=decompositions,
        logs=config.logs,
        run=config.run,
        storage=config.storage,
        command=config.command(relatives(name)[0]) if name else None,
        on_trial=on_trial,
    )
    picture.show(result.records)
    keeper.keep(result.log.stem, now=True)
    for record in result.records if result.finished and keeper.has_kept(result.log.stem) else ():
        keeper.forget(network_file(result.log, record.trial, ENDINGS[REFITTED]))
    return result


def chosen_networks(dense: nn.Module, result: SearchResult) -> dict[Any, nn.Module]:
    """The dense network under its title ``dense``, and the best networks of a search under their trials' numbers."""
    return {"dense": dense, **result.best_networks}
