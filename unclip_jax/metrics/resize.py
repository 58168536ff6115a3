"""Resizing to the 299 x 299 pixels of Inception: three protocols that must not be mixed.

    tf1    bilinear, source = target x in / out, no antialias, (x - 128) / 128: ADM's TF graph
    torch  bilinear between pixel centres, no antialias, x / 127.5 - 1: pytorch-fid
    clean  Pillow's bicubic in float, antialiased, clipped to 0..255, (x - 128) / 128: clean-fid
           (arXiv 2104.11222)

The first two alias when shrinking; published figures use them.
"""

import functools

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image as PILImage

from unclip_jax.core.checks import one_of

RESIZES = ("tf1", "torch", "clean")
DESCRIPTIONS = {
    "tf1": "tf1: bilinear, corner-aligned, not antialiased; (x - 128) / 128",
    "torch": "torch: bilinear, half-pixel, not antialiased; x / 127.5 - 1",
    "clean": "clean: Pillow bicubic in float32, antialiased, clipped; (x - 128) / 128",
}

Images = UInt8[np.ndarray, " b h w 3"]
Ready = Float32[np.ndarray, " b s s 3"]


def resize(images: Images, *, name: str, size: int) -> Ready:
    """Resizes to `size` x `size`, ignoring the aspect ratio, and standardises, as protocol `name`.

    Raises:
        UserError: the protocol is unknown.
    """
    one_of("--resize", name, RESIZES)
    pixels = images.astype(np.float32)
    if name == "clean":
        resized = np.stack([_clean(image, size) for image in pixels])
    else:
        rows, columns = (matrix(n, size, centred=name == "torch") for n in images.shape[1:3])
        resized = np.einsum("oh,bhwc->bowc", rows, pixels, optimize=True)
        resized = np.einsum("pw,bowc->bopc", columns, resized, optimize=True)
    if name == "torch":
        return (resized / np.float32(127.5) - np.float32(1)).astype(np.float32)
    return ((resized - np.float32(128)) / np.float32(128)).astype(np.float32)


@functools.lru_cache(maxsize=16)
def matrix(size_in: int, size_out: int, *, centred: bool) -> Float32[np.ndarray, " o i"]:
    """Returns the matrix of bilinear interpolation along one axis, [out in].

    With `centred` it samples at pixel centres, source = (target + 1/2) in / out - 1/2; otherwise at
    corners, as TensorFlow 1 does.
    """
    target = np.arange(size_out, dtype=np.float32)
    scale = np.float32(size_in) / np.float32(size_out)
    source = (target + np.float32(0.5)) * scale - np.float32(0.5) if centred else target * scale
    source = np.maximum(source, 0)
    low = np.minimum(np.floor(source).astype(int), size_in - 1)
    high, share = np.minimum(low + 1, size_in - 1), source - low
    weights = np.zeros((size_out, size_in), np.float32)
    every = np.arange(size_out)
    np.add.at(weights, (every, low), 1 - share)
    np.add.at(weights, (every, high), share)
    return weights


def _clean(image: Float32[np.ndarray, " h w 3"], size: int) -> Float32[np.ndarray, " s s 3"]:
    planes = [PILImage.fromarray(image[..., channel]) for channel in range(3)]
    bicubic = PILImage.Resampling.BICUBIC
    resized = np.stack([np.asarray(p.resize((size, size), bicubic)) for p in planes], axis=-1)
    return resized.clip(0, 255)  # the filter overshoots at edges
