"""Observe a pass of an example: which module takes the output of which module, and what else uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from common.deploy.parity import tensors
from common.network.inputs import for_one_pass
from common.network.modes import hooked

_PASSIVE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


@dataclass(frozen=True)
class Link:
    """Two modules, of which the second is expected to take the whole output of the first.

    Attributes:
        first, second: the modules.
        part: the module whose graph links the two. The link holds only while this module runs.
    """

    first: nn.Module
    second: nn.Module
    part: nn.Module


def is_passive(module: nn.Module) -> bool:
    """Whether ``module`` is a module of PyTorch that returns its input unchanged in its current mode."""
    return type(module) in _PASSIVE and not module.training and not is_altered(module)


def is_altered(module: nn.Module) -> bool:
    """Whether hooks or a ``forward`` of this instance may change what its class computes."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def confirmed(model: nn.Module, found: Sequence[Link], x: Tensor) -> list[Link]:
    """Return the links that a pass of ``x`` confirms: nothing but the second module uses the outputs of the first."""
    watch = _Watch(found)
    try:
        with hooked(watch.hooks(model)), watch:
            output = model(for_one_pass(x))
    except Exception:  # a forward may raise anything, e.g. in its second pass; then nothing is confirmed
        return []
    watch.end(model, output)
    return [link for link in found if link.first in watch.called and link.first not in watch.refuted]


@dataclass
class _Output:
    """An output of a first module: the module, the tensor's version, and whether the second module has taken it."""

    maker: nn.Module
    tensor: Tensor
    version: int
    taken: bool = False


class _Watch(TorchFunctionMode):
    """Follows the outputs of the first modules of some links through a pass."""

    def __init__(self, found: Sequence[Link]) -> None:
        super().__init__()
        self.called: set[nn.Module] = set()
        self.refuted: set[nn.Module] = set()
        self._by_first = {link.first: link for link in found}
        self._by_second = {link.second: link for link in found}
        self._parts = {link.part for link in found}
        self._outputs: dict[int, _Output] = {}  # by id; holding the tensors keeps the ids unique
        self._passive: set[nn.Module] = set()
        self._running: list[nn.Module] = []
        self._passing: list[int | None] = []  # id of the output that each running module may use

    def hooks(self, model: nn.Module) -> list[RemovableHandle]:
        """Register hooks on all modules that matter to the links."""
        self._passive = {module for module in model.modules() if is_passive(module)}
        handles = []
        for module in self._passive.union(self._parts, self._by_first, self._by_second):
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        return handles

    def end(self, model: nn.Module, output: object) -> None:
        """Refute each link whose output the second module did not take, or which the network returns or stores."""
        kept = {id(tensor) for tensor in tensors(output)}
        for module in model.modules():
            kept |= {id(tensor) for tensor in tensors(vars(module))}
        self.refuted |= {made.maker for key, made in self._outputs.items() if not made.taken or key in kept}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in tensors((args, kwargs or {})):
            made = self._outputs.get(id(tensor))
            if made is not None and self._passing[-1:] != [id(tensor)]:
                self.refuted.add(made.maker)
        return func(*args, **(kwargs or {}))

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a module runs, note that the second module of a link takes the output of the first."""
        given = args[0] if len(args) == 1 and not kwargs else None
        if (link := self._by_second.get(module)) is not None:
            self._take(link.first, given)
        if (link := self._by_first.get(module)) is not None:
            self.called.add(module)
            if link.part not in self._running:
                self.refuted.add(module)
        passes = module in self._by_second or module in self._passive
        self._running.append(module)
        self._passing.append(id(given) if passes else None)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """After a module has run, note the output of the first module of a link."""
        self._running.pop()
        self._passing.pop()
        if module in self._by_first:
            self._make(module, output)

    def _make(self, maker: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and id(output) not in self._outputs:
            self._outputs[id(output)] = _Output(maker, output, _version(output))
        else:
            self.refuted.add(maker)

    def _take(self, maker: nn.Module, given: object) -> None:
        made = self._outputs.get(id(given))
        if made is None or made.maker is not maker or made.taken or _version(made.tensor) != made.version:
            self.refuted.add(maker)
        else:
            made.taken = True


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to; 0 for an inference tensor, which does not count its writes."""
    with torch._C.DisableTorchFunction():
        return 0 if tensor.is_inference() else tensor._version
