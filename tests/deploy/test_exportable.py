from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.deploy import export_onnx, onnx_session
from tests.networks import lived_in, tiny_cnn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Calls(nn.Module):
    """A convolution, followed by a function of the test."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 4, 3), then

    def forward(self, images: Tensor) -> Any:
        return self.then(self.conv(images.float()))


def refused(model: nn.Module, x: Any, folder: Path, **settings: Any) -> BaseException:
    """Return the error of ``export_onnx``, and check that it leaves no file."""
    with pytest.raises((ValueError, RuntimeError, TypeError)) as caught:
        export_onnx(model, folder / "net.onnx", x, **settings)
    assert not list(folder.iterdir())
    return caught.value


def exported(model: nn.Module, x: Tensor, folder: Path, **settings: Any) -> np.ndarray:
    session = onnx_session(export_onnx(model, folder / "net.onnx", x, **settings), threads=1)
    return np.asarray(session.run(None, {"input": x.numpy() if x.dim() == 4 else x[None].numpy()})[0])


@pytest.mark.parametrize(
    ("then", "named"),
    [
        (lambda y: OrderedDict(out=y, aux=y / 2), r"but it returns an OrderedDict \(keys out, aux\)"),
        (lambda y: (y, [y, None]), r"but it returns a tuple \(of length 2: Tensor, list\)"),
        (lambda y: None, "but it returns None"),
    ],
)
def test_outputs_that_are_not_one_tensor(then: Any, named: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.onnx, "export", None)  # nothing is exported
    with pytest.raises(ValueError, match=f"the network must return one tensor, {named}"):
        export_onnx(Calls(then), tmp_path / "net.onnx", X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("then", [lambda y: OrderedDict(out=y), lambda y: (y,), lambda y: [{"out": y, "aux": None}]])
def test_a_container_of_one_tensor(then: Any, tmp_path: Path) -> None:
    model = Calls(then).eval()
    found = exported(model, X, tmp_path)
    np.testing.assert_allclose(found, model.conv(X).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_networks_of_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    whole = nn.Conv2d(3, 4, 3, dtype=dtype)
    assert f"the network is {name}" in str(refused(whole, X.to(dtype), tmp_path)).replace("parameter 'weight' of ", "")
    mixed = nn.Sequential(OrderedDict(body=nn.Conv2d(3, 4, 3), head=nn.Conv2d(4, 2, 1, dtype=dtype)))
    error = refused(mixed, X, tmp_path)
    assert isinstance(error, ValueError)
    assert name in str(error)
    assert "'head.weight'" in str(error)


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (X.double(), r"x is float64; export takes float32: give it x.float()"),
        (X.half(), "x is float16; export takes float32"),
        (X.to(torch.complex64), "x is complex64; ONNX has real numbers"),
        (X.long(), "the network does not take x of shape (2, 3, 8, 8), int64"),
        (X[:0], "x has shape (0, 3, 8, 8); it must be a batch of one input or more"),
        (X[0, 0, 0], "x has shape (8,); it must be a batch of one input or more"),
        (X[:, :2], "the network does not take x of shape (2, 2, 8, 8), float32"),
        (X.to("meta"), "x is on the device meta"),
        (X * float("inf"), "x holds values that are not finite"),
        ([1, 2], "x is a list; it must be a tensor"),
    ],
)
def test_unsuitable_inputs_are_refused(x: Any, named: str, tmp_path: Path) -> None:
    assert named in str(refused(nn.Conv2d(3, 4, 3), x, tmp_path))


def test_pixels_as_whole_numbers(tmp_path: Path) -> None:
    pixels = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(torch.uint8)
    model = Calls(lambda y: y / 255).eval()
    np.testing.assert_allclose(exported(model, pixels, tmp_path), model(pixels).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("then", [lambda y: y.argmax(1), lambda y: y > 0, lambda y: y.double()])
def test_outputs_of_other_dtypes(then: Any, tmp_path: Path) -> None:
    model = Calls(then).eval()
    found = exported(model, X, tmp_path)
    expected = model(X).detach().numpy()
    assert found.dtype == expected.dtype
    assert np.mean(np.abs(found.astype(float) - expected) > 1e-5) < 0.01


def test_one_image_counts_as_a_batch(tmp_path: Path) -> None:
    model = lived_in(tiny_cnn())
    found = exported(model, X[0], tmp_path)
    np.testing.assert_allclose(found, model(X[:1]).detach().numpy(), atol=1e-5)


def test_weights_without_values_are_named(tmp_path: Path) -> None:
    for model in (nn.Conv2d(3, 4, 3, device="meta"), nn.LazyConv2d(4, 3)):
        assert "parameter 'weight' of the network has no values yet" in str(refused(model, X, tmp_path))
    nan = nn.Conv2d(3, 4, 3)
    nn.init.constant_(nan.weight, float("nan"))
    assert "the network's outputs on x hold NaN" in str(refused(nan, X, tmp_path))


class Counts(Calls):
    passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.conv(images) * self.passes


@pytest.mark.parametrize("model", [Counts(abs), Calls(lambda y: y + torch.rand_like(y))])
def test_outputs_that_differ_from_pass_to_pass(model: nn.Module, tmp_path: Path) -> None:
    assert "outputs differ from pass to pass" in str(refused(model, X, tmp_path))


@pytest.mark.parametrize(
    ("then", "named"),
    [
        (torch.linalg.svdvals, "ONNX has no operator for aten._linalg_svd"),
        (torch.special.bessel_j0, "ONNX has no operator for prims.bessel_j0"),
        (lambda y: y if y.mean() > 0 else y * 2, "its forward branches on the values of the input"),
        (lambda y: y if len(y) == 2 else y * 2, "dynamic_batch=False fixes the batch size"),
    ],
)
def test_operations_that_onnx_lacks_are_named(then: Any, named: str, tmp_path: Path) -> None:
    error = refused(Calls(then), X, tmp_path)
    assert isinstance(error, RuntimeError)
    assert str(error).startswith("the network cannot be exported to ONNX: ")
    assert named in str(error)
    assert "\n" not in str(error)
    assert error.__cause__ is not None


def test_a_network_with_a_fixed_batch_size(tmp_path: Path) -> None:
    model = Calls(lambda y: y.reshape(2, 4 * 6 * 6)).eval()
    error = refused(model, X, tmp_path)
    assert "no random numbers of shape (1, 3, 8, 8)" in str(error)
    assert "dynamic_batch=False fixes the batch size" in str(error)
    found = exported(model, X, tmp_path, dynamic_batch=False)
    np.testing.assert_allclose(found, model(X).detach().numpy(), atol=1e-5)


def test_a_network_that_stores_its_features(tmp_path: Path) -> None:
    class Keeps(Calls):
        def forward(self, images: Tensor) -> Tensor:
            self.features = self.conv(images)
            return self.features.relu()

    model = Keeps(abs).train()
    model(X).sum().backward()
    found = exported(model, X, tmp_path)
    np.testing.assert_allclose(found, model.features.relu().detach().numpy(), atol=1e-5)
    assert model.features.requires_grad


def test_what_cannot_be_copied_and_paths_that_are_folders_are_named(tmp_path: Path) -> None:
    part = Calls(abs)
    part.__dict__["lock"] = threading.Lock()
    model = nn.Sequential(part)
    assert "attribute 'lock' of module '0', a lock" in str(refused(model, X, tmp_path))
    with pytest.raises(ValueError, match="it is a folder; name a file in it"):
        export_onnx(tiny_cnn(), tmp_path, X)


def test_an_optional_argument_is_exported_with_its_default(tmp_path: Path) -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, images: Tensor, activation: Any = None) -> Tensor:
            features = self.conv(images)
            return self.norm(torch.relu(features) if activation is None else activation(features))

    model = lived_in(Optional())
    np.testing.assert_allclose(exported(model, X, tmp_path), model(X).detach().numpy(), atol=1e-5)
