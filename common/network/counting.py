"""Count the multiply-accumulates (MACs) of one forward pass, and find the parameters that it uses.

The cost of a single layer, dense or factored, is in ``common/network/shapes.py``.
"""

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

from common.network.inputs import for_one_pass
from common.network.modes import evaluating
from common.network.passes import explained

Shape = tuple[int, ...]
_FREE_OPERATORS = ("aten", "prim", "prims", "profiler", "torchvision::nms")
"""Namespaces and names of operators that cost nothing unless the FLOP counter has an entry for them."""
_MULTIPLYING_NAMES = (
    "fft_",
    "linalg_",
    "cdist",
    "quantized_",
    "_cslt",
    "_weight_int",
    "_int_mm",
    "_wrapped_",
    "mkldnn_rnn",
)
"""Parts of the names of PyTorch operators that multiply although the FLOP counter has no entry for them."""


@dataclass(frozen=True)
class Operations:
    """Operations of one forward pass.

    Attributes:
        macs: multiply-accumulates for one input of the batch.
        by_module: module name -> multiply-accumulates for one input, including those of its children.
        used: names of the parameters that an operation reads. A shared parameter appears under all of its names.
        uncounted: operator with unknown multiply-accumulates -> number of times that a pass runs it.
    """

    macs: int
    by_module: dict[str, int]
    used: frozenset[str]
    uncounted: dict[str, int]


def count_operations(model: nn.Module, x: Tensor) -> Operations:
    """Run ``x`` once in evaluation mode and count the operations.

    Args:
        model: the network to count. It stays unchanged.
        x: example batch ``(N, C, H, W)``. The counts are divided by N.

    Raises:
        ValueError: the network does not accept ``x``.
    """
    recorder = _OperatorRecorder()
    with (
        _unfused_operations(model),
        evaluating(model),
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping=_extra_flop_formulas()) as counter,
        recorder,
        explained(x),
    ):
        model(for_one_pass(x))
    root = type(model).__name__
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    flops_of_module: dict[int, int] = {}
    for name, module in model.named_modules(remove_duplicate=False):  # the counter uses one name of a shared module
        found = counts.get(f"{root}.{name}" if name else root, 0)
        flops_of_module[id(module)] = flops_of_module.get(id(module), 0) + found
    known = counter.flop_registry
    uncounted = {
        str(packet): count
        for packet, count in recorder.operators.items()
        if packet not in known and _multiplies(packet)
    }
    return Operations(
        macs=counter.get_total_flops() // 2 // len(x),
        by_module={name: flops_of_module[id(module)] // 2 // len(x) for name, module in model.named_modules()},
        used=frozenset(
            name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in recorder.parameters
        ),
        uncounted=dict(sorted(uncounted.items())),
    )


class _OperatorRecorder(TorchDispatchMode):
    """Record the parameters that operators read, and count the calls of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: set[int] = set()
        self.operators: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        self.parameters.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter))
        self.operators[func._overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def _multiplies(packet: Any) -> bool:
    """Whether an operator without an entry in the FLOP counter may multiply."""
    name = str(packet).replace(".", "::")
    if name.split("::")[0] in _FREE_OPERATORS or name in _FREE_OPERATORS:
        return any(part in name for part in _MULTIPLYING_NAMES)
    return True


@contextmanager
def _unfused_operations(model: nn.Module) -> Iterator[None]:
    """Turn off fused attention and gradients inside the ``with`` block.

    The counter does not see the products of fused attention. With gradients, PyTorch refuses some shared views.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    trainable = [p for p in model.parameters() if p.requires_grad and p.is_leaf and not p.is_inference()]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _extra_flop_formulas() -> dict[Any, Callable[..., int]]:
    """Return FLOP formulas for operators that PyTorch's counter does not know.

    Each formula takes the shapes of the operator's arguments. A multiply-accumulate is two FLOPs.
    """

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
