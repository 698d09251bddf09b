"""``load_weights``: weights from files of this suite, of safetensors and of ``torch.save``. No code in them runs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from common.compression import load_compressed
from common.data.annotations import shorten

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts store a network's state dict in a larger checkpoint."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that ``DataParallel`` and ``torch.compile`` put before every name."""


def load_weights(network: nn.Module | None, path: str | Path) -> nn.Module:
    """Return a network with the weights of a file, in evaluation mode.

    Args:
        network: the dense network. Only a file of this suite's own networks, which names its architecture, needs none.
        path: a file of :func:`common.compression.save_compressed`, a safetensors file, or a state dict of
            ``torch.save``, alone or in a checkpoint. Nothing in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds anything else, or its tensors do not fit the network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(path)!r}: there is no such file")
    tensors, is_of_suite = _read_safetensors(path)
    if is_of_suite:
        return load_compressed(path, network)
    if network is None:
        raise ValueError(f"weights={str(path)!r} names no architecture; give the network too")
    _fill(network, path, _read_state_dict(path) if tensors is None else tensors)
    return network.eval()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor] | None, bool]:
    """Return the tensors of a safetensors file and whether this suite wrote it; None if it is another kind of file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if "schema" in (file.metadata() or {}):
                return None, True
            return {name: file.get_tensor(name) for name in file.keys()}, False  # noqa: SIM118 - file is no mapping
    except safetensors.SafetensorError:
        return None, False


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file of ``torch.save``.

    Raises:
        ValueError: the file holds anything but tensors and plain values, or no state dict.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"weights={str(path)!r} is neither a safetensors file nor a state dict of torch.save: {reason}; write one "
            "with torch.save(network.state_dict(), path)"
        ) from None
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"weights={str(path)!r} holds no state dict; write one with torch.save(network.state_dict())")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _fill(network: nn.Module, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a network.

    Raises:
        ValueError: their names or shapes are not the network's.
    """
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    misfit = f"weights={str(path)!r} does not fit the network: it"
    try:
        missing, unexpected = network.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:  # a shape; the first line of the message names the class alone
        raise ValueError(f"{misfit} has a {str(error).splitlines()[-1].strip()}") from None
    if missing:
        raise ValueError(f"{misfit} lacks {shorten(missing)}")
    if unexpected:
        raise ValueError(f"{misfit} has in addition {shorten(unexpected)}")
