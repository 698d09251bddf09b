"""Check on an example whether a changed network still computes the same function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.network.copies import independent_copy
from common.network.inputs import for_one_pass
from common.network.kinds import FactorableLayer
from common.network.modes import ordinary_precision, random_state_kept
from common.network.provenance import Provenance, set_provenance

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Greatest error that still counts as rounding, over the largest value, by dtype."""
UNEQUAL = 1e-2
"""Share of integers that may differ, since rounding may decide between two classes."""
SIZES = (32, 64, 28, 224, 299, 16, 8)
"""Sizes of random images, the same on each axis, which are tried in turn until a network takes one."""
MOST_POSITIONS = 2**18
"""No larger image is tried; a volume of 224 voxels a side would need gigabytes."""

Change = TypeVar("Change")


@dataclasses.dataclass(frozen=True)
class Example:
    """An input of a network, and its output for it in evaluation mode.

    Attributes:
        x: the batch, on the network's device.
        output: any structure of tensors.
        allowed: the greatest :func:`difference` that counts as rounding, by the network's least precise dtype.
    """

    x: Tensor
    output: object
    allowed: float


def deployed_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode without provenance, since no plan can rebuild a changed network."""
    changed = independent_copy(model).eval()
    set_provenance(changed, Provenance())
    return changed


@ordinary_precision()
def changed_copy(
    model: nn.Module,
    x: Tensor | None,
    find: Callable[[nn.Module, Tensor], Sequence[Change]],
    apply: Callable[[nn.Module, Change], None],
) -> nn.Module:
    """Return a copy in evaluation mode with all changes that preserve the outputs on an example.

    Args:
        model: stays unchanged.
        x: example input; None for a random image. A network that takes no image is copied without changes.
        find: finds the possible changes, given a copy, which it may alter, and the example.
        apply: makes one change to a copy.

    Raises:
        ValueError: the network does not take ``x``, or cannot be copied.
    """
    shown = example(model, x)
    changes: list[Change] = []
    if shown is not None:
        with random_state_kept(shown.x.device, 0):
            changes += find(_without_gradients(model), shown.x)

    def made(kept: Sequence[Change]) -> nn.Module:
        changed = deployed_copy(model)
        with torch.no_grad():
            for change in kept:
                apply(changed, change)
        return changed

    def attempt(kept: Sequence[Change]) -> nn.Module | None:
        assert shown is not None
        try:  # a forward may need what was removed, and then raise anything
            changed = made(kept)
            same = same_outputs(run(independent_copy(changed), shown.x), shown)
        except Exception:
            return None
        return changed if same else None

    if not changes:
        return made(())
    return attempt(changes) or made(_that_hold(changes, lambda kept: attempt(kept) is not None))


def _without_gradients(model: nn.Module) -> nn.Module:
    """Return a copy whose passes record no gradients even if gradients are enabled."""
    network = deployed_copy(model)
    for parameter in network.parameters():
        if parameter.is_leaf:  # the parameters of copied TorchScript modules are not leaves
            parameter.requires_grad_(False)
    return network


def _that_hold(changes: Sequence[Change], holds: Callable[[Sequence[Change]], bool]) -> list[Change]:
    """Return a large group of changes that hold together. A group that does not hold is halved."""
    kept: list[Change] = []

    def add(group: Sequence[Change]) -> None:
        if not group or holds([*kept, *group]):
            kept.extend(group)
        elif len(group) > 1:
            add(group[: len(group) // 2])
            add(group[len(group) // 2 :])

    add(changes)
    return kept


def example(model: nn.Module, x: Tensor | None) -> Example | None:
    """Return ``x`` as a batch on the network's device, with the network's outputs.

    A single image ``(C, H, W)`` becomes a batch of one. If ``x`` is None, a random image is used.

    Returns:
        None if there is no ``x`` and the network takes no random image.

    Raises:
        ValueError: the network does not take ``x``.
    """
    if x is None:
        return next((shown for image in _images(model) if isinstance(shown := _shown(model, image), Example)), None)
    parameter = next(model.parameters(), None)
    x = x.detach() if parameter is None else x.detach().to(parameter.device)
    image = x.dim() == 3 and any(isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) for module in model.modules())
    if image and isinstance(shown := _shown(model, x[None]), Example):
        return shown
    shown = _shown(model, x)
    if isinstance(shown, Example):
        return shown
    kind = str(x.dtype).removeprefix("torch.")
    raise ValueError(f"the network does not take x of shape {tuple(x.shape)}, {kind}: {shown}") from shown


def _shown(model: nn.Module, x: Tensor) -> Example | Exception:
    """Return the example, or the error of the network. A copy runs, since a pass may change a network's state."""
    network = deployed_copy(model)
    try:
        held = [each.dtype for each in (x, *model.parameters()) if each.is_floating_point()]
        return Example(x, run(network, x), max(map(tolerance, held), default=0.0))
    except Exception as error:
        return error


def _images(model: nn.Module) -> Iterator[Tensor]:
    """Yield random inputs of the kind that the first layer takes."""
    layer = next((module for module in model.modules() if isinstance(module, FactorableLayer)), None)
    parameter = next(model.parameters(), None)
    if layer is None or parameter is None or not parameter.is_floating_point() or parameter.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    axes = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
    for size in [size for size in SIZES if size**axes <= MOST_POSITIONS] if axes else (1,):
        yield torch.randn(2, channels, *[size] * axes, generator=generator).to(parameter)


def run(model: nn.Module, x: Tensor, seed: int = 0) -> object:
    """Return the network's output for ``x``. Random numbers that it draws depend on ``seed`` alone."""
    with random_state_kept(x.device, seed), torch.no_grad():
        return model(for_one_pass(x))


def same_outputs(found: object, expected: Example) -> bool:
    """Whether the tensors in an output, at any depth, equal those of the example up to rounding."""
    ours, theirs = list(tensors(found)), list(tensors(expected.output))
    return (
        type(found) is type(expected.output)
        and len(ours) == len(theirs)
        and all(
            difference(one, other) <= max(tolerance(other.dtype), expected.allowed)
            for one, other in zip(ours, theirs, strict=True)
        )
    )


def tolerance(dtype: torch.dtype) -> float:
    """The greatest :func:`difference` that counts as rounding in this dtype."""
    if not dtype.is_floating_point and not dtype.is_complex:
        return UNEQUAL
    return TOLERANCES.get(dtype, TOLERANCES[torch.float32])


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest error over the largest finite value; for integers and booleans, the share that differs.

    It is infinite if the shapes or dtypes differ, or if an element is infinite or NaN in only one of the two tensors.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    equal = (found == expected) | ((found != found) & (expected != expected))
    if equal.all():
        return 0.0
    if not found.is_floating_point() and not found.is_complex():
        return 1.0 - equal.double().mean().item()
    wide = torch.complex128 if found.is_complex() else torch.double
    errors = (found.to(wide) - expected.to(wide)).abs()[~equal]
    sizes = expected.to(wide).abs()[expected.isfinite()]
    if not errors.isfinite().all() or not len(sizes):
        return float("inf")
    return errors.max().item() / max(sizes.max().item(), 1e-12)


def tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in lists, tuples, sets, dicts and data classes, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, (list, tuple, set)):
        for each in value:
            yield from tensors(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name, None))
