"""Save and load networks: one safetensors file holds the weights, the builder's arguments and the plan; no pickle."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from common.compression.compress import factored_layer, planned_layers
from common.decomposition import DECOMPOSITIONS
from common.files import replacing
from common.models import build_model
from common.network.attention import PROJECTIONS, separate_projections
from common.network.copies import independent_copy
from common.network.effective import EffectiveLayer
from common.network.given import check_has_values, has_lazy_layers
from common.network.held import replace_module
from common.network.kinds import kernel_size
from common.network.lowrank import LowRank
from common.network.modes import ordinary_precision, random_state_kept
from common.network.provenance import Provenance, get_provenance, set_provenance, unwrapped
from common.network.state import decoded, distinct_tensors, encoded_state, other_entries
from common.planning import RankPlan, plan_of
from common.planning.methods import method_for
from common.planning.plan import LayerPlan

SCHEMA_VERSION = "1"
MOST_BYTES = 2**32
"""Maximum size of the dense network that is built because a file names it. A stranger's file may name any width."""
MOST_NUMBER = 2**16
"""Maximum of a whole number among the arguments that a file gives for that network, such as its depth."""


def save_compressed(model: nn.Module, path: str | Path) -> Path:
    """Save a dense or compressed network so that :func:`load_compressed` can rebuild it.

    Args:
        model: a network from ``build_model`` or ``compress``, or a user's own. If ``DataParallel``,
            ``DistributedDataParallel``, ``AveragedModel`` or ``torch.compile`` wraps it, the inner network is saved,
            unless the wrapper itself was compressed.
        path: destination path, conventionally ``*.safetensors``. Missing folders are created.

    Returns:
        The path.

    Raises:
        ValueError: the network has weights without values, or state that only pickle could write, or its own
            ``state_dict`` leaves out factors.
        TypeError: ``path`` is no path, or ``model`` no network.
        OSError: the file cannot be written, for example because the disk is full.
    """
    path = _as_path(path, "save_compressed(model, path)")
    check_has_values(model)
    model = unwrapped(model)
    provenance = get_provenance(model) or Provenance()
    _check_factors_in_state(model)
    values, own = encoded_state(model)
    plan = _joint_plan(model)
    if not _gives_shapes_of(provenance, model):  # the user replaced a head, for example
        provenance = replace(provenance, builder=None, arguments={})
    metadata = {
        "schema": SCHEMA_VERSION,
        "builder": json.dumps({"name": provenance.builder, "arguments": dict(provenance.arguments)}),
        "plan": json.dumps(plan.to_json() if plan else None),
        "inputs": json.dumps(dict(provenance.inputs)),
        "state": json.dumps(values),
    }
    tensors = {name: tensor.cpu() for name, tensor in distinct_tensors(model).items()} | own
    with replacing(path) as partial:
        try:
            safetensors.torch.save_file(tensors, partial, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
    return path


def _check_factors_in_state(model: nn.Module) -> None:
    """Raise a ValueError if the network's own ``state_dict`` leaves out weights of a factored layer."""
    state = model.state_dict(keep_vars=True)
    held = {id(tensor) for tensor in state.values()}
    for name, layer in model.named_modules():
        parameters = layer.named_parameters(name) if isinstance(layer, LowRank) else ()
        if any(key not in state and id(parameter) not in held for key, parameter in parameters):
            raise ValueError(
                f"the state_dict of {type(model).__name__} leaves out weights of the factored layer {name!r}, so its "
                "file would lack them; let state_dict return all weights, or plan this layer dense"
            )


def _gives_shapes_of(provenance: Provenance, model: nn.Module) -> bool:
    """Whether the architecture that is on record has the shapes of the network's tensors, as far as it has them."""
    if provenance.builder is None:
        return True
    try:
        with torch.device("meta"):
            built = build_model(provenance.builder, **provenance.arguments).state_dict()
    except Exception:  # a user's own architecture may look at its weights, or be unknown here
        return True
    own = model.state_dict()
    return all(
        tensor.shape == built[name].shape for name, tensor in own.items() if isinstance(built.get(name), Tensor)
    )


def _joint_plan(model: nn.Module) -> RankPlan | None:
    """Return the plan of a network, or the joint plan of the compressed networks inside a user's module."""
    factored = {name: layer.planned for name, layer in model.named_modules() if isinstance(layer, LowRank)}
    if (whole := plan_of(model)) is not None:
        if whole.factored.keys() == factored.keys():
            return whole
        # The user replaced layers, by a head for other classes for example, or moved them.
        dense = {name: layer for name, layer in whole.layers.items() if name not in whole.factored}
        return replace(whole, layers=dense | factored)
    if not factored:
        return None
    plans = [plan for module in model.modules() if (plan := plan_of(module))]
    methods, rules = {plan.method for plan in plans}, {plan.rule for plan in plans}
    return RankPlan(
        factored,
        method_for(methods),
        rules.pop() if len(rules) == 1 else "several",
        plans[0].settings if len(plans) == 1 else {},
    )


def load_compressed(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load a network from a file of :func:`save_compressed`.

    Args:
        path: path of the file.
        model: a dense network of the same architecture. It stays unchanged; the weights go into a copy. None builds
            the architecture that the file names, which must be one of ``build_model``'s.

    Returns:
        The network in evaluation mode, on the CPU or on ``model``'s device.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``path`` is no path, or ``model`` no network.
        ValueError: the file is not one of :func:`save_compressed`, has an unknown schema version or another
            architecture, or is larger than the memory.
    """
    path = _as_path(path, "load_compressed(path, model)")
    if model is not None:
        check_has_values(model)
        if has_lazy_layers(model):
            raise ValueError("model has lazy layers, whose weights have no shape yet; run it once first: model(x)")
    device = torch.device("cpu") if model is None else next(model.parameters(), torch.empty(0)).device
    with ordinary_precision(), random_state_kept(device):  # new layers draw weights that those of the file replace
        return _load(path, model)


def _as_path(path: object, call: str) -> Path:
    """Return ``path`` as a Path; the error for anything else shows the order of the arguments."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is {type(path).__name__}: it must be the path of a file: {call}")
    return Path(path)


def _load(path: Path, model: nn.Module | None) -> nn.Module:
    """See :func:`load_compressed`."""
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(path)!r}: there is no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - file is not a mapping
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights={str(path)!r} is not a safetensors file: {error}") from error
    except MemoryError:
        raise ValueError(f"weights={str(path)!r} needs more memory than there is") from None
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
        values = {key: decoded(value, tensors) for key, value in json.loads(metadata.get("state", "{}")).items()}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"weights={str(path)!r} does not describe a network: {error!r}") from None
    if model is not None:
        _require_same_builder(path, builder, model)
        if name is None and (known := get_provenance(model)):
            name, arguments = known.builder, dict(known.arguments)
        same_names = any(key in tensors for key in model.state_dict())
        model = independent_copy(model if same_names else unwrapped(model))
    elif name is None:
        raise ValueError(f"weights={str(path)!r} names no architecture; give the dense network as model=")
    elif arguments.get("weights") is not None:
        raise ValueError(f"weights={str(path)!r} asks to download other weights, which no file of this suite does")
    else:
        try:
            _check_size(name, arguments)
            model = build_model(name, **arguments)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"weights={str(path)!r} names a network that cannot be built: {error}") from None
    model = _with_projections(model, plan, tensors)
    _fill_network(path, model, plan, tensors, values)
    set_provenance(model, Provenance(name, arguments, plan, inputs))
    return model.eval()


def _with_projections(model: nn.Module, plan: RankPlan | None, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with those projections of attention as layers that the file has as layers."""
    factored = plan.factored if plan else {}
    names = {name.rpartition(".")[0] for name in factored}
    names |= {key.split(f".{part}.")[0] for key in tensors for part in PROJECTIONS if f".{part}." in key}
    return separate_projections(model, names)


def _check_size(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise a ValueError if the named network is absurdly large. It is built without memory for its weights first."""
    for argument, value in arguments.items():
        if isinstance(value, int) and value > MOST_NUMBER:
            raise ValueError(f"{argument}={value} is above {MOST_NUMBER}; if you trust it, give the network as model=")
    try:
        with torch.device("meta"):
            tensors = build_model(name, **arguments).state_dict().values()
    except NotImplementedError:
        return  # the user's own architecture looks at its weights
    size = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
    if size > MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes, more than {MOST_BYTES:,}; if you trust it, give it as model=")


def _check_ranks(effective: EffectiveLayer, plan: LayerPlan) -> None:
    """Raise a ValueError if a rank is greater than the layer allows, before any factor is made."""
    plain, kind = effective.layer, DECOMPOSITIONS[str(plan.method)]
    if isinstance(plain, nn.Linear):
        most = kind.greatest_ranks(plain.in_features, plain.out_features, (1, 1))
    else:
        inputs, outputs = plain.in_channels // plain.groups, plain.out_channels // plain.groups
        most = kind.greatest_ranks(inputs, outputs, kernel_size(plain))
    if any(rank > greatest for rank, greatest in zip(plan.ranks, most, strict=False)):
        raise ValueError(f"ranks={plan.ranks}: {plan.method} allows at most {most} for this layer")


def _fill_network(
    path: Path, model: nn.Module, plan: RankPlan | None, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Replace the plan's layers by factors in ``model``, then load all tensors and values."""
    try:
        for name, (layer, effective) in planned_layers(model, plan).items() if plan else ():
            assert plan is not None
            _check_ranks(effective, plan.layers[name])
            replace_module(model, layer, factored_layer(layer, effective, plan.layers[name]))
        _check_fit(path, model, tensors, values)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"weights={str(path)!r} does not fit the network: {error}") from None
    own = distinct_tensors(model, copies=False)
    for name, tensor in tensors.items():
        if own[name].dtype != tensor.dtype:
            own[name].data = own[name].data.to(tensor.dtype)
    state: OrderedDict[str, Any] = OrderedDict({**tensors, **values})
    state._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined] # some need versions
    model.load_state_dict(state, strict=False)  # the file holds a shared tensor under one name only


def _require_same_builder(path: Path, builder: Mapping[str, Any], model: nn.Module) -> None:
    """Raise a ValueError if the file and ``model`` are known to be of different architectures."""
    expected = get_provenance(model)
    if expected is None or builder["name"] is None:
        return  # _check_fit compares names and shapes later
    if (builder["name"], builder["arguments"]) != (expected.builder, dict(expected.arguments)):
        held = f"{builder['name']} with {builder['arguments']}"
        wanted = f"{expected.builder} with {dict(expected.arguments)}"
        raise ValueError(f"weights={str(path)!r} holds a {held}, but model is a {wanted}")


def _check_fit(path: Path, model: nn.Module, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the file's entries have the names and shapes of the network's."""
    own = distinct_tensors(model, copies=False)
    expected = own.keys() | other_entries(model)
    held = tensors.keys() | values.keys()
    for problem, names in (("lacks", expected - held), ("has in addition", held - expected)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"weights={str(path)!r} does not fit the network: it {problem} {shown}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, but the network needs {tuple(own[name].shape)}"
            raise ValueError(f"weights={str(path)!r} does not fit the network: {name} has shape {shapes}")
        if own[name].requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
            raise ValueError(f"weights={str(path)!r} does not fit the network: {name} holds {tensor.dtype}")
