"""Check whether an ONNX file can hold a network. The checks take a second; an export may take minutes."""

from __future__ import annotations

import dataclasses
import re

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.parameter import is_lazy

from common.deploy.parity import deployed_copy, example, run, same_outputs, tensors
from common.network.outputs import single_tensor
from common.network.provenance import unwrapped

HELD = (torch.float16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types that ONNX Runtime can return, besides booleans."""


def exportable(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a copy of the network in evaluation mode, and the example input as a batch, both on the CPU.

    The copy returns one tensor. If the network returns a dict or tuple that holds a single tensor, the copy returns
    that tensor.

    Args:
        model: stays unchanged. Parallel, averaging and compiling wrappers around it are left out.
        x: example input. A single image ``(C, H, W)`` counts as a batch of one.

    Raises:
        TypeError: ``model`` is no module, or ``x`` no tensor.
        ValueError: the network is not in float32 or has no weights yet; it does not take ``x``; it does not return
            exactly one tensor; or its outputs hold NaN or differ from pass to pass.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    model = unwrapped(model, compressed_too=True)
    _check_weights(model)
    _check_input(x)
    reference = deployed_copy(model).cpu()
    shown = example(reference, x.detach().cpu())
    assert shown is not None
    if len(list(tensors(shown.output))) == 1 and not isinstance(shown.output, Tensor):
        reference = OnlyTensor(reference).eval()
        shown = dataclasses.replace(shown, output=next(tensors(shown.output)))
    output = single_tensor(shown.output, "the network")
    if output.dtype not in (*HELD, torch.bool):
        raise ValueError(f"the network returns {_name(output.dtype)}, which ONNX Runtime cannot return")
    if output.isnan().any():
        raise ValueError("the network's outputs on x hold NaN, so no export could be compared with them")
    if not all(same_outputs(run(reference, shown.x, seed), shown) for seed in (0, 1)):
        raise ValueError(
            "the network's outputs differ from pass to pass, because it draws random numbers or keeps a state; an "
            "ONNX file can hold only a function of the input"
        )
    return reference, shown.x


class OnlyTensor(nn.Module):
    """A network that returns the only tensor in the output of another network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the only tensor in the network's output.

        Raises:
            ValueError: the output holds no tensor or several.
        """
        (found,) = tensors(self.network(x))
        return found


def _check_input(x: Tensor) -> None:
    """Raise unless ``x`` can be the example input of an export."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; it must be a tensor")
    shape = tuple(x.shape)
    if x.dim() < 2 or not x.numel():
        raise ValueError(f"x has shape {shape}; it must be a batch of one input or more, (N, C, H, W)")
    if x.is_meta:
        raise ValueError("x is on the device meta, so it has no values")
    if x.is_complex():
        raise ValueError(f"x is {_name(x.dtype)}; ONNX has real numbers only")
    if x.dtype != torch.float32 and x.is_floating_point():
        raise ValueError(f"x is {_name(x.dtype)}; export takes float32: give it x.float()")
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError("x holds values that are not finite")


def _check_weights(model: nn.Module) -> None:
    """Raise unless every parameter has float32 or integer values."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise ValueError(f"parameter {name!r} of the network has no values yet; load weights or run a batch first")
        if parameter.is_complex():
            raise ValueError(
                f"parameter {name!r} of the network is {_name(parameter.dtype)}; ONNX has real numbers only"
            )
        if parameter.dtype != torch.float32 and parameter.is_floating_point():
            raise ValueError(
                f"the network is {_name(parameter.dtype)} (parameter {name!r}); export takes float32: give it "
                "model.float() and x.float()"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cause(error: BaseException) -> str:
    """Describe the first cause of an error in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, GuardOnDataDependentSymNode):
        return "its forward branches on the values of the input"
    text = str(error).strip()
    if unknown := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text):
        return f"ONNX has no operator for {unknown[1]}"
    lines = text.splitlines()
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {first}" if text else type(error).__name__
