"""A plan applied to a network, and networks on disk."""

from common.compression.compress import MODES, compress, factored_layer, planned_layers

__all__ = ["MODES", "compress", "factored_layer", "planned_layers"]
