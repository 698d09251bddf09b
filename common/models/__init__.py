"""The networks of the suite, with one file for each family. ``build_model`` builds any of them.

``MODELS`` is the registry of architectures. ``find_network`` also builds networks from elsewhere, by their names.
Importing this package does not load torchvision.
"""

from common.models.builder import build_model, check_image_size
from common.models.registry import MODELS, Architecture, relatives

# Messages and help texts list the architectures in this order.
# isort: off
import common.models.classifiers
import common.models.resnet_cifar
import common.models.unet  # noqa: F401
# isort: on

from common.models.sources import NETWORK_SOURCES, NetworkSource, find_network

__all__ = [
    "MODELS",
    "NETWORK_SOURCES",
    "Architecture",
    "NetworkSource",
    "build_model",
    "check_image_size",
    "find_network",
    "relatives",
]
