"""Short timings, brief exports and narrower classifiers, in the process of the tests and in those that they start."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import nn

from common.latency import cache, measuring
from common.torchvision_compat import torchvision

ROUND_S = 0.001
FEATURES = 512


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


def narrow_classifiers() -> None:
    """Build AlexNet and VGG16 with Linear layers of 512 features in place of 4,096, which take most of a brief run."""
    for file, name in (("alexnet", "AlexNet"), ("vgg", "VGG")):
        module = importlib.import_module(f"{torchvision.__name__}.models.{file}")
        setattr(module, name, _narrow(getattr(module, name)))


def _narrow(network: Any) -> type[nn.Module]:
    """A class of networks whose hidden Linear layers have `FEATURES` features."""

    class Narrow(network):  # type: ignore[misc]  # a class that this module only knows when it runs
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            places = [place for place, layer in enumerate(self.classifier) if isinstance(layer, nn.Linear)]
            sizes = [self.classifier[places[0]].in_features, FEATURES, FEATURES, self.classifier[-1].out_features]
            for place, inputs, outputs in zip(places, sizes, sizes[1:], strict=False):
                self.classifier[place] = nn.Linear(inputs, outputs)

    return Narrow
