"""Whether a changed network is still the same function, seen on an example."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.network.copies import independent_copy
from common.network.provenance import Provenance, set_provenance

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the largest value; rounding alone stays below it."""
UNEQUAL = 1e-2
"""Share of integers (classes, say, between which rounding decides) that may be unequal."""
SIZES = (32, 64, 28, 224, 299, 16, 8)
"""Height and width of made-up images, until a network takes one."""

Change = TypeVar("Change")


@dataclasses.dataclass(frozen=True)
class Example:
    """An input of a network, and what the network in evaluation mode returns for it.

    Attributes:
        x: the batch, on the network's device.
        output: any structure of tensors.
        allowed: the greatest :func:`difference` that is rounding, by the coarsest numbers that the network holds.
    """

    x: Tensor
    output: object
    allowed: float


def deployed_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, to be changed; how it came to be is forgotten, since no plan rebuilds it."""
    changed = independent_copy(model).eval()
    set_provenance(changed, Provenance())
    return changed


def changed_copy(
    model: nn.Module,
    x: Tensor | None,
    find: Callable[[nn.Module, Tensor], Sequence[Change]],
    apply: Callable[[nn.Module, Change], None],
) -> nn.Module:
    """A copy in evaluation mode with all changes that leave the outputs on an example as they are.

    Args:
        model: left as it was.
        x: example input; None for a made-up image. Nothing is changed in a network that takes none.
        find: the changes that are possible, from a copy that may be spoiled and the example.
        apply: makes one change in a copy.

    Raises:
        ValueError: the network does not take ``x``, or cannot be copied.
    """
    shown = example(model, x)
    changes: list[Change] = []
    if shown is not None:
        with _same_randomness(shown.x):
            changes += find(_without_gradients(model), shown.x)

    def made(kept: Sequence[Change]) -> nn.Module:
        changed = deployed_copy(model)
        with torch.no_grad():
            for change in kept:
                apply(changed, change)
        return changed

    def attempt(kept: Sequence[Change]) -> nn.Module | None:
        assert shown is not None
        try:  # a forward may read what is no longer there, and then fail in any way
            changed = made(kept)
            same = same_outputs(run(independent_copy(changed), shown.x), shown)
        except Exception:
            return None
        return changed if same else None

    if not changes:
        return made(())
    return attempt(changes) or made(_that_hold(changes, lambda kept: attempt(kept) is not None))


def _without_gradients(model: nn.Module) -> nn.Module:
    """A copy whose passes record nothing, with gradients switched on or off."""
    network = deployed_copy(model)
    for parameter in network.parameters():
        if parameter.is_leaf:  # those that TorchScript copies are not
            parameter.requires_grad_(False)
    return network


def _that_hold(changes: Sequence[Change], holds: Callable[[Sequence[Change]], bool]) -> list[Change]:
    """As many of the changes as hold together, found by halving those that do not."""
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
    """``x`` as a batch on the network's device, with the outputs; a made-up image where it is None.

    A single image ``(C, H, W)`` becomes a batch of one.

    Returns:
        None where there is no ``x`` and the network takes no image that can be made up.

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
    """The example, or what the network raised; on a copy, since a pass may change what a network holds."""
    network = deployed_copy(model)
    try:
        held = [each.dtype for each in (x, *model.parameters()) if each.is_floating_point()]
        return Example(x, run(network, x), max(map(tolerance, held), default=0.0))
    except Exception as error:
        return error


def _images(model: nn.Module) -> Iterator[Tensor]:
    """Random inputs, by what the first layer takes."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    layer = next((module for module in model.modules() if isinstance(module, kinds)), None)
    parameter = next(model.parameters(), None)
    if layer is None or parameter is None or not parameter.is_floating_point() or parameter.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    channels, axes = (layer.in_features, 0) if isinstance(layer, nn.Linear) else (layer.in_channels, len(layer.stride))
    for size in SIZES if axes else (1,):
        yield torch.randn(2, channels, *[size] * axes, generator=generator).to(parameter)


def run(model: nn.Module, x: Tensor, seed: int = 0) -> object:
    """What the network returns for ``x``; one that draws random numbers draws the same ones every time."""
    with _same_randomness(x, seed), torch.no_grad():
        return model(x)


@contextmanager
def _same_randomness(x: Tensor, seed: int = 0) -> Iterator[None]:
    """Random numbers inside are always the same, and none is taken from those outside."""
    cuda = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        for device in cuda:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield


def same_outputs(found: object, expected: Example) -> bool:
    """Whether the tensors of an output, however deep, are those of the example but for rounding."""
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
    """The greatest :func:`difference` that is rounding in numbers of this kind."""
    if not dtype.is_floating_point and not dtype.is_complex:
        return UNEQUAL
    return TOLERANCES.get(dtype, TOLERANCES[torch.float32])


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest error over the largest finite value; of integers and truth values, the share that is unequal.

    Infinite where the shapes differ, or only one of the two has a value that is not finite.
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
    """The tensors in lists, tuples, dicts and data classes, however deep."""
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
