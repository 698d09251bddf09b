from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.latency import Latency, measure_latencies, measure_latency
from common.latency import measuring as latency
from tests.latency.reasons import NO_OPENVINO
from tests.networks import same_weights, tiny_cnn

X = torch.randn(2, 3, 8, 8)


def scripted(monkeypatch: pytest.MonkeyPatch, *series: Sequence[float]) -> None:
    """Replace the clock by one that shows the given seconds of each network, round by round."""
    clocks = iter(series)

    class Clock:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.warm, self.seconds = False, iter(next(clocks))

        def timeit(self, count: int) -> SimpleNamespace:
            if not self.warm:
                self.warm = True
                return SimpleNamespace(median=1.0)
            return SimpleNamespace(median=next(self.seconds))

    monkeypatch.setattr(latency, "Timer", Clock)


def test_it_states_its_conditions() -> None:
    alone = measure_latency(tiny_cnn(), X, rounds=4, round_s=0.001)
    assert alone.median_s > 0
    assert alone.iqr_s >= 0
    assert (alone.speedup, alone.baseline_median_s, alone.note) == (None, None, "")
    assert (alone.runtime, alone.threads, alone.batch_size) == ("PyTorch eager", torch.get_num_threads(), 2)
    assert alone.memory_format == "contiguous"
    grey = measure_latency(nn.Conv2d(1, 2, 3), torch.randn(2, 1, 8, 8), rounds=3, round_s=0.001)
    assert grey.memory_format == "contiguous"
    assert Latency(**alone.to_json()) == alone


def test_medians_and_quartiles_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1, 2, 3 the quartiles (exclusive method) are 1 and 3; ratios 4, 4.5, 4."""
    scripted(monkeypatch, [1.0, 2.0, 3.0], [4.0, 9.0, 12.0])
    found = measure_latency(tiny_cnn(), X, baseline=tiny_cnn(), rounds=3)
    assert (found.median_s, found.iqr_s) == (2.0, 2.0)
    assert (found.baseline_median_s, found.baseline_iqr_s) == (9.0, 8.0)
    assert found.speedup == 4.5
    assert found.spread == 0.125
    assert found.note == ""


def test_a_ratio_that_means_nothing_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios 1, 2, 3: quartiles 1 and 3, over a median of 2."""
    scripted(monkeypatch, [1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    found = measure_latency(tiny_cnn(), X, baseline=tiny_cnn(), rounds=3)
    assert found.speedup is None
    assert (found.median_s, found.baseline_median_s, found.spread) == (1.0, 2.0, 1.0)
    assert "in 3 rounds the middle half of the ratios spans 100% of their median 2.00, over 25%" in found.note


def test_a_drift_of_the_machine_changes_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [1.0, 2.0, 4.0, 8.0], [3.0, 6.0, 12.0, 24.0])
    found = measure_latency(tiny_cnn(), X, baseline=tiny_cnn(), rounds=4)
    assert (found.speedup, found.spread) == (3.0, 0.0)


def test_several_networks_share_one_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [1.0] * 3, [2.0] * 3, [8.0] * 3)
    found = measure_latencies([tiny_cnn(), tiny_cnn()], X, baseline=tiny_cnn(), rounds=3)
    assert [one.speedup for one in found] == [8.0, 4.0]


@pytest.mark.parametrize(
    ("runtime", "name", "memory_format"),
    [
        ("eager", "PyTorch eager", "contiguous"),
        ("channels_last", "PyTorch channels_last", "channels_last"),
        ("onnxruntime", "ONNX Runtime", "contiguous"),
        pytest.param("openvino", "OpenVINO", "contiguous", marks=NO_OPENVINO),
    ],
)
def test_every_runtime_leaves_the_network_alone(runtime: str, name: str, memory_format: str) -> None:
    model = tiny_cnn().train()
    before = copy.deepcopy(model)
    found = measure_latency(model, X, baseline=tiny_cnn(), runtime=runtime, rounds=3, round_s=0.001)
    assert (found.runtime, found.memory_format) == (name, memory_format)
    assert 0 < found.median_s < 1
    assert found.speedup is not None or found.note
    assert model.training
    assert same_weights(model, before)
    assert model.conv.weight.stride() == before.conv.weight.stride()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    found = measure_latency(model, torch.randn(2, 4), baseline=model, runtime="compile", rounds=3, round_s=0.001)
    assert found.runtime == "torch.compile"
    assert 0 < found.median_s < 1


def test_without_a_compiler_it_says_so() -> None:
    from torch._inductor import config

    missing = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(RuntimeError, match=r"runtime='compile': torch\.compile needs a C"):
        measure_latency(tiny_cnn(), X, runtime="compile")


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_the_peak_holds_what_a_pass_makes(runtime: str) -> None:
    """The output alone has 32 x 254 x 254 values of 4 bytes."""
    found = measure_latency(nn.Conv2d(1, 32, 3), torch.randn(1, 1, 256, 256), runtime=runtime, rounds=3, round_s=0.001)
    if found.peak_bytes is None:
        pytest.skip("this system does not tell the peak of a process's memory")
    output = 32 * 254 * 254 * 4
    assert 0.9 * output < found.peak_bytes < 5 * output


def test_bad_arguments_are_named() -> None:
    for rounds in (2, 3.5):
        with pytest.raises(ValueError, match=rf"rounds={rounds}: it must be a whole number of at least 3"):
            measure_latency(tiny_cnn(), X, rounds=rounds)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x has shape \(0, 3, 8, 8\): it holds nothing to time a pass on"):
        measure_latency(tiny_cnn(), X[:0])
    with pytest.raises(ValueError, match=r"x is a str: it holds nothing to time a pass on"):
        measure_latency(tiny_cnn(), "photo.png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"runtime='onnx' is unknown.*; allowed: eager, channels_last, compile, "):
        measure_latency(tiny_cnn(), X, runtime="onnx")


@pytest.mark.parametrize("runtime", ["eager", "channels_last", "onnxruntime"])
def test_a_network_that_does_not_take_x_is_told_in_one_sentence(runtime: str) -> None:
    wide = torch.randn(1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"the network does not take x of shape \(1, 4, 8, 8\).*but got 4 channels"):
        measure_latency(tiny_cnn(), wide, runtime=runtime)
    with pytest.raises(ValueError, match=r"the network does not take x of shape \(1, 3, 8, 8\)"):
        measure_latency(tiny_cnn(), X[:1], baseline=nn.Conv2d(4, 8, 3), runtime=runtime)


class Named(nn.Module):
    """Returns a dict, as networks for segmentation do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny_cnn()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.body(images)
        return {"out": logits, "aux": logits / 2}


@pytest.mark.parametrize("runtime", ["eager", "channels_last"])
def test_pytorch_serves_any_output(runtime: str) -> None:
    assert measure_latency(Named(), X, baseline=Named(), runtime=runtime, rounds=3, round_s=0.001).median_s > 0


def test_networks_that_cannot_be_exported_are_named_before_any_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", None)
    with pytest.raises(ValueError, match=r"must return one tensor, but it returns a dict \(keys out, aux\)"):
        measure_latency(tiny_cnn(), X, baseline=Named(), runtime="onnxruntime", rounds=3)
    with pytest.raises(ValueError, match="the network is float16"):
        measure_latency(tiny_cnn(), X, baseline=tiny_cnn().half(), runtime="onnxruntime", rounds=3)


def test_onnx_runtime_times_whole_numbers_and_single_images() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny_cnn()

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.body(pixels.float() / 255)

    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert measure_latency(Scales(), pixels, runtime="onnxruntime", rounds=3, round_s=0.001).batch_size == 2
    assert measure_latency(tiny_cnn(), X[0], runtime="onnxruntime", rounds=3, round_s=0.001).batch_size == 1


def test_any_input_that_the_network_takes_is_timed() -> None:
    class Spectrogram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.unsqueeze(1))

    assert measure_latency(Spectrogram(), torch.randn(2, 16, 16), rounds=3, round_s=0.001).batch_size == 2
    assert measure_latency(nn.Embedding(9, 4), torch.arange(5), rounds=3, round_s=0.001).median_s > 0


def test_channels_last_takes_images() -> None:
    with pytest.raises(ValueError, match=r"runtime='channels_last': x has shape \(2, 4\); it takes \(N, C, H, W\)"):
        measure_latency(nn.Linear(4, 3), torch.randn(2, 4), runtime="channels_last")


def test_onnx_runtime_and_openvino_are_loaded_when_they_are_needed() -> None:
    code = (
        "import sys, common.latency; sys.exit(bool({'onnx', 'onnx_ir', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


class ChangesItsInput(nn.Module):
    """Normalizes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.greatest = nn.Conv2d(3, 8, 3), 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.greatest = max(self.greatest, float(x.abs().max()))
        found: Tensor = self.layer(x.sub_(0.5).div_(0.25))
        return found


def test_every_timed_pass_gets_the_input_as_it_was_given() -> None:
    model, x = ChangesItsInput(), torch.rand(1, 3, 8, 8)
    before = x.clone()
    measure_latency(model, x, rounds=3, round_s=0.001)
    assert torch.equal(x, before)
    assert model.greatest <= 1
