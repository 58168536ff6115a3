"""Feature extractors: functions from uint8 images to features, with the protocol of the features.

An extractor is a value. `prepare` runs on the host and is part of the protocol; `apply` is pure
and runs on the devices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt8
from PIL import Image as PILImage

from unclip_jax.core.checks import one_of
from unclip_jax.core.types import Params
from unclip_jax.metrics import resize
from unclip_jax.metrics.inception import SIDE, Inception, InceptionConfig
from unclip_jax.models.clip import Clip
from unclip_jax.models.clip_config import ClipConfig

Images = UInt8[np.ndarray, " b h w 3"]
Features = Mapping[str, Array]  # "pool", and for Inception "spatial" and "probabilities"


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A feature network with its preprocessing.

    Attributes:
        kind: "inception" or "clip".
        protocol: JSON-ready facts to report with every score computed from the features.
        prepare: uint8 images of one size -> inputs of the network.
        params: parameters of the network.
        apply: (params, prepared images) -> arrays with one row per image.
    """

    kind: str
    protocol: Mapping[str, Any]
    prepare: Callable[[Images], np.ndarray]
    params: Params = dataclasses.field(repr=False)
    apply: Callable[[Params, Array], Features] = dataclasses.field(repr=False)


def inception(
    params: Params,
    *,
    weights: str,
    resize_name: str = "tf1",
    cfg: InceptionConfig = InceptionConfig(),
    side: int = SIDE,
) -> Extractor:
    """Returns Inception-v3: pooled features, the spatial ones of sFID, and class probabilities.

    Probabilities are computed without the bias of the last layer, as in ADM's evaluator.

    Args:
        params: parameters of `Inception(cfg)`.
        weights: identity of the parameters, for the protocol.
        resize_name: one of `resize.RESIZES`.
        cfg: config of the network.
        side: side of its input in pixels; other than 299 only in tests.

    Raises:
        UserError: the resize is unknown.
    """
    one_of("--resize", resize_name, resize.RESIZES)

    def apply(params: Params, images: Array) -> Features:
        out: Any = Inception(cfg).apply({"params": params}, images)
        return {
            "pool": out.pool,
            "spatial": out.spatial,
            "probabilities": jax.nn.softmax(out.unbiased, axis=-1),
        }

    protocol = {
        "features": f"Inception-v3 (FID variant), pool3, {cfg.width} dimensions",
        "weights": weights,
        "resize": f"{resize.DESCRIPTIONS[resize_name]}; to {side} x {side}",
    }
    return Extractor(
        "inception",
        protocol,
        lambda images: resize.resize(images, name=resize_name, size=side),
        params,
        apply,
    )


def clip(params: Params, *, cfg: ClipConfig, weights: str) -> Extractor:
    """Returns the image tower of a CLIP: L2-normalised embeddings.

    Args:
        params: parameters of `Clip(cfg)`.
        cfg: config of the network.
        weights: identity of the parameters, for the protocol.
    """

    def apply(params: Params, images: Array) -> Features:
        out: Any = Clip(cfg).apply({"params": params}, images, method=Clip.encode_image)
        return {"pool": out / jax.numpy.linalg.norm(out, axis=-1, keepdims=True)}

    size = cfg.image_size
    protocol = {
        "features": f"CLIP image embeddings, L2-normalised, {cfg.embed_dim} dimensions",
        "weights": weights,
        "resize": f"Pillow bicubic, shorter side to {size}, centre crop {size} x {size}",
    }
    return Extractor("clip", protocol, lambda images: _preprocess(images, size), params, apply)


def _preprocess(images: Images, size: int) -> Float32[np.ndarray, " b s s 3"]:
    """Applies CLIP's preprocessing up to the range [-1, 1]; the network standardises.

    The longer side is rounded down, as in CLIP's own code and in transformers.
    """
    height, width = images.shape[1:3]
    if (height, width) != (size, size):
        short = min(height, width)
        target = (int(size * width / short), int(size * height / short))
        bicubic = PILImage.Resampling.BICUBIC
        enlarged = [PILImage.fromarray(image).resize(target, bicubic) for image in images]
        images = np.stack([np.asarray(image) for image in enlarged])
        top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
        images = images[:, top : top + size, left : left + size]
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)
