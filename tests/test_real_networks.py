"""Every convolution of real networks: whole results, compared with the oracle at some pixels.

An oracle of all their pixels takes minutes; a fault that spares corners, edges and two dozen pixels
anywhere, in every channel, would have to aim. Data is `bench/shapes/real_networks.txt`.
"""

from dataclasses import replace

import numpy as np
import pytest
import reference
import shapes
from cases import ISAS, assert_same_bits, assert_within, images_nchw, nchw, using

CASES = shapes.load_cases(all_shapes=True)
SMALL = 3e7  # multiply-adds, for every ISA: half of the cases take fewer
ANYWHERE = 24


def some_pixels(height, width, rng):
    """Rows and columns: all corners, the middles of all edges, and some anywhere."""
    ends = [(y, x) for y in (0, height // 2, height - 1) for x in (0, width // 2, width - 1)]
    anywhere = rng.integers(0, (height, width), (ANYWHERE, 2))
    return np.concatenate([ends, anywhere]).T


def one_pixel_each(made, rows, columns):
    """Turn a call on one image into one on a batch, each image being what one output pixel sees."""
    options, kernel = made.options, kernel_of(made)
    stride = options["stride"]
    dilation = options.get("dilation", (1, 1))
    padding = reference.resolve_padding(
        options.get("padding", 0), made.x.shape[:2], kernel, stride, dilation
    )
    x = np.pad(made.x, (*padding, (0, 0)))
    down, along = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    seen = [
        x[y * stride[0] :, x0 * stride[1] :][:down, :along]
        for y, x0 in zip(rows, columns, strict=True)
    ]
    window = {k: v for k, v in options.items() if k not in ("stride", "padding")}
    return replace(made, x=np.stack(seen), options=window)


def kernel_of(made):
    """Height and width of the window of an NHWC call."""
    if made.op == "spatially_separable_conv2d":
        column, row = made.weights
        return len(column), len(row)
    w = made.weights[0]
    return w.shape[:2] if w.ndim > 2 else (1, 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case):
    made = case.call("reals")
    rows, columns = some_pixels(*made.run().shape[:2], np.random.default_rng(0))
    seen = one_pixel_each(made, rows, columns)
    want, bound = seen.want(), seen.bound()
    small = made.layer().cost(made.x.shape).macs < SMALL
    for isa in ISAS if small else ISAS[-1:]:
        with using(isa):
            y = made.run()
            assert_within(y[rows, columns][:, None, None], want, bound)
            assert_same_bits(nchw(made).run(), images_nchw(y))
