"""Compress a network by a rank plan; save and load networks."""

from common.compression.checkpoints import load_compressed, save_compressed
from common.compression.compress import SingleLayers, compress, factored_layer, planned_layers

__all__ = ["SingleLayers", "compress", "factored_layer", "load_compressed", "planned_layers", "save_compressed"]
