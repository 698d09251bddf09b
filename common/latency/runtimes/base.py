"""What every runtime offers, and the registry of all runtimes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from common.decomposition import Floats
from common.latency.operations import Operation
from common.network.inputs import for_one_pass
from common.validation import Registry, check_choice

WARM_UP = 1
"""First runs of operations, which are not counted."""
FEWEST_RUNS = 1
"""Counted runs of operations, however slow they are."""
LONGEST_S = 0.2
"""Seconds after which no further run begins."""


class Runtime(ABC):
    """A way to run a network. A subclass needs ``name``, ``title`` and :meth:`prepare`; the rest has defaults.

    Attributes:
        name: what callers ask for, e.g. ``channels_last``.
        title: what records and reports call it, e.g. ``PyTorch channels_last``.
        merges_factors: whether a network runs with its BatchNorm folded and its factors merged where that needs fewer
            MACs, see :mod:`common.deploy.merging`.
    """

    name: str
    title: str
    merges_factors: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}()"  # one class is one runtime

    @property
    def version(self) -> str:
        """Version of the software that runs the network."""
        return torch.__version__

    def check(self, device: torch.device) -> None:  # noqa: B027 (most runtimes run anywhere)
        """Raise unless networks on ``device`` can run here.

        Raises:
            ValueError: the runtime cannot use the device.
            RuntimeError: the runtime needs something that is not installed.
        """

    def accept(self, networks: Sequence[nn.Module], x: Tensor) -> Tensor:
        """Return ``x`` as the batch that will pass, before any network is prepared.

        Raises:
            ValueError: the runtime does not take ``x`` or one of the networks.
        """
        return x

    def serving(self, networks: Sequence[nn.Module]) -> AbstractContextManager[object]:
        """Context that holds while these networks are prepared and run."""
        return nullcontext()

    def passing(self) -> AbstractContextManager[object]:
        """Context of every pass; it switches gradients off."""
        return torch.inference_mode()

    @abstractmethod
    def prepare(self, model: nn.Module, x: Tensor) -> Callable[[], object]:
        """Make ready what runs ``x`` through ``model``.

        Memory that is allocated here does not count in the peak of a pass.

        Args:
            model: network in evaluation mode. It stays unchanged.
            x: from :meth:`accept`.

        Returns:
            One forward pass, to be called in :meth:`passing`.
        """

    def memory_format(self, x: Tensor) -> str:
        """How ``x`` lies in memory during a pass: ``contiguous`` or ``channels_last``."""
        last = x.is_contiguous(memory_format=torch.channels_last)
        return "channels_last" if last and not x.is_contiguous() else "contiguous"  # one channel is both


class OperationRuntime(Runtime):
    """A runtime that runs one operation after the other, so the time of each can be told."""

    @abstractmethod
    def operation_seconds(self, operations: Sequence[Operation], batch: int, runs: int) -> Floats:
        """Time operations in turn, each with a bias and an input that was just written, as inside a network.

        Args:
            operations: all are held in memory together.
            batch: inputs that pass at once.
            runs: of each operation, after `WARM_UP`; see :func:`repeat`.

        Returns:
            Seconds of every run, ``(WARM_UP + runs or fewer, operations)``, those of the warm-up first.
        """

    def clock_cost(self) -> float:
        """Seconds that the clock adds to each operation."""
        return 0.0


RUNTIMES: Registry[Runtime] = Registry("runtime", lambda runtime: runtime.name)
"""Every runtime by name."""


def operation_runtimes() -> dict[str, OperationRuntime]:
    """The runtimes whose operations can be timed one by one, by name."""
    return {name: runtime for name, runtime in RUNTIMES.items() if isinstance(runtime, OperationRuntime)}


def available_runtimes(device: str = "cpu") -> list[str]:
    """Names of the runtimes that can run here. Others lack a package, a compiler or the device."""
    found = []
    for name, runtime in RUNTIMES.items():
        try:
            runtime.check(torch.device(device))
        except (ValueError, RuntimeError):
            continue
        found.append(name)
    return found


def operation_runtime(name: str) -> OperationRuntime:
    """The runtime of this name, if its operations can be timed one by one.

    Raises:
        ValueError: they cannot, or there is no such runtime; the message lists those that can.
    """
    found = operation_runtimes()
    check_choice("runtime", name, found)
    return found[name]


def repeated_call(network: Callable[[Tensor], object], x: Tensor) -> Callable[[], object]:
    """A call of the network on ``x``, made once already.

    A network that changes its input gets a copy in each call, and the time of copying counts.
    """

    def copied() -> Tensor:
        with torch.inference_mode(False):  # not every device can copy within it
            return for_one_pass(x)

    given = copied()
    network(given)
    return partial(network, x) if torch.equal(given, x) else lambda: network(copied())


def repeat(run: Callable[[], object], runs: int) -> None:
    """Run `WARM_UP` times and then ``runs`` times, but begin no run `LONGEST_S` after the first `FEWEST_RUNS`."""
    for _ in range(WARM_UP):
        run()
    start = time.perf_counter()
    for done in range(runs):
        if done >= FEWEST_RUNS and time.perf_counter() - start > LONGEST_S:
            break
        run()
