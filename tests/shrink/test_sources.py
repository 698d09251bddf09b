"""A network and data by the names that a user gives."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.compression import save_compressed
from common.data import DataBundle
from common.functions import named_function
from common.models import MODELS, NETWORK_SOURCES, NetworkSource, build_model, find_network
from common.models.sources import source_of
from common.network.batches import inputs_of
from common.shrink.loading import Examples, load_examples, load_network
from common.shrink.weights import load_weights
from tests.networks import bright_images, same_weights, tiny_cnn

MODULE = """
import torch
from tests.networks import tiny_cnn, bright_images
from torch.utils.data import DataLoader

def build():
    return tiny_cnn(seed=3)

def loader():
    return DataLoader(bright_images(20), batch_size=8)

def pair():
    return loader(), loader()

def inputs():
    return [torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)]

def needs(path):
    return path

number = 7
built = build()
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "strangers_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "strangers_module"
    sys.modules.pop("strangers_module", None)


def count(examples: Examples) -> int:
    return sum(len(inputs_of(batch)) for batch in examples.batches)


def test_a_function_of_the_users_is_called(own_module: str) -> None:
    assert same_weights(find_network(f"{own_module}:build", 10), tiny_cnn(seed=3))
    assert same_weights(find_network(f"{own_module}:built", 10), tiny_cnn(seed=3))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_such_module:build", r"^network='no_such_module:build': there is no module 'no_such_module' in /"),
        ("strangers_module:bild", r"has no function 'bild'; it has .*build"),
        ("strangers_module:number", r"has no function 'number'"),
        ("strangers_module:needs", r"it is called without arguments: missing a required argument: 'path'"),
        ("strangers_module:", r"it must be module:function, e\.g\. my_module:build"),
        ("strangers_module:inputs", r"it returned a list, not a torch\.nn\.Module"),
    ],
)
@pytest.mark.usefixtures("own_module")
def test_a_function_that_is_none_is_named(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_network(name)


def test_an_import_that_fails_inside_the_users_module_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        find_network("broken_module:build")


def test_architectures_are_found_in_the_order_of_the_sources() -> None:
    assert source_of("resnet18")[0].name == "suite"
    assert source_of("torchvision/resnet18")[0].name == "torchvision"
    assert source_of("mobilenet_v3_small")[0].name == "torchvision"
    assert all(source_of(name)[0].name == "suite" for name in MODELS)
    network = find_network("squeezenet1_1", 7)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_timm_is_asked_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **arguments: Any) -> nn.Module:
        asked.append({"name": name, **arguments})
        return tiny_cnn()

    names = {"list_models": lambda: ["resnet18", "only_timm"], "list_pretrained": lambda: ["only_timm.a1_in1k"]}
    fake = types.SimpleNamespace(create_model=create_model, **names)
    monkeypatch.setitem(sys.modules, "timm", fake)
    monkeypatch.setattr("common.models.sources.find_spec", lambda name: object())
    find_network("only_timm", 5)
    find_network("timm/resnet18")
    find_network("only_timm.a1_in1k", 5, pretrained=True)
    assert asked == [
        {"name": "only_timm", "pretrained": False, "num_classes": 5},
        {"name": "resnet18", "pretrained": False},
        {"name": "only_timm.a1_in1k", "pretrained": True},
    ]
    monkeypatch.setattr("common.models.sources.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"network='only_timm' is unknown; allowed: my_module:build .* of timm"):
        find_network("only_timm")


def test_published_weights_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **arguments: object) -> nn.Module:
        assert (name, arguments) == ("squeezenet1_1", {"weights": "DEFAULT"})
        raise URLError("no network")

    monkeypatch.setattr("common.torchvision_compat.torchvision.models.get_model", offline)
    with pytest.raises(ConnectionError, match="the published weights of squeezenet1_1 are not on this machine and"):
        find_network("squeezenet1_1", 7, pretrained=True)


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(ValueError, match=r"network='resnet81' is unknown \(did you mean .*/resnet18\?\)"):
        find_network("resnet81")


def test_a_source_of_ones_own_is_registered() -> None:
    class Shelf(NetworkSource):
        name, title = "shelf", "networks on a shelf"

        def names(self) -> list[str]:
            return ["tiny"]

        def build(self, name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
            return tiny_cnn(seed=4)

    with NETWORK_SOURCES.including(Shelf()):
        assert same_weights(find_network("tiny"), tiny_cnn(seed=4))
        assert same_weights(find_network("shelf/tiny"), tiny_cnn(seed=4))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_of_safetensors_are_loaded(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    state = tiny_cnn(seed=5).state_dict()
    safetensors.torch.save_file({f"{prefix}{name}": value for name, value in state.items()}, path)
    loaded = load_weights(tiny_cnn().train(), path)
    assert same_weights(loaded, tiny_cnn(seed=5))
    assert not loaded.training
    with pytest.raises(ValueError, match="names no architecture; give the network too"):
        load_weights(None, path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_network_may_call_its_own_part_module(prefix: str, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.module = tiny_cnn(seed=seed)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    path, state = tmp_path / "weights", Wrapped(5).state_dict()
    safetensors.torch.save_file({f"{prefix}{name}": value for name, value in state.items()}, path)
    assert same_weights(load_weights(Wrapped(0), path), Wrapped(5))


def test_a_file_of_the_suite_names_its_architecture(tmp_path: Path) -> None:
    dense = build_model("resnet20", 10)
    path = save_compressed(dense, tmp_path / "dense.safetensors")
    assert same_weights(load_network(None, str(path), Examples([torch.zeros(2, 3, 8, 8)])), dense)


class Runs:
    """What a pickle of a stranger's may hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code of the file was run",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"a": torch.zeros(1)}, r"does not fit the network: it lacks stem\.0\.weight, .* more$"),
        (tiny_cnn().state_dict() | {"b": torch.zeros(1)}, "does not fit the network: it has in addition b$"),
        (tiny_cnn(width=8).state_dict(), r"does not fit the network: it has a size mismatch for head"),
    ],
)
def test_weights_that_do_not_fit_are_refused(content: dict[str, Tensor], sentence: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(content, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=sentence):
        load_weights(tiny_cnn(), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("content", [Runs(), tiny_cnn().state_dict()], ids=["code", "state dict"])
def test_pickled_files_are_refused_and_run_nothing(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"is not a safetensors file; write one with safetensors\.torch\.save_file"):
        load_weights(tiny_cnn(), tmp_path / "weights.pt")


def test_weights_of_no_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("no weights")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_weights(tiny_cnn(), tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_weights(tiny_cnn(), tmp_path / "none.pt")


def test_an_architecture_without_weights_is_refused() -> None:
    examples = Examples([torch.zeros(2, 3, 8, 8)])
    with pytest.raises(ValueError, match=r"^network='resnet20': its weights would be random; give weights, or pretr"):
        load_network("resnet20", None, examples)
    with pytest.raises(ValueError, match="give a network, or weights that name one"):
        load_network(None, None, examples)
    with pytest.raises(ValueError, match="resnet20 has no published weights"):
        load_network("resnet20", None, examples, pretrained=True)


def test_a_network_that_does_not_fit_the_data_is_refused(own_module: str) -> None:
    data = DataBundle.from_loaders(*[DataLoader(bright_images(20), 8)] * 2, classes=[*"abcdefghijkl"])
    with pytest.raises(ValueError, match="outputs for 10 classes and the data 'custom' has 12"):
        load_network(f"{own_module}:build", None, Examples(list(data.calibration), data))


def test_registered_data_give_calibration_and_training_images() -> None:
    examples = load_examples("digits", image_size=8, images=500, batch_size=32)
    assert examples.data is not None
    assert count(examples) == 500 > sum(len(x) for x, _ in examples.data.calibration)
    few = load_examples("digits", image_size=8, images=500, batch_size=32, limit=64)
    assert few.data is not None
    assert few.data.test_images() == count(few) == 64
    assert examples.example().shape == (1, 3, 8, 8)


def test_loaders_of_the_users_are_taken_once(own_module: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = load_examples(f"{own_module}:pair", images=512)
    assert count(examples) == 20  # calibration shares its images with training
    assert examples.data is not None
    assert examples.data.num_classes == 10
    assert "every second image of validation is the test split" in capsys.readouterr().err


def test_a_list_of_loaders_is_as_good_as_a_tuple(own_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = named_function("dataset", f"{own_module}:pair")()
    monkeypatch.setattr("common.shrink.loading.named_function", lambda *_: lambda: list(pair))
    assert count(load_examples("my_module:loaders", images=512)) == 20


@pytest.mark.parametrize("images", [1, 0, -3])
def test_too_few_images_are_refused(images: int, own_module: str) -> None:
    with pytest.raises(ValueError, match=f"images={images}: it must be at least 2"):
        load_examples(f"{own_module}:inputs", images=images)


def test_a_loader_of_inputs_has_no_targets(own_module: str) -> None:
    examples = load_examples(f"{own_module}:inputs", images=6)
    assert examples.data is None
    assert count(examples) == 6


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ((1,), r"returned 1 loaders; it must be \(train, validation\) or"),
        (torch.zeros(2), "it must be a DataBundle, a tuple of loaders"),
        (7, "returned an? int; it must be"),
        (
            {"train": [], "val": []},
            r"returned a dict \(keys train, val\); it must be a DataBundle",
        ),
        ([], "gives no batch to calibrate on"),
    ],
)
def test_other_results_are_refused(returned: object, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.shrink.loading.named_function", lambda *_: lambda: returned)
    with pytest.raises(ValueError, match=sentence):
        load_examples("my_module:loaders")


@pytest.mark.parametrize(("name", "low", "high"), [("unit", 0.0, 1.0), ("centred", -1.0, 1.0)])
def test_inputs_have_the_scale_that_is_asked_for(name: str, low: float, high: float) -> None:
    inputs = load_examples("digits", image_size=8, limit=64, normalize=name).example()
    assert low <= float(inputs.min()) < low + 0.1
    assert high - 0.2 < float(inputs.max()) <= high
