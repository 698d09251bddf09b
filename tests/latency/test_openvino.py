from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.compression import compress
from common.deploy import export_onnx, openvino_model
from common.environment import describe_environment, machine_line
from common.latency import RUNTIMES, available_runtimes, layer_times, measure_latency, measured_latencies
from common.latency.operations import Operation
from common.latency.runtimes import OpenVino
from common.models import build_model
from common.notebook.config import ClassifierConfig
from common.planning import Budget, Fixed, plan_ranks
from common.search import SearchSettings, search_ranks
from tests.latency.reasons import NO_OPENVINO
from tests.networks import lived_in, tiny_cnn, tiny_digits

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_parity(path: Path, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = model(x).numpy()
    found = openvino_model(path)(x.numpy())[0]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@NO_OPENVINO
@pytest.mark.parametrize("method", ["spatial_svd", "htd"])
def test_outputs_are_those_of_pytorch(method: str, tmp_path: Path) -> None:
    model = lived_in(tiny_cnn())
    small = compress(model, plan_ranks(model, X, method, Fixed(0.4, only_if_smaller=False)))
    check_parity(export_onnx(small, tmp_path / "small.onnx", X), small, torch.randn(5, 3, 12, 12))


@NO_OPENVINO
def test_the_unets_transposed_convolutions_are_those_of_pytorch(tmp_path: Path) -> None:
    model, x = lived_in(build_model("unet", 1, width=8, depth=1)), torch.randn(1, 3, 16, 16)
    small = compress(model, plan_ranks(model, x, "tucker2", Fixed(0.5, only_if_smaller=False)))
    check_parity(export_onnx(small, tmp_path / "unet.onnx", x), small, x)


@NO_OPENVINO
def test_it_computes_in_float32_on_as_many_threads_as_pytorch(tmp_path: Path, one_thread: None) -> None:
    path = export_onnx(tiny_cnn(), tmp_path / "tiny.onnx", X)
    default, two = openvino_model(path), openvino_model(path, threads=2)
    assert default.get_property("INFERENCE_NUM_THREADS") == 1
    assert two.get_property("INFERENCE_NUM_THREADS") == 2
    assert default.get_property("NUM_STREAMS") == 1
    assert default.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


@NO_OPENVINO
def test_a_budget_of_latency_and_the_layers_times(tmp_path: Path) -> None:
    model = tiny_cnn(width=8)
    latencies = measured_latencies(model, X, "openvino", "svd", folder=tmp_path)
    plan = plan_ranks(model, X, "svd", Budget(latency=1.0, runtime="openvino"), latencies=latencies)
    assert plan.settings["runtime"] == "openvino"
    (file,) = tmp_path.glob("latency-openvino-*.json")
    assert RUNTIMES["openvino"].version in file.name
    small = compress(model, plan_ranks(model, X, "svd", Fixed(4, only_if_smaller=False)))
    times = layer_times(small, X, "openvino")
    assert {"stem.0.0", "head.1"} <= times.keys()
    assert all(0 <= seconds < 1 for seconds in times.values())


@NO_OPENVINO
def test_greater_operations_take_longer() -> None:
    """The times are those of the operators: 64 times the work takes at least twice as long."""
    runtime = OpenVino()
    sizes = [Operation((channels, channels), (3, 3), (16, 16), (16, 16)) for channels in (16, 128)]
    warm, later = runtime.operation_seconds(sizes, 1, runs=10)
    assert all(warm > 0)
    assert later[1] > 2 * later[0] >= 0


@NO_OPENVINO
def test_outputs_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_cnn()
    shifted = tiny_cnn()
    shifted.head.bias.data += 1.0
    other = export_onnx
    monkeypatch.setattr("common.latency.runtimes.onnx_file.export_onnx", lambda _, *a, **b: other(shifted, *a, **b))
    with pytest.raises(RuntimeError, match=r"OpenVINO's outputs differ from PyTorch's by .*; allowed is 1e-04"):
        measure_latency(model, X, runtime="openvino")


@NO_OPENVINO
def test_notebooks_and_records_know_it() -> None:
    assert ClassifierConfig(runtimes="eager,openvino").runtime_list == ("eager", "openvino")
    assert describe_environment()["openvino"] == RUNTIMES["openvino"].version
    assert f"OpenVINO {RUNTIMES['openvino'].version}" in machine_line()
    assert "openvino" in available_runtimes()


@pytest.fixture
def _without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.deploy.openvino_models.find_spec", lambda _: None)


@pytest.mark.usefixtures("_without")
def test_without_the_package_every_use_says_how_to_get_it(tmp_path: Path) -> None:
    path = export_onnx(nn.Linear(3, 2), tmp_path / "linear.onnx", torch.randn(2, 3))
    says = "runtime='openvino' needs the package openvino, which is not installed; run: pip install openvino"
    model = tiny_cnn()
    for use in (
        lambda: measure_latency(model, X, runtime="openvino"),
        lambda: measured_latencies(model, X, "openvino", "svd", folder=tmp_path),
        lambda: layer_times(model, X, "openvino"),
        lambda: openvino_model(path),
        lambda: ClassifierConfig(runtimes="eager,openvino"),
        lambda: search_ranks(model, tiny_digits(), SearchSettings(runtimes=("openvino",)), logs=tmp_path, run="r"),
    ):
        with pytest.raises(RuntimeError, match=says):
            use()
    assert "openvino" not in available_runtimes()
    assert {"eager", "onnxruntime"} <= set(available_runtimes())


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device='cuda': OpenVINO runs networks on the processor here; allowed: cpu"):
        RUNTIMES["openvino"].check(torch.device("cuda"))
    with pytest.raises(FileNotFoundError, match=r"none\.onnx': there is no such file"):
        openvino_model(tmp_path / "none.onnx")
    path = export_onnx(nn.Linear(3, 2), tmp_path / "linear.onnx", torch.randn(2, 3))
    with pytest.raises(ValueError, match="threads=0: it must be at least 1"):
        openvino_model(path, threads=0)
