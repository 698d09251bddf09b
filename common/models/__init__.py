"""The networks of the suite; ``build_model`` makes any of them."""

from common.models.builder import MODELS, build_model

__all__ = ["MODELS", "build_model"]
