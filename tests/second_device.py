"""A second device on a machine without one, to find tensors that are created or left on the wrong device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from common.training import TrainingSettings

DEVICE = torch.device("meta")
"""The device's name. While :func:`second_device` lasts, its tensors hold numbers, unlike those of PyTorch's own."""
ACROSS = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""What may read one device and write the other."""
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}
"""A tensor on a GPU may be indexed by a tensor on the CPU."""


class There(Tensor):
    """A tensor on the second device. Its numbers are in ``held``, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls: type[There], held: Tensor) -> There:
        made: There = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        """As a GPU's tensor does; PyTorch refuses it to subclasses."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # the stub is not that of a class method
        cls, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        return run(function, arguments, named or {})


def run(function: Any, arguments: Any, named: dict[str, Any]) -> Any:
    """Run an operation on the device of its tensors, as a GPU would.

    Raises:
        RuntimeError: the tensors are on two devices.
    """
    tensors = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, There) for tensor in tensors)
    strangers = [tensor for tensor in tensors if not isinstance(tensor, There) and tensor.dim() > 0]
    indexed = function in INDEXING and isinstance(arguments[0], There)
    if there and strangers and function not in ACROSS and not indexed:
        raise RuntimeError(f"{function}: expected all tensors to be on one device, found a tensor on the CPU")
    wanted = named.get("device")
    if wanted is not None:
        there = torch.device(wanted) == DEVICE
        named = {**named, "device": torch.device("cpu")}
    if there and named.get("generator") is not None:
        raise RuntimeError(f"{function}: expected a generator on the second device, found one on the CPU")
    result = function(*tree_map(held_of, arguments), **tree_map(held_of, named))
    if function._schema.is_mutable and function._schema.returns and function._schema.returns[0].alias_info:
        return arguments[0] if arguments else result
    return tree_map(lambda each: There(each) if isinstance(each, Tensor) else each, result) if there else result


def held_of(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return run(function, arguments, named or {})


def _unfused(model: nn.Module, settings: TrainingSettings) -> SGD:
    return SGD(model.parameters(), settings.learning_rate, settings.momentum)


@contextmanager
def second_device() -> Iterator[Callable[[Any], Any]]:
    """A ``with`` block in which `DEVICE` holds numbers; gives a function that moves a tensor or a module there."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with pytest.MonkeyPatch.context() as patch, _Mode():
            patch.setattr("common.network.layers._weight_reason", lambda _: "")  # takes no subclass of Tensor
            patch.setattr("torch.autocast", lambda *_, **__: nullcontext())  # does not know the device's name
            patch.setattr(
                "common.training.loop._optimizer", lambda m, s: SGD(m.parameters(), s.learning_rate, s.momentum)
            )
            yield lambda each: each.to(DEVICE)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
