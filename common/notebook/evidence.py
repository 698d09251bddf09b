"""Tables and masks that a notebook makes from the networks themselves rather than from their logs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from common.compression import load_compressed
from common.data import DataBundle
from common.data.normalization import check_normalization
from common.decomposition import DECOMPOSITIONS
from common.environment import default_device
from common.latency import measure_latency
from common.models import MODELS
from common.network import profile
from common.network.inputs import to_network
from common.network.modes import evaluating
from common.network.provenance import get_provenance
from common.network.shapes import trace_layers
from common.notebook.deployed import deployment_table as deployment_table
from common.notebook.deployed import onnx_rows
from common.planning import RankPlan, plan_of
from common.planning.decompositions import Decompositions
from common.planning.methods import method_of
from common.reporting import figures
from common.search import SearchResult
from common.search.policies import POLICIES
from common.training import evaluate


def chosen_ranks(plans: Sequence[RankPlan]) -> dict[str, int]:
    """Return layer -> its first rank in the last of ``plans``; empty if there is no plan."""
    return {name: layer.ranks[0] for plan in plans[-1:] for name, layer in plan.factored.items()}


def policy_picture(result: SearchResult) -> Figure:
    """The probability of each size of each layer, before the trials of a search and after them."""
    policy = POLICIES[result.policy]
    return figures.policy_heatmap(
        result.last_policy,
        policy.level_names,
        "Probability of each size of a layer",
        before=result.first_policy,
        what=policy.level_meaning,
    )


def layer_table(
    model: nn.Module, data: DataBundle, plans: Sequence[RankPlan], decompositions: Decompositions
) -> pd.DataFrame:
    """Tabulate the last of ``plans``: the method, ranks, relative error and savings of each layer, or why it is dense.

    Args:
        model: the dense network.
        data: gives an example input.
        plans: plans for this network.
        decompositions: the decompositions of ``model``. If they have moments, errors are those of the outputs on data,
            otherwise those of the weights.
    """
    columns = ["Layer", "Parameters", "Method", "Ranks", "Error", "Params Red.", "MACs Red.", "Why dense"]
    if not plans:
        return pd.DataFrame(columns=columns)
    plan, x = plans[-1], data.example().to(next(model.parameters()).device)
    rows: list[dict[str, Any]] = []
    for name, shape in trace_layers(model, x).items():
        layer = plan.layers[name]
        params, macs = shape.dense_cost
        title = DECOMPOSITIONS[layer.method].title if layer.method else "dense"
        row = {"Layer": name, "Parameters": params, "Method": title, "Why dense": layer.reason}
        if layer.method is not None:
            kept_params, kept_macs = shape.cost(layer)
            row |= {
                "Ranks": "x".join(map(str, layer.ranks)),
                "Error": decompositions.get(name, layer.method).relative_error(layer.ranks),
                "Params Red.": 1 - kept_params / params,
                "MACs Red.": 1 - kept_macs / macs,
            }
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def predict_masks(networks: Mapping[Any, nn.Module], data: DataBundle, count: int = 4) -> dict[str, NDArray[Any]]:
    """Return the first test images that have a true mask, and the masks that each network predicts for them.

    Args:
        networks: title or number of a trial -> network. The number gets the name of the network's method.
        data: images with masks. Only the first class is shown.
        count: maximum number of images.

    Returns:
        ``image`` (grey, in [0, 1]), ``truth`` and then the masks of each network, each ``(N, H, W)``. N is 0 if no
        image has a true mask.
    """
    every = (
        (image, mask[0])
        for inputs, masks in data.test
        for image, mask in zip(inputs, masks, strict=True)
        if mask[0].any()
    )
    pairs = list(itertools.islice(every, count))
    if not pairs:
        nothing = np.zeros((0, data.image_size, data.image_size), dtype=np.float32)
        return dict.fromkeys(("image", "truth", *(_title(*pair) for pair in networks.items())), nothing)
    inputs = torch.stack([image for image, _ in pairs])
    found = {"image": data.normalization.undo(inputs).mean(1), "truth": torch.stack([m for _, m in pairs])}
    for name, network in networks.items():
        with evaluating(network):
            masks = network(to_network(inputs, network))[:, 0] > 0
        found[_title(name, network)] = masks.float().cpu()
    return {title: tensor.numpy() for title, tensor in found.items()}


def _title(name: Any, network: nn.Module) -> str:
    if isinstance(name, str):
        return name
    plan = plan_of(network)
    return (f"{method_of(plan.method, plan.rule)[1].title}, " if plan else "") + f"trial {name}"


def compare_networks(files: Sequence[str | Path], data: DataBundle) -> pd.DataFrame:
    """Compare saved networks, dense or compressed, on one data set: metric on test, cost and latency.

    Args:
        files: written by :func:`common.compression.save_compressed`. Speedups are relative to the first network, which
            is timed in turn with each of the others. Files ``*.onnx`` follow in ONNX Runtime, and their speedups are
            relative to the first of them.
        data: the data set. Its test split is read.

    Raises:
        ValueError: a file does not hold such a network, or the network does not fit the data.
    """
    rows: list[dict[str, Any]] = []
    x = data.example().to(default_device())
    first: nn.Module | None = None
    onnx_files = [Path(file) for file in files if Path(file).suffix == ".onnx"]
    for file in (file for file in files if Path(file).suffix != ".onnx"):
        network = load_compressed(file).to(default_device())
        _check_fit(file, network, data)
        provenance = get_provenance(network)
        first = first or network
        cost, latency = profile(network, x), measure_latency(network, x, baseline=first)
        rows.append(
            {
                "File": Path(file).name,
                "Model": provenance.builder if provenance else None,
                "Method": method_of(plan.method, plan.rule)[1].title if (plan := plan_of(network)) else "dense",
                data.metric: evaluate(network, data.test, data.task)[data.metric],
                "Parameters": cost.params,
                "MACs": cost.macs,
                "Size (MB)": cost.size_bytes / 1e6,
                "Latency (ms)": latency.median_s * 1e3,
                "Speedup": latency.speedup,
            }
        )
    return pd.DataFrame([*rows, *onnx_rows(onnx_files, data)])


def _check_fit(file: str | Path, network: nn.Module, data: DataBundle) -> None:
    """Raise a ValueError unless a saved network fits the task, the classes and the scale of the data."""
    provenance = get_provenance(network)
    known = MODELS.get(provenance.builder) if provenance and provenance.builder else None
    task = known.task if known else "an unknown task"
    classes = provenance.arguments.get("num_classes") if provenance else None
    if (task, classes) != (data.task, data.num_classes):
        wanted = f"{data.task} of {data.num_classes} classes, which {data.name} is"
        raise ValueError(f"models: {file} is for {task} of {classes} classes, not for {wanted}")
    try:
        check_normalization(network, data.normalization)
    except ValueError as error:
        raise ValueError(f"models: {file}: {error}") from None
