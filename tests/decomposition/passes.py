"""What a layer sees and returns in a pass, and its moments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.calibration import calibrate
from common.decomposition import LayerMoments


def layer_pass(model: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of the named layer when ``x`` passes the network."""
    passes: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, i, o: passes.append((i[0], o)))
    with torch.no_grad():
        model(x)
    handle.remove()
    return passes[0]


def moments_on(weight: Tensor, images: Tensor) -> LayerMoments:
    """Moments of a layer with this weight and no bias on images; a Linear gets each position as a row."""
    layer: nn.Linear | nn.Conv2d
    if weight.dim() == 2:
        layer, images = nn.Linear(weight.shape[1], len(weight), bias=False), images.movedim(1, -1).flatten(0, 2)
    else:
        layer = nn.Conv2d(weight.shape[1], len(weight), (weight.shape[2], weight.shape[3]), bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return calibrate(nn.Sequential(layer), [images])["0"]
