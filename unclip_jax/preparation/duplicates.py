"""Hashes by which duplicates are recognised: of keys, of the bytes of images, of their content."""

import pathlib

import cv2
import numpy as np
import scipy.fft
from jaxtyping import UInt8, UInt64

from unclip_jax.core.files import atomic_path
from unclip_jax.data import image_codec
from unclip_jax.data.records import digest_64

KINDS = ("none", "exact", "perceptual")
DUPLICATE = "duplicate image"  # a reason that is no fault of the example
_SIDE, _LOW = 32, 8  # of the image that is hashed, and of the square of its lowest frequencies
_FLAT = 1e-3  # grey levels; an image whose coefficients are all smaller shows nothing


def image_hash(data: bytes, kind: str) -> int:
    """Returns the 64-bit hash of an encoded image; 0 with kind "none"."""
    if kind == "none":
        return 0
    if kind == "exact":
        return digest_64(data)
    return perceptual_hash(image_codec.decode(data))


def perceptual_hash(pixels: UInt8[np.ndarray, "h w 3"]) -> int:
    """Returns a hash that survives another size, format and quality of the same image.

    The signs of the 63 lowest frequencies of the grey image, about their median (Zauner 2010,
    "Implementation and Benchmarking of Perceptual Image Hash Functions", 3.2.1). An image of one
    colour has no frequencies; its bytes are hashed.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    low = np.asarray(scipy.fft.dctn(small, norm="ortho"))[:_LOW, :_LOW].reshape(-1)[1:]
    if np.abs(low).max() < _FLAT:
        return digest_64(pixels.tobytes())
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "little")


def write_hashes(path: pathlib.Path, hashes: UInt64[np.ndarray, "n 2"]) -> None:
    """Writes the hashes (key, image) of a shard's records."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, hashes)


def read_hashes(path: pathlib.Path) -> UInt64[np.ndarray, "n 2"]:
    """Opens the hashes of a shard's records."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an empty array cannot be mapped
        return np.load(path, allow_pickle=False)
