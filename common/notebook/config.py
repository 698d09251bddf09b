"""The parameters of the notebooks, validated before any work starts: a dataclass for each kind of notebook."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from common.data import DATASETS, LoadOptions
from common.data.loading import UNANNOTATED
from common.deploy.precision import PRECISIONS
from common.display import Display, Displayed
from common.environment import default_device, hide_passwords
from common.files import check_writable, is_file, is_folder
from common.functions import names_function
from common.latency import RUNTIMES
from common.models import MODELS
from common.models.classifiers import STEMS
from common.models.unet import UPSAMPLING
from common.notebook.colab import fetch_run, say_if_not_saved
from common.planning import Budget
from common.planning.methods import decompositions_of
from common.search import SearchSettings
from common.search.policies import POLICIES
from common.search.study.storage import check_run, journal_path, opened_storage
from common.training import TrainingSettings
from common.trials import log_path
from common.validation import check_choice, sentence

Config = TypeVar("Config", bound="NotebookConfig")
Value = TypeVar("Value", int, float, str)

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

_IPYTHON_NAMES = {"In", "Out", "exit", "quit", "get_ipython"}
_PLAIN_TYPES = (type(None), bool, int, float, str, list, tuple, dict)
_ACCEPTED = "_accepted_parameters"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class NotebookConfig(Displayed):
    """The parameters that all notebooks have. The comments in a notebook's parameters cell explain them.

    Attributes:
        task: name of the task that the data set must have; empty allows any.
        takes_functions: whether ``dataset`` may be a function of the user's, ``module:function``.

    Raises:
        ValueError: a value has the wrong type, is out of range or unknown; a folder or file is missing; or the run
            has a log and cannot continue.
    """

    task: ClassVar[str] = ""
    takes_functions: ClassVar[bool] = False
    given_in_notebooks: ClassVar[tuple[str, ...]] = ("compare_at",)  # None by default here, another value there

    dataset: str
    data_root: str | None = None
    download: bool = False
    image_size: Annotated[int, Field(ge=8)] = 32
    batch_size: Annotated[int, Field(ge=2)] = 128
    limit: Annotated[int, Field(ge=2)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    logs: str = "logs"
    run: str | None = None
    storage: str | None = Field(default=None, repr=False)  # it may hold a password

    def __post_init__(self) -> None:
        served = [name for name, dataset in DATASETS.items() if self.task in ("", dataset.task)]
        if not (self.takes_functions and names_function(self.dataset)):
            check_choice("dataset", self.dataset, served)
        if self.data_root is not None and not self.download and not is_folder(self.data_root):
            raise ValueError(f"data_root={self.data_root!r}: there is no such folder")
        if self.run is not None and log_path(self.logs, self.run, new=False).exists():
            check_run(self.logs, self.run, self.storage)
        elif self.storage is not None or (self.run and Path(self.logs, f"{self.run}.journal").exists()):
            with opened_storage(self.storage or journal_path(self.logs, str(self.run))):
                pass

    def display(self) -> Display:
        """The parameters that differ from their defaults, and the others below."""
        known = {f.name: (getattr(self, f.name), f.default) for f in fields(self) if f.repr}
        rows = [(name, repr(value), repr(default)) for name, (value, default) in known.items() if value != default]
        rest = ", ".join(f"{name}={value!r}" for name, (value, default) in known.items() if value == default)
        title = f"{len(rows)} of {len(known)} parameters differ from their defaults"
        return Display(title, ("parameter", "value", "default"), rows, notes=[f"By default: {rest}."])

    def load_options(self) -> LoadOptions:
        """Return the options of ``load_data`` that only some notebooks have."""
        return {}

    @classmethod
    def from_notebook(cls: type[Config], namespace: dict[str, Any]) -> Config:
        """Read the parameters that the parameters cell of a notebook, or papermill, has set.

        Args:
            namespace: the notebook's ``globals()``. Every plain value in it (number, text, list, None) whose name
                does not start with an underscore is a parameter. If the cell is run again in the same kernel, unknown
                names are ignored, since by then the notebook has variables of its own.

        Raises:
            ValueError: a parameter is unknown, has the wrong type or is out of range. The message names it, its value
                and the allowed values.
        """
        known = [f.name for f in fields(cls)]
        found: dict[str, Any] = {
            name: value
            for name, value in namespace.items()
            if name in known
            or (isinstance(value, _PLAIN_TYPES) and not name.startswith("_") and name not in _IPYTHON_NAMES)
        }
        unknown = sorted(found.keys() - set(known))
        if unknown and _ACCEPTED not in namespace:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            allowed = ", ".join(known)
            raise ValueError(
                f"{unknown[0]}={found[unknown[0]]!r} is no parameter of this notebook{hint}; allowed: {allowed}"
            )
        if found.get("run"):  # an earlier Colab session may have copied it to the Drive
            logs, run = str(found.get("logs", "logs")), str(found["run"])
            log_path(logs, run, new=False)
            check_writable(logs)
            say_if_not_saved(logs, run)
            fetch_run(logs, run)
        try:
            config = cls(**{name: value for name, value in found.items() if name in known})
        except ValidationError as error:
            raise ValueError(sentence(error)) from None
        namespace[_ACCEPTED] = tuple(found)
        return config


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class ExperimentConfig(NotebookConfig):
    """Parameters of the notebooks that train and compress a network. ``model`` selects another one of its family.

    Attributes:
        model_parameters: argument of ``build_model`` -> the parameter that sets it.
    """

    model_parameters: ClassVar[Mapping[str, str]] = {}

    model: str | None = None
    weights: str | None = None
    optimizer: str = "sgd"
    dense_epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 8.0  # 0 takes the weights as they are
    dense_learning_rate: Positive = 0.1
    method: str = "htd"
    data_aware: bool = True
    policy: str = "adaptive"
    budget_params: Share | None = None
    budget_macs: Share | None = None
    trials: Count = 30
    keep: Share = 0.99
    size_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    refit: bool = True  # improve and refit the best trials before fine-tuning, kept where it helps
    finetune_top: Annotated[int, Field(ge=0)] = 3
    finetune_epochs: Annotated[float, Field(gt=0, le=5)] = 1.0
    finetune_learning_rate: Positive = 0.02
    finetune_dense: bool = True  # train the dense network as long as a chosen trial, to compare on test
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.5
    distill_features: str = ""
    latency_batch: Count = 1
    runtimes: str = "eager"
    precisions: str = ""
    svd_ranks: str | int = "16,32,64"  # papermill passes a single value as a number
    arsvd_taus: str | float = "0.3,0.5,0.7"
    arsvd_exponents: str | int = "1"
    compare_at: Share | None = None

    def __post_init__(self) -> None:
        decompositions_of(self.method)
        POLICIES.check(self.policy)
        check_writable(self.logs)
        super().__post_init__()
        if self.weights is not None and not is_file(self.weights):
            raise ValueError(f"weights={self.weights!r}: there is no such file")
        _ = self.rank_list, self.tau_list, self.exponent_list, self.feature_list, self.precision_list
        if POLICIES[self.policy].needs_budget and self.budget_params is self.budget_macs is None:
            raise ValueError(f"policy={self.policy!r} plans for a budget; give budget_params or budget_macs, e.g. 0.3")
        for runtime in self.runtime_list:
            try:
                RUNTIMES[runtime].check(default_device())
            except ValueError as error:
                raise ValueError(f"runtimes={self.runtimes!r}: {error}; or leave {runtime} out") from None
        self.search_settings()

    def training_settings(self, epochs: float, learning_rate: float) -> TrainingSettings:
        """Return the settings of a training.

        Args:
            epochs: number of passes over the data.
            learning_rate: peak rate.
        """
        return TrainingSettings(
            epochs=epochs,
            learning_rate=learning_rate,
            optimizer=cast(Any, self.optimizer),  # pydantic checks it
            distillation=self.distillation,
            features=self.feature_list,
            seed=self.seed,
        )

    def search_settings(self) -> SearchSettings:
        """Return the settings of the search."""
        limited = self.budget_params is not None or self.budget_macs is not None
        return SearchSettings(
            method=self.method,
            policy=self.policy,
            budget=Budget(self.budget_params, self.budget_macs) if limited else None,
            trials=self.trials,
            size_weight=self.size_weight,
            keep=self.keep,
            refit=self.refit,
            finetune_top=self.finetune_top,
            finetune=self.training_settings(self.finetune_epochs, self.finetune_learning_rate),
            finetune_given=self.compare_at is not None,
            finetune_dense=self.finetune_dense,
            latency_batch=self.latency_batch,
            runtimes=self.runtime_list,
            seed=self.seed,
        )

    def model_arguments(self, model: str) -> dict[str, Any]:
        """Return the arguments of ``build_model`` for a model of this name."""
        values = {argument: getattr(self, parameter) for argument, parameter in self.model_parameters.items()}
        known = {field.name: field.default for field in fields(self)}
        defaults = {argument: known[parameter] for argument, parameter in self.model_parameters.items()}
        return MODELS[model].pick(values, defaults)

    def command(self, notebook: str) -> str:
        """Return the command that runs a notebook with these parameters, without passwords.

        Parameters that are None are left out, unless the notebooks' own value is another.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = [(name, str(v)) for name, v in values.items() if v is not None or name in self.given_in_notebooks]
        options = [text for name, value in kept for text in ("-p", name, value)]
        return hide_passwords(
            shlex.join(["papermill", f"notebooks/{notebook}.ipynb", f"results/{self.run or notebook}.ipynb", *options])
        )

    @property
    def rank_list(self) -> list[int]:
        """The whole numbers in ``svd_ranks``."""
        return listed("svd_ranks", str(self.svd_ranks), int, "whole numbers >= 1", lambda rank: rank >= 1)

    @property
    def feature_list(self) -> tuple[str, ...]:
        """The names in ``distill_features``."""
        return tuple(listed("distill_features", self.distill_features, str, "names of modules", bool))

    @property
    def runtime_list(self) -> tuple[str, ...]:
        """The names in ``runtimes``."""
        allowed = f"one or more of {', '.join(RUNTIMES)}"
        names = listed("runtimes", self.runtimes, str, allowed, lambda name: name in RUNTIMES)
        if not names:
            raise ValueError(f"runtimes={self.runtimes!r}: it must be {allowed}, with commas between")
        return tuple(names)

    @property
    def precision_list(self) -> tuple[str, ...]:
        """The names in ``precisions``."""
        return tuple(listed("precisions", self.precisions, str, ", ".join(PRECISIONS), lambda n: n in PRECISIONS))

    @property
    def exponent_list(self) -> list[int]:
        """The numbers in ``arsvd_exponents``."""
        return listed("arsvd_exponents", str(self.arsvd_exponents), int, "1 or 2", lambda number: number in (1, 2))

    @property
    def tau_list(self) -> list[float]:
        """The numbers in ``arsvd_taus``."""
        return listed("arsvd_taus", str(self.arsvd_taus), float, "numbers in [0, 1]", lambda tau: 0 <= tau <= 1)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class ClassifierConfig(ExperimentConfig):
    """Parameters of the notebooks that compress a classifier."""

    task: ClassVar[str] = "classification"
    model_parameters: ClassVar[Mapping[str, str]] = {"weights": "pretrained", "stem": "stem"}

    dataset: str = "digits"
    pretrained: str | None = None
    stem: str = STEMS[0]
    finetune_epochs: Annotated[float, Field(gt=0, le=3)] = 1.0

    def __post_init__(self) -> None:
        check_choice("stem", self.stem, STEMS)
        super().__post_init__()

    def load_options(self) -> LoadOptions:
        """Return the scale of the inputs."""
        return {"normalize": "imagenet" if self.pretrained else "dataset"}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class SegmentationConfig(ExperimentConfig):
    """Parameters of the notebook that compresses the U-Net."""

    task: ClassVar[str] = "segmentation"
    model_parameters: ClassVar[Mapping[str, str]] = {name: name for name in MODELS["unet"].arguments}

    dataset: str = "phantoms"
    image_size: Annotated[int, Field(ge=8)] = 64
    batch_size: Annotated[int, Field(ge=2)] = 16
    augment: bool = True
    unannotated: str = UNANNOTATED[0]
    width: Count = 32
    depth: Count = 4
    upsampling: str = UPSAMPLING[0]
    optimizer: str = "adamw"
    dense_learning_rate: Positive = 0.002
    finetune_learning_rate: Positive = 0.001

    def __post_init__(self) -> None:
        check_choice("unannotated", self.unannotated, UNANNOTATED)
        check_choice("upsampling", self.upsampling, UPSAMPLING)
        super().__post_init__()

    def load_options(self) -> LoadOptions:
        """Return whether images are augmented, and whether images without annotation are used."""
        return {"augment": self.augment, "unannotated": self.unannotated}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class CompareConfig(NotebookConfig):
    """Parameters of the notebook that compares runs, and saved networks on one data set."""

    dataset: str = "digits"
    models: str = ""
    keep: Share = 0.99
    pretrained: bool = False
    unannotated: str = UNANNOTATED[0]

    def __post_init__(self) -> None:
        check_choice("unannotated", self.unannotated, UNANNOTATED)
        super().__post_init__()
        for file in self.files:
            if not is_file(file):
                raise ValueError(f"models={self.models!r}: there is no file {file!r}")

    def load_options(self) -> LoadOptions:
        """Return the scale of the inputs, and whether images without annotation are used."""
        return {"normalize": "imagenet" if self.pretrained else "dataset", "unannotated": self.unannotated}

    @property
    def files(self) -> list[str]:
        """The paths in ``models``."""
        return listed("models", self.models, str, "paths", bool)


def listed(
    name: str, text: str, kind: Callable[[str], Value], allowed: str, accept: Callable[[Value], bool]
) -> list[Value]:
    """Read a list from a text such as ``"16,32,64"``. An empty text gives an empty list."""
    try:
        values: list[Value] | None = [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        values = None
    if values is None or not all(map(accept, values)):
        raise ValueError(f"{name}={text!r}: it must be {allowed}, with commas between")
    return values
