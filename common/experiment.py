"""The steps that the notebooks share: from a validated config to data, a dense network, plans and search settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from common.checkpoints import load_compressed
from common.config import ClassifierConfig
from common.data import DataBundle, load_data
from common.environment import default_device
from common.models import build_model
from common.planning import Budget, RankPlan, plan_ranks
from common.planning.layers import Decompositions
from common.search import SearchResult, SearchSettings, search_ranks
from common.search.preparation import decompose_for_search
from common.training import EpochLog, TrainingSettings, train


def load_data_of(config: ClassifierConfig) -> DataBundle:
    """The data set that the config names, see :func:`common.data.load_data`."""
    return load_data(
        config.dataset,
        config.data_root,
        config.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        limit=config.limit,
        download=config.download,
    )


def dense_network(config: ClassifierConfig, name: str, data: DataBundle) -> tuple[nn.Module, list[EpochLog]]:
    """The dense network, with the weights that the config names or trained here; and the history of its training.

    Args:
        config: says where the weights are or how to train.
        name: the architecture.
        data: is trained on when there are no weights; the history is empty otherwise.

    Raises:
        ValueError: the weights are of another architecture.
    """
    torch.manual_seed(config.seed)
    model = build_model(name, data.num_classes, weights=config.pretrained).to(default_device())
    if config.weights:
        return load_compressed(config.weights, model), []
    settings = TrainingSettings(epochs=config.dense_epochs, learning_rate=config.dense_learning_rate, seed=config.seed)
    return model, train(model, data, settings, description=f"dense {name}")


def decompose(config: ClassifierConfig, model: nn.Module, data: DataBundle) -> Decompositions:
    """The layers' decompositions: best for the outputs on the calibration split, or for the weights alone."""
    return decompose_for_search(model, data, config.seed, config.data_aware)


def rule_plans(
    config: ClassifierConfig, model: nn.Module, data: DataBundle, decompositions: Decompositions
) -> list[RankPlan]:
    """The plans to compare the search with: SVD at each of the fixed ranks, ARSVD at each tau, in this order."""
    x = data.example().to(default_device())
    fixed = [
        plan_ranks(model, x, "svd", "fixed", ranks=rank, decompositions=decompositions) for rank in config.rank_list
    ]
    adaptive = [plan_ranks(model, x, "arsvd", tau=tau, decompositions=decompositions) for tau in config.tau_list]
    return [*fixed, *adaptive]


def search_settings(config: ClassifierConfig) -> SearchSettings:
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
        finetune=TrainingSettings(
            epochs=config.finetune_epochs, learning_rate=config.finetune_learning_rate, seed=config.seed
        ),
        latency_batch=config.latency_batch,
        seed=config.seed,
    )


def search(
    config: ClassifierConfig,
    model: nn.Module,
    data: DataBundle,
    plans: Sequence[RankPlan],
    decompositions: Decompositions,
) -> SearchResult:
    """The search that the config asks for, see :func:`common.search.search_ranks`."""
    return search_ranks(
        model,
        data,
        search_settings(config),
        plans=plans,
        decompositions=decompositions,
        logs=config.logs,
        run=config.run,
        storage=config.storage,
    )
