"""The steps that the notebooks share: from a validated config to data, a dense network, plans and search settings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from common.compression import load_compressed, save_compressed
from common.data import DataBundle, load_data
from common.data.normalization import check_normalization
from common.environment import default_device
from common.models import build_model, check_image_size
from common.network import profile
from common.network.provenance import get_provenance
from common.network.shapes import trace_layers
from common.notebook.colab import RunKeeper
from common.notebook.config import ClassifierConfig, CompareConfig, ExperimentConfig, SegmentationConfig
from common.notebook.live import LivePicture
from common.planning import Budget, Entropy, Fixed, RankPlan, plan_ranks
from common.planning.costs import plan_cost
from common.planning.decompositions import Decompositions
from common.reporting import figures
from common.search import SearchResult, SearchSettings, search_ranks
from common.search.policies.largest import largest_within
from common.search.preparation import decompose_for_search
from common.search.study.runner import print_trial
from common.search.study.specification import weights_path
from common.training import EpochLog, TrainingSettings, train
from common.trials import TrialRecord, log_path
from common.validation import check_choice

RELATIVES = {"resnet18": ("resnet18", "resnet34")}
"""Notebook -> the architectures that it serves; any other serves its own alone."""
COMPARED = ("svd", "tucker2", "htd")
"""The methods that are held against ARSVD at equal budgets."""
IMAGENET_CLASSES = 1000


def load_data_of(config: ExperimentConfig | CompareConfig) -> DataBundle:
    """The data set that the config names, see :func:`common.data.load_data`."""
    pretrained = isinstance(config, ClassifierConfig | CompareConfig) and bool(config.pretrained)
    return load_data(
        config.dataset,
        config.data_root,
        config.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        limit=config.limit,
        download=config.download,
        augment=config.augment if isinstance(config, SegmentationConfig) else None,
        normalize="imagenet" if pretrained else "dataset",
        unannotated=config.unannotated if isinstance(config, SegmentationConfig | CompareConfig) else "keep",
    )


def dense_network(config: ExperimentConfig, name: str, data: DataBundle) -> tuple[nn.Module, list[EpochLog]]:
    """The dense network, with the weights that the config names or trained here; and the history of its training.

    Args:
        config: says where the weights are or how to train. A run that was stopped goes on with the network that it
            had, or with its training.
        name: the notebook's architecture; the config may name a relative of it.
        data: is trained on when there are no weights; the history is empty otherwise.

    Raises:
        ValueError: the weights are of another architecture or were trained on inputs of another scale, the config's
            model is no relative of ``name``, its images are too small for it, it names features that the network does
            not have, or ranks or budgets that it cannot have, or it asks for a network that nobody has trained.
    """
    if isinstance(config, ClassifierConfig) and config.model is not None:
        check_choice("model", config.model, RELATIVES.get(name, (name,)))
        name = config.model
    check_image_size(name, data.image_size, getattr(config, "depth", 4))
    torch.manual_seed(config.seed)
    if isinstance(config, SegmentationConfig):
        model = build_model(
            name, data.num_classes, width=config.width, depth=config.depth, upsampling=config.upsampling
        )
    else:
        assert isinstance(config, ClassifierConfig)
        model = build_model(name, data.num_classes, weights=config.pretrained, stem=config.stem)
    for feature in config.feature_list:
        check_choice("distill_features", feature, dict(model.named_modules()))
    _check_plans(config, model, data.example())
    model = model.to(default_device())
    if weights := config.weights or _weights_of_run(config):
        model = load_compressed(weights, model)
        check_normalization(model, data.normalization)
        return model, []
    if not config.dense_epochs:
        _check_head(config, data)
        return model.eval(), []
    settings = training_settings(config, config.dense_epochs, config.dense_learning_rate)
    if config.run is None:
        return model, train(model, data, settings, description=f"dense {name}")
    run, keeper = config.run, RunKeeper(config.logs)
    checkpoint = _checkpoint_of_run(config.logs, run)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    history = train(
        model,
        data,
        settings,
        checkpoint=checkpoint,
        description=f"dense {name}",
        on_epoch=lambda _: keeper.keep(run),
    )
    save_compressed(model, weights_path(config.logs, run))
    keeper.keep(run, now=True)
    return model, history


def _check_plans(config: ExperimentConfig, model: nn.Module, x: torch.Tensor) -> None:
    """Refuse ranks and budgets that no plan for this architecture can have, before it is trained.

    Raises:
        ValueError: there is one.
    """
    if config.rank_list:
        try:
            plan_ranks(model, x, "svd", Fixed(max(config.rank_list)))
        except ValueError as error:
            raise ValueError(f"svd_ranks={config.svd_ranks!r}: {error}") from None
    shapes, dense = trace_layers(model, x), _dense_cost(model, x)
    asked = (
        ("compare_at", config.compare_at, COMPARED, 0),
        ("budget_params", config.budget_params, (config.method,), 0),
        ("budget_macs", config.budget_macs, (config.method,), 1),
    )
    for name, share, methods, index in asked:
        if share is None:
            continue
        for method in methods:
            least = plan_cost(shapes, dense, plan_ranks(model, x, method, Fixed(1)))[index] / dense[index]
            if share < least:
                raise ValueError(f"{name}={share}: {method} at rank 1 keeps {least:.4f}, and less cannot be kept")


def _dense_cost(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Parameters and MACs of what a pass runs, of which budgets are fractions."""
    cost = profile(model, x)
    return cost.params_in_use, cost.macs


def _check_head(config: ExperimentConfig, data: DataBundle) -> None:
    """Refuse to compress a network of which a part was never trained.

    Raises:
        ValueError: it would be one.
    """
    pretrained = isinstance(config, ClassifierConfig) and config.pretrained is not None
    if not pretrained or data.num_classes != IMAGENET_CLASSES:
        raise ValueError(
            "dense_epochs=0.0 takes a network as it is, and this one would be random, wholly or in its head for "
            f"{data.num_classes} classes; give weights, or pretrained with a set of ImageNet's {IMAGENET_CLASSES:,} "
            "classes, or train it"
        )


def _weights_of_run(config: ExperimentConfig) -> Path | None:
    """The dense network of a run that was begun before."""
    if config.run is None or not log_path(config.logs, config.run, new=False).exists():
        return None
    weights = weights_path(config.logs, config.run)
    return weights if weights.exists() else None


def _checkpoint_of_run(logs: str, run: str) -> Path:
    """Of the dense network's training; it stays until the first trial is logged, and a run can go on with that."""
    return weights_path(logs, run).with_suffix(".checkpoint")


def training_settings(config: ExperimentConfig, epochs: float, learning_rate: float) -> TrainingSettings:
    """The config's optimizer, seed and distillation, for so many epochs at this peak rate."""
    return TrainingSettings(
        epochs=epochs,
        learning_rate=learning_rate,
        optimizer=config.optimizer,
        distillation=config.distillation,
        features=config.feature_list,
        seed=config.seed,
    )


def decompose(config: ExperimentConfig, model: nn.Module, data: DataBundle) -> Decompositions:
    """The layers' decompositions: best for the outputs on the calibration split, or for the weights alone."""
    return decompose_for_search(model, data, config.seed, config.data_aware)


def rule_plans(
    config: ExperimentConfig, model: nn.Module, data: DataBundle, decompositions: Decompositions
) -> list[RankPlan]:
    """The plans to compare the search with, in this order.

    SVD at each of the fixed ranks, ARSVD at each tau and, where the config says at which share of the parameters to
    compare, ``COMPARED`` at that budget and ARSVD at the greatest tau that keeps to it.
    """
    x = data.example().to(default_device())
    fixed = [plan_ranks(model, x, "svd", Fixed(rank), decompositions=decompositions) for rank in config.rank_list]
    adaptive = [plan_ranks(model, x, "arsvd", Entropy(tau), decompositions=decompositions) for tau in config.tau_list]
    if config.compare_at is None:
        return [*fixed, *adaptive]
    budget = Budget(params=config.compare_at)
    equal = [plan_ranks(model, x, method, budget, decompositions=decompositions) for method in COMPARED]
    return [*fixed, *adaptive, *equal, arsvd_within(config.compare_at, model, x, decompositions)]


def arsvd_within(budget: float, model: nn.Module, x: torch.Tensor, decompositions: Decompositions) -> RankPlan:
    """ARSVD's largest plan, over all taus, that keeps no more than a share of the parameters; at tau 0 if none does.

    Args:
        budget: the share, in (0, 1].
        model: the dense network.
        x: example input ``(N, C, H, W)``.
        decompositions: of ``model``.
    """
    shapes, dense = trace_layers(model, x), _dense_cost(model, x)

    def candidates(tau: float) -> list[RankPlan]:
        return [plan_ranks(model, x, "arsvd", Entropy(tau, only_if_smaller=False), decompositions=decompositions)]

    found = largest_within(candidates, shapes, dense, Budget(params=budget))
    plan = plan_ranks(model, x, "arsvd", Entropy(found.share if found else 0.0), decompositions=decompositions)
    if found is None:
        kept = plan_cost(shapes, dense, plan)[0] / dense[0]
        warnings.warn(f"ARSVD keeps {kept:.1%} of the parameters at tau 0, more than {budget:.1%}", stacklevel=2)
    return plan


def search_settings(config: ExperimentConfig) -> SearchSettings:
    """How the config wants the ranks to be searched for."""
    limited = config.budget_params is not None or config.budget_macs is not None
    return SearchSettings(
        method=config.method,
        policy=config.policy,
        budget=Budget(config.budget_params, config.budget_macs) if limited else None,
        trials=config.trials,
        size_weight=config.size_weight,
        keep=config.keep,
        finetune_top=config.finetune_top,
        finetune=training_settings(config, config.finetune_epochs, config.finetune_learning_rate),
        finetune_given=config.compare_at is not None,
        latency_batch=config.latency_batch,
        runtimes=config.runtime_list,
        seed=config.seed,
    )


def search(
    config: ExperimentConfig,
    model: nn.Module,
    data: DataBundle,
    plans: Sequence[RankPlan],
    decompositions: Decompositions,
) -> SearchResult:
    """The search that the config asks for, see :func:`common.search.search_ranks`.

    A notebook sees this process's trials in a picture, metric against cost, that follows the search, and in the end
    all of them.
    """
    provenance = get_provenance(model)
    name = provenance.builder if provenance else None
    notebook = next((own for own, others in RELATIVES.items() if name in others), name)
    picture, keeper = LivePicture(figures.pareto), RunKeeper(config.logs)

    def on_trial(record: TrialRecord) -> None:
        print_trial(record)
        picture.add(record)
        keeper.forget(_checkpoint_of_run(config.logs, record.run))
        keeper.keep(record.run)

    result = search_ranks(
        model,
        data,
        search_settings(config),
        plans=plans,
        decompositions=decompositions,
        logs=config.logs,
        run=config.run,
        storage=config.storage,
        command=config.command(notebook) if notebook else None,
        on_trial=on_trial,
    )
    picture.show(result.records)
    return result
