"""Make a network run fast: fold its BatchNorms, merge its factors, and run it from an ONNX file."""

from common.deploy.aligning import align_ranks
from common.deploy.folding import fold_batchnorm
from common.deploy.merging import merge_factors
from common.deploy.onnx_files import export_onnx
from common.deploy.openvino_models import openvino_model
from common.deploy.sessions import OnnxNetwork, onnx_session

__all__ = [
    "OnnxNetwork",
    "align_ranks",
    "export_onnx",
    "fold_batchnorm",
    "merge_factors",
    "onnx_session",
    "openvino_model",
]
