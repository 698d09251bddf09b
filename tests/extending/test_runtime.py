"""A user's runtime, in one file outside ``common``: networks are timed, planned for, searched and reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import analyze_results
from common.compression import compress
from common.latency import RUNTIMES, layer_times, measure_latency, measured_latencies
from common.latency.runtimes import Eager
from common.notebook.config import ClassifierConfig
from common.planning import Budget, Fixed, plan_ranks
from common.search import SearchSettings, search_ranks
from common.trials import read_log
from tests.networks import tiny_cnn, tiny_digits

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Autocast(Eager):
    """PyTorch's convolutions and matrix products in bfloat16."""

    name = "autocast"
    title = "PyTorch bfloat16"

    def check(self, device: torch.device) -> None:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device={device.type!r}: autocast is for cpu and cuda")

    @contextmanager
    def passing(self) -> Iterator[None]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            yield


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What ``RUNTIMES.add(Autocast())`` below the class does, for these tests alone."""
    with RUNTIMES.including(Autocast()):
        yield


class Noting(nn.Module):
    """Stores the dtype of its convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        self.seen.add(out.dtype)
        return out


def test_it_times_networks_in_its_own_way() -> None:
    model = Noting().eval()
    found = measure_latency(model, X, baseline=model, runtime="autocast", rounds=3, round_s=0.001)
    assert model.seen == {torch.bfloat16}
    assert (found.runtime, found.memory_format) == ("PyTorch bfloat16", "contiguous")
    with pytest.raises(ValueError, match="device='meta': autocast is for cpu and cuda"):
        measure_latency(model, X.to("meta"), runtime="autocast")


def test_it_is_planned_for(tmp_path: Path) -> None:
    model = tiny_cnn()
    latencies = measured_latencies(model, X, "autocast", "svd", folder=tmp_path)
    plan = plan_ranks(model, X, "svd", Budget(latency=1.0, runtime="autocast"), latencies=latencies)
    assert plan.settings["runtime"] == "autocast"
    assert list(tmp_path.glob("latency-autocast-*.json"))
    small = compress(model, plan_ranks(model, X, "svd", Fixed(4, only_if_smaller=False)))
    assert layer_times(small, X, "autocast").keys() > {"rest"}


def test_it_is_named_where_a_runtime_is_unknown() -> None:
    allowed = "allowed: eager, channels_last, compile, onnxruntime, openvino, onnxruntime_int8, autocast"
    with pytest.raises(ValueError, match=rf"runtime='autocats' is unknown \(did you mean 'autocast'\?\); {allowed}"):
        measure_latency(tiny_cnn(), X, runtime="autocats")
    with pytest.raises(ValueError, match="allowed: eager, channels_last, onnxruntime, openvino, autocast"):
        measured_latencies(tiny_cnn(), X, "compile")
    with pytest.raises(ValueError, match=rf"runtimes='autocats' is unknown .*; {allowed}"):
        SearchSettings(runtimes=("autocats",))
    assert ClassifierConfig(runtimes="eager,autocast").runtime_list == ("eager", "autocast")


def test_a_cell_may_add_it_twice_but_a_name_stands_for_one_runtime() -> None:
    again = RUNTIMES.add(Autocast())
    assert RUNTIMES["autocast"] is again

    class Other(Eager):
        """Another runtime of the same name."""

    with pytest.raises(
        ValueError, match=r"runtime='eager' is already the name of common\.latency\.runtimes\.eager\.Eager\(\)"
    ):
        RUNTIMES.add(Other())


def test_it_is_searched_logged_and_reported(tmp_path: Path) -> None:
    budget = Budget(params=0.6)
    settings = SearchSettings(trials=2, finetune_top=0, budget=budget, runtimes=("eager", "autocast"))
    result = search_ranks(
        tiny_cnn(width=16), tiny_digits(), settings, logs=tmp_path, run="own", on_trial=lambda _: None
    )
    timed = [record for record in read_log(result.log)[0] if record.details.latencies]
    assert timed
    for record in timed:
        assert [timing.runtime for timing in record.details.latencies] == ["PyTorch eager", "PyTorch bfloat16"]
    assert analyze_results.main([str(tmp_path / "own.log"), "--out", str(tmp_path / "results")]) == 0
    assert "PyTorch bfloat16" in (tmp_path / "results" / "report.html").read_text()
