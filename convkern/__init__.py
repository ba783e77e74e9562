"""convkern: the convolutions that light networks are made of, at the speed the CPU allows."""

from . import _threadpoolctl, cost, naive, runtime
from .graph import Graph, Node, Sequential
from .layers import (
    AvgPool2d,
    Conv2d,
    DeformConv2d,
    DepthwiseConv2d,
    GlobalAvgPool2d,
    MaxPool2d,
    PointwiseConv2d,
    SeparableConv2d,
    SpatiallySeparableConv2d,
)
from .ops import (
    avg_pool2d,
    conv2d,
    deform_conv2d,
    depthwise_conv2d,
    fold_batchnorm,
    global_avg_pool2d,
    max_pool2d,
    pointwise_conv2d,
    separable_conv2d,
    separate_kernel,
    spatially_separable_conv2d,
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
    "AvgPool2d",
    "Conv2d",
    "DeformConv2d",
    "DepthwiseConv2d",
    "GlobalAvgPool2d",
    "Graph",
    "MaxPool2d",
    "Node",
    "PointwiseConv2d",
    "SeparableConv2d",
    "Sequential",
    "SpatiallySeparableConv2d",
    "available_isas",
    "avg_pool2d",
    "conv2d",
    "cost",
    "deform_conv2d",
    "depthwise_conv2d",
    "fold_batchnorm",
    "get_num_threads",
    "global_avg_pool2d",
    "isa",
    "max_pool2d",
    "naive",
    "pointwise_conv2d",
    "runtime",
    "separable_conv2d",
    "separate_kernel",
    "set_num_threads",
    "show_config",
    "spatially_separable_conv2d",
    "use_isa",
]

_threadpoolctl.register()
