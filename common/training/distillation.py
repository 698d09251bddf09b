"""Distillation: learn from a teacher's outputs, and from the features inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from common.data import Task
from common.network.modes import evaluating
from common.network.outputs import single_tensor


class Teacher:
    """A network whose outputs, and the outputs of some of its modules, a student approaches.

    Args:
        teacher: is evaluated in evaluation mode and keeps its own mode; its weights get no gradient.
        student: takes the same inputs.
        task: of both networks; it gives the distance between their outputs.
        temperature: softens both outputs.
        features: names of modules of both networks whose outputs are compared as well.

    Raises:
        ValueError: one of the networks has no module of such a name.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, task: Task, temperature: float, features: Sequence[str]
    ) -> None:
        for network in (teacher, student):
            check_features(network, features)
        self._network, self._task, self._temperature = teacher, task, temperature
        self._taught: dict[str, Tensor] = {}
        self._learnt: dict[str, Tensor] = {}
        self._handles = [
            network.get_submodule(name).register_forward_hook(_storing(outputs, name))
            for network, outputs in ((teacher, self._taught), (student, self._learnt))
            for name in features
        ]

    def loss(self, inputs: Tensor, logits: Tensor) -> Tensor:
        """Return the distance of the student from the teacher, a scalar.

        Args:
            inputs: of a batch.
            logits: that the student has just computed from them.

        Raises:
            ValueError: the teacher does not return one tensor, or its outputs or features have another shape than the
                student's.
        """
        with torch.no_grad(), evaluating(self._network):
            taught = single_tensor(self._network(inputs), "the teacher").float()
        _check_same_shape("outputs", logits, taught)
        loss = self._task.distillation_loss(logits, taught, self._temperature)
        if not self._taught:
            return loss
        for name in self._taught:
            _check_same_shape(f"features={name!r}", self._learnt[name], self._taught[name])
        return (
            loss + torch.stack([feature_loss(self._learnt[name], self._taught[name]) for name in self._taught]).mean()
        )

    def close(self) -> None:
        """Remove the hooks from both networks."""
        for handle in self._handles:
            handle.remove()


def check_features(network: nn.Module, features: Sequence[str]) -> None:
    """Raise a ValueError unless ``network`` has a module of each of these names."""
    modules = dict(network.named_modules())
    for name in features:
        if name not in modules:
            raise ValueError(f"features={name!r}: the network has no module of this name")


def _storing(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, object], None]:
    """Return a forward hook that stores a module's output under ``name``."""

    def store(module: nn.Module, inputs: object, output: object) -> None:
        outputs[name] = single_tensor(output, f"features={name!r}: the module")

    return store


def _check_same_shape(what: str, learnt: Tensor, taught: Tensor) -> None:
    """Raise a ValueError unless student and teacher have the same shape."""
    if learnt.shape != taught.shape:
        raise ValueError(
            f"{what}: the network's have the shape {tuple(learnt.shape)} and the teacher's {tuple(taught.shape)}; "
            "they must be the same"
        )


def feature_loss(learnt: Tensor, taught: Tensor) -> Tensor:
    """Squared distance of two feature maps of one shape, over the teacher's own variance (FitNets, Romero 2015)."""
    learnt, taught = learnt.float(), taught.float()
    return (learnt - taught).square().mean() / taught.var(correction=0).clamp(min=1e-12)
