"""Networks on disk: one safetensors file with the weights, the builder's arguments and the plan; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.compression import factor_modules, planned_layers, replace_module
from common.models import build_model
from common.models.provenance import Provenance, get_provenance, set_provenance
from common.planning.plan import RankPlan
from common.profiling import distinct_tensors

SCHEMA_VERSION = "1"


def save_compressed(model: nn.Module, path: str | Path) -> Path:
    """Write a network, dense or compressed, so that :func:`load_compressed` can build it again.

    Args:
        model: made by ``build_model`` or ``compress``; of one that ``DataParallel``, ``DistributedDataParallel`` or
            ``torch.compile`` wraps, the network inside is written, unless it was compressed as it is wrapped.
        path: the file, by custom ``*.safetensors``; its folder is made when it is not there.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = _unwrapped(model)
    provenance = get_provenance(model) or Provenance()
    metadata = {
        "schema": SCHEMA_VERSION,
        "builder": json.dumps({"name": provenance.builder, "arguments": dict(provenance.arguments)}),
        "plan": json.dumps(provenance.plan.to_json() if provenance.plan else None),
        "inputs": json.dumps(dict(provenance.inputs)),
    }
    tensors = {name: tensor.cpu() for name, tensor in distinct_tensors(model).items()}
    partial = path.with_name(path.name + ".partial")
    safetensors.torch.save_file(tensors, partial, metadata)
    partial.replace(path)
    return path


def _unwrapped(model: nn.Module) -> nn.Module:
    parallel = isinstance(model, (nn.DataParallel, DistributedDataParallel))
    inner = getattr(model, "module" if parallel else "_orig_mod", None)  # the latter of what torch.compile returns
    named_by_it = get_provenance(model) is not None
    return _unwrapped(inner) if isinstance(inner, nn.Module) and not named_by_it else model


def load_compressed(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Build the network that :func:`save_compressed` wrote.

    Args:
        path: the file.
        model: a dense network of the architecture that the file must be of; it is filled in place when the file is
            dense, and its layers are replaced when it is not. None builds the architecture that the file names, which
            then has to be one of ``build_model``'s.

    Returns:
        The network, in evaluation mode, on the CPU or on ``model``'s device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of this kind, of an unknown schema version, or of another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(path)!r}: there is no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights={str(path)!r} is not a safetensors file: {error}") from error
    if metadata.get("schema") != SCHEMA_VERSION:
        version = metadata.get("schema", "none")
        raise ValueError(
            f"weights={str(path)!r} has schema version {version}; this code reads version {SCHEMA_VERSION}"
        )
    try:
        builder: Mapping[str, Any] = json.loads(metadata["builder"])
        name, arguments = builder["name"], dict(builder["arguments"])
        stored = json.loads(metadata["plan"])
        plan = RankPlan.from_json(stored) if stored is not None else None
        inputs = dict(json.loads(metadata.get("inputs", "{}")))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"weights={str(path)!r} does not say what network it holds: {error!r}") from None
    if model is not None:
        _require_same_builder(path, builder, model)
    elif name is None:
        raise ValueError(f"weights={str(path)!r} names no architecture; give the dense network as model=")
    elif arguments.get("weights") is not None:
        raise ValueError(f"weights={str(path)!r} asks for other weights to be fetched; no file of this suite does")
    else:
        try:
            model = build_model(name, **arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"weights={str(path)!r} names a network that cannot be built: {error}") from None
    _factor_and_fill(path, model, plan, tensors)
    set_provenance(model, Provenance(name, arguments, plan, inputs))
    return model.eval()


def _factor_and_fill(path: Path, model: nn.Module, plan: RankPlan | None, tensors: Mapping[str, Tensor]) -> None:
    """Replace the plan's layers and fill all in; the network is as it was when the file does not fit it."""
    replaced: list[tuple[nn.Module, nn.Module]] = []
    try:
        for name, layer in planned_layers(model, plan).items() if plan else ():
            assert plan is not None
            factors = factor_modules(layer, plan.layers[name])
            replace_module(model, layer, factors)
            replaced.append((layer, factors))
        _check_fit(path, model, tensors)
    except ValueError as error:
        for dense, small in replaced:
            replace_module(model, small, dense)
        if str(path) in str(error):
            raise
        raise ValueError(f"weights={str(path)!r} does not fit the network: {error}") from None
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) == 1:
        model.to(kinds.pop())
    model.load_state_dict(dict(tensors), strict=False)  # a second name of a shared tensor is not in the file


def _require_same_builder(path: Path, builder: Mapping[str, Any], model: nn.Module) -> None:
    expected = get_provenance(model)
    if expected is None or builder["name"] is None:
        return  # the tensors' names and shapes will tell
    if (builder["name"], builder["arguments"]) != (expected.builder, dict(expected.arguments)):
        held = f"{builder['name']} with {builder['arguments']}"
        wanted = f"{expected.builder} with {dict(expected.arguments)}"
        raise ValueError(f"weights={str(path)!r} holds a {held}; a {wanted} is wanted")


def _check_fit(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = distinct_tensors(model)
    for problem, names in (("lacks", own.keys() - tensors.keys()), ("has besides", tensors.keys() - own.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"weights={str(path)!r} does not fit the network: it {problem} {shown}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, the network needs {tuple(own[name].shape)}"
            raise ValueError(f"weights={str(path)!r} does not fit the network: {name} has shape {shapes}")
