"""``torch.compile``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from common.latency.runtimes.base import RUNTIMES, Runtime, repeated_call


class Compile(Runtime):
    """The network is compiled for the shape of ``x``, with its weights frozen.

    Anything that this process compiled before is forgotten. The compiler fuses operations, so no operation can be
    timed in isolation.
    """

    name = "compile"
    title = "torch.compile"

    def check(self, device: torch.device) -> None:
        """Do nothing if the compiler works.

        Raises:
            RuntimeError: there is no C++ compiler.
        """
        # The compiler takes long to import.
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise RuntimeError(
                f"runtime={self.name!r}: torch.compile needs a C++ compiler and finds none; install g++ or name one "
                "in CXX"
            ) from error

    def serving(self, networks: Sequence[nn.Module]) -> AbstractContextManager[object]:
        """Settings under which every network is compiled, even if all are of one class, or fails."""
        from torch._dynamo import config  # the compiler takes long to import

        torch.compiler.reset()
        settings: AbstractContextManager[object] = config.patch(
            recompile_limit=8 * len(networks), fail_on_recompile_limit_hit=True
        )
        return settings

    def passing(self) -> AbstractContextManager[object]:
        """``no_grad``: in inference mode Dynamo cannot guard the arrays that TensorLy-Torch's layers hold."""
        return torch.no_grad()

    def prepare(self, model: nn.Module, x: Tensor) -> Callable[[], object]:
        """A call of the compiled network, made once already."""
        with warnings.catch_warnings(), self.passing():
            warnings.simplefilter("ignore")  # the compiler warns about itself
            return repeated_call(torch.compile(model, dynamic=False, options={"freezing": True}), x)


RUNTIMES.add(Compile())
