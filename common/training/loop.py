"""The one training loop; fine-tuning is training with other settings."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from common.calibration import recalibrate_bn
from common.data import TASKS, DataBundle
from common.data.normalization import remember_normalization
from common.environment import has_bfloat16
from common.files import replacing
from common.network.inputs import to_network
from common.network.outputs import training_tensor
from common.network.provenance import get_provenance
from common.planning import plan_of
from common.progress import track
from common.training import distributed
from common.training.averaging import averaged_model
from common.training.distillation import Teacher
from common.training.evaluation import evaluate
from common.training.first_pass import check_network
from common.validation import Seed

EpochLog = dict[str, float]
TRAINING_ERRORS = (FloatingPointError, MemoryError, RuntimeError)
"""Raised by a training whose loss is not finite or whose memory runs out; torch raises RuntimeErrors."""
SAME_DATA = ("batch_size", "split_seed", "limit", "augment", "normalize", "unannotated")
"""Arguments of ``load_data`` that a continued training must share with its start, beside those that name the data."""
EPOCH_STRIDE, RANK_STRIDE = 1_000_003, 7_919
"""Distance between the seeds of two epochs and of two processes; each draws independently of what came before."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class TrainingSettings:
    """How a network is trained.

    Attributes:
        epochs: number of passes over the training split; a fraction stops inside a pass.
        optimizer: ``sgd`` (with Nesterov's momentum) or ``adamw``.
        learning_rate: the peak of the one-cycle schedule, or the start of ``plateau``.
        schedule: ``one-cycle`` over all steps, or ``plateau``, which divides the rate by ten after each
            ``plateau_patience`` epochs without a better validation metric.
        momentum: of SGD.
        weight_decay: of either optimizer.
        ema: decay of an exponential moving average of the weights, in [0, 1), e.g. 0.998. The average is what is
            evaluated and returned, see :func:`common.training.averaging.averaged_model`; 0 does without.
        label_smoothing: probability mass spread over all classes, in [0, 1), see :meth:`common.data.Task.loss`.
        distillation: weight in [0, 1] of the teacher against the targets, if there is a teacher.
        temperature: softens both networks' logits for distillation.
        features: names of modules whose outputs approach the teacher's as well, e.g. ``("down.4", "merge.3")``.
        patience: stop after this many epochs without a better validation metric; None never stops early.
        recalibrate: measure BatchNorm's statistics again on the calibration split before each evaluation. In a short
            training their moving averages lag behind the weights.
        amp: bfloat16 autocast; ``auto`` uses it on a GPU that computes in bfloat16. It does not on the processor,
            where PyTorch 2.13.0 gave gradients that were at times not finite (ResNet18 at 16 pixels, AVX-512).
        seed: of the order of the images and of dropout.
    """

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    schedule: Literal["one-cycle", "plateau"] = "one-cycle"
    plateau_patience: Annotated[int, Field(ge=1)] = 3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    features: tuple[str, ...] = ()
    patience: Annotated[int, Field(ge=1)] | None = None
    recalibrate: bool = True
    amp: Literal["auto", "on", "off"] = "auto"
    seed: Seed = 0


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
    """Train ``model`` in place; leave it with the weights of the epoch whose validation metric is best.

    Under ``torchrun`` (see :func:`common.training.distributed.processes`) every process takes its part of each batch.
    The result is that of one process, except that BatchNorm, the Dice term, dropout and augmentation see only the
    process's own part.

    Args:
        model: on the device for its training.
        data: its ``train`` and ``validation`` splits are used, and ``calibration`` for BatchNorm.
        settings: how to train; None takes the defaults.
        teacher: a network that ``model`` approaches, see :class:`common.training.distillation.Teacher`.
        checkpoint: file that is written after every epoch. Where it exists, training continues from it, to the same
            result as without the interruption.
        description: title of the progress bar.
        on_epoch: is called with each epoch's entry of the history as it ends.

    Returns:
        An entry an epoch: ``epoch`` (passes over the data), ``train_loss``, ``learning_rate``, the metrics of
        :func:`common.training.evaluate` on validation, and ``seconds``.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to other settings, to another network or to other data (as
            far as their name, image size and number of batches tell); the training split gives no batch; or the
            network or its teacher cannot be trained on it, see :func:`check_network`.
        FloatingPointError: the loss is no longer finite, in training or after every epoch.
    """
    settings = settings or TrainingSettings()
    if not len(data.train):
        raise ValueError("the training split gives no batch; use a smaller batch_size or a larger limit")
    check_network(model, data)
    run = _Run(model, teacher, settings, data)
    path = Path(checkpoint) if checkpoint else None
    if path and path.exists():
        run.restore(path)
    try:
        while run.step < run.steps and not run.out_of_patience():
            data.shuffle(settings.seed + len(run.history))
            torch.manual_seed(settings.seed + EPOCH_STRIDE * len(run.history) + RANK_STRIDE * distributed.rank())
            start = time.perf_counter()
            entry = {**run.train_epoch(description), **run.validate()}
            run.log({**entry, "seconds": time.perf_counter() - start})
            if path and distributed.rank() == 0:
                run.save(path)
            if on_epoch:
                on_epoch(run.history[-1])
    finally:
        run.close()
    run.load_best_weights()
    remember_normalization(model, data.normalization)
    return run.history


class _Run:
    """A training in progress; it holds everything that goes into the checkpoint."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, data: DataBundle
    ) -> None:
        self.model, self.settings, self.data, self.task = model, settings, data, TASKS[data.task]
        self.batches = data.train_part(distributed.rank(), distributed.world_size())
        self.steps = max(1, round(settings.epochs * len(self.batches)))
        self.conditions = {
            **dataclasses.asdict(settings),
            "features": list(settings.features),
            "dataset": data.name,
            "task": data.task,
            "image_size": data.image_size,
            "batches": len(self.batches),
            "processes": distributed.world_size(),
            **{name: data.source[name] for name in SAME_DATA if name in data.source},
            **({"metric": data.metric} if data.metric != self.task.metric else {}),
            **_described(model),
        }
        self.device = next(model.parameters()).device
        self.average = averaged_model(model, settings.ema) if settings.ema else None
        self.optimizer = _optimizer(model, settings)
        self.schedule = _schedule(self.optimizer, settings, self.steps)
        self.teacher: Teacher | None = None
        if teacher:
            self.teacher = Teacher(teacher, model, self.task, settings.temperature, settings.features)
        self.parallel = distributed.parallel(model)
        self.step = 0
        self.history: list[EpochLog] = []
        self.best_weights: dict[str, Tensor] = {}

    def train_epoch(self, description: str) -> EpochLog:
        """Make one pass over the batches, or the steps that are left."""
        self.parallel.train()
        count = min(self.steps - self.step, len(self.batches))
        rate = self.optimizer.param_groups[0]["lr"]
        total, done = 0.0, 0
        bar = track(itertools.islice(self.batches, count), description, unit="batch", total=count)
        for done, (inputs, targets) in enumerate(bar, start=1):
            rate = self.optimizer.param_groups[0]["lr"]
            loss = self._loss(to_network(inputs, self.model), targets.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            if isinstance(self.schedule, OneCycleLR):
                self.schedule.step()
            self.step += 1
            total += loss.item()
            if not math.isfinite(total):
                peak = self.settings.learning_rate
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {self.step}; learning_rate={peak} is too high"
                )
            bar.set_postfix(loss=f"{total / done:.3f}", refresh=False)
        if not done:
            raise ValueError("the training split gives no batch any more; its loader must be readable again and again")
        return {"epoch": self.step / len(self.batches), "train_loss": total / done, "learning_rate": float(rate)}

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch against its targets and, if there is one, the teacher."""
        settings = self.settings
        amp = uses_bfloat16(settings.amp, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=amp):
            logits = training_tensor(self.parallel(inputs), "the network").float()
            taught = self.teacher.loss(inputs, logits) if self.teacher else None
        loss = self.task.loss(logits, targets, settings.label_smoothing)
        if taught is None:
            return loss
        return (1 - settings.distillation) * loss + settings.distillation * taught

    @property
    def result(self) -> nn.Module:
        """The network whose weights count: the one that is trained, or the average of its weights."""
        return self.model if self.average is None else self.average.module

    def validate(self) -> EpochLog:
        """Return the metrics on validation; only the first process measures them."""
        if self.settings.recalibrate and distributed.rank() == 0:
            with suppress(FloatingPointError):  # the weights have diverged; the metrics will show it
                recalibrate_bn(self.result, self.data.calibration)
        distributed.share_buffers(self.result)
        metrics = evaluate(self.result, self.data.validation, self.task.name) if distributed.rank() == 0 else {}
        return distributed.from_first(metrics)

    def log(self, entry: EpochLog) -> None:
        """Add an epoch to the history; store the weights if they are the best so far."""
        value = self._value(entry)
        if not self.best_weights or value > max(map(self._value, self.history)):
            self.best_weights = copy.deepcopy(self.result.state_dict())
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(value)
        self.history.append(entry)

    def load_best_weights(self) -> None:
        """Give the network the weights of its best epoch.

        Raises:
            FloatingPointError: the validation loss was not finite after any epoch.
        """
        if not any(math.isfinite(entry["loss"]) for entry in self.history):
            raise FloatingPointError(
                f"the loss on validation is not finite; learning_rate={self.settings.learning_rate} is too high"
            )
        self.model.load_state_dict(self.best_weights)

    def _value(self, entry: EpochLog) -> float:
        """Return the deciding metric; minus infinity where the network's outputs are not finite."""
        return entry[self.data.metric] if math.isfinite(entry["loss"]) else -math.inf

    def out_of_patience(self) -> bool:
        """Whether ``patience`` epochs have passed without a better metric."""
        values = [self._value(entry) for entry in self.history]
        if self.settings.patience is None or not values:
            return False
        return len(values) - 1 - values.index(max(values)) >= self.settings.patience

    def close(self) -> None:
        """Remove the teacher's hooks from the networks."""
        if self.teacher:
            self.teacher.close()

    def save(self, path: Path) -> None:
        """Write the checkpoint; if the process is killed meanwhile, the previous one stays.

        Raises:
            OSError: it cannot be written.
        """
        values = {
            "conditions": self.conditions,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "history": self.history,
            "best_weights": self.best_weights,
            **({} if self.average is None else {"average": self.average.state_dict()}),
        }
        with replacing(path) as partial:
            try:
                torch.save(values, partial)
            except RuntimeError as error:  # torch names no file, and says nothing of the disk
                raise OSError(f"the checkpoint {path} cannot be written; is the disk full? {error}") from error

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it is damaged, or was written under other settings.
        """
        values = _read_checkpoint(path, self.device)
        written = {"task": self.task.name} | values["conditions"]  # which earlier versions did not write
        if written != self.conditions:
            changed = ", ".join(n for n, value in self.conditions.items() if written.get(n) != value)
            raise ValueError(f"{path} was written under other settings ({changed}); delete it to start again")
        try:
            self.model.load_state_dict(values["model"])
        except RuntimeError:
            raise ValueError(f"{path} was written for another network; delete it to start again") from None
        self.optimizer.load_state_dict(values["optimizer"])
        self.schedule.load_state_dict(values["schedule"])
        if self.average is not None:
            self.average.load_state_dict(values["average"])
        self.step, self.history, self.best_weights = values["step"], values["history"], values["best_weights"]


def _read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :meth:`_Run.save` wrote.

    Raises:
        ValueError: the file is damaged, or another program wrote it.
        OSError: it cannot be read.
    """
    try:
        values = torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint of a training; delete it to start again") from error
    if not (isinstance(values, dict) and values.keys() >= {"conditions", "model", "optimizer", "schedule", "step"}):
        raise ValueError(f"{path} is no checkpoint of a training; give another path, or delete it to start again")
    return values


def _described(model: nn.Module) -> dict[str, str]:
    """Describe the architecture, and the ranks of a compressed network."""
    provenance = get_provenance(model)
    if provenance is None:
        return {"network": type(model).__name__}
    made = plan_of(model)
    plan = "" if made is None else json.dumps(made.to_json())
    return {"network": f"{provenance.builder} {dict(provenance.arguments)}", "ranks": plan}


def _optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    # The fused optimizers pass over the memory once instead of ten times. For VGG16's 134 M parameters on a CPU, these
    # passes are most of a step.
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay, fused=True)
    momentum = settings.momentum
    return torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=decay, nesterov=momentum > 0, fused=True)


def _schedule(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, steps: int
) -> OneCycleLR | ReduceLROnPlateau:
    if settings.schedule == "plateau":
        # ReduceLROnPlateau acts one epoch after its patience has ended.
        patience = settings.plateau_patience - 1
        return ReduceLROnPlateau(optimizer, "max", factor=0.1, patience=patience, threshold=0.0, eps=0.0)
    return OneCycleLR(optimizer, settings.learning_rate, total_steps=max(steps, 2), cycle_momentum=False)


def uses_bfloat16(amp: str, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast; with ``auto``, only on a GPU that computes in it."""
    return device.type == "cuda" and has_bfloat16(device) if amp == "auto" else amp == "on"
