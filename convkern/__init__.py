"""convkern: the convolutions that light networks are made of, at the speed the CPU allows."""

from . import cost, naive, runtime
from .layers import Conv2d, DeformConv2d, DepthwiseConv2d, PointwiseConv2d, SeparableConv2d
from .ops import (
    conv2d,
    deform_conv2d,
    depthwise_conv2d,
    fold_batchnorm,
    pointwise_conv2d,
    separable_conv2d,
)
from .runtime import (
    available_isas,
    get_num_threads,
    isa,
    set_num_threads,
    show_config,
    use_isa,
)

__version__ = "0.1.0"

__all__ = [
    "Conv2d",
    "DeformConv2d",
    "DepthwiseConv2d",
    "PointwiseConv2d",
    "SeparableConv2d",
    "available_isas",
    "conv2d",
    "cost",
    "deform_conv2d",
    "depthwise_conv2d",
    "fold_batchnorm",
    "get_num_threads",
    "isa",
    "naive",
    "pointwise_conv2d",
    "runtime",
    "separable_conv2d",
    "set_num_threads",
    "show_config",
    "use_isa",
]
