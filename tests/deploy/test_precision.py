from __future__ import annotations

import copy
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from common.calibration import recalibrate_bn
from common.compression import compress
from common.deploy import OnnxNetwork, export_onnx, precision
from common.latency import RUNTIMES, measure_files, measure_latency
from common.models import build_model
from common.network.modes import evaluating
from common.planning import Fixed, plan_ranks
from tests.networks import lived_in, same_weights, tiny_cnn

X = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def weights(path: Path) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in onnx.load(path).graph.initializer}


def error(path: Path, model: nn.Module, x: Tensor) -> float:
    """Distance of the file's outputs from PyTorch's, over their norm."""
    with evaluating(model), torch.no_grad():
        expected = model(x)
    return float((OnnxNetwork(path)(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", ["svd", "spatial_svd", "tucker2", "htd"])
def test_int8_of_every_method(method: str, tmp_path: Path) -> None:
    model = lived_in(tiny_cnn())
    small = compress(model, plan_ranks(model, X, method, Fixed(0.5, only_if_smaller=False)))
    recalibrate_bn(small, [X])
    before = copy.deepcopy(small)
    path = export_onnx(small, tmp_path / "small.onnx", X[:1], precision="int8", batches=[X[:32], X[32:]])
    assert list(tmp_path.iterdir()) == [path]
    found = operators(path)
    kernels = [values for values in weights(path).values() if values.dtype == np.int8 and values.ndim > 1]
    assert len(kernels) == found["Conv"] + found["Gemm"]
    assert found["QuantizeLinear"] > 0
    assert error(path, small, X[:7]) < 0.05  # a batch of another size
    assert same_weights(small, before)


def test_int8_of_the_unet_with_transposed_convolutions_and_a_scale_for_each_channel(tmp_path: Path) -> None:
    model, x = lived_in(build_model("unet", 1, width=8, depth=1)), torch.randn(8, 3, 16, 16)
    small = compress(model, plan_ranks(model, x, "svd", Fixed(0.5, only_if_smaller=False)))
    recalibrate_bn(small, [x])
    path = export_onnx(small, tmp_path / "unet.onnx", x[:1], precision="int8", batches=[(x, torch.zeros(8))])
    assert operators(path)["ConvTranspose"] == 1
    for name, values in weights(path).items():
        if values.dtype == np.int8 and values.ndim == 4:
            scales = weights(path)[name.replace("_quantized", "_scale")]
            assert scales.size in values.shape[:2]
    assert error(path, small, x[:3]) < 0.1


def test_a_file_is_about_a_quarter_in_int8_and_a_half_in_float16(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 128, 3, 2), nn.ReLU(), nn.Conv2d(128, 256, 3, 2), nn.Flatten(), nn.Linear(1024, 99)
    )
    half = export_onnx(model, tmp_path / "half.onnx", X[:1], precision="float16")
    eighth = export_onnx(model, tmp_path / "int8.onnx", X[:1], precision="int8", batches=[X])
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert half.stat().st_size / whole == pytest.approx(0.5, abs=0.01)
    assert eighth.stat().st_size / whole == pytest.approx(0.25, abs=0.02)
    linear = export_onnx(model, tmp_path / "fixed.onnx", X[:32], dynamic_batch=False, precision="int8", batches=[X])
    assert error(linear, model, X[:32]) < 0.05
    assert [precision.precision_of(path) for path in (half, eighth, linear)] == ["float16", "int8", "int8"]


def test_float16_computes_with_rounded_weights_in_float32(tmp_path: Path) -> None:
    model = lived_in(tiny_cnn())
    path = export_onnx(model, tmp_path / "half.onnx", X[:1], precision="float16")
    assert all(values.dtype == np.float16 for values in weights(path).values() if values.dtype.kind == "f")
    assert error(path, model, X) < 2e-3
    assert error(path, model, X) > 1e-6  # the weights are rounded
    types = {value.type.tensor_type.elem_type for value in onnx.load(path).graph.output}
    assert types == {onnx.TensorProto.FLOAT}
    with torch.no_grad():
        model.get_parameter("conv.weight")[0] = 1e6
    with pytest.raises(ValueError, match=r"precision='float16': conv\.weight has values beyond float16's range"):
        export_onnx(model, tmp_path / "half.onnx", X[:1], precision="float16")


def test_without_products_of_bytes_weights_take_seven_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for has, greatest in ((True, 127), (False, 64)):
        monkeypatch.setattr(precision, "has_int8_products", lambda has=has: has)
        path = export_onnx(tiny_cnn(), tmp_path / "tiny.onnx", X[:1], precision="int8", batches=[X])
        kernels = [v for v in weights(path).values() if v.dtype == np.int8 and v.ndim > 1]
        assert max(int(np.abs(values.astype(int)).max()) for values in kernels) == greatest


def test_only_the_first_inputs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MOST_INPUTS", 40)
    given = iter([X[:32], X[32:], pytest.fail])
    export_onnx(tiny_cnn(), tmp_path / "tiny.onnx", X[:1], precision="int8", batches=given)  # type: ignore[arg-type]
    assert next(given) is pytest.fail


def test_bad_arguments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny_cnn(), tmp_path / "tiny.onnx"
    with pytest.raises(ValueError, match=r"precision='int4' is unknown.*; allowed: float32, float16, int8"):
        export_onnx(model, path, X[:1], precision="int4")
    with pytest.raises(ValueError, match="precision='int8' needs batches=: some hundred typical inputs"):
        export_onnx(model, path, X[:1], precision="int8")
    with pytest.raises(ValueError, match="precision='float32' takes no batches; only int8 does"):
        export_onnx(model, path, X[:1], batches=[X])
    for wrong, said in (
        (
            torch.randn(4, 3, 9, 9),
            r"shape \(4, 3, 9, 9\), torch\.float32; the file takes \(N, 3, 12, 12\), torch\.float32",
        ),
        (X[:4].double(), r"shape \(4, 3, 12, 12\), torch\.float64; the file takes"),
        (X[0], r"shape \(3, 12, 12\), torch\.float32; the file takes"),
        (X[:2] * torch.nan, "values that are not finite"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(torch.onnx, "export", None)  # they are read before any work
            with pytest.raises(ValueError, match=f"^batches holds .*{said}"):
                export_onnx(model, path, X[:1], precision="int8", batches=[X[:4], wrong])
    with pytest.raises(ValueError, match="batches holds 0 inputs; int8 needs 1"):
        export_onnx(model, path, X[:1], precision="int8", batches=[])
    with pytest.raises(ValueError, match="batches holds 3 inputs; int8 needs 4"):
        export_onnx(model, path, X[:4], dynamic_batch=False, precision="int8", batches=[X[:3]])
    assert not list(tmp_path.iterdir())


def test_useless_outputs_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LARGEST_ERROR", 1e-6)
    with pytest.raises(RuntimeError, match=r"the int8 file's outputs on batches differ from PyTorch's by .*; allowed"):
        export_onnx(tiny_cnn(), tmp_path / "tiny.onnx", X[:1], precision="int8", batches=[X])
    assert not list(tmp_path.iterdir())
    assert logging.root.manager.disable == 0


def test_files_and_networks_are_timed_in_int8(tmp_path: Path) -> None:
    model = tiny_cnn()
    whole = export_onnx(model, tmp_path / "float32.onnx", X[:1])
    eighth = export_onnx(model, tmp_path / "int8.onnx", X[:1], precision="int8", batches=[X])
    found = measure_files([whole, eighth], X[:2], baseline=whole, rounds=3, round_s=0.001)
    assert [latency.runtime for latency in found] == ["ONNX Runtime"] * 2
    assert all(latency.speedup is not None or latency.note for latency in found)
    timed = measure_latency(model, X[:2], baseline=model, runtime="onnxruntime_int8", rounds=3, round_s=0.001)
    assert timed.runtime == "ONNX Runtime int8"
    with pytest.raises(ValueError, match="rounds=2: it must be a whole number of at least 3"):
        measure_files([whole], X, baseline=whole, rounds=2)
    with pytest.raises(ValueError, match="device='cuda': int8 files run on the processor"):
        RUNTIMES["onnxruntime_int8"].check(torch.device("cuda"))


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_int8_of_transposed_convolutions_with_groups(groups: int, bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2, groups=groups, bias=bias)).eval(), X
    path = export_onnx(model, tmp_path / "small.onnx", x, precision="int8", batches=[x])
    assert error(path, model, x) < 0.05


@pytest.mark.parametrize(("scale", "refused"), [(1e-3, False), (1e-9, True)])
def test_float16_is_refused_where_the_weights_vanish_in_it(scale: float, refused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 2, 3, bias=False)).eval()
    with torch.no_grad():
        for layer, factor in zip(model, (scale, 1 / scale), strict=True):
            layer.get_parameter("weight").mul_(min(factor, 1e4))
    if not refused:
        assert error(export_onnx(model, tmp_path / "half.onnx", X, precision="float16"), model, X) < 0.05
        return
    with pytest.raises(ValueError, match="precision='float16': the outputs on x differ by 100% of their norm"):
        export_onnx(model, tmp_path / "half.onnx", X, precision="float16")
    assert not list(tmp_path.iterdir())
