"""Store an ONNX file's weights in fewer bits: int8, which also computes in int8, or float16."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.deploy.exportable import cause
from common.deploy.parity import run
from common.deploy.sessions import INPUT, onnx_session
from common.environment import has_int8_products
from common.network.batches import Batches, inputs_of
from common.network.copies import independent_copy
from common.network.outputs import single_tensor
from common.validation import check_choice

# onnx and onnxruntime take seconds to import. So only the functions that need them import them.

PRECISIONS = ("float32", "float16", "int8")
LARGEST_ERROR = 0.5
"""Greatest error of a file's outputs by its precision, as a share of their norm. Above it the file is useless."""
MOST_INPUTS = 512
"""Inputs of the batches that are used; the ranges of activations hardly change with more."""


def precision_of(path: str | Path) -> str:
    """Return in which precision :func:`common.deploy.export_onnx` wrote a file.

    Raises:
        ValueError: the file holds no ONNX model.
    """
    import onnx

    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf's own exceptions have no common class
        raise ValueError(f"{str(path)!r} is no ONNX file: {cause(error)}") from None
    if not graph.output:
        raise ValueError(f"{str(path)!r} is no ONNX file: it holds no network")
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return "int8"
    half = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)
    return "float16" if half else "float32"


def check_precision(precision: str, batches: Batches | None) -> None:
    """Raise unless a file can be written in this precision with these batches.

    Raises:
        ValueError: ``precision`` is unknown, or int8 has no batches, or another precision has some.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision == "int8" and batches is None:
        raise ValueError(
            "precision='int8' needs batches=: some hundred typical inputs, which show the range of each activation"
        )
    if precision != "int8" and batches is not None:
        raise ValueError(f"precision={precision!r} takes no batches; only int8 does")


def rounded_to_half(network: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy whose float32 parameters and buffers are rounded to values that float16 holds.

    Args:
        network: it stays unchanged.
        x: example input, on which the outputs are compared.

    Raises:
        ValueError: a value is beyond float16's range, or so many are too small for it that the outputs are others.
    """
    rounded = independent_copy(network)
    with torch.no_grad():
        for name, tensor in (*rounded.named_parameters(), *rounded.named_buffers()):
            if tensor.dtype == torch.float32:
                half = tensor.half()
                if not torch.equal(half.isfinite(), tensor.isfinite()):
                    raise ValueError(f"precision='float16': {name} has values beyond float16's range of 65,504")
                tensor.copy_(half)
    exact, found = (single_tensor(run(each, x), "the network") for each in (network, rounded))
    error = _relative_error(found, exact)
    if not error <= LARGEST_ERROR:
        raise ValueError(
            f"precision='float16': the outputs on x differ by {error:.0%} of their norm, because float16 holds no "
            f"weights below 6e-8 and few below 6e-5; allowed is {LARGEST_ERROR:.0%}"
        )
    return rounded


def store_in_half(path: Path) -> None:
    """Store the weights of an ONNX file in float16 where that loses nothing, each with a cast to float32.

    A runtime casts them once, when it loads the file, and then computes in float32.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < 2:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values, equal_nan=True):
            name, stored = weight.name, f"{weight.name}.half"
            weight.CopyFrom(numpy_helper.from_array(half, stored))
            casts.append(onnx.helper.make_node("Cast", [stored], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)


def typical_inputs(batches: Batches, x: Tensor, size: int, dynamic_batch: bool) -> list[Tensor]:
    """Return the inputs of ``batches`` that show the ranges of activations, ``size`` at a time.

    Args:
        batches: inputs, or pairs of inputs and targets; at most the first 512 inputs are used.
        x: the example input ``(N, C, H, W)``, which they must be like.
        size: inputs that pass at once.
        dynamic_batch: whether the file takes batches of other sizes too.

    Raises:
        ValueError: ``batches`` holds inputs of another shape or dtype than ``x``, or values that are not finite; or
            fewer than ``size`` inputs although the file takes no others, or none.
    """
    found = [inputs_of(batch).detach().cpu() for batch in _first(batches)]
    for batch in found:
        if batch.shape[1:] != x.shape[1:] or batch.dtype != x.dtype:
            wanted = ", ".join(map(str, x.shape[1:]))
            raise ValueError(
                f"batches holds inputs of shape {tuple(batch.shape)}, {batch.dtype}; the file takes (N, {wanted}), "
                f"{x.dtype}"
            )
        if not batch.isfinite().all():
            raise ValueError("batches holds values that are not finite")
    parts = torch.cat(found)[:MOST_INPUTS].split(size) if found else ()
    inputs = [part for part in parts if dynamic_batch or len(part) == size]
    if not inputs:
        raise ValueError(f"batches holds {sum(map(len, found))} inputs; int8 needs {1 if dynamic_batch else size}")
    return inputs


def quantize(path: Path, reference: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Quantize an ONNX file in place, by ONNX Runtime's static quantization in the QDQ format.

    Weights get a scale for each output channel. Activations get a scale and a zero point from their least and greatest
    value on ``inputs``. Where the processor has no instruction that multiplies and adds 8-bit integers, weights use 7
    bits, since the 16-bit sums of other instructions would saturate.

    Args:
        path: a file in float32.
        reference: the network that it holds, on the CPU.
        inputs: from :func:`typical_inputs`.

    Raises:
        RuntimeError: ONNX Runtime cannot quantize the file, or its outputs are far from PyTorch's.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    expected = [single_tensor(run(reference, part), "the network") for part in inputs]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                path,
                _reader(inputs),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=not has_int8_products(),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=_grouped_with_bias(prepared),
            )
        except Exception as error:  # ONNX Runtime's own exceptions have no common class
            raise RuntimeError(f"ONNX Runtime cannot quantize the exported network: {cause(error)}") from error
    _check_error(path, inputs, expected)


def _first(batches: Batches) -> Iterator[object]:
    """Yield batches until they hold `MOST_INPUTS` inputs."""
    count = 0
    for batch in batches:
        yield batch
        count += len(inputs_of(batch))
        if count >= MOST_INPUTS:
            return


def _reader(inputs: Sequence[Tensor]) -> Any:
    """The inputs as ONNX Runtime's quantization reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives one batch after the other."""

        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            """The next batch, or None at the end."""
            part = next(self.left, None)
            return None if part is None else {INPUT: part.numpy()}

    return Reader()


def _check_error(path: Path, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise a RuntimeError if an int8 file's outputs are far from PyTorch's, or not finite."""
    session = onnx_session(path, device="cpu")
    found = torch.cat([torch.from_numpy(session.run(None, {INPUT: part.numpy()})[0]) for part in inputs])
    error = _relative_error(found, torch.cat(list(expected)))
    if not error <= LARGEST_ERROR:
        raise RuntimeError(
            f"the int8 file's outputs on batches differ from PyTorch's by {error:.0%} of their norm; allowed is "
            f"{LARGEST_ERROR:.0%}"
        )


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of ``wanted``."""
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


def _grouped_with_bias(path: Path) -> list[str]:
    """Names of the transposed convolutions of an ONNX file that have groups and a bias.

    ONNX Runtime gives their weights a scale for each output channel of one group, and cannot scale the bias by these.
    """
    import onnx

    def groups(node: Any) -> int:
        return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)

    nodes = onnx.load(path).graph.node
    return [
        node.name for node in nodes if node.op_type == "ConvTranspose" and len(node.input) > 2 and groups(node) > 1
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's advice on quantization, which is followed here, out of the log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
