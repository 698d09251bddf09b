"""``load_weights``: weights from files of this suite and of safetensors, which no one can hide code in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
from torch import Tensor, nn

from common.compression import load_compressed
from common.data.annotations import shorten

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that ``DataParallel`` and ``torch.compile`` put before every name."""


def load_weights(network: nn.Module | None, path: str | Path) -> nn.Module:
    """Return a network with the weights of a file, in evaluation mode.

    Args:
        network: the dense network. Only a file of this suite's own networks, which names its architecture, needs none.
        path: a file of :func:`common.compression.save_compressed`, or a safetensors file of a state dict. A pickled
            file of ``torch.save`` is refused, because loading a stranger's could run their code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, or its tensors do not fit the network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(path)!r}: there is no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            is_of_suite = "schema" in (file.metadata() or {})
            tensors = {} if is_of_suite else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except MemoryError:
        raise ValueError(f"weights={str(path)!r} needs more memory than there is") from None
    except safetensors.SafetensorError:
        raise ValueError(
            f"weights={str(path)!r} is not a safetensors file; write one with safetensors.torch.save_file("
            "network.state_dict(), path), or let a function of yours load the weights (--network module:function)"
        ) from None
    if is_of_suite:
        return load_compressed(path, network)
    if network is None:
        raise ValueError(f"weights={str(path)!r} names no architecture; give the network too")
    _fill(network, path, tensors)
    return network.eval()


def _fill(network: nn.Module, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a network.

    Raises:
        ValueError: their names or shapes are not the network's.
    """
    own = network.state_dict()
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors) and own.keys().isdisjoint(tensors):
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
