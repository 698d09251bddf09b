"""A pass of a network that waits before each call of some layers, so that their weights can change in between."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.network.inputs import for_one_pass
from common.network.modes import hooked
from common.network.state import Attributes


class Waiting(NamedTuple):
    """The call before which a pass waits.

    Attributes:
        name: of the layer.
        given: the positional arguments of the call.
        named: its keyword arguments.
    """

    name: str
    given: tuple[Tensor, ...]
    named: Mapping[str, Tensor]


class PausedPass:
    """One pass of a network over one batch, which runs only while :meth:`advance` is being called.

    A pass holds the tensors that its network needs later, and the locks and settings that the network has taken, for
    as long as it waits. So nothing else may run the network meanwhile. The pass runs in a thread of its own, but never
    at the same time as its caller. Use it in a ``with`` block: at the end of it, the pass is given up.

    Args:
        model: the network, in evaluation mode and on the CPU. The pass computes no gradients.
        x: the batch.
        layers: the modules before which it waits, by name.

    Attributes:
        waiting: the call before which the pass waits; None before :meth:`advance` and after the pass.
    """

    def __init__(self, model: nn.Module, x: Tensor, layers: Mapping[str, nn.Module]) -> None:
        self.waiting: Waiting | None = None
        self._layers = layers
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._over = self._given_up = False
        self._error: BaseException | None = None
        run = partial(self._run, model, x)
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)

    def __enter__(self) -> PausedPass:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.give_up()

    def give_up(self) -> None:
        """End the pass where it waits."""
        if self._over or self._given_up:
            return
        self._given_up = True
        if self._thread.ident is not None:
            self._go.release()
            self._thread.join()
        self.waiting = None

    def advance(self) -> Waiting | None:
        """Run to the next call of one of the layers; return it, or None at the end of the pass.

        Raises:
            Exception: what the network raised.
        """
        if self._over:
            return None
        if self._thread.ident is None:
            self._thread.start()
        self.waiting = None
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error
        return self.waiting

    def _run(self, model: nn.Module, x: Tensor) -> None:
        """Run the whole pass, in its thread; whether gradients are computed is a setting of each thread."""
        self._go.acquire()
        attributes = Attributes(model)
        try:
            if not self._given_up:
                with torch.no_grad(), hooked(self._hooks()):
                    model(for_one_pass(x))
        except _GivenUp:
            attributes.restore()
        except BaseException as error:  # advance() raises it
            self._error = error
        finally:
            self._over = True
            self._stopped.release()

    def _hooks(self) -> list[torch.utils.hooks.RemovableHandle]:
        return [
            module.register_forward_pre_hook(partial(self._wait, name), with_kwargs=True)
            for name, module in self._layers.items()
        ]

    def _wait(self, name: str, _: nn.Module, given: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        """Let the caller go on and wait for it, as a forward pre-hook; ignore the calls of other passes."""
        if threading.current_thread() is not self._thread:
            return
        if self._given_up:  # the network caught the error
            raise _GivenUp
        self.waiting = Waiting(name, given, named)
        self._stopped.release()
        self._go.acquire()
        if self._given_up:
            raise _GivenUp


class _GivenUp(BaseException):
    """The rest of the pass is not needed. No network's ``except Exception`` catches it."""
