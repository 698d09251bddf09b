"""Networks and calls of strangers: each works as a plain network does, or is refused in a sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from common.calibration import calibrate, recalibrate_bn, refit
from common.compression import compress, load_compressed, save_compressed
from common.data import DataBundle
from common.deploy import fold_batchnorm
from common.latency import measure_latency
from common.network import profile
from common.network.copies import independent_copy
from common.network.state import Snapshot
from common.planning import Budget, Energy, Fixed, LayerPlan, RankPlan, plan_ranks
from common.shrink import shrink, shrink_each
from common.training import TrainingSettings, evaluate, train
from tests.networks import same_weights


def chain(*widths: int, classes: int = 5) -> nn.Sequential:
    """Convolutions with ReLUs, pooling and a Linear."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)).eval()


def images(count: int = 64, size: int = 10, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Normalizes(nn.Module):
    """Normalizes its input, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.body, self.in_place = chain(24, 24), in_place

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.sub_(0.5).div_(0.25) if self.in_place else (x - 0.5) / 0.25)


def test_a_network_may_change_its_input_in_place() -> None:
    found = []
    for in_place in (True, False):
        model, batches = Normalizes(in_place).eval(), list(images().split(32))
        before = [batch.clone() for batch in batches]
        profile(model, batches[0])
        measure_latency(model, batches[0], rounds=3)
        fold_batchnorm(model, batches[0])
        recalibrate_bn(model, batches)
        evaluate(model, [(batches[0], torch.zeros(32, dtype=torch.long))])
        found.append(shrink(model, batches, Budget(params=0.4)))
        assert all(map(torch.equal, batches, before))
    assert found[0].divergence == found[1].divergence
    assert same_weights(found[0].model, found[1].model)


class Forgetful(nn.Module):
    """Its own ``state_dict`` leaves out the frozen backbone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).mean((2, 3)))

    def state_dict(self, *arguments: Any, **named: Any) -> Any:
        found = super().state_dict(*arguments, **named)
        return {name: tensor for name, tensor in found.items() if not name.startswith("backbone.")}


def test_changes_are_undone_whatever_the_state_dict_holds() -> None:
    model = Forgetful().eval()
    before, kept = copy.deepcopy(model), Snapshot(model)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    kept.restore()
    assert same_weights(model, before)


def test_a_file_without_the_factors_is_refused(tmp_path: Path) -> None:
    model = Forgetful().eval()
    small = compress(model, plan_ranks(model, images(2), "svd", Fixed(3)))
    with pytest.raises(ValueError, match=r"state_dict of Forgetful leaves out weights .* layer 'backbone\.0'"):
        save_compressed(small, tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()
    dense = load_compressed(save_compressed(model, tmp_path / "dense.safetensors"), model)
    assert same_weights(dense, model)


class SkipsByHook(nn.Module):
    """A hook, which refers to the network, stores what a later layer reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(56, 8, 3)
        self.kept: dict[str, Tensor] = {}
        self.a.register_forward_hook(lambda _, __, output: self.kept.update(a=output))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.b(self.a(x).relu()).relu(), self.kept["a"]], 1))


def test_hooks_of_a_copy_refer_to_the_copy() -> None:
    model, x, other = SkipsByHook().eval(), images(4), images(4, seed=2)
    with torch.no_grad():
        model(x)
        small = compress(model, RankPlan({"b": LayerPlan("svd", (32,))}, "svd", "fixed"))
        torch.testing.assert_close(small(other), model(other), rtol=1e-4, atol=1e-5)
    assert shrink(model, [images(32)], Budget(params=0.5)).divergence < 0.1


def with_own_forward(kind: str) -> nn.Module:
    """A network whose ``forward`` on the instance takes one of its outputs, by a closure, a default or a global."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.c, self.d = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)

        def forward(self, x: Tensor) -> Any:
            return {"out": self.d(self.c(x).relu())}

    model = Net().eval()
    whole = model.forward
    scope: dict[str, Any] = {"whole": whole}
    exec("forward = lambda x: whole(x)['out']", scope)

    def by_default(x: Tensor, run: Any = whole) -> Tensor:
        taken: Tensor = run(x)["out"]
        return taken

    found: dict[str, Callable[[Tensor], Tensor]] = {
        "closure": lambda x: whole(x)["out"],
        "default": by_default,
        "global": scope["forward"],
    }
    model.__dict__["forward"] = found[kind]
    return model


@pytest.mark.parametrize("kind", ["closure", "default", "global"])
def test_a_forward_set_on_the_instance_runs_the_layers_of_the_copy(kind: str) -> None:
    model, x = with_own_forward(kind), images(4)
    small = compress(model, plan_ranks(model, x, "svd", Fixed(1)))
    assert profile(small, x).macs < 0.1 * profile(model, x).macs
    twin = independent_copy(model)
    with torch.no_grad():
        assert not torch.allclose(small(x), model(x), rtol=1e-2)
        before = model(x)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(x), before)
        assert not twin(x).any()


def test_hooks_that_name_a_layer_keep_it_dense() -> None:
    model = chain(16, 16)
    layer = model.get_submodule("2")
    model.get_submodule("4").register_forward_hook(lambda *_: print(layer.training))
    assert "refers to it" in plan_ranks(model, images(2), "svd", Fixed(2)).skipped["2"]


class Dilates(nn.Module):
    """Runs one layer at several dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.zeros(())
        for dilation in (1, 2):
            self.c.dilation = self.c.padding = (dilation, dilation)
            found = found + self.c(x).relu()
        return self.d(found)


def test_a_layer_whose_settings_change_stays_dense() -> None:
    plan = plan_ranks(Dilates().eval(), images(2), "svd", Fixed(2))
    assert "changes its stride, padding or dilation" in plan.skipped["c"]
    assert set(plan.factored) == {"d"}


def test_numbers_to_predict_are_compared_by_their_squared_error() -> None:
    model, x = chain(24, 24, classes=4), images()
    depths = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 1, 3, padding=1)).eval()
    with torch.no_grad():
        boxes, maps = 40 * model(x), 40 + 30 * depths(x)
    alone = shrink(depths, [x], Budget(params=0.4))
    found = shrink(depths, [(x, maps)], Budget(params=0.4))
    assert set(found.metrics) == {"r2", "loss"}
    assert found.divergence == alone.divergence
    unnamed, shares = shrink(model, [x], Budget(params=0.4)).divergence, torch.full((64, 4), 0.25)
    assert shrink(model, [(x, boxes)], Budget(params=0.4)).divergence != unnamed
    assert shrink(model, [(x, shares)], Budget(params=0.4)).divergence == unnamed


def test_class_numbers_of_any_whole_type_give_metrics() -> None:
    model, x = chain(16, 16), images()
    targets = torch.arange(64) % 5
    found = [shrink(model, [(x, each)], Budget(params=0.5)) for each in (targets, targets.to(torch.uint16))]
    assert found[0].metrics == found[1].metrics
    assert found[0].metrics


class Tied(nn.Module):
    """Calls a layer, and reads its weight to decode."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.d = nn.Linear(64, 48), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.d(self.e(x).relu()).relu(), self.e.weight.t())


def test_a_weight_that_is_read_as_well_stays_dense_under_a_budget_of_macs() -> None:
    model, x = Tied().eval(), torch.randn(64, 64)
    found = shrink(model, [x], Budget(macs=0.9))
    assert set(found.plan.factored) == {"d"}
    assert "also used without calling it" in found.plan.skipped["e"]
    assert found.after.macs <= 0.9 * found.before.macs
    assert "e" in plan_ranks(model, x, "svd", Budget(params=0.4)).factored


def test_layers_that_share_a_bias_stay_dense() -> None:
    model = chain(16, 16, 16)
    model[2].bias = model[0].bias
    plan = plan_ranks(model, images(2), "svd", Fixed(2))
    assert plan.skipped["0"] == "it shares its bias with 2"
    assert {"4", "8"} <= set(plan.factored)


def test_a_head_for_other_classes_is_saved_and_loaded(tmp_path: Path) -> None:
    model, x = chain(24, 24, classes=10), images(4)
    small = compress(model, plan_ranks(model, x, "svd", Fixed(2)))
    assert isinstance(small, nn.Sequential)
    small[-1] = nn.Linear(24, 3)
    path = save_compressed(small, tmp_path / "small.safetensors")
    loaded = load_compressed(path, chain(24, 24, classes=3))
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))


def test_loading_keeps_the_random_state(tmp_path: Path) -> None:
    model = chain(16, 16)
    path = save_compressed(compress(model, plan_ranks(model, images(2), "svd", Fixed(2))), tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    load_compressed(path, model)
    assert torch.equal(before, torch.get_rng_state())


def test_inference_mode_makes_networks_that_can_be_trained(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3)).eval(), images()
    with torch.inference_mode():
        small = shrink(model, [x], Budget(params=0.5)).model
        held = copy.deepcopy(model)
        loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"), model)
    for network in (small, loaded):
        assert recalibrate_bn(network, [x]) == 1
        network.train()(x).sum().backward()
    profile(held, x)
    assert all(parameter.requires_grad for parameter in held.parameters())


def test_convolutions_may_be_called_image_by_image() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.c, self.d = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.d(self.c(image).relu()) for image in x])

    model = Loop().eval()
    moments = calibrate(model, [images()])
    assert set(moments) == {"c", "d"}
    assert shrink(model, [images()], Budget(params=0.5)).divergence < 0.2


def test_planning_in_training_mode_leaves_spectral_norm_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3))).train()
    before = copy.deepcopy(model)
    plan_ranks(model, images(4), "svd", Fixed(2))
    assert same_weights(model, before)


def test_facts_of_another_network_are_refused() -> None:
    wide, narrow, x = chain(24, 16), chain(16, 16), images()
    moments, plan = calibrate(wide, [x]), plan_ranks(narrow, x, "tucker2", Fixed(4))
    with pytest.raises(ValueError, match=r"moments of layer '0' are those of a weight of shape \(24, 3, 3, 3\)"):
        plan_ranks(narrow, x, "svd", Energy(0.9), moments=moments)
    with pytest.raises(ValueError, match="layer '0' has a weight of shape"):
        refit(compress(narrow, plan), wide, [x])


MODEL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
LOADER = DataLoader(TensorDataset(images(32), torch.arange(32) % 5), 16)
CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: calibrate(MODEL, [images()], positions=1.5), ValueError, "positions=1.5"),  # type: ignore[arg-type]
    (lambda: recalibrate_bn(MODEL, images()), ValueError, "batches is one tensor of shape"),
    (lambda: refit(MODEL, copy.deepcopy(MODEL), images()), ValueError, "batches is one tensor of shape"),
    (lambda: recalibrate_bn(MODEL, [images()[:0]]), ValueError, "holds no inputs"),
    (lambda: recalibrate_bn(MODEL, [torch.zeros(4, 5, 10, 10)]), ValueError, "does not take x of shape"),
    (lambda: recalibrate_bn(MODEL, [images()], max_batches=-1), ValueError, "max_batches=-1"),
    (lambda: compress(MODEL, Budget(params=0.5)), ValueError, "must be a RankPlan"),  # type: ignore[arg-type]
    (lambda: shrink(MODEL, [images()], Budget(params=0.5), steps={}), ValueError, "steps={}"),  # type: ignore[arg-type]
    (lambda: shrink_each(MODEL, [images()], Budget(params=0.5)), ValueError, "is one rule"),  # type: ignore[arg-type]
    (lambda: DataBundle.from_loaders(LOADER, LOADER, LOADER, metirc="f1"), TypeError, "'metirc'"),  # type: ignore[call-arg]
    (
        lambda: train(
            copy.deepcopy(MODEL).requires_grad_(False),
            DataBundle.from_loaders(LOADER, LOADER, LOADER),
            TrainingSettings(epochs=1),
        ),
        ValueError,
        "no parameter to train",
    ),
]


@pytest.mark.parametrize(("call", "kind", "words"), CALLS, ids=[words for *_, words in CALLS])
def test_wrong_calls_are_refused_in_a_sentence(call: Callable[[], Any], kind: type[Exception], words: str) -> None:
    before = copy.deepcopy(MODEL)
    with pytest.raises(kind, match=words):
        call()
    assert same_weights(MODEL, before)
