"""Write ONNX files, and check them against PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from common.deploy.aligning import align_ranks, check_multiple
from common.deploy.equalizing import equalize_factors
from common.deploy.exportable import cause, exportable
from common.deploy.folding import fold_batchnorm
from common.deploy.merging import merge_factors
from common.deploy.parity import difference, run, tolerance
from common.deploy.precision import check_precision, quantize, rounded_to_half, store_in_half, typical_inputs
from common.deploy.sessions import INPUT, OUTPUT, onnx_session
from common.files import replacing
from common.network.batches import Batches
from common.network.outputs import single_tensor
from common.validation import is_whole

if TYPE_CHECKING:
    import onnx_ir

# onnx and onnx_ir take seconds to import. So only the functions that need them import them.

OPSETS = range(18, 24)
TOLERANCE = 1e-4
"""Largest allowed error of a file's outputs, over the largest output."""
LARGEST_BATCH = 64
"""Up to this batch size, a file is tried beyond the sizes for which its export is known to hold."""
LARGEST_FILE = 2**31
"""Maximum size of a protobuf, in bytes."""


def export_onnx(
    model: nn.Module,
    path: str | Path,
    x: Tensor,
    *,
    dynamic_batch: bool = True,
    opset: int = 20,
    align: int = 8,
    precision: str = "float32",
    batches: Batches | None = None,
) -> Path:
    """Write a network, dense or compressed, to one ONNX file, with its BatchNorms folded and its factors merged.

    The file is written only if ``onnx.checker`` accepts it and the outputs of ONNX Runtime in float32 equal those of
    PyTorch, to 1e-4 of the largest, on ``x`` and on random inputs, for a dynamic batch also at other batch sizes, one
    among them. In float16 they equal those of the network with rounded weights. In int8 they are compared on
    ``batches``.

    Args:
        model: in float32, with one input and one tensor as output. It stays unchanged.
        path: Destination path, conventionally ``*.onnx``. A missing folder is created.
        x: example input ``(N, C, H, W)``. The file takes inputs of this height and width. A single image ``(C, H, W)``
            counts as a batch of one.
        dynamic_batch: whether the file takes batches of any size instead of N.
        opset: version of the ONNX operators, 18 to 23.
        align: ranks are padded with zeros to multiples of this number, see :func:`common.deploy.align_ranks`.
        precision: ``float32``; ``float16`` stores weights in half precision and computes in float32; ``int8`` stores
            weights and computes in 8 bits, see :func:`common.deploy.precision.quantize`.
        batches: typical inputs, or pairs of inputs and targets, for int8 alone; at most 512 inputs are used.

    Returns:
        The path.

    Raises:
        TypeError: ``model`` is no module, or ``x`` no tensor.
        ValueError: ``opset``, ``align``, ``path``, ``precision`` or ``batches`` is not allowed; the weights do not fit
            into one file or into float16; or a file cannot hold this kind of network or ``x`` (see
            :func:`common.deploy.exportable.exportable`).
        RuntimeError: ONNX does not support the network's operations or control flow, or the outputs differ.
    """
    path = Path(path)
    _check_arguments(path, opset)
    check_multiple(align)
    check_precision(precision, batches)
    reference, x = exportable(model, x)
    typical = None if batches is None else typical_inputs(batches, x, 64 if dynamic_batch else len(x), dynamic_batch)
    _check_size(reference)
    network = _prepared(reference, x, align, typical)
    if precision == "float16":
        reference = network = rounded_to_half(network, x)
    sizes = [len(x), *({1, len(x) + 1} - {len(x)} if dynamic_batch else ())]
    expected = [(x, single_tensor(run(reference, x), "the network")), *_expected(reference, x, sizes)]
    with replacing(path) as partial:
        expected += _expected(reference, x, _write(network, partial, x, dynamic_batch, opset))
        if precision == "float16":
            store_in_half(partial)
        _check_parity(partial, expected)
        if typical is not None:
            quantize(partial, reference, typical)
    return path


def _prepared(reference: nn.Module, x: Tensor, align: int, typical: Sequence[Tensor] | None) -> nn.Module:
    """The network that a file holds: with fewer operations, aligned ranks and, for int8, channels of like ranges."""
    network = align_ranks(merge_factors(fold_batchnorm(reference, x), x), align, x)
    return network if typical is None else equalize_factors(network, typical)


def _check_arguments(path: Path, opset: int) -> None:
    if not is_whole(opset) or opset not in OPSETS:
        raise ValueError(f"opset={opset!r}: it must be in {OPSETS.start}..{OPSETS.stop - 1}")
    if path.is_dir():
        raise ValueError(f"path={str(path)!r}: it is a folder; name a file in it")


def _check_size(network: nn.Module) -> None:
    size = sum(parameter.nbytes for parameter in network.parameters())
    if size >= LARGEST_FILE:
        raise ValueError(f"the network has {size:,} bytes of weights; one ONNX file holds {LARGEST_FILE:,} at most")


def _write(network: nn.Module, path: Path, x: Tensor, dynamic_batch: bool, opset: int) -> list[int]:
    """Export a network as it is; return further batch sizes at which the file must be compared with the network.

    Raises:
        RuntimeError: it cannot be exported.
    """
    import onnx

    try:  # the exporter runs the network's own code, which may raise anything
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about itself
            program = torch.onnx.export(
                network,
                (x,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                dynamic_shapes=({0: "batch"},) if dynamic_batch else None,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        _clean(program.model)
        program.save(path, external_data=False)
        onnx.checker.check_model(path, full_check=True)
        return _sizes_beyond(program) if dynamic_batch else []
    except Exception as error:
        symbols = any(word in str(error) for word in ("SymInt", "Constraints violated", "static shape"))
        advice = "; dynamic_batch=False fixes the batch size, which may help" if dynamic_batch and symbols else ""
        raise RuntimeError(f"the network cannot be exported to ONNX: {cause(error)}{advice}") from error


def _sizes_beyond(program: torch.onnx.ONNXProgram) -> list[int]:
    """Batch sizes outside the range for which the export is known to hold; none where it holds for any.

    A forward may branch on the batch size. The range alone proves nothing: strides of small tensors narrow it as well.
    """
    found = set()
    for symbol, sizes in getattr(program.exported_program, "range_constraints", {}).items():
        if str(symbol).startswith("s"):  # others depend on values
            found |= {
                int(size)
                for size in (sizes.lower - 1, sizes.upper + 1, 2 * sizes.upper + 2)
                if 0 < size <= LARGEST_BATCH
            }
    return sorted(found)


def _clean(model: onnx_ir.Model) -> None:
    """Remove padding by zero pixels, pooling of single pixels, and the exporter's notes with this machine's paths."""
    from onnx_ir.convenience import replace_all_uses_with

    values: list[Any] = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if source is not None and _is_idle(node):
            replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)
        else:
            values += [node, *node.outputs]
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None


def _is_idle(node: onnx_ir.Node) -> bool:
    """Whether the node returns its input unchanged."""
    from onnx_ir.convenience import get_const_tensor

    if node.outputs[0].is_graph_output():
        return False
    if node.op_type == "Pad":
        sizes = node.inputs[1]
        amounts = get_const_tensor(sizes) if sizes is not None else None
        return amounts is not None and not amounts.numpy().any()
    if node.op_type == "AveragePool":
        kernel, strides, pads = (node.attributes.get(name) for name in ("kernel_shape", "strides", "pads"))
        ones = all(set(attribute.as_ints()) == {1} for attribute in (kernel, strides) if attribute is not None)
        return ones and (pads is None or not any(pads.as_ints()))
    return False


def _expected(reference: nn.Module, x: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return random inputs like ``x`` in batches of these sizes, with PyTorch's outputs to compare with.

    Raises:
        ValueError: the network does not take random inputs, or another batch size.
    """
    expected = []
    for inputs in _noise(x, sizes):
        try:
            expected.append((inputs, single_tensor(run(reference, inputs), "the network")))
        except Exception as error:  # the network may raise anything
            advice = ""
            if len(inputs) != len(x):
                advice = (
                    "; a file for batches of any size is tried on others; dynamic_batch=False fixes the batch size"
                )
            raise ValueError(
                f"the network takes x, but no random numbers of shape {tuple(inputs.shape)}: {cause(error)}{advice}"
            ) from error
    return expected


def _check_parity(path: Path, expected: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Compare the outputs of ONNX Runtime with those of PyTorch.

    Raises:
        RuntimeError: ONNX Runtime cannot run the file, or the outputs differ by more than rounding.
    """
    try:
        session = onnx_session(path, device="cpu")
        found = [torch.from_numpy(np.asarray(session.run([OUTPUT], {INPUT: x.numpy()})[0])) for x, _ in expected]
    except Exception as error:  # ONNX Runtime's own exceptions have no common class
        raise RuntimeError(f"ONNX Runtime cannot run the exported network: {cause(error)}") from error
    for (inputs, output), ours in zip(expected, found, strict=True):
        gap, allowed = difference(ours, output), max(tolerance(output.dtype), TOLERANCE)
        if not gap <= allowed:
            share = "the largest" if output.is_floating_point() else "all values"
            raise RuntimeError(
                f"the exported network's outputs differ from PyTorch's by {gap:.1e} of {share} at batch size "
                f"{len(inputs)}; allowed is {allowed:.0e}"
            )


def _noise(x: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yield random inputs of the dtype and range of ``x``, one for each batch size."""
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        if x.is_floating_point():
            spread, mean = float(x.std(correction=0)) or 1.0, float(x.mean())
            yield torch.randn(size, *x.shape[1:], generator=generator, dtype=x.dtype) * spread + mean
        else:
            low, high = int(x.min()), int(x.max())
            yield torch.randint(low, high + 1, (size, *x.shape[1:]), generator=generator).to(x.dtype)
