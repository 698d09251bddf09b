"""``LowRank``: the module that replaces a factored layer and has the layer's class, attributes and hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from common.network.effective import EffectiveLayer
from common.network.held import OF_EVERY_MODULE
from common.network.kinds import FactorableLayer, TransposedConvolution
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
_OF_PLAIN_MODULES = (
    "__setattr__",
    "__delattr__",
    "__setstate__",
    "_apply",
    "_load_from_state_dict",
    "_save_to_state_dict",
    "_named_members",
    "state_dict",
    "load_state_dict",
    "parameters",
    "named_parameters",
    "buffers",
    "named_buffers",
    "children",
    "named_children",
    "modules",
    "named_modules",
    "requires_grad_",
    "zero_grad",
)
"""Methods that look at what a module holds. Those of a replaced layer's class may expect its weight and bias."""
_DESCRIPTIVE_ATTRIBUTES = (
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
_DESCRIPTIVE_METHODS = ("dim", "size", "numel", "stride", "is_floating_point", "is_complex", "element_size", "__len__")
_DESCRIPTIVE_FUNCTIONS = frozenset((*_DESCRIPTIVE_METHODS, *(f"{name}.__get__" for name in _DESCRIPTIVE_ATTRIBUTES)))
"""Functions of a ``ProductWeight`` that need only its shape, dtype or device, and do not compute the product."""


class LowRank(nn.Module):
    """Base of the modules that replace factored layers.

    The module also inherits from the class of the layer that it replaces, so that ``isinstance(m, nn.Conv2d)`` holds
    for both. It has the layer's attributes (``in_channels``, ``stride``, ...) and hooks. The factors are its children
    ``0``, ``1``, ..., which run in this order.

    Attributes:
        stands_for: class of the replaced layer.
        planned: plan of the layer, a ``LayerPlan``.
    """

    stands_for: ClassVar[type[nn.Module]]
    planned: Any
    __deepcopy__ = None
    """A copy is made as of any module, not by a method of the replaced layer's class."""

    def __init_subclass__(cls, **arguments: object) -> None:
        """Do not call the method of the replaced layer's class, which may want arguments or keep a register."""

    @property
    def factors(self) -> tuple[FactorableLayer, ...]:
        """The layers that run, in order. The ``Identity`` that a merged factor leaves behind is not among them."""
        found = (module for name, module in self._modules.items() if name != "front")
        return tuple(cast(FactorableLayer, module) for module in found if not isinstance(module, nn.Identity))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the replaced layer's weight."""
        first, last = self.factors[0], self.factors[-1]
        if isinstance(first, nn.Linear) or isinstance(last, nn.Linear):
            return (last.weight.shape[0], first.weight.shape[1])
        kernel = [
            math.prod(sides) for sides in zip(*(factor.weight.shape[2:] for factor in self.factors), strict=True)
        ]
        inputs, outputs, groups = first.in_channels, last.out_channels, first.groups
        if any(isinstance(factor, TransposedConvolution) for factor in self.factors):
            return (inputs, outputs // groups, *kernel)
        return (outputs, inputs // groups, *kernel)

    @property
    def weight(self) -> Tensor:
        """Product of the factors in the shape of the replaced layer's weight, computed on request. It is read-only."""
        return ProductWeight(self)

    @property
    def bias(self) -> Tensor | None:
        """Bias of the last factor."""
        return self.factors[-1].bias

    def forward(self, input: Tensor) -> Tensor:
        """Run the padding, if any, and the factors."""
        for module in self.children():
            input = module(input)
        return input

    def extra_repr(self) -> str:
        """Return nothing: ``print`` lists the factors as children."""
        return ""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by the class of the replaced layer, because the module's own class is created at run time."""
        return _empty, (self.stands_for,), self.__dict__

    def __prepare_scriptable__(self) -> nn.Sequential:
        """Return the module that TorchScript compiles in place of this one."""
        return nn.Sequential(*self.children())


_CLASSES: dict[type[nn.Module], type[LowRank]] = {}


def _low_rank_class(cls: type[nn.Module]) -> type[LowRank]:
    """Return the subclass of ``LowRank`` that replaces layers of class ``cls``; create it on first use."""
    if cls not in _CLASSES:
        described = {"__module__": __name__, "__doc__": LowRank.__doc__, "stands_for": cls}
        described |= {name: getattr(nn.Module, name) for name in _OF_PLAIN_MODULES}
        _CLASSES[cls] = type(f"LowRank{cls.__name__}", (LowRank, cls), described)
    return _CLASSES[cls]


def _empty(cls: type[nn.Module]) -> LowRank:
    """Create an uninitialised replacement for a layer of class ``cls``. Pickles refer to this function by name."""
    kind = _low_rank_class(cls)
    return object.__new__(kind)


def stand_in(
    layer: nn.Module, effective: EffectiveLayer, factors: Sequence[nn.Module], planned: object = None
) -> LowRank:
    """Create the module that replaces ``layer`` and runs ``factors`` instead.

    Args:
        layer: the layer to replace. The new module takes over its attributes and hooks. Of its parameters and buffers
            it takes those besides weight and bias, if the layer computes what a plain one does, which reads neither.
        effective: what the layer computes. Its padding runs before the factors.
        factors: the factors, in the order in which they run.
        planned: plan of the layer, which ``save_compressed`` writes.
    """
    made = _empty(type(layer))
    nn.Module.__init__(made)
    made.__dict__.update({name: value for name, value in vars(layer).items() if name not in OF_EVERY_MODULE})
    for name in _HOOKS:
        made.__dict__[name] = vars(layer)[name]
    made.__dict__["planned"] = planned
    if type(effective.layer) is type(layer):
        for name, parameter in layer._parameters.items():
            if name not in ("weight", "bias"):
                made.register_parameter(name, parameter)
        for name, buffer in layer._buffers.items():
            made.register_buffer(name, buffer, name not in layer._non_persistent_buffers_set)
    if effective.front is not None:
        made.add_module("front", effective.front)
    for index, factor in enumerate(factors):
        made.add_module(str(index), factor)
    made.training = layer.training
    return made


class ProductWeight(Tensor):
    """Weight of a factored layer.

    Its shape, dtype and device are known. Any other operation computes the product of the factors first.
    """

    _layer: LowRank

    @staticmethod
    def __new__(cls: type[ProductWeight], layer: LowRank) -> ProductWeight:
        """Create a tensor that has no memory of its own."""
        first = layer.factors[0].get_parameter("weight")
        made: ProductWeight = Tensor._make_wrapper_subclass(
            cls, layer.weight_shape, dtype=first.dtype, device=first.device, requires_grad=first.requires_grad
        )
        made._layer = layer
        return made

    def __init__(self, layer: LowRank) -> None:
        """Do nothing; ``__new__`` sets everything."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer questions about shape and type, refuse changes in place, and apply other functions to the product."""
        name = func.__name__
        if name in ("__get__", "__set__"):
            name = f"{getattr(func, '__self__').__name__}.{name}"  # noqa: B009 - the descriptor of an attribute
        if name in _DESCRIPTIVE_FUNCTIONS:
            return super().__torch_function__(func, types, args, kwargs or {})
        if name == "data.__get__":
            return args[0]  # writes to a computed product would be lost
        changes = name.endswith(".__set__") or name == "__setitem__" or (name.endswith("_") and name[-2] != "_")
        if changes and args and isinstance(args[0], ProductWeight):
            raise RuntimeError(
                "the weight of a factored layer is a product and cannot be changed; change the factors' weights"
            )
        return func(*_with_products(args), **_with_products(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch declares it a plain function
        cls, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute the product for operators that bypass ``__torch_function__``."""
        return func(*_with_products(args), **_with_products(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return the text of the product."""
        return repr(_with_products(self))


def _with_products(values: Any) -> Any:
    """Replace every ``ProductWeight`` in nested ``values`` by its product."""
    return tree_map_only(ProductWeight, lambda weight: product(weight._layer.factors), values)
