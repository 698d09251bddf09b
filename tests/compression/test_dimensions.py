"""Networks for signals and volumes go the whole way: plan, compress, improve, refit, save, export, time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from common.calibration.divergence import outputs_on, squared_error
from common.compression import compress, load_compressed, save_compressed
from common.decomposition import DECOMPOSITIONS
from common.deploy import export_onnx, fold_batchnorm
from common.deploy.merging import merge_factors
from common.latency import measure_latency, measured_latencies
from common.network import profile
from common.network.shapes import trace_layers
from common.planning import Budget, Fixed, LayerPlan, RankPlan, UnreachableBudget, plan_ranks
from common.shrink import shrink
from tests.networks import lived_in, same_weights


class SignalBlock(nn.Module):
    """A residual block of a 1-D ResNet, with a strided shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(inputs, outputs, 7, 2, 3, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()),
            *(nn.Conv1d(outputs, outputs, 7, padding=3, bias=False), nn.BatchNorm1d(outputs)),
        )
        self.shortcut = nn.Conv1d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def signal_network() -> nn.Module:
    """A 1-D ResNet for signals of two leads."""
    stem = (nn.Conv1d(2, 16, 7, padding="same"), nn.BatchNorm1d(16), nn.ReLU())
    head = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, 6))
    return nn.Sequential(*stem, SignalBlock(16, 32), SignalBlock(32, 48), *head)


def volume_network() -> nn.Module:
    """MONAI's residual U-Net for volumes, with strided and transposed convolutions."""
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        channels=(8, 16, 32),
        strides=(2, 2),
        num_res_units=1,
        norm="batch",
    )


def signals(count: int, seed: int = 0) -> Tensor:
    coarse = torch.randn(count, 2, 12, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=64, mode="linear")


def volumes(count: int, seed: int = 0) -> Tensor:
    coarse = torch.randn(count, 1, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(8, 12, 8), mode="trilinear")


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "signals": (signal_network, signals),
    "volumes": (volume_network, volumes),
}


def case(kind: str) -> tuple[nn.Module, Callable[..., Tensor]]:
    torch.manual_seed(0)
    make, inputs = CASES[kind]
    return lived_in(make()), inputs


@pytest.mark.parametrize("method", [*DECOMPOSITIONS, "mixed"])
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("budget", [Budget(params=0.4), Budget(macs=0.5), Budget(params=0.6, macs=0.6)], ids=str)
def test_budgets_hold_and_predicted_costs_are_exact(kind: str, method: str, budget: Budget) -> None:
    model, inputs = case(kind)
    x = inputs(2)
    plan = plan_ranks(model, x, method, budget)
    small = compress(model, plan)
    before, after = profile(model, x), profile(small, x)
    assert after.params_in_use <= (budget.params or 1) * before.params_in_use
    assert after.macs <= (budget.macs or 1) * before.macs
    shapes = trace_layers(model, x)
    for name, planned in plan.layers.items():
        parts = [cost for part, cost in after.layers.items() if f"{part}.".startswith(f"{name}.")]
        assert (sum(part.params for part in parts), sum(part.macs for part in parts)) == shapes[name].cost(planned)
    split = {"spatial_svd", "htd"}  # they split the kernel of an image between its height and its width
    assert not split & {planned.method for planned in plan.layers.values()}


@pytest.mark.parametrize("kind", CASES)
def test_data_and_refit_lower_the_loss_on_other_inputs(kind: str) -> None:
    model, inputs = case(kind)
    batches = list(inputs(96).split(32))
    unseen = [inputs(64, seed=1)]
    wanted = outputs_on(model, unseen)
    plain = compress(model, plan_ranks(model, inputs(1), "tucker2", Fixed(0.3)))
    aware = shrink(model, batches, Budget(macs=profile(plain, inputs(1)).macs / profile(model, inputs(1)).macs)).model

    def loss(small: nn.Module) -> float:
        return float(squared_error(wanted, outputs_on(small, unseen)).mean())

    assert loss(aware) < 0.7 * loss(plain)


@pytest.mark.parametrize("method", ["svd", "tucker2"])
@pytest.mark.parametrize("kind", CASES)
def test_errors_fall_as_ranks_grow_and_vanish_at_full_rank(kind: str, method: str) -> None:
    model, inputs = case(kind)
    layers = trace_layers(model, inputs(1))
    before = dict.fromkeys(layers, torch.inf)
    for share in (0.1, 0.3, 0.6, 1.0):
        plan = plan_ranks(model, inputs(1), method, Fixed(share, only_if_smaller=False))
        rebuilt = compress(model, plan, mode="reconstruct")
        for name in layers:
            weight, found = (network.get_parameter(f"{name}.weight").detach() for network in (model, rebuilt))
            error = float((weight - found).norm() / weight.norm())
            assert error <= before[name] + 1e-6, name
            before[name] = error
    assert max(before.values()) < 1e-5


@pytest.mark.parametrize("kind", CASES)
def test_files_hold_the_network(kind: str, tmp_path: Path) -> None:
    model, inputs = case(kind)
    x = inputs(2)
    small = compress(model, plan_ranks(model, x, "mixed", Budget(macs=0.5)))
    loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"), model)
    assert same_weights(loaded, small)
    session = onnxruntime.InferenceSession(export_onnx(small, tmp_path / "small.onnx", x))
    with torch.no_grad():
        expected = small(x)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", CASES)
def test_folding_and_merging_keep_the_outputs(kind: str) -> None:
    model, inputs = case(kind)
    x = inputs(2)
    factored = compress(model, plan_ranks(model, x, "tucker2", Fixed("full", only_if_smaller=False)))
    folded = fold_batchnorm(factored, x)
    merged = merge_factors(folded, x)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    assert profile(merged, x).macs <= profile(model, x).macs  # full ranks do not pay: the layers are whole again
    with torch.no_grad():
        for changed in (folded, merged):
            torch.testing.assert_close(changed(x), model(x), rtol=1e-3, atol=1e-4)


WIDE: dict[str, tuple[nn.Module, Tensor]] = {
    "signals": (nn.Conv1d(96, 96, 9, padding=4), torch.randn(1, 96, 256)),
    "volumes": (nn.Conv3d(48, 48, 3, padding=1), torch.randn(1, 48, 8, 8, 8)),
}


@pytest.mark.parametrize("runtime", ["eager", "channels_last", "onnxruntime"])
@pytest.mark.parametrize("kind", WIDE)
def test_latency_is_measured_and_predicted(kind: str, runtime: str, tmp_path: Path) -> None:
    layer, x = WIDE[kind]
    model = nn.Sequential(layer, nn.ReLU()).eval()
    if (kind, runtime) == ("signals", "channels_last"):
        with pytest.raises(ValueError, match=r"it takes \(N, C, H, W\) or \(N, C, D, H, W\)"):
            measure_latency(model, x, runtime=runtime)
        return
    assert measure_latency(model, x, runtime=runtime, rounds=3, round_s=0.001).median_s > 0
    latencies = measured_latencies(model, x, runtime, "svd", folder=tmp_path)
    with pytest.raises(UnreachableBudget) as error:
        plan_ranks(model, x, "svd", Budget(latency=1e-6, runtime=runtime), latencies=latencies)
    least = re.search(r"the least that can be kept is latency=([\d.]+)", str(error.value))
    assert least
    if float(least[1]) >= 1:
        pytest.skip("on this processor no rank makes the layer faster")
    plan = plan_ranks(model, x, "svd", Budget(latency=float(least[1]), runtime=runtime), latencies=latencies)
    assert list(plan.factored) == ["0"]


@pytest.mark.parametrize(
    ("layer", "method"), [(nn.Conv1d(8, 8, 3), "htd"), (nn.Conv3d(8, 8, 3), "spatial_svd"), (nn.Conv1d(8, 8, 3), "cp")]
)
def test_a_plan_with_a_method_for_images_is_refused(layer: nn.Module, method: str) -> None:
    plan: Any = RankPlan({"0": LayerPlan(method, (2, 2, 2))}, method, "fixed")
    with pytest.raises(ValueError, match=r"method of layer '0'.*svd, tucker2"):
        compress(nn.Sequential(layer), plan)
