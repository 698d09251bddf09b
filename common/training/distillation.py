"""Learning from a teacher: from what it puts out, and from the features inside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.network.modes import evaluating
from common.network.outputs import single_tensor


class Teacher:
    """A network whose outputs, and the outputs of some of its modules, another one is to approach.

    Args:
        teacher: asked in evaluation mode, and left in the mode that it was in; its weights get no gradient.
        student: takes the same inputs.
        temperature: that softens both outputs.
        features: names of modules that both networks have, whose outputs are compared as well.

    Raises:
        ValueError: one of the networks has no module of such a name.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, temperature: float, features: Sequence[str]) -> None:
        for network in (teacher, student):
            check_features(network, features)
        self._network, self._temperature = teacher, temperature
        self._taught: dict[str, Tensor] = {}
        self._learnt: dict[str, Tensor] = {}
        self._handles = [
            network.get_submodule(name).register_forward_hook(_keeper(outputs, name))
            for network, outputs in ((teacher, self._taught), (student, self._learnt))
            for name in features
        ]

    def loss(self, inputs: Tensor, logits: Tensor) -> Tensor:
        """How far the student, whose ``logits`` were just computed from ``inputs``, is from the teacher.

        Raises:
            ValueError: the teacher does not return one tensor, or one of another shape than the student's, or the
                same holds for a feature.
        """
        with torch.no_grad(), evaluating(self._network):
            taught = single_tensor(self._network(inputs), "the teacher").float()
        _check_same_shape("outputs", logits, taught)
        loss = distillation_loss(logits, taught, self._temperature)
        if not self._taught:
            return loss
        for name in self._taught:
            _check_same_shape(f"features={name!r}", self._learnt[name], self._taught[name])
        return (
            loss + torch.stack([feature_loss(self._learnt[name], self._taught[name]) for name in self._taught]).mean()
        )

    def close(self) -> None:
        """Stop listening to both networks."""
        for handle in self._handles:
            handle.remove()


def check_features(network: nn.Module, features: Sequence[str]) -> None:
    """Do nothing where ``network`` has a module of each of these names.

    Raises:
        ValueError: it has not.
    """
    modules = dict(network.named_modules())
    for name in features:
        if name not in modules:
            raise ValueError(f"features={name!r}: the network has no module of this name")


def _keeper(outputs: dict[str, Tensor], name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def keep(module: nn.Module, inputs: object, output: object) -> None:
        outputs[name] = single_tensor(output, f"features={name!r}: the module")

    return keep


def _check_same_shape(what: str, learnt: Tensor, taught: Tensor) -> None:
    if learnt.shape != taught.shape:
        raise ValueError(
            f"{what}: the network's have the shape {tuple(learnt.shape)} and the teacher's {tuple(taught.shape)}; "
            "they must be the same"
        )


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened classes, times T^2 (Hinton, Vinyals and Dean 2015).

    Args:
        logits: the student's, ``(N, classes)`` for one class an image, ``(N, K, H, W)`` for K masks.
        taught: the teacher's, of the same shape.
        temperature: T, which divides both.

    Returns:
        The mean over the images; for masks over their pixels, each of them two classes.
    """
    student, target = logits / temperature, taught / temperature
    if logits.dim() == 4:
        chances = target.sigmoid()
        cross, own = (nn.functional.binary_cross_entropy_with_logits(side, chances) for side in (student, target))
        return (cross - own) * temperature**2
    divergence = nn.functional.kl_div(
        student.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True
    )
    return divergence * temperature**2


def feature_loss(learnt: Tensor, taught: Tensor) -> Tensor:
    """Squared distance of two feature maps of one shape, over the teacher's own variance (FitNets, Romero 2015)."""
    learnt, taught = learnt.float(), taught.float()
    return (learnt - taught).square().mean() / taught.var(correction=0).clamp(min=1e-12)
