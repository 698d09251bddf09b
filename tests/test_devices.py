"""The suite on a second device gives the results of the CPU: on a simulated device, and on a GPU where there is one.

``pytest -m gpu tests/test_devices.py`` runs those for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.calibration import calibrate, recalibrate_bn, refit
from common.compression import compress, load_compressed, save_compressed
from common.deploy import export_onnx, fold_batchnorm, merge_factors
from common.deploy.sessions import onnx_session
from common.latency import measure_latency
from common.network import profile
from common.planning import Budget, Fixed, RankPlan, plan_ranks
from common.search import SearchSettings, search_ranks
from common.shrink import shrink
from common.training import TrainingSettings, evaluate, train
from tests.networks import lived_in, tiny_cnn, tiny_digits
from tests.second_device import second_device

Move = Callable[[Any], Any]
TOLERANCE = 2e-3
"""Of outputs, relative to their greatest: sums in another order, and what follows from them."""
INPUTS = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0)).split(32)
TRAINING = TrainingSettings(epochs=1.0, learning_rate=0.02, amp="off")


@pytest.fixture(params=["simulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Move]:
    """A function that moves a tensor or a network to the device."""
    monkeypatch.setattr("common.decomposition.cp.PHASES", ((1e-4, 2), (1e-7, 1)))  # each step is simulated
    if request.param == "simulated":
        with second_device() as move:
            yield move
    elif not torch.cuda.is_available():
        pytest.skip("there is no GPU on this machine")
    else:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield lambda each: each.to("cuda")


def dense() -> nn.Module:
    return lived_in(tiny_cnn())


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found.detach().cpu() - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def test_the_simulated_device_refuses_what_a_gpu_refuses() -> None:
    with second_device() as move:
        x = move(torch.arange(3.0))
        assert x.device != torch.arange(3).device
        assert (x + 1).tolist() == [1.0, 2.0, 3.0]
        for wrong in (
            lambda: x + torch.ones(3),
            lambda: torch.cat([x, torch.ones(3)]),
            lambda: torch.ones(3)[x.long()],
            lambda: torch.rand(3, device=x.device, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match="on the CPU"):
                wrong()
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()


@pytest.mark.parametrize("method", ["htd", "mixed"])  # mixed decomposes by several others
def test_compressing_and_refitting(method: str, there: Move) -> None:
    def outputs(move: Move) -> tuple[RankPlan, list[Tensor]]:
        model, inputs = move(dense()), [move(each) for each in INPUTS]
        moments = calibrate(model, inputs)
        plan = plan_ranks(model, inputs[0][:1], method, Budget(params=0.6), moments=moments)
        small = compress(model, plan, moments=moments)
        with torch.no_grad():
            found = [small(inputs[0]).cpu()]
            refit(small, model, inputs)
            recalibrate_bn(small, inputs)
            found.append(small(inputs[0]).cpu())
        assert profile(small, inputs[0][:1]).params < profile(model, inputs[0][:1]).params
        return plan, found

    (plan, found), (expected_plan, expected) = outputs(there), outputs(lambda each: each)
    assert plan == expected_plan
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_shrinking(there: Move) -> None:
    found = shrink(there(dense()), [there(each) for each in INPUTS], Budget(params=0.5))
    expected = shrink(dense(), list(INPUTS), Budget(params=0.5))
    assert found.plan == expected.plan
    assert [step.kept for step in found.steps] == [step.kept for step in expected.steps]
    assert found.steps[-1].divergence == pytest.approx(expected.steps[-1].divergence, rel=0.05)


def test_training_and_evaluating(there: Move) -> None:
    data, found = tiny_digits(), []
    for move in (there, lambda each: each):
        model = move(tiny_cnn())
        train(model, data, TRAINING)
        found.append(evaluate(model.eval(), data.validation)["loss"])
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_measuring_saving_loading_and_merging(there: Move, tmp_path: Path) -> None:
    model, x = there(dense()), there(INPUTS[0])
    small = compress(model, plan_ranks(model, x[:1], "htd", Fixed(0.5)))
    assert measure_latency(small, x[:1], baseline=model).median_s > 0
    with torch.no_grad():
        expected = small(x).cpu()
        loaded = load_compressed(save_compressed(small, tmp_path / "s.safetensors"), dense())
        assert_close(there(loaded)(x), expected)
        assert_close(merge_factors(fold_batchnorm(small, x[:1]), x[:1])(x), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("there", ["cuda"], indirect=True)
def test_exporting(there: Move, tmp_path: Path) -> None:
    model, x = there(dense()), there(INPUTS[0])
    small = compress(model, plan_ranks(model, x[:1], "htd", Fixed(0.5)))
    session = onnx_session(export_onnx(small, tmp_path / "s.onnx", x[:1]), device="cpu")
    (found,) = session.run(None, {session.get_inputs()[0].name: INPUTS[0].numpy()})
    with torch.no_grad():
        assert_close(torch.from_numpy(np.asarray(found)), small(x).cpu())


def test_searching(there: Move, tmp_path: Path) -> None:
    settings = SearchSettings(
        method="htd", trials=3, keep=0.01, finetune_top=1, finetune=TRAINING, sensitivity_images=16
    )
    found, expected = (
        search_ranks(move(dense()), tiny_digits(), settings, logs=tmp_path, run=run, on_trial=lambda _: None)
        for run, move in (("there", there), ("here", lambda each: each))
    )
    assert [record.status for record in found.records] == ["ok"] * len(expected.records)
    assert [record.params for record in found.records] == [record.params for record in expected.records]
    assert found.networks
