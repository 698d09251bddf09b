"""The networks of the suite, one file a family; ``build_model`` builds any of them.

``MODELS`` maps a name to what the suite knows of an architecture. Importing this package loads no torchvision.
"""

from common.models.builder import build_model, check_image_size
from common.models.registry import MODELS, Architecture, relatives

# Messages and help texts list the architectures in this order.
# isort: off
import common.models.classifiers
import common.models.resnet_cifar
import common.models.unet  # noqa: F401
# isort: on

__all__ = ["MODELS", "Architecture", "build_model", "check_image_size", "relatives"]
