"""What one pass through a network multiplies, and which of its parameters it uses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from common.network.modes import evaluating
from common.network.passes import explained

Shape = tuple[int, ...]
_FREE = ("aten", "prim", "prims", "profiler", "torchvision::nms")
"""Operators, by namespace or name, that count as what is registered for them, or as nothing."""
_PRODUCTS = ("fft_", "linalg_", "cdist", "quantized_", "_cslt", "_weight_int", "_int_mm", "_wrapped_", "mkldnn_rnn")
"""Parts of the names of PyTorch's operators that multiply, and for which nothing is registered."""


@dataclass(frozen=True)
class Operations:
    """What one pass does, for one input of the batch.

    Attributes:
        macs: multiply-accumulates.
        by_module: module -> its own, those of its children included.
        used: names of the parameters that an operation read, every name of a parameter that has several.
        uncounted: operators whose multiply-accumulates are not known -> how often a pass runs them.
    """

    macs: int
    by_module: dict[str, int]
    used: frozenset[str]
    uncounted: dict[str, int]


def count_operations(model: nn.Module, x: Tensor) -> Operations:
    """Run ``x`` once in evaluation mode, and count.

    Args:
        model: left as it was.
        x: example batch ``(N, C, H, W)``; operations are divided by N.

    Raises:
        ValueError: the network does not take ``x``.
    """
    reading = _Reading()
    with (
        _separate_operations(model),
        evaluating(model),
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping=_products()) as counter,
        reading,
        explained(x),
    ):
        model(x.detach())
    root = type(model).__name__
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    of_module: dict[int, int] = {}
    for name, module in model.named_modules(remove_duplicate=False):  # a module of two names is counted under one
        found = counts.get(f"{root}.{name}" if name else root, 0)
        of_module[id(module)] = of_module.get(id(module), 0) + found
    known = counter.flop_registry
    uncounted = {
        str(packet): count
        for packet, count in reading.operators.items()
        if packet not in known and _multiplies(packet)
    }
    return Operations(
        macs=counter.get_total_flops() // 2 // len(x),
        by_module={name: of_module[id(module)] // 2 // len(x) for name, module in model.named_modules()},
        used=frozenset(name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in reading.tensors),
        uncounted=dict(sorted(uncounted.items())),
    )


class _Reading(TorchDispatchMode):
    """Notes which tensors operators are handed, and which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: set[int] = set()
        self.operators: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        self.tensors.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter))
        self.operators[func._overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def _multiplies(packet: Any) -> bool:
    name = str(packet).replace(".", "::")
    if name.split("::")[0] in _FREE or name in _FREE:
        return any(part in name for part in _PRODUCTS)
    return True


@contextmanager
def _separate_operations(model: nn.Module) -> Iterator[None]:
    """No fused attention, whose products no counter sees, and no gradients, with which a shared view is refused."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        torch.backends.mha.set_fastpath_enabled(fused)


def _products() -> dict[Any, Callable[..., int]]:
    """FLOPs of operators that PyTorch's counter does not know, two for a multiply-accumulate; arguments are shapes."""

    def recurrent(inputs: Shape, of_inputs: Shape, of_state: Shape, *_: Any, **__: Any) -> int:
        steps = inputs[0] * inputs[1]
        return 2 * steps * (of_inputs[0] * of_inputs[1] + of_state[0] * of_state[1])

    def recurrent_on_gpu(inputs: Shape, weights: list[Shape], *_: Any, **__: Any) -> int:
        return 2 * inputs[0] * inputs[1] * sum(shape[0] * shape[1] for shape in weights if len(shape) == 2)

    def matrix_vector(matrix: Shape, _: Shape, **__: Any) -> int:
        return 2 * matrix[0] * matrix[1]

    def added_matrix_vector(_: Shape, matrix: Shape, vector: Shape, **__: Any) -> int:
        return matrix_vector(matrix, vector)

    def scalar(first: Shape, _: Shape, **__: Any) -> int:
        return 2 * first[0]

    def bilinear(rows: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return 2 * rows[0] * math.prod(weight)

    aten = torch.ops.aten
    return {
        aten.mkldnn_rnn_layer: recurrent,
        aten._cudnn_rnn: recurrent_on_gpu,
        aten.mv: matrix_vector,
        aten.addmv: added_matrix_vector,
        aten.dot: scalar,
        aten.vdot: scalar,
        aten._trilinear: bilinear,
    }
