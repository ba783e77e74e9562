"""Networks written with the layers of ``convkern``.

`efficientnet_lite0` has trained weights and names what a photo shows; it needs
``pip install 'convkern[zoo]'``. `mobilenet_v1_body` and `mobilenet_v2_body` have
random weights: they are for benchmarks.
"""

from convkern.zoo.efficientnet_lite0 import EfficientNetLite0, efficientnet_lite0
from convkern.zoo.mobilenet_v1 import (
    MobileNetV1Body,
    SeparableBlock,
    mobilenet_v1_body,
    separable_blocks,
)
from convkern.zoo.mobilenet_v2 import InvertedResidual, inverted_residuals, mobilenet_v2_body

__all__ = [
    "EfficientNetLite0",
    "InvertedResidual",
    "MobileNetV1Body",
    "SeparableBlock",
    "efficientnet_lite0",
    "inverted_residuals",
    "mobilenet_v1_body",
    "mobilenet_v2_body",
    "separable_blocks",
]
