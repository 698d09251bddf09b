"""From a network to what runs fastest: BatchNorm folded, factors merged, ONNX, an ONNX Runtime session."""

from common.deploy.folding import fold_batchnorm
from common.deploy.merging import align_ranks, merge_factors
from common.deploy.onnx_files import export_onnx, onnx_session

__all__ = ["align_ranks", "export_onnx", "fold_batchnorm", "merge_factors", "onnx_session"]
