"""Context managers: evaluation mode, ordinary precision, the random state, hooks that are removed at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put networks in evaluation mode inside the ``with`` block, then restore the mode of every module.

    If a module overrides ``train`` (to merge an update into its weight, for example), that method restores it. If
    such a method leaves modules in training mode, they are put in evaluation mode all the same. A network that is
    already in evaluation mode stays unchanged.
    """
    modes = {module: module.training for module in _outer_first(networks)}
    switched = any(modes.values())
    try:
        if switched:
            for network in networks:
                network.eval()
            _set_flags(dict.fromkeys(modes, False))
        yield
    finally:
        try:
            for module, mode in modes.items():
                if switched or module.training != mode:
                    _call_override(module, mode)
        finally:
            _set_flags(modes)


def _outer_first(networks: Iterable[nn.Module]) -> list[nn.Module]:
    """Return all modules, each after all that hold it, because a holder's ``train`` also sets its children."""
    found: dict[nn.Module, None] = {}
    entered: set[nn.Module] = set()
    for network in networks:
        _enter(network, entered, found)
    return list(reversed(found))


def _enter(module: nn.Module, entered: set[nn.Module], found: dict[nn.Module, None]) -> None:
    """Add a module to ``found`` after all modules in it, unless it was ``entered`` before."""
    if module not in entered:
        entered.add(module)
        for child in module.children():
            _enter(child, entered, found)
        found[module] = None


def _call_override(module: nn.Module, mode: bool) -> None:
    """Set the mode of a module by its own ``train`` or ``eval`` method, if it overrides them."""
    if _overrides(module, "train"):
        if not mode and _overrides(module, "eval"):
            module.eval()
        else:
            module.train(mode)


def _overrides(module: nn.Module, method: str) -> bool:
    """Whether the module or its class overrides a method of ``nn.Module``."""
    return method in vars(module) or getattr(type(module), method) is not getattr(nn.Module, method)


def _set_flags(modes: Mapping[nn.Module, bool]) -> None:
    """Set the ``training`` flag of each module directly."""
    for module, mode in modes.items():
        if module.training != mode:
            module.training = mode


@contextmanager
def ordinary_precision() -> Iterator[None]:
    """Compute without ``torch.autocast`` and TF32 inside the ``with`` block, or the decorated function.

    Under them, moments would be products of bfloat16, or of the 10 bits that convolutions on a GPU have by default.
    ``torch.inference_mode`` is off as well, because no network that is made in it can be trained or recalibrated.
    """
    with ExitStack() as modes:
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.no_grad())
        modes.enter_context(_whole_float32())
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Let single precision have all its bits in convolutions and products, unless the caller set single operations."""
    cudnn = torch.backends.cudnn
    try:
        convolutions, products = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # they are set for each operation, and have no common value
        convolutions, products = False, "highest"
    try:
        if convolutions:
            cudnn.allow_tf32 = False
        if products != "highest":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if convolutions:
            cudnn.allow_tf32 = True
        if products != "highest":
            torch.set_float32_matmul_precision(products)


@contextmanager
def random_state_kept(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Restore the random state of the CPU and of ``device`` after the ``with`` block; no other GPU is touched.

    Args:
        device: where random numbers may be drawn besides the CPU.
        seed: the numbers inside the block depend on it alone; None goes on from the present state.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for gpu in gpus:
                index = torch.cuda.current_device() if gpu.index is None else gpu.index
                torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove the hooks at the end of the ``with`` block, even after an error."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
