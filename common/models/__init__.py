"""The networks of the suite; ``build_model`` makes any of them."""

from common.models.builder import CLASSIFIERS, MODELS, build_model, check_image_size

__all__ = ["CLASSIFIERS", "MODELS", "build_model", "check_image_size"]
