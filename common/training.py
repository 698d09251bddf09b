"""The one training loop; fine-tuning is training with other settings."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from common.calibration import recalibrate_bn
from common.data.bundle import DataBundle, Loader
from common.metrics import evaluate
from common.progress import track

EpochLog = dict[str, float]


@dataclass(frozen=True, config=ConfigDict(strict=True))
class TrainingSettings:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split; a fraction stops inside one.
        learning_rate: the peak of the one-cycle schedule.
        momentum, weight_decay: of SGD with Nesterov's momentum.
        label_smoothing: mass spread over all classes, in [0, 1).
        distillation: weight in [0, 1] of the teacher's softened logits against the labels, when there is a teacher.
        temperature: that softens both networks' logits for distillation.
        patience: stop after so many epochs without a better validation metric; None never stops early.
        recalibrate: measure BatchNorm's statistics anew on the calibration split before each evaluation. The moving
            averages of a short training lag behind its weights.
        amp: bfloat16 autocast; ``auto`` uses it where the processor or GPU has bfloat16 arithmetic.
        seed: of the order of the images and of dropout.
    """

    epochs: Annotated[float, Field(gt=0)] = 2.0
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 2.0
    patience: Annotated[int, Field(ge=1)] | None = None
    recalibrate: bool = True
    amp: Literal["auto", "on", "off"] = "auto"
    seed: int = 0


def train(
    model: nn.Module,
    data: DataBundle,
    settings: TrainingSettings | None = None,
    *,
    teacher: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    description: str = "training",
    on_epoch: Callable[[EpochLog], None] | None = None,
) -> list[EpochLog]:
    """Train ``model`` in place and leave it with the weights of its best epoch by accuracy on validation.

    Args:
        model: the network, on the device it is to be trained on.
        data: its ``train`` and ``validation`` splits are used.
        settings: how; None for the defaults.
        teacher: a network whose logits are distilled into ``model``; it is put in evaluation mode.
        checkpoint: file that is written after every epoch. When it is there already, training goes on from it, to
            the same result as without the interruption.
        description: what the progress bar says.
        on_epoch: is called with each epoch's entry of the history as it ends.

    Returns:
        An entry an epoch: ``epoch`` (in passes over the data), ``train_loss``, ``learning_rate``, ``loss`` and
        ``accuracy`` on validation, and the ``seconds`` it took.

    Raises:
        ValueError: the checkpoint is one of other settings or data, or the training split gives no batch.
        FloatingPointError: the loss is no longer finite.
    """
    settings = settings or TrainingSettings()
    if not len(data.train):
        raise ValueError("the training split gives no batch; use a smaller batch_size or a larger limit")
    torch.manual_seed(settings.seed)
    if teacher is not None:
        teacher.eval()
    run = _Run(model, teacher, settings, data)
    path = Path(checkpoint) if checkpoint else None
    if path and path.exists():
        run.restore(path)
    while run.step < run.steps and not run.out_of_patience():
        data.shuffle(settings.seed + len(run.history))
        start = time.perf_counter()
        loss = run.train_epoch(data.train, description)
        if settings.recalibrate:
            recalibrate_bn(model, data.calibration)
        passes, rate = run.step / len(data.train), float(run.schedule.get_last_lr()[0])
        entry = {"epoch": passes, "train_loss": loss, "learning_rate": rate, **evaluate(model, data.validation)}
        run.log({**entry, "seconds": time.perf_counter() - start})
        if on_epoch:
            on_epoch(run.history[-1])
        if path:
            run.save(path)
    model.load_state_dict(run.best_weights)
    return run.history


class _Run:
    """A training under way: all that its checkpoint has to hold."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, data: DataBundle
    ) -> None:
        self.model, self.teacher, self.settings = model, teacher, settings
        self.steps = max(1, round(settings.epochs * len(data.train)))
        self.conditions = {
            **dataclasses.asdict(settings),
            "dataset": data.name,
            "image_size": data.image_size,
            "batches": len(data.train),
        }
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            settings.learning_rate,
            settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, settings.learning_rate, total_steps=max(self.steps, 2), cycle_momentum=False
        )
        self.step = 0
        self.history: list[EpochLog] = []
        self.best_weights: dict[str, Tensor] = {}

    def train_epoch(self, batches: Loader, description: str) -> float:
        """One pass over the batches, or what is left of the steps; returns the mean loss."""
        self.model.train()
        count = min(self.steps - self.step, len(batches))
        total = 0.0
        bar = track(itertools.islice(batches, count), description, unit="batch", total=count)
        for done, (inputs, targets) in enumerate(bar, start=1):
            loss = self._loss(inputs.to(self.device), targets.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            total += loss.item()
            if not math.isfinite(total):
                rate = self.settings.learning_rate
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {self.step}; learning_rate={rate} is too high"
                )
            bar.set_postfix(loss=f"{total / done:.3f}", refresh=False)
        return total / count

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        settings = self.settings
        amp = uses_bfloat16(settings.amp, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=amp):
            logits = self.model(inputs).float()
        loss = nn.functional.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=amp):
            taught = self.teacher(inputs).float()
        distilled = distillation_loss(logits, taught, settings.temperature)
        return (1 - settings.distillation) * loss + settings.distillation * distilled

    def log(self, entry: EpochLog) -> None:
        """Add an epoch to the history, and keep the weights when they are the best so far."""
        if entry["accuracy"] > max((past["accuracy"] for past in self.history), default=-math.inf):
            self.best_weights = copy.deepcopy(self.model.state_dict())
        self.history.append(entry)

    def out_of_patience(self) -> bool:
        """Whether so many epochs passed without a better accuracy that training is to stop."""
        accuracies = [entry["accuracy"] for entry in self.history]
        if self.settings.patience is None or not accuracies:
            return False
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= self.settings.patience

    def save(self, path: Path) -> None:
        """Write the checkpoint; a kill while writing leaves the one before it."""
        values = {
            "conditions": self.conditions,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "history": self.history,
            "best_weights": self.best_weights,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        partial = path.with_name(path.name + ".partial")
        torch.save(values, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it was written under other settings.
        """
        values = torch.load(path, map_location=self.device, weights_only=True)
        if values["conditions"] != self.conditions:
            changed = ", ".join(n for n, value in self.conditions.items() if values["conditions"].get(n) != value)
            raise ValueError(f"{path} was written under other settings ({changed}); delete it to start anew")
        self.model.load_state_dict(values["model"])
        self.optimizer.load_state_dict(values["optimizer"])
        self.schedule.load_state_dict(values["schedule"])
        self.step, self.history, self.best_weights = values["step"], values["history"], values["best_weights"]
        torch.set_rng_state(values["rng"].cpu())
        if values["cuda_rng"]:
            torch.cuda.set_rng_state_all([state.cpu() for state in values["cuda_rng"]])


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened classes, times T^2 (Hinton, Vinyals and Dean 2015).

    Args:
        logits: the student's, ``(N, classes)``.
        taught: the teacher's, ``(N, classes)``.
        temperature: T, which divides both.
    """
    student = (logits / temperature).log_softmax(1)
    target = (taught / temperature).log_softmax(1)
    return nn.functional.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def uses_bfloat16(amp: str, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast; ``auto`` asks the hardware."""
    if amp != "auto":
        return amp == "on"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # an older torch has none: no autocast there
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
