from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from common.compression import compress, load_compressed, save_compressed
from common.data.normalization import CENTRED, IMAGENET, check_normalization, remember_normalization
from common.models import build_model
from common.network.provenance import get_provenance
from common.planning import Energy, Fixed, plan_ranks
from tests.networks import same_weights, tiny_cnn

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plan_json(method: str, ranks: list[int]) -> str:
    """Return the JSON of a plan for one layer."""
    layers = {"layer1.0.conv1": {"method": method, "ranks": ranks}}
    return json.dumps({"method": method, "rule": "fixed", "layers": layers})


@pytest.fixture(scope="module")
def dense() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("resnet18", 10).eval()


def test_a_dense_network_is_restored(dense: torch.nn.Module, tmp_path: Path) -> None:
    remember_normalization(dense, IMAGENET)
    loaded = load_compressed(save_compressed(dense, tmp_path / "new" / "dense.safetensors"))
    assert same_weights(loaded, dense)
    check_normalization(loaded, IMAGENET)
    with pytest.raises(ValueError, match="the network was trained on pixels normalised by"):
        check_normalization(loaded, CENTRED)
    assert get_provenance(loaded) == get_provenance(dense)


@pytest.mark.parametrize("method", ["svd", "tucker2", "htd"])
def test_a_compressed_network_is_restored_without_the_dense_weights(
    dense: torch.nn.Module, method: str, tmp_path: Path
) -> None:
    plan = plan_ranks(dense, X, method, Fixed(0.2))
    small = compress(dense, plan)
    loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"))
    assert same_weights(loaded, small)
    assert get_provenance(loaded) == get_provenance(small)
    with torch.no_grad():
        assert torch.equal(loaded(X), small(X))


def test_a_users_own_network_is_restored(tmp_path: Path) -> None:
    model = tiny_cnn()
    small = compress(model, plan_ranks(model, X, "htd", Fixed(0.4)))
    path = save_compressed(small, tmp_path / "own.safetensors")
    assert same_weights(load_compressed(path, tiny_cnn(seed=1)), small)
    with pytest.raises(ValueError, match="names no architecture; give the dense network as model="):
        load_compressed(path)


def test_weights_of_another_architecture_are_refused(dense: torch.nn.Module, tmp_path: Path) -> None:
    path = save_compressed(dense, tmp_path / "resnet18.safetensors")
    with pytest.raises(ValueError, match=r"holds a resnet18 with .* but model is a resnet34 with "):
        load_compressed(path, build_model("resnet34", 10))
    with pytest.raises(ValueError, match=r"'num_classes': 10\}, but model is a resnet18 with \{'num_classes': 7\}$"):
        load_compressed(path, build_model("resnet18", 7))
    with pytest.raises(ValueError, match=r"does not fit the network: it lacks conv.bias, conv.weight"):
        load_compressed(path, tiny_cnn())
    own = save_compressed(tiny_cnn(), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=r"conv.bias has shape \(32,\), but the network needs \(16,\)"):
        load_compressed(own, tiny_cnn(width=8))


def test_files_of_other_kinds_are_refused(dense: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_compressed(tmp_path / "none.safetensors")
    pickled = tmp_path / "weights.pt"
    torch.save(dense.state_dict(), pickled)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_compressed(pickled)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="has schema version none; this code reads version 1"):
        load_compressed(foreign)


def test_the_plan_can_be_read_without_this_suite(dense: torch.nn.Module, tmp_path: Path) -> None:
    plan = plan_ranks(dense, X, "svd", Fixed(8))
    path = save_compressed(compress(dense, plan), tmp_path / "small.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["plan"])["layers"]["conv1"] == {"method": "svd", "ranks": [8]}
    assert json.loads(metadata["builder"]) == {"name": "resnet18", "arguments": {"num_classes": 10}}


def with_metadata(path: Path, **metadata: str) -> Path:
    """Overwrite some metadata of the file; return its path."""
    with safetensors.safe_open(path, framework="pt") as file:
        held = file.metadata()
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, held | metadata)
    return path


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"builder": "{"}, "does not describe a network"),
        ({"builder": "{}"}, "does not describe a network"),
        ({"builder": '{"name": "resnet18", "arguments": {"colour": 3}}'}, "names a network that cannot be built"),
        ({"builder": '{"name": "resnet99", "arguments": {}}'}, "names a network that cannot be built"),
        ({"builder": '{"name": "resnet18", "arguments": {"weights": "DEFAULT"}}'}, "asks to download other weights"),
        ({"plan": '{"method": "svd"}'}, "does not describe a network"),
        ({"plan": plan_json("foo", [4])}, r"method of layer 'layer1\.0\.conv1'='foo' is unknown"),
        ({"plan": plan_json("tucker2", [4])}, r"ranks=\(4,\): tucker2 takes 2, each at least 1"),
        ({"plan": plan_json("svd", [-2])}, r"ranks=\(-2,\): svd takes 1, each at least 1"),
    ],
)
def test_an_invalid_file_is_refused_by_name(
    dense: torch.nn.Module, metadata: dict[str, str], reason: str, tmp_path: Path
) -> None:
    path = with_metadata(save_compressed(dense, tmp_path / "mine.safetensors"), **metadata)
    with pytest.raises(ValueError, match=rf"^weights='.*mine\.safetensors' .*{reason}"):
        load_compressed(path)


def test_a_file_that_does_not_fit_leaves_the_network_unchanged(dense: torch.nn.Module, tmp_path: Path) -> None:
    small = compress(dense, plan_ranks(dense, X, "svd", Fixed(0.2)))
    path = save_compressed(small, tmp_path / "small.safetensors")
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        held = file.metadata()
    tensors["fc.1.bias"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, path, held)
    target = build_model("resnet18", 10)
    before = str(target)
    with pytest.raises(ValueError, match=r"fc\.1\.bias has shape \(3,\), but the network needs \(10,\)$"):
        load_compressed(path, target)
    assert str(target) == before
    save_compressed(small, path)
    assert same_weights(load_compressed(path, target), small)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports deprecated modules
def test_a_wrapped_network_is_saved_without_the_wrapper(wrap: Any, dense: torch.nn.Module, tmp_path: Path) -> None:
    small = compress(dense, plan_ranks(dense, X, "svd", Fixed(8))).eval()
    loaded = load_compressed(save_compressed(wrap(small), tmp_path / "small.safetensors"))
    assert same_weights(loaded, small)
    assert get_provenance(loaded) == get_provenance(small)


def test_a_network_compressed_inside_a_wrapper_keeps_its_names(tmp_path: Path) -> None:
    dense = torch.nn.DataParallel(build_model("resnet20", 10))
    small = compress(dense, plan_ranks(dense, X, "svd", Fixed(4))).eval()
    path = save_compressed(small, tmp_path / "small.safetensors")
    assert same_weights(load_compressed(path, torch.nn.DataParallel(build_model("resnet20", 10))), small)


def test_parameters_that_share_memory_are_saved_separately(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    own = torch.nn.Parameter(torch.empty(4, 4))
    own.data = model[0].get_parameter("weight").data.t()
    model[1].weight = own
    fresh = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    assert same_weights(load_compressed(save_compressed(model, tmp_path / "x.safetensors"), fresh), model)


def test_the_precision_is_restored(tmp_path: Path) -> None:
    model = build_model("resnet20", 10).double()
    loaded = load_compressed(save_compressed(model, tmp_path / "double.safetensors"))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
    assert same_weights(loaded, model)


class Task(nn.Module):
    """A module that holds a network to train, as in Lightning."""

    def __init__(self, model: nn.Module, **others: nn.Module) -> None:
        super().__init__()
        self.model, self.others = model, nn.ModuleDict(others)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y + sum(other(x) for other in self.others.values())


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    AveragedModel,
    Task,
    nn.Sequential,
    lambda model: nn.Sequential(Scale(), nn.Sequential(model)),
    lambda model: AveragedModel(Task(model)),
    lambda model: Task(Task(model)),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_network_inside_another_module_keeps_its_plan(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    dense = build_model("resnet20", 10).eval()
    small = compress(dense, plan_ranks(dense, X, "htd", Fixed(0.3)))
    wrapped = wrap(small).eval()
    path = save_compressed(wrapped, tmp_path / "small.safetensors")
    loaded = load_compressed(path, wrap(build_model("resnet20", 10)))
    with torch.no_grad():
        assert torch.equal(loaded(X), wrapped(X))
    again = load_compressed(save_compressed(loaded, path), wrap(build_model("resnet20", 10)))
    with torch.no_grad():
        assert torch.equal(again(X), wrapped(X))


def test_an_averaged_network_is_saved_without_the_wrapper(tmp_path: Path) -> None:
    dense = build_model("resnet20", 10).eval()
    small = compress(dense, plan_ranks(dense, X, "svd", Fixed(4)))
    loaded = load_compressed(save_compressed(AveragedModel(small), tmp_path / "small.safetensors"))
    assert same_weights(loaded, small)
    assert get_provenance(loaded) == get_provenance(small)


def test_two_networks_in_one_module_keep_both_plans(tmp_path: Path) -> None:
    dense = build_model("resnet20", 10).eval()
    one = compress(dense, plan_ranks(dense, X, "svd", Fixed(4)))
    other = compress(dense, plan_ranks(dense, X, "tucker2", Energy(0.8)))
    path = save_compressed(Task(one, teacher=dense, student=other), tmp_path / "both.safetensors")
    fresh = [build_model("resnet20", 10) for _ in range(3)]
    loaded = load_compressed(path, Task(fresh[0], teacher=fresh[1], student=fresh[2]))
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), one(X) + dense(X) + other(X))


def test_a_part_of_a_compressed_network_is_saved_with_its_plan(tmp_path: Path) -> None:
    dense = build_model("resnet20", 10).eval()
    small = compress(dense, plan_ranks(dense, X, "svd", Fixed(4)))
    path = save_compressed(small.get_submodule("layer2"), tmp_path / "part.safetensors")
    loaded = load_compressed(path, build_model("resnet20", 10).get_submodule("layer2"))
    assert same_weights(loaded, small.get_submodule("layer2"))


@pytest.mark.parametrize("kinds", [(torch.float16, torch.float32), (torch.bfloat16, torch.float64)])
@pytest.mark.parametrize("factor", [True, False])
def test_every_tensor_is_restored_in_its_dtype(
    kinds: tuple[torch.dtype, torch.dtype], factor: bool, tmp_path: Path
) -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3)).eval()

    mixed: nn.Module = network()
    if factor:
        mixed = compress(mixed, plan_ranks(mixed, X, "svd", Fixed(2)))
    for index, kind in enumerate((kinds[0], kinds[1], kinds[0])):
        mixed.get_submodule(str(index)).to(kind)
    target = network()
    loaded = load_compressed(save_compressed(mixed, tmp_path / "mixed.safetensors"), target)
    assert {name: t.dtype for name, t in loaded.state_dict().items()} == {
        name: t.dtype for name, t in mixed.state_dict().items()
    }
    assert same_weights(loaded, mixed)
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float32}


class Versioned(nn.Module):
    """Checks the version of its state, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3)
        self.second: nn.Module = Versioned(False) if deep else nn.Conv2d(64, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(x if isinstance(self.second, Versioned) else self.first(x))
        return y

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *others: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"this needs a state of version 2, not of version {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *others)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("ranks", [None, 4])
def test_modules_receive_the_version_of_their_state(deep: bool, ranks: int | None, tmp_path: Path) -> None:
    model: nn.Module = Versioned(deep).eval()
    if ranks:
        model = compress(model, plan_ranks(model, X, "svd", Fixed(ranks)))
    loaded = load_compressed(save_compressed(model, tmp_path / "model.safetensors"), Versioned(deep))
    with torch.no_grad():
        assert torch.equal(loaded(X), model(X))


@pytest.mark.parametrize("wrap", [lambda model: model, torch.nn.DataParallel, AveragedModel])
def test_loading_leaves_the_given_network_unchanged(
    wrap: Callable[[nn.Module], nn.Module], dense: nn.Module, tmp_path: Path
) -> None:
    small = compress(dense, plan_ranks(dense, X, "svd", Fixed(8)))
    own = wrap(build_model("resnet18", 10).train())
    before = copy.deepcopy(own)
    for saved in (small, dense):
        loaded = load_compressed(save_compressed(saved, tmp_path / "model.safetensors"), own)
        assert same_weights(loaded, saved)
        assert same_weights(own, before)
        assert all(module.training for module in own.modules())
        assert not {id(p) for p in loaded.parameters()} & {id(p) for p in own.parameters()}


def test_files_of_earlier_versions_of_the_suite_load(dense: nn.Module, tmp_path: Path) -> None:
    """Old files name factors as in a Sequential, and have no ``untouched`` in the plan and no ``state``."""
    small = compress(dense, plan_ranks(dense, X, "htd", Fixed(0.2))).eval()
    path = save_compressed(small, tmp_path / "small.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        held = file.metadata()
    plan = json.loads(held["plan"])
    del plan["untouched"], held["state"]
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, held | {"plan": json.dumps(plan)})
    assert "layer1.0.conv1.3.weight" in safetensors.torch.load_file(path)
    with torch.no_grad():
        assert torch.equal(load_compressed(path)(X), small(X))


class Clones(nn.Sequential):
    """Its state holds copies."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor.detach().clone() for name, tensor in super().state_dict(*args, **kwargs).items()}


def plain_layers(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    torch.manual_seed(0)
    return kind(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 32 * 32, 10)).eval()


def test_a_state_of_copies_is_saved(tmp_path: Path) -> None:
    model = plain_layers(Clones)
    small = compress(model, plan_ranks(model, X, "svd", Fixed(2)))
    loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"), model)
    assert same_weights(loaded, small)


def test_a_factored_layer_may_be_moved(tmp_path: Path) -> None:
    model = plain_layers()
    small = compress(model, plan_ranks(model, X, "svd", Fixed(2)))
    assert isinstance(small, nn.Sequential)
    for network in (model, small):
        network[3] = nn.Sequential(nn.Dropout(0.1), network[3])
    loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"), model)
    assert torch.equal(loaded(X), small.eval()(X))


def test_a_suites_network_with_another_head_asks_for_its_network(tmp_path: Path) -> None:
    model = build_model("resnet20", 10)
    small = compress(model, plan_ranks(model, X, "svd", Fixed(4))).eval()
    small.set_submodule("fc", nn.Linear(64, 5))
    path = save_compressed(small, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="names no architecture; give the dense network as model="):
        load_compressed(path)
    loaded = load_compressed(path, build_model("resnet20", 5))
    assert torch.equal(loaded(X), small(X))
    again = load_compressed(save_compressed(loaded, tmp_path / "again.safetensors"))
    assert torch.equal(again(X), small(X))


def test_saving_does_not_depend_on_building_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = compress(model := build_model("resnet20", 10), plan_ranks(model, X, "svd", Fixed(4)))

    def build(*_: object, **__: object) -> nn.Module:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    with monkeypatch.context() as patch:
        patch.setattr("common.compression.checkpoints.build_model", build)
        path = save_compressed(small, tmp_path / "small.safetensors")
    assert same_weights(load_compressed(path), small)
