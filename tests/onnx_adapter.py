"""ONNX nodes as calls of convkern: thin, and only for tests.

A node's attributes become options (``options_of``), its inputs arguments. Another operator is one
more function in ``RUN``.
"""

import numpy as np

import convkern as ck

LAYOUT = {"layout": "NCHW"}
AUTO_PAD = {"VALID": "valid", "SAME_UPPER": "same", "SAME_LOWER": "same_lower"}


class NotOffered(Exception):
    """What an ONNX node may ask for and convkern does not do."""


def attributes_of(node):
    """Give the attributes of a NodeProto as Python numbers, strings and lists."""
    from onnx import helper  # here, so that collecting this file does not need it

    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def run_node(node, inputs):
    """Run a NodeProto on its inputs; gives its one output, or raises NotOffered."""
    if node.op_type not in RUN:
        raise NotOffered(node.op_type)
    if len(node.output) > 1:
        raise NotOffered("a second output")
    given = iter(inputs)
    inputs = [next(given) if name else None for name in node.input]  # unnamed: left out
    x = inputs[0]
    if x.dtype not in (np.float32, np.float64):
        raise NotOffered(f"images of {x.dtype}")
    if x.ndim not in (3, 4):
        raise NotOffered(f"{x.ndim - 2}-D images")
    attributes = attributes_of(node)
    if x.ndim == 4:
        return RUN[node.op_type](inputs, attributes)
    inputs = [_as_2d(a) for a in inputs]  # rows of one pixel's height
    return RUN[node.op_type](inputs, _attributes_2d(attributes)).squeeze(2)


def options_of(attributes):
    """Stride, dilation and padding, as every convolution and pooling of ONNX has them."""
    options = {**LAYOUT, "stride": attributes.get("strides", (1, 1))}
    options["dilation"] = attributes.get("dilations", (1, 1))
    auto_pad = attributes.get("auto_pad", "NOTSET")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    options["padding"] = AUTO_PAD.get(auto_pad, ((top, bottom), (left, right)))
    return options


def conv(inputs, attributes):
    x, w, *bias = inputs
    assert list(w.shape[2:]) == list(attributes.get("kernel_shape", w.shape[2:]))
    groups = attributes.get("group", 1)
    return ck.conv2d(x, w, *bias, groups=groups, **options_of(attributes))


def deform_conv(inputs, attributes):
    x, w, offset, bias, mask = [*inputs, None, None][:5]
    assert list(w.shape[2:]) == list(attributes.get("kernel_shape", w.shape[2:]))
    groups, taps = attributes.get("offset_group", 1), w.shape[2] * w.shape[3]
    assert offset.shape[1] == 2 * groups * taps  # convkern sees what ONNX says twice
    assert x.shape[1] == attributes.get("group", 1) * w.shape[1]
    return ck.deform_conv2d(x, offset, w, bias, mask=mask, **options_of(attributes))


def max_pool(inputs, attributes):
    return ck.max_pool2d(*inputs, attributes["kernel_shape"], **_pooling_options(attributes))


def average_pool(inputs, attributes):
    options = _pooling_options(attributes)
    options["count_include_pad"] = bool(attributes.get("count_include_pad", 0))
    return ck.avg_pool2d(*inputs, attributes["kernel_shape"], **options)


def global_average_pool(inputs, attributes):
    return ck.global_avg_pool2d(*inputs, **LAYOUT)


def global_max_pool(inputs, attributes):
    return ck.max_pool2d(*inputs, inputs[0].shape[2:], **LAYOUT)


RUN = {
    "Conv": conv,
    "DeformConv": deform_conv,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
}


def _pooling_options(attributes):
    return {**options_of(attributes), "ceil_mode": bool(attributes.get("ceil_mode", 0))}


def _as_2d(a):
    """(N, C, W) as (N, C, 1, W); a bias stays what it is."""
    return a[:, :, None] if a.ndim == 3 else a


def _attributes_2d(attributes):
    """The attributes of a 1-D operation, for rows of one pixel's height."""
    values = dict(attributes)
    for name in ("kernel_shape", "strides", "dilations"):
        if name in values:
            values[name] = [1, *values[name]]
    if "pads" in values:
        left, right = values["pads"]
        values["pads"] = [0, left, 0, right]
    return values
