"""Networks written with the layers of ``convkern``.

`efficientnet_lite0` has trained weights and names what a photo shows; it needs
``pip install 'convkern[zoo]'``. `mobilenet_v1_body` has random weights: it is for benchmarks.
"""

from convkern.zoo.efficientnet_lite0 import EfficientNetLite0, efficientnet_lite0
from convkern.zoo.mobilenet_v1 import (
    MobileNetV1Body,
    SeparableBlock,
    mobilenet_v1_body,
    separable_blocks,
)

__all__ = [
    "EfficientNetLite0",
    "MobileNetV1Body",
    "SeparableBlock",
    "efficientnet_lite0",
    "mobilenet_v1_body",
    "separable_blocks",
]
