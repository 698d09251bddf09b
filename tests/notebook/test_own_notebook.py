"""The parameters and steps of the notebook for one's own network; ``tests/scripts/test_wheel.py`` runs it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.data import DataBundle
from common.notebook import own
from common.notebook.own_config import OwnConfig
from common.search.settings import SearchSettings
from common.shrink import Shrunk, finetuning
from common.shrink.loading import Examples
from tests.networks import same_weights, tiny_cnn, tiny_digits

MODULE = "from tests.networks import tiny_cnn\n\n\ndef build():\n    return tiny_cnn(width=24)\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnConfig]:
    """A network from elsewhere on digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_tiny_network.py").write_text(MODULE)
    yield OwnConfig(
        network="my_tiny_network:build", image_size=8, limit=64, budget_params=0.5, methods="svd", method="svd"
    )
    sys.modules.pop("my_tiny_network", None)


def changed(config: OwnConfig, **changes: Any) -> OwnConfig:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return OwnConfig.from_notebook(values | changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"budget_params": None}, "^budget_params=None: give it or budget_macs, a share of the dense network to keep"),
        ({"network": None}, "^network=None: give a network, or weights that name one"),
        ({"network": "resnet81"}, "^network='resnet81' is unknown"),
        (
            {"methods": "svd,tukcer2"},
            "^methods='svd,tukcer2': it must be svd, .*, cp, mixed, with commas between",
        ),
        ({"normalize": "none"}, "^normalize='none' is unknown"),
        ({"dataset": "digit"}, r"dataset='digit' is unknown \(did you mean 'digits'\?\)"),
        ({"weights": "missing.pt"}, "weights='missing.pt': there is no such file"),
    ],
)
def test_a_wrong_parameter_is_named_before_any_work(config: OwnConfig, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        changed(config, **changes)


def test_a_function_may_give_the_data(config: OwnConfig) -> None:
    assert changed(config, dataset="my_module:loaders").dataset == "my_module:loaders"


def test_the_command_names_this_notebook(config: OwnConfig) -> None:
    assert config.command("resnet20").startswith("papermill notebooks/own.ipynb results/own.ipynb ")
    assert "-p network my_tiny_network:build" in config.command()
    assert isinstance(config.search_settings(), SearchSettings)


def test_the_functions_network_is_left_as_it_is_and_compared(config: OwnConfig) -> None:
    examples, dense, history = own.load(config)
    assert history == []
    assert same_weights(dense, tiny_cnn(width=24))
    found = own.shrink_network(config, dense, examples)
    table = own.compare_methods(changed(config, methods="svd,htd"), dense, examples, found)
    assert list(table["Method"]) == ["SVD", "HTD"]
    assert (table["Params kept"] <= 0.5).all()
    assert table["Divergence"][0] == found.divergence == found.steps[-1 if found.steps[-1].kept else -2].divergence
    panels = own.method_panels(table)
    assert list(panels) == ["Divergence", "Accuracy on validation (%)"]
    assert own.search_if_asked(config, dense, examples) is None


def test_an_architecture_without_weights_is_trained(config: OwnConfig) -> None:
    wanted = changed(config, network="resnet20", dense_epochs=1.0, image_size=8)
    _, dense, history = own.load(wanted)
    assert len(history) == 1
    assert dense(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
    with pytest.raises(ValueError, match="its weights would be random"):
        own.load(changed(wanted, dense_epochs=0.0))


def test_dense_and_small_get_the_same_fine_tuning(
    config: OwnConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[object, ...]] = []

    def train(network: nn.Module, data: DataBundle, settings: object, *, description: str, **given: Any) -> Any:
        asked.append((data, settings, given["teacher"]))
        assert given["checkpoint"].match(f"{config.out}/{description}-*.checkpoint")
        return [{"epoch": 1.0, "loss": len(description)}]

    monkeypatch.setattr(finetuning, "train", train)
    metrics = iter([0.5, 0.6, 0.5, 0.5, 0.5, 0.4, 0.5, 0.6])
    monkeypatch.setattr(finetuning, "evaluate", lambda *_: {"accuracy": next(metrics)})
    dense, small, data = tiny_cnn(), tiny_cnn(seed=1), tiny_digits()
    tuned, history = own.finetune(config, dense, small, Examples([], data))
    assert list(tuned) == ["dense-tuned", "small-tuned"]
    assert same_weights(tuned["small-tuned"], small)
    assert tuned["dense-tuned"] is not dense
    assert asked[0] == asked[1]
    assert history == [{"epoch": 1.0, "loss": len("small-tuned")}]
    tuned, _ = own.finetune(config, dense, small, Examples([], data))
    assert list(tuned) == ["small-tuned"]
    shown = "dense-tuned is worse on validation than before, 40.00% after 50.00%: it is left out\n"
    assert capsys.readouterr().out == shown
    assert own.finetune(changed(config, finetune=False), dense, small, Examples([], data)) == ({}, [])


def test_without_targets_nothing_is_tuned_or_searched(config: OwnConfig) -> None:
    dense, examples = tiny_cnn(width=24), Examples([torch.randn(32, 3, 8, 8)])
    assert own.finetune(config, dense, dense, examples) == ({}, [])
    with pytest.raises(ValueError, match="search=True: a search needs targets, and the data has none"):
        own.search_if_asked(changed(config, search=True), dense, examples)
    found = own.shrink_network(config, dense, examples)
    assert isinstance(found, Shrunk)
    table = own.compare_methods(config, dense, examples, found)
    assert list(own.method_panels(table)) == ["Divergence"]


def test_the_command_says_what_is_none_and_hides_passwords(config: OwnConfig) -> None:
    asked = changed(config, budget_params=None, budget_macs=0.3)
    object.__setattr__(asked, "storage", "postgresql://me:secret@host/db")  # there is no such server
    assert "-p budget_params None" in asked.command()
    assert "-p budget_macs 0.3" in asked.command()
    assert "-p storage postgresql://me:***@host/db" in asked.command().replace("'", "")
    assert "secret" not in asked.command()


def test_a_data_set_is_downloaded_where_the_config_says_so(config: OwnConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def load(*_: Any, download: bool, **__: Any) -> None:
        asked.append(download)
        raise ConnectionError("no network")

    monkeypatch.setattr("common.shrink.loading.load_data", load)
    for download in (False, True):
        with pytest.raises(ConnectionError, match="no network"):
            own.load(changed(config, dataset="digits", download=download))
    assert asked == [False, True]
