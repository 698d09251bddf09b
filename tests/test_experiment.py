from __future__ import annotations

import pytest

from common.config import ClassifierConfig
from common.experiment import dense_network, load_data_of
from common.models.provenance import get_provenance


def config(model: str | None) -> ClassifierConfig:
    return ClassifierConfig(limit=16, batch_size=8, dense_epochs=1.0, dense_learning_rate=0.001, model=model)


@pytest.mark.parametrize(("asked", "built"), [(None, "resnet18"), ("resnet18", "resnet18"), ("resnet34", "resnet34")])
def test_the_notebook_on_resnet18_serves_its_relative(asked: str | None, built: str) -> None:
    data = load_data_of(config(asked))
    model, history = dense_network(config(asked), "resnet18", data)
    provenance = get_provenance(model)
    assert provenance is not None
    assert (provenance.builder, len(history)) == (built, 1)


def test_another_model_is_refused() -> None:
    data = load_data_of(config(None))
    with pytest.raises(ValueError, match=r"model='vgg16' is unknown.*allowed: resnet18, resnet34"):
        dense_network(config("vgg16"), "resnet18", data)
    with pytest.raises(ValueError, match=r"model='resnet34' is unknown.*allowed: alexnet"):
        dense_network(config("resnet34"), "alexnet", data)
