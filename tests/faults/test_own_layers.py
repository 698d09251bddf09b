"""Layers and networks with methods, state or hooks of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.calibration import calibrate, recalibrate_bn, refit
from common.compression import compress, load_compressed, save_compressed
from common.deploy import export_onnx
from common.network import profile
from common.network.copies import independent_copy
from common.planning import Budget, Fixed, RankPlan, plan_ranks
from common.search import search_ranks
from common.shrink import shrink

BATCHES = [torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class KeepsOutput(nn.Conv2d):
    """For a skip connection."""

    def forward(self, input: Tensor) -> Tensor:
        self.kept = super().forward(input)
        return self.kept


class KeepsInList(nn.Conv2d):
    """For a pyramid of features."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.maps: list[Tensor] = []

    def forward(self, input: Tensor) -> Tensor:
        self.maps.append(super().forward(input))
        return self.maps[-1]


class KeepsMean(nn.Conv2d):
    """Follow the mean of the input in a buffer."""

    mean: Tensor

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(input.mean(), 0.1)
        return super().forward(input)


class Clamps(nn.Conv2d):
    """Clamp an input that is far larger than a standard normal one."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.clamp(-8, 8))


@pytest.mark.parametrize("kind", [KeepsOutput, KeepsInList, KeepsMean, Clamps])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_that_does_more_than_its_output_shows_stays_dense(kind: type[nn.Conv2d], dtype: torch.dtype) -> None:
    model = nn.Sequential(kind(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).to(dtype)
    plan = plan_ranks(model, BATCHES[0].to(dtype), "svd", Fixed(2))
    assert plan.skipped == {"0": f"its class {kind.__name__} does more than a plain layer"}


class ReadsOldFiles(nn.Conv2d):
    """Read weights of two axes, as old files have them."""

    def _load_from_state_dict(self, state: Any, prefix: str, *others: Any) -> None:
        if state[f"{prefix}weight"].dim() == 2:
            state[f"{prefix}weight"] = state[f"{prefix}weight"][:, :, None, None]
        super()._load_from_state_dict(state, prefix, *others)


class WritesItsOwn(nn.Conv2d):
    """Write the weight itself."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()


class Listed(nn.Conv2d):
    """Keep a register of its subclasses."""

    def __init_subclass__(cls, *, title: str, **others: Any) -> None:
        super().__init_subclass__(**others)


class InRegister(Listed, title="entry"):
    """An entry of it."""


class NamesParameters(nn.Conv2d):
    """Name only its own parameters."""

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Any:
        dot = f"{prefix}." if prefix else ""
        yield from ((dot + name, tensor) for name, tensor in self._parameters.items() if tensor is not None)


class ListsWeight(nn.Conv2d):
    """Let an optimizer see the weight alone."""

    def parameters(self, recurse: bool = True) -> Any:
        return iter([self.weight])


class MovesWeight(nn.Conv2d):
    """Move the weight itself."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovesWeight:
        self.weight.data = fn(self.weight.data)
        return self


class IsMadeAnew(nn.Conv2d):
    """Copied by its constructor."""

    def __new__(cls, inputs: int, outputs: int, kernel: int) -> IsMadeAnew:
        return super().__new__(cls)

    def __deepcopy__(self, memo: Any) -> IsMadeAnew:
        made = type(self)(self.in_channels, self.out_channels, 3)
        made.load_state_dict(self.state_dict())
        return made


OWN_METHODS = [ReadsOldFiles, WritesItsOwn, InRegister, NamesParameters, ListsWeight, MovesWeight, IsMadeAnew]


@pytest.mark.parametrize("kind", OWN_METHODS)
def test_layers_with_methods_of_their_own_are_factored_saved_and_loaded(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(3, 24, 3), nn.ReLU(), kind(24, 32, 3)).eval()
    small = compress(model, plan_ranks(model, BATCHES[0], "svd", Fixed(2)))
    loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"), model)
    copied = independent_copy(small).double().float()
    with torch.no_grad():
        assert torch.equal(loaded(BATCHES[0]), small(BATCHES[0]))
        assert torch.allclose(copied(BATCHES[0]), small(BATCHES[0]))
    assert profile(small, BATCHES[0]).params == sum(tensor.numel() for tensor in small.state_dict().values())
    assert not small.load_state_dict(copied.state_dict()).missing_keys


class Gated(nn.Module):
    """Read something else that a plain convolution holds."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.kind = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3), kind
        scale = torch.rand(24, 1, 1)
        if kind == "parameter":
            self.second.register_parameter("scale", nn.Parameter(scale))
        elif kind == "child":
            self.second.gate = nn.Conv2d(24, 24, 1)
        else:
            self.second.register_buffer("scale", scale, persistent=kind != "hook")
        if kind == "hook":
            self.second.register_forward_hook(lambda layer, _, output: output * layer.get_buffer("scale"))

    def forward(self, x: Tensor) -> Tensor:
        output = self.second(F.relu(self.first(x)))
        if self.kind == "hook":
            return output
        held: Any = self.second
        return held.gate(output) if self.kind == "child" else output * held.scale


@pytest.mark.parametrize("kind", ["parameter", "buffer", "hook"])
def test_a_factored_layer_keeps_what_else_the_layer_held(kind: str, tmp_path: Path) -> None:
    model = Gated(kind).eval()
    found = shrink(model, BATCHES, Budget(params=0.5))
    assert found.after.params <= 0.5 * found.before.params
    assert "second" in found.plan.factored
    loaded = load_compressed(save_compressed(found.model, tmp_path / "small.safetensors"), model)
    with torch.no_grad():
        assert torch.equal(loaded(BATCHES[0]), found.model(BATCHES[0]))
    own = found.model.get_submodule("second")
    assert ("scale" in dict(own.named_parameters())) == (kind == "parameter")
    assert ("scale" in own.state_dict()) == (kind != "hook")


def test_a_layer_that_holds_a_module_stays_dense() -> None:
    plan = plan_ranks(Gated("child"), BATCHES[0], "svd", Fixed(2))
    assert plan.skipped["second"] == "it holds 'gate', which the network may run"


def test_a_number_sign_in_a_name(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("layer#1", nn.Conv2d(3, 24, 3))
    model.add_module("layer#2", nn.Conv2d(24, 24, 3))
    small = compress(model, plan_ranks(model, BATCHES[0], "svd", Fixed(2))).eval()
    loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"), model)
    assert torch.equal(loaded(BATCHES[0]), small(BATCHES[0]))


class Sealed(nn.Module):
    """Take no attribute after it is built, and build its copies anew."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3)
        self.__dict__["sealed"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("sealed") and name != "training":
            raise RuntimeError(f"sealed: {name}")
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: Any) -> Sealed:
        made = Sealed()
        made.load_state_dict(self.state_dict())
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def test_a_network_that_takes_no_attribute_and_copies_itself(tmp_path: Path) -> None:
    model = Sealed().eval()
    found = shrink(model, BATCHES, Budget(params=0.5))
    copied = independent_copy(found.model)
    assert torch.equal(copied(BATCHES[0]), found.model(BATCHES[0]))
    assert not {id(tensor) for tensor in copied.parameters()} & {id(tensor) for tensor in found.model.parameters()}
    assert export_onnx(found.model, tmp_path / "small.onnx", BATCHES[0]).exists()


class Masked(nn.Conv2d):
    """Take a mask beside the input."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input if mask is None else input * mask)


def test_a_layer_that_gets_more_than_its_input_says_so() -> None:
    class Network(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x, torch.ones_like(x)))

    plan = plan_ranks(Network(Masked(3, 16, 3), nn.Conv2d(16, 16, 3)), BATCHES[0], "svd", Fixed(2))
    assert plan.skipped == {"0": "it is called with more than its input, which its factors do not accept"}


def _hooked(scale: float) -> tuple[nn.Module, RankPlan]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3)).eval()
    model[4].register_forward_hook(lambda _, __, output: scale * output)
    return model, plan_ranks(model, BATCHES[0], "svd", Fixed(0.4), moments=calibrate(model, BATCHES))


def test_refit_fits_to_outputs_before_the_hooks_of_the_network() -> None:
    errors = {}
    for scale in (1.0, 3.0):
        model, plan = _hooked(scale)
        small = compress(model, plan, moments=calibrate(model, BATCHES))
        refit(small, model, BATCHES)
        with torch.no_grad():
            errors[scale] = float((small(BATCHES[0]) - model(BATCHES[0])).norm() / model(BATCHES[0]).norm())
    assert errors[3.0] == pytest.approx(errors[1.0], rel=1e-3)


class KeepsMaps(nn.Module):
    """Keep maps of a pass in a queue, and take them out later in the pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps: deque[Tensor] = deque()
        self.first, self.second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.third, self.last = nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        self.maps.append(x)
        x = F.relu(self.second(x))
        self.maps.append(x)
        x = self.third(x) + self.maps.popleft()
        return self.last(F.relu(x)) + self.maps.popleft()[:, :3]


@pytest.mark.parametrize("waits", [True, False])
def test_refit_leaves_no_maps_of_passes_that_it_breaks_off(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.calibration.refitting.can_wait", lambda *_: waits)
    model = KeepsMaps().eval()
    small = compress(model, plan_ranks(model, BATCHES[0], "svd", Fixed(0.4)))
    with torch.no_grad():
        wanted = model(BATCHES[0])
        before = float((small(BATCHES[0]) - wanted).norm())
        assert refit(small, model, [*BATCHES, BATCHES[0][:8]])
        assert not vars(small)["maps"]
        assert not model.maps
        assert float((small(BATCHES[0]) - wanted).norm()) < before


class FrozenNorm(nn.BatchNorm2d):
    """Stay in evaluation mode."""

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


def test_a_frozen_norm_is_neither_reset_nor_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), FrozenNorm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).eval()
    norms = [module for module in model if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.running_mean = torch.rand(8)
            norm.running_var = torch.rand(8) + 0.5
            norm.num_batches_tracked = torch.tensor(7)
        frozen = {name: tensor.clone() for name, tensor in norms[0].state_dict().items()}
        assert recalibrate_bn(model, BATCHES) == 1
        assert all(torch.equal(tensor, frozen[name]) for name, tensor in norms[0].state_dict().items())
        inputs = model[:4](torch.cat(BATCHES))
    assert norms[0].momentum == norms[1].momentum == 0.1
    assert norms[1].running_mean is not None
    assert torch.allclose(norms[1].running_mean, inputs.mean((0, 2, 3)), atol=1e-5)


def test_a_default_dtype_of_double_precision_changes_no_export(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    torch.set_default_dtype(torch.float64)
    try:
        assert export_onnx(model, tmp_path / "plain.onnx", BATCHES[0]).exists()
    finally:
        torch.set_default_dtype(torch.float32)


WRONG: list[tuple[Any, str]] = [
    (None, "model is NoneType: it must be a network"),
    (nn.Conv2d, r"the class Conv2d: .* make one of the class: Conv2d\(\.\.\.\)"),
    (lambda x: x, "model is function: .* call the function that builds it"),
    ({"weight": torch.zeros(1)}, "model is dict: .* load_state_dict"),
]


@pytest.mark.parametrize(("model", "said"), WRONG)
def test_what_is_no_network_is_named(model: Any, said: str, tmp_path: Path) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: shrink(model, BATCHES, Budget(params=0.5)),
        lambda: search_ranks(model, Any),  # type: ignore[arg-type]
        lambda: save_compressed(model, tmp_path / "none.safetensors"),
        lambda: plan_ranks(model, BATCHES[0]),
        lambda: compress(model, RankPlan({}, "svd", "Fixed")),
        lambda: profile(model, BATCHES[0]),
    ]
    if model is not None:
        calls.append(lambda: load_compressed(tmp_path / "none.safetensors", model))
    for call in calls:
        with pytest.raises(TypeError, match=said):
            call()


def test_other_arguments_of_the_wrong_type_are_named(tmp_path: Path) -> None:
    model, anything = nn.Sequential(nn.Conv2d(3, 24, 3)), Any
    with pytest.raises(TypeError, match="batches is a NoneType: it must be a list of batches"):
        shrink(model, None, Budget(params=0.5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="divergence='kl': it must be a function"):
        shrink(model, BATCHES, Budget(params=0.5), divergence="kl")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"data is a list: it must be a DataBundle, .*from_loaders"):
        search_ranks(model, BATCHES)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="data is a"):
        search_ranks(model, anything, {})  # type: ignore[arg-type]


def test_a_file_goes_into_a_dense_network_with_weights(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(24, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(32, 3)).eval()

    model = build()
    model(BATCHES[0])
    small = compress(model, plan_ranks(model, BATCHES[0], "svd", Fixed(2)))
    path = save_compressed(small, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"model has lazy layers, .*; run it once first"):
        load_compressed(path, build())
    with pytest.raises(ValueError, match="layer '0' is factored already; give the dense network"):
        load_compressed(path, small)
    with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device"):
        load_compressed(path, model.to("meta"))
