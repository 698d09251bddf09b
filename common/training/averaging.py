"""An exponential moving average of the weights, which is what a training with ``ema`` evaluates and returns."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common.network.copies import independent_copy

Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of the network that follows its weights at a distance.

    Call ``update_parameters(model)`` after each step; ``module`` then holds the average. The average starts from the
    first step's weights. Step ``t`` uses the decay ``min(decay, (1 + t) / (10 + t))``, so that the random initial
    weights are forgotten early even if ``decay`` is close to 1, as in TensorFlow's ``ExponentialMovingAverage``.

    Args:
        model: network whose floating-point parameters and buffers are averaged.
        decay: share of the previous average that a step keeps, in (0, 1).
    """

    def average(averages: Tensors, current: Tensors, steps: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            for target, source in zip(averages, current, strict=True):
                target.copy_(source)
            return
        count = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, current, steps)

    averaged = AveragedModel(nn.Identity(), multi_avg_fn=average, use_buffers=True)
    averaged.module = independent_copy(model)  # which copies networks that ``copy.deepcopy`` refuses
    return averaged.to(next(model.parameters()).device)
