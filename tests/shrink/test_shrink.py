"""``shrink``: one call from a dense network to the best small one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from common.calibration import calibrate
from common.calibration.divergence import kl_divergence, outputs_on, squared_error
from common.compression import compress, load_compressed, save_compressed
from common.planning import Budget, Energy, plan_ranks
from common.shrink import ShrinkSteps, Shrunk, shrink, shrink_each
from common.training import TrainingSettings, train
from tests.networks import same_weights, tiny_cnn, tiny_digits


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = tiny_cnn(width=24)
    train(model, tiny_digits(400), TrainingSettings(epochs=3.0))
    return model.eval()


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    return list(tiny_digits(400).calibration)


@pytest.fixture(scope="module")
def shrunk(trained: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Shrunk:
    return shrink(trained, batches, Budget(params=0.35))


def test_it_keeps_the_budget_and_reports_every_step(
    trained: nn.Module, batches: list[tuple[Tensor, Tensor]], shrunk: Shrunk
) -> None:
    untouched = [parameter.clone() for parameter in trained.parameters()]
    again = shrink(trained, batches, Budget(params=0.35))
    assert same_weights(shrunk.model, again.model)
    assert all(torch.equal(a, b) for a, b in zip(untouched, trained.parameters(), strict=True))
    assert shrunk.after.params <= 0.35 * shrunk.before.params
    assert [step.name for step in shrunk.steps] == [
        *("calibrate", "decompose", "correct", "measure", "plan", "compress", "improve", "refit", "recalibrate")
    ]
    assert all(step.seconds >= 0 for step in shrunk.steps)
    text = str(shrunk)
    assert text.startswith("step ")
    for part in ("dense", "refit", "divergence", "accuracy", f"{shrunk.after.params:,} of {shrunk.before.params:,}"):
        assert part in text


def test_several_sizes_share_one_measurement(
    trained: nn.Module, batches: list[tuple[Tensor, Tensor]], shrunk: Shrunk
) -> None:
    rules = [Budget(params=0.35), Budget(macs=0.3), Energy(0.8)]
    first, second, third = shrink_each(trained, batches, iter(rules))
    assert same_weights(first.model, shrunk.model)
    assert second.after.macs <= 0.3 * second.before.macs
    assert (second.plan.rule, third.plan.rule) == ("budget", "energy")
    names = [[step.name for step in found.steps] for found in (first, second, third)]
    assert all(each[:5] == ["calibrate", "decompose", "correct", "measure", "plan"] for each in names)
    assert first.steps[:4] == second.steps[:4] == third.steps[:4]
    assert all(each.count("compress") == 1 for each in names)


def test_all_sizes_are_checked_before_any_work(trained: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    unread: Iterator[Tensor] = iter(lambda: pytest.fail("a batch was read"), None)
    with pytest.raises(ValueError, match="rules is empty"):
        shrink_each(trained, unread, [])
    with pytest.raises(ValueError, match=r"rule=0\.5"):
        shrink_each(trained, unread, [Budget(params=0.5), 0.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="cannot be met"):
        next(shrink_each(trained, batches, [Budget(params=0.5), Budget(params=1e-6)]))


def test_it_loses_less_than_its_parts_alone(
    trained: nn.Module, batches: list[tuple[Tensor, Tensor]], shrunk: Shrunk
) -> None:
    fresh = [inputs for inputs, _ in tiny_digits(400).test]
    moments = calibrate(trained, batches)
    plan = plan_ranks(trained, fresh[0], "mixed", Budget(params=0.35), moments=moments)
    plain = compress(trained, plan, moments=moments)
    wanted = outputs_on(trained, fresh)
    lost = [kl_divergence(wanted, outputs_on(network, fresh)).mean() for network in (shrunk.model, plain)]
    assert lost[0] < 0.6 * lost[1]


def test_a_step_that_does_not_lower_the_divergence_is_undone(
    trained: nn.Module, batches: list[tuple[Tensor, Tensor]], shrunk: Shrunk
) -> None:
    states = [step for step in shrunk.steps if step.divergence is not None]
    kept = [float(step.divergence or 0.0) for step in states if step.kept]
    assert kept == sorted(kept, reverse=True)
    for step in states:
        if not step.kept:
            assert f"{step.name} (undone" in str(shrunk)
    without = shrink(trained, batches, Budget(params=0.35), steps=ShrinkSteps(recalibrate=False))
    if not states[-1].kept:
        assert same_weights(without.model, shrunk.model)
    assert [step.name for step in without.steps][-1] == "refit"


def test_an_undone_step_shows_what_it_made(
    trained: nn.Module, batches: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its divergence and its metrics are those of the network that was not kept."""

    @torch.no_grad()
    def ruin(small: nn.Module, *_: object, **__: object) -> dict[str, float]:
        for parameter in small.parameters():
            parameter.zero_()
        return {"all": 0.0}

    monkeypatch.setattr("common.shrink.shrinking.refit", ruin)
    shrunk = shrink(trained, batches, Budget(params=0.35), "svd")
    before, ruined = ({step.name: step for step in shrunk.steps}[name] for name in ("improve", "refit"))
    assert not ruined.kept
    assert (ruined.divergence or 0) > (before.divergence or 0)
    assert ruined.metrics["loss"] == pytest.approx(math.log(10), rel=1e-3)  # of outputs that are all alike
    assert before.metrics["loss"] < ruined.metrics["loss"]


def test_steps_can_be_turned_off_and_any_rule_and_method_is_taken(
    trained: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    steps = ShrinkSteps(measure=False, improve=0, refit=False, recalibrate=False)
    bare = shrink(trained, [inputs for inputs, _ in batches], Energy(0.8), "htd", steps=steps)
    assert [step.name for step in bare.steps] == ["calibrate", "decompose", "plan", "compress"]
    assert bare.metrics == {}
    moments = calibrate(trained, batches)
    plan = plan_ranks(trained, batches[0][0][:1], "htd", Energy(0.8), moments=moments)
    assert same_weights(bare.model, compress(trained, plan, moments=moments, sweeps=0))


def test_networks_that_return_images_and_single_images_are_served() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    denoiser = nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1)).eval()
    x = torch.rand(64, 1, 12, 12)
    found = shrink(denoiser, [x], Budget(macs=0.5))
    lost = squared_error(outputs_on(denoiser, [x]), outputs_on(found.model, [x])).mean()
    assert lost < 0.1
    assert found.after.macs <= 0.5 * found.before.macs


def test_the_result_is_saved_and_loaded(
    shrunk: Shrunk, trained: nn.Module, batches: list[tuple[Tensor, Tensor]], tmp_path: object
) -> None:
    file = save_compressed(shrunk.model, f"{tmp_path}/small.safetensors")
    loaded = load_compressed(file, trained)
    x = batches[0][0]
    torch.testing.assert_close(outputs_on(loaded, [x]), outputs_on(shrunk.model, [x]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "batches is empty"),
        ({"batches": [torch.zeros(1, 3, 8, 8)]}, "batches hold 1 images: at least 2"),
        ({"method": "tukcer"}, "method='tukcer'"),
        ({"rule": Budget(params=1e-6)}, "cannot be met: the least that can be kept is params"),
        ({"rule": 0.3}, "rule=0.3: it must be a rule"),
        ({"batches": torch.zeros(4, 3, 8, 8)}, r"batches is one tensor of shape \(4, 3, 8, 8\); it must be a list"),
    ],
)
def test_bad_arguments_are_named(
    trained: nn.Module, batches: list[tuple[Tensor, Tensor]], change: dict[str, object], message: str
) -> None:
    arguments = {"model": trained, "batches": batches, "rule": Budget(params=0.5)} | change
    with pytest.raises(ValueError, match=message):
        shrink(**arguments)  # type: ignore[arg-type]


def test_wrong_calls_are_refused_before_any_pass(trained: nn.Module, shrunk: Shrunk) -> None:
    for model, rule in ((shrunk.model, Budget(params=0.5)), (trained, 0.5)):
        with pytest.raises(ValueError, match=r"compressed already|rule=0\.5"):
            shrink(model, iter(lambda: pytest.fail("a batch was read"), None), rule)  # type: ignore[arg-type]


def test_ranks_of_wide_layers_are_aligned_unless_the_caller_says_otherwise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3), nn.ReLU(), nn.Flatten()).eval()
    batches = [torch.randn(48, 3, 8, 8)]
    cheap = ShrinkSteps(measure=False, improve=0, refit=False, recalibrate=False)
    for rule, steps, step in (
        (Budget(params=0.4), cheap, 16),
        (Budget(params=0.4, round_to=3), cheap, 3),
        (Budget(params=0.4), replace(cheap, align=False), 1),
    ):
        plan = shrink(model, batches, rule, "svd", steps=steps).plan
        assert plan.settings["round_to"] == (None if step == 16 else step)
        assert all(rank % step == 0 for rank in plan.layers["2"].ranks)
