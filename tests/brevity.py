"""Short timings, brief exports and a narrower VGG16, in the process of the tests and in those that they start."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from common.latency import cache, measuring
from common.torchvision_compat import torchvision

ROUND_S = 0.001
VGG16_FEATURES = 512


def time_briefly() -> None:
    """Time each network for a twentieth of the usual seconds or less from now on; no test asserts a time."""
    cache.WHOLE_ROUND_S = ROUND_S
    for function in (measuring.measure_latency, measuring.measure_latencies, measuring.measure_files):
        defaults = function.__kwdefaults__
        assert defaults is not None
        defaults["round_s"] = ROUND_S


def export_briefly() -> None:
    """Let PyTorch's exporter build its table of operations once a process from now on, not once for each file."""
    from torch.onnx._internal.exporter import _registration  # imports onnx, which some processes never need

    registry: Any = _registration.ONNXRegistry
    registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


def narrow_vgg16() -> None:
    """Build VGG16 with Linear layers of 512 features in place of 4,096, which take most of a brief run's time."""
    vgg = torchvision.models.vgg

    class Narrow(vgg.VGG):  # type: ignore[misc, name-defined]  # a class that this module only knows when it runs
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            for position, (inputs, outputs) in {0: (25_088, VGG16_FEATURES), 3: (VGG16_FEATURES,) * 2}.items():
                self.classifier[position] = nn.Linear(inputs, outputs)
            self.classifier[6] = nn.Linear(VGG16_FEATURES, self.classifier[6].out_features)

    vgg.VGG = Narrow
