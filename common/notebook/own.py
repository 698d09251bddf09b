"""The steps of the notebook for a network and data of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from common.compression import save_compressed
from common.data import DataBundle
from common.notebook.own_config import OwnConfig
from common.notebook.steps import decompose, search
from common.planning.methods import method_named
from common.search import SearchResult
from common.shrink import ShrinkSteps, Shrunk, shrink
from common.shrink.deployment import deployed_files, files_table
from common.shrink.finetuning import finetuned, remove_checkpoints
from common.shrink.loading import Examples, has_weights, load_examples, load_network
from common.shrink.report import Report, report_title
from common.training import EpochLog, evaluate, train

SHARES = ("Params kept", "MACs kept")
"""Columns that say what a method keeps of the dense network."""


def load(config: OwnConfig) -> tuple[Examples, nn.Module, list[EpochLog]]:
    """Load the data and the dense network that the config names; train the network if it has no trained weights.

    Returns:
        The data, the dense network, and the history of its training, which is empty if it was not trained.

    Raises:
        ValueError: the network or the data are unknown or do not fit each other; or the network has random weights
            and cannot be trained, for want of targets or of ``dense_epochs``.
    """
    examples = load_examples(
        config.dataset,
        config.data_root,
        config.image_size,
        images=config.images,
        batch_size=config.batch_size,
        limit=config.limit,
        seed=config.seed,
        download=config.download,
        **config.load_options(),
    )
    trained = has_weights(config.network, config.weights, config.pretrained)
    learns = not trained and config.dense_epochs > 0 and examples.data is not None
    dense = load_network(
        config.network,
        config.weights,
        examples,
        pretrained=config.pretrained,
        trained=not learns,
        seed=config.seed,
    )
    if not learns or examples.data is None:
        return examples, dense, []
    settings = config.training_settings(config.dense_epochs, config.dense_learning_rate)
    return examples, dense, train(dense, examples.data, settings, description="dense")


def shrink_network(config: OwnConfig, dense: nn.Module, examples: Examples, method: str | None = None) -> Shrunk:
    """Shrink the network within the config's budget.

    Args:
        config: names the budget and the method.
        dense: the dense network.
        examples: the data.
        method: another method than the config's.
    """
    steps = ShrinkSteps(seed=config.seed)
    return shrink(dense, examples.batches, config.rule, method or config.method, steps=steps, task=examples.task)


def compare_methods(config: OwnConfig, dense: nn.Module, examples: Examples, found: Shrunk) -> pd.DataFrame:
    """Shrink the network by each of the config's methods within the same budget, without training.

    Args:
        config: names the methods.
        dense: the dense network.
        examples: the data. Networks are judged on its validation split.
        found: what the config's own method gave.

    Returns:
        A row for each method: shares of the parameters and of the MACs kept, the divergence from the dense network's
        outputs on held-out images and, with targets, the metric on validation in percent.
    """
    rows: list[dict[str, Any]] = []
    for method in config.method_list:
        made = found if method == config.method else shrink_network(config, dense, examples, method)
        before, after = made.before, made.after
        row = {
            "Method": method_named(method).title,
            SHARES[0]: after.params / before.params,
            SHARES[1]: after.macs / max(1, before.macs),
            "Divergence": made.divergence,
        }
        if (data := examples.data) is not None:
            row[f"{data.metric.capitalize()} on validation (%)"] = 100 * _on_validation(made.model, data)
        rows.append(row)
    return pd.DataFrame(rows)


def method_panels(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return what :func:`common.reporting.figures.bars` draws of a table of methods: all columns that judge them."""
    judged = [name for name in table.columns if name not in ("Method", *SHARES)]
    return {name: dict(zip(table["Method"], table[name], strict=True)) for name in judged}


def _on_validation(network: nn.Module, data: DataBundle) -> float:
    return evaluate(network, data.validation, data.task)[data.metric]


def search_if_asked(config: OwnConfig, dense: nn.Module, examples: Examples) -> SearchResult | None:
    """Search the ranks if the config asks for it; None if not.

    Raises:
        ValueError: there are no targets, by which a search judges.
    """
    if not config.search:
        return None
    if examples.data is None:
        raise ValueError("search=True: a search needs targets, and the data has none")
    return search(config, dense, examples.data, [], decompose(config, dense, examples.data))


def finetune(
    config: OwnConfig, dense: nn.Module, small: nn.Module, examples: Examples
) -> tuple[dict[str, nn.Module], list[EpochLog]]:
    """Fine-tune copies of both networks as :func:`common.shrink.finetuning.finetuned` does.

    Returns:
        ``dense-tuned`` and ``small-tuned``, and the history of the latter. Both are empty without targets, or if the
        config asks for no fine-tuning.
    """
    if examples.data is None or not config.finetune:
        return {}, []
    settings = config.training_settings(config.finetune_epochs, config.finetune_learning_rate)
    return finetuned(dense, small, examples.data, settings, checkpoints=Path(config.out))


def deploy(config: OwnConfig, found: Shrunk, networks: Mapping[str, nn.Module], examples: Examples) -> Report:
    """Write the networks into the folder ``out``: as safetensors, as ONNX files in each precision, and the report.

    Args:
        config: names the folder and the precisions.
        found: the result of ``shrink``.
        networks: title -> network, the dense one first.
        examples: the data. Its test split is read here alone.
    """
    out = Path(config.out)
    for title, network in networks.items():
        save_compressed(network, out / f"{title}.safetensors")
    files = deployed_files(networks, config.precision_list, out)
    table = files_table(files, examples, divergence=found.measure)
    name = config.network or Path(str(config.weights)).name
    title = report_title(name, config.dataset, config.rule, config.method)
    report = Report(title, config.command(), found, table, examples)
    report.write(out)
    remove_checkpoints(out)
    return report
