from __future__ import annotations

import copy
import os
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from common.compression import compress, load_compressed, save_compressed
from common.deploy import export_onnx, fold_batchnorm, onnx_files, onnx_session
from common.deploy.precision import precision_of
from common.models import build_model
from common.planning import Fixed, plan_ranks
from tests.networks import lived_in, tiny_cnn


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def outputs(path: Path, x: Tensor) -> np.ndarray:
    (found,) = onnx_session(path, threads=1).run(None, {"input": x.numpy()})
    return np.asarray(found)


def check_parity(path: Path, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(outputs(path, x) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_compressed_network_of_any_batch_size(tmp_path: Path) -> None:
    model, x = lived_in(build_model("resnet20", 10)), torch.randn(1, 3, 16, 16)
    small = compress(model, plan_ranks(model, x, "tucker2", Fixed(0.3)), sweeps=0).train()
    path = export_onnx(small, tmp_path / "new" / "small.onnx", x)
    assert list(path.parent.iterdir()) == [path]
    assert small.training
    check_parity(path, small.eval(), torch.randn(5, 3, 16, 16))
    exported = onnx.load(path)
    sizes = exported.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["batch", 3, 16, 16]
    assert exported.opset_import[0].version == 20
    found = operators(path)
    assert found.keys() == {"Conv", "Relu", "Add", "Slice", "Pad", "ReduceMean", "Gemm"}
    assert found["Pad"] == 2  # only two of nine shortcuts add channels
    assert os.fsencode(Path(__file__).parents[2]) not in path.read_bytes()


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_the_unet_at_an_odd_size(tmp_path: Path, upsampling: str) -> None:
    model, x = lived_in(build_model("unet", 2, width=8, depth=2, upsampling=upsampling)), torch.randn(2, 3, 21, 18)
    small = compress(model, plan_ranks(model, x, "svd", Fixed(0.4)), sweeps=0)
    path = export_onnx(small, tmp_path / "unet.onnx", x, dynamic_batch=False, opset=18)
    check_parity(path, small, torch.randn(2, 3, 21, 18))
    exported = onnx.load(path)
    assert exported.opset_import[0].version == 18
    assert exported.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert "BatchNormalization" not in operators(path)


def test_pooling_of_single_pixels_is_dropped(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(6), nn.ReLU(), nn.AvgPool2d(2))
    path = export_onnx(model, tmp_path / "pool.onnx", torch.randn(1, 3, 8, 8), dynamic_batch=False)
    assert operators(path) == {"Conv": 1, "Relu": 1, "AveragePool": 1}


def test_outputs_that_differ_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: nn.Module, x: torch.Tensor) -> nn.Module:
        folded = fold_batchnorm(model, x)
        folded.get_parameter("head.bias").data += 0.01
        return folded

    monkeypatch.setattr(onnx_files, "fold_batchnorm", spoiled)
    with pytest.raises(RuntimeError, match=r"outputs differ from PyTorch's by .* allowed is 1e-04"):
        export_onnx(tiny_cnn(), tmp_path / "tiny.onnx", torch.randn(1, 3, 8, 8))
    assert not list(tmp_path.iterdir())


class OnlyOne(nn.Module):
    """Does something else for a single input, as ``squeeze`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) if len(x) == 1 else 2 * self.body(x)


class UpToThree(OnlyOne):
    """Does something else for larger batches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) if len(x) <= 3 else -self.body(x)


@pytest.mark.parametrize("network", [OnlyOne(), UpToThree()])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_network_that_branches_on_the_batch_size_gets_no_file_for_any_size(
    network: nn.Module, size: int, tmp_path: Path
) -> None:
    x, path = torch.randn(size, 3, 8, 8), tmp_path / "branching.onnx"
    with pytest.raises(RuntimeError, match=r"outputs differ from PyTorch's by .* at batch size [1246];"):
        export_onnx(network, path, x)
    assert not path.exists()
    session = onnx_session(export_onnx(network, path, x, dynamic_batch=False))
    assert np.allclose(session.run(None, {"input": x.numpy()})[0], network(x).detach().numpy(), atol=1e-5)


def test_wrappers_around_a_network_are_left_out(tmp_path: Path) -> None:
    network, x = tiny_cnn(), torch.randn(2, 3, 8, 8)
    path = export_onnx(nn.DataParallel(network), tmp_path / "parallel.onnx", x)
    found = onnx_session(path).run(None, {"input": x.numpy()})[0]
    assert np.allclose(found, network.eval()(x).detach().numpy(), atol=1e-5)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    for opset in (9, 20.0):
        with pytest.raises(ValueError, match=rf"opset={opset}: it must be in 18\.\.23"):
            export_onnx(tiny_cnn(), tmp_path / "tiny.onnx", x, opset=opset)  # type: ignore[arg-type]
    for align in (0, 2.5, "8"):
        with pytest.raises(ValueError, match=rf"align={align!r}: it must be a whole number of at least 1"):
            export_onnx(tiny_cnn(), tmp_path / "tiny.onnx", x, align=align)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model is a NoneType; it must be a torch\.nn\.Module"):
        export_onnx(None, tmp_path / "tiny.onnx", x)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"none\.onnx': there is no such file"):
        onnx_session(tmp_path / "none.onnx")
    path = export_onnx(nn.Linear(3, 2), tmp_path / "linear.onnx", torch.randn(2, 3))
    for threads in (0, 1.5):
        with pytest.raises(ValueError, match=rf"threads={threads}: it must be a whole number of at least 1"):
            onnx_session(path, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device='mps': ONNX Runtime runs networks on cpu or cuda here"):
        onnx_session(path, device="mps")
    for content in (b"", b"\x08\x07", b"print()"):
        (tmp_path / "other.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.onnx': ONNX Runtime cannot open it: "):
            onnx_session(tmp_path / "other.onnx")
        with pytest.raises(ValueError, match=r"other\.onnx' is no ONNX file"):
            precision_of(tmp_path / "other.onnx")
    if not torch.cuda.is_available():
        with pytest.raises(
            ValueError, match="device='cuda': ONNX Runtime needs a GPU and the package onnxruntime-gpu"
        ):
            onnx_session(path, device="cuda")
    assert onnx_session(path).get_session_options().intra_op_num_threads == torch.get_num_threads()
    assert onnx_session(path, threads=3).get_session_options().intra_op_num_threads == 3


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    model, x = lived_in(tiny_cnn()), torch.randn(2, 3, 12, 12)
    small = compress(model, plan_ranks(model, x, "svd", Fixed(0.3)))
    save_compressed(small, tmp_path / "small.safetensors")
    save_compressed(model, tmp_path / "dense.safetensors")
    monkeypatch.setattr(
        "common.compression.load_compressed", lambda path: load_compressed(tmp_path / path, copy.deepcopy(model))
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOW_RANK_CNN_CACHE", str(tmp_path / "cache"))
    page = page.replace("latency=0.25", "latency=1.0")  # such a small network may not reach less
    names: dict[str, Any] = {"x": x}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "openvino" in code and find_spec("openvino") is None:
            continue
        with torch.no_grad():
            exec(code, names)
            expected = small(x)
        assert (torch.as_tensor(names["logits"]) - expected).abs().max() <= 1e-4 * expected.abs().max()
