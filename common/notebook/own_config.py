"""The parameters of the notebook for a network and data of one's own."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from common.data import LoadOptions
from common.data.loading import NORMALIZATIONS, UNANNOTATED
from common.files import check_writable
from common.functions import names_function
from common.models.sources import source_of
from common.notebook.config import Count, ExperimentConfig, listed
from common.planning import Budget
from common.planning.methods import decomposing_methods
from common.validation import check_choice


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class OwnConfig(ExperimentConfig):
    """Parameters of the notebook that shrinks any network.

    ``svd_ranks``, ``arsvd_taus``, ``compare_at`` and ``model`` are for the other notebooks; here they change nothing,
    so that one file of parameters serves all notebooks.
    """

    takes_functions: ClassVar[bool] = True
    given_in_notebooks: ClassVar[tuple[str, ...]] = ("compare_at", "budget_params", "network")

    network: str | None = "resnet20"
    pretrained: bool = False
    dataset: str = "digits"
    normalize: str = NORMALIZATIONS[0]
    unannotated: str = UNANNOTATED[0]
    images: Annotated[int, Field(ge=2)] = 512
    batch_size: Annotated[int, Field(ge=2)] = 32
    dense_epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    method: str = "mixed"
    methods: str = "svd,tucker2,htd,cp,mixed"
    search: bool = False
    trials: Count = 20
    finetune: bool = True
    precisions: str = "float32,int8"
    out: str = "results/small"

    def __post_init__(self) -> None:
        check_choice("normalize", self.normalize, NORMALIZATIONS)
        check_choice("unannotated", self.unannotated, UNANNOTATED)
        _ = self.rule, self.method_list
        if self.network is not None and not names_function(self.network):
            source_of(self.network)
        if self.network is self.weights is None:
            raise ValueError("network=None: give a network, or weights that name one")
        super().__post_init__()
        check_writable(self.out, "out")

    @property
    def rule(self) -> Budget:
        """The budget, which needs ``budget_params`` or ``budget_macs``."""
        if self.budget_params is self.budget_macs is None:
            raise ValueError("budget_params=None: give it or budget_macs, a share of the dense network to keep")
        return Budget(self.budget_params, self.budget_macs)

    @property
    def method_list(self) -> list[str]:
        """The names in ``methods``."""
        known = decomposing_methods()
        return listed("methods", self.methods, str, ", ".join(known), lambda name: name in known)

    def load_options(self) -> LoadOptions:
        """Return the scale of the inputs, and whether images without annotation are used."""
        return {"normalize": self.normalize, "unannotated": self.unannotated}

    def command(self, notebook: str = "own") -> str:
        """Return the command that runs this notebook, whichever architecture it shrinks."""
        return super().command("own")
