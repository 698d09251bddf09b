"""From a network to what runs fastest: BatchNorm folded, factors merged, ONNX files and ONNX Runtime sessions."""

from common.deploy.aligning import align_ranks
from common.deploy.folding import fold_batchnorm
from common.deploy.merging import merge_factors
from common.deploy.onnx_files import export_onnx
from common.deploy.sessions import onnx_session

__all__ = ["align_ranks", "export_onnx", "fold_batchnorm", "merge_factors", "onnx_session"]
