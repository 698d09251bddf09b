"""What a layer sees and returns in a pass through its network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def layer_pass(model: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of the named layer when ``x`` passes the network."""
    passes: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, i, o: passes.append((i[0], o)))
    with torch.no_grad():
        model(x)
    handle.remove()
    return passes[0]
