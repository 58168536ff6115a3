"""Hashes for finding duplicates: of keys, of the bytes of images, and of their content."""

import pathlib

import cv2
import numpy as np
import scipy.fft
from jaxtyping import UInt8, UInt64

from unclip_jax.core.files import atomic_path
from unclip_jax.data import image_codec
from unclip_jax.data.records import digest_64

KINDS = ("none", "exact", "perceptual")
DUPLICATE = "duplicate image"  # a reason that does not count as bad
_SIDE, _LOW = 32, 8  # sides of the hashed image and of the square of its lowest frequencies
_FLAT = 1e-3  # grey levels; images whose coefficients are all smaller are uniform


def image_hash(data: bytes, kind: str) -> int:
    """Returns the 64-bit hash of an encoded image; 0 with kind "none"."""
    if kind == "none":
        return 0
    if kind == "exact":
        return digest_64(data)
    return perceptual_hash(image_codec.decode(data))


def perceptual_hash(pixels: UInt8[np.ndarray, "h w 3"]) -> int:
    """Returns a hash that is the same for an image in another size, format or quality.

    Its bits are the signs of the 63 lowest frequencies of the grey image relative to their median
    (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", 3.2.1).
    Images of a single colour have no such frequencies; their pixels are hashed.
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
    except ValueError:  # empty arrays cannot be mapped
        return np.load(path, allow_pickle=False)
