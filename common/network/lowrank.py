"""The module that takes a factored layer's place and answers like the layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from common.network.effective import EffectiveLayer, Layer
from common.network.held import OF_EVERY_MODULE
from common.network.weights import product

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_ATTRIBUTES = (
    "dtype",
    "device",
    "shape",
    "ndim",
    "layout",
    "requires_grad",
    "is_cuda",
    "is_meta",
    "nbytes",
    "itemsize",
)
_METHODS = ("dim", "size", "numel", "stride", "is_floating_point", "is_complex", "element_size", "__len__")
_DESCRIBES = frozenset((*_METHODS, *(f"{name}.__get__" for name in _ATTRIBUTES)))
"""What a product can be asked without being multiplied out."""


class LowRank(nn.Module):
    """Mixed into the class of the layer that it stands in for: ``isinstance(m, nn.Conv2d)`` holds for both.

    The factors are its children ``0``, ``1``, ... and run one after the other; ``planned`` is their plan. All that the
    layer's attributes say (``in_channels``, ``stride``, ...) it says too. ``weight`` is what the factors multiply out
    to, on request; ``bias`` is that of the last factor. Hooks of the layer are its hooks.
    """

    stands_for: ClassVar[type[nn.Module]]
    planned: Any

    @property
    def factors(self) -> tuple[Layer, ...]:
        """The layers that run, in the order in which the input meets them; a merged one leaves an ``Identity``."""
        found = (module for name, module in self._modules.items() if name != "front")
        return tuple(cast(Layer, module) for module in found if not isinstance(module, nn.Identity))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """That of the layer's weight."""
        first, last = self.factors[0], self.factors[-1]
        if isinstance(first, nn.Linear) or isinstance(last, nn.Linear):
            return (last.weight.shape[0], first.weight.shape[1])
        kernel = [
            math.prod(sides) for sides in zip(*(factor.weight.shape[2:] for factor in self.factors), strict=True)
        ]
        inputs, outputs, groups = first.in_channels, last.out_channels, first.groups
        if any(isinstance(factor, nn.ConvTranspose2d) for factor in self.factors):
            return (inputs, outputs // groups, *kernel)
        return (outputs, inputs // groups, *kernel)

    @property
    def weight(self) -> Tensor:
        """The weight that the factors stand for, in the layer's shape; it is read only."""
        return ProductWeight(self)

    @property
    def bias(self) -> Tensor | None:
        """That of the last factor."""
        return self.factors[-1].bias

    def forward(self, input: Tensor) -> Tensor:
        """What the layer would put out, by way of its factors."""
        for module in self.children():
            input = module(input)
        return input

    def extra_repr(self) -> str:
        """The factors are shown below it."""
        return ""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Classes made at run time are found again by the class that they stand in for."""
        return _empty, (self.stands_for,), self.__dict__

    def __prepare_scriptable__(self) -> nn.Sequential:
        """What TorchScript compiles."""
        return nn.Sequential(*self.children())


_CLASSES: dict[type[nn.Module], type[LowRank]] = {}


def _standing_in_for(cls: type[nn.Module]) -> type[LowRank]:
    if cls not in _CLASSES:
        described = {"__module__": __name__, "__doc__": LowRank.__doc__, "stands_for": cls}
        _CLASSES[cls] = type(f"LowRank{cls.__name__}", (LowRank, cls), described)
    return _CLASSES[cls]


def _empty(cls: type[nn.Module]) -> LowRank:
    kind = _standing_in_for(cls)
    return kind.__new__(kind)


def stand_in(
    layer: nn.Module, effective: EffectiveLayer, factors: Sequence[nn.Module], planned: object = None
) -> LowRank:
    """A module that takes ``layer``'s place: it runs ``factors`` and answers like the layer.

    Args:
        layer: its attributes and hooks are taken over, its parameters and buffers are not.
        effective: what the layer computes; its padding runs first.
        factors: in the order in which the input meets them.
        planned: the plan of the layer, which is kept for files.
    """
    made = _empty(type(layer))
    nn.Module.__init__(made)
    made.__dict__.update({name: value for name, value in vars(layer).items() if name not in OF_EVERY_MODULE})
    for name in _HOOKS:
        made.__dict__[name] = vars(layer)[name]
    made.__dict__["planned"] = planned
    if effective.front is not None:
        made.add_module("front", effective.front)
    for index, factor in enumerate(factors):
        made.add_module(str(index), factor)
    made.training = layer.training
    return made


class ProductWeight(Tensor):
    """The weight of a factored layer: shape, dtype and device are known; any operation multiplies it out first."""

    _layer: LowRank

    @staticmethod
    def __new__(cls: type[ProductWeight], layer: LowRank) -> ProductWeight:
        """A tensor without memory of its own."""
        first = layer.factors[0].get_parameter("weight")
        made: ProductWeight = Tensor._make_wrapper_subclass(
            cls, layer.weight_shape, dtype=first.dtype, device=first.device, requires_grad=first.requires_grad
        )
        made._layer = layer
        return made

    def __init__(self, layer: LowRank) -> None:
        """Nothing is left to do."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Descriptions are answered; what would change the weight is refused; all else sees the product."""
        name = func.__name__
        if name in ("__get__", "__set__"):
            name = f"{getattr(func, '__self__').__name__}.{name}"  # noqa: B009 - the descriptor of an attribute
        if name in _DESCRIBES:
            return super().__torch_function__(func, types, args, kwargs or {})
        if name == "data.__get__":
            return args[0]  # what is written into it would be lost
        changes = name.endswith(".__set__") or name == "__setitem__" or (name.endswith("_") and name[-2] != "_")
        if changes and args and isinstance(args[0], ProductWeight):
            raise RuntimeError(
                "the weight of a factored layer is a product and cannot be changed; change the weights of its factors"
            )
        return func(*_multiplied_out(args), **_multiplied_out(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch declares it a plain function
        cls, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """As above, for what reaches the operators past ``__torch_function__``."""
        return func(*_multiplied_out(args), **_multiplied_out(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """As that of the product."""
        return repr(_multiplied_out(self))


def _multiplied_out(values: Any) -> Any:
    return tree_map_only(ProductWeight, lambda weight: product(weight._layer.factors), values)
