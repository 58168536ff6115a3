"""Pictures and masks as users give them: any size, any mode, or a refusal that says why."""

import hashlib
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image as PILImage

from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec

MAX_FILE = 256 * 2**20  # bytes; 64 megapixels of uncompressed RGB have 183 MiB


class InputImage(NamedTuple):
    """A picture as it was given.

    Attributes:
        pixels: uint8 RGB, upright, of its own size.
        name: file name, for labels.
        sha256: of the file.
    """

    pixels: UInt8[np.ndarray, "_ _ 3"]
    name: str
    sha256: str


def read(path: pathlib.Path) -> InputImage:
    """Read a picture file.

    Raises:
        UserError: there is no such file, or it cannot be used as a picture.
    """
    return from_bytes(_bytes(path), name=path.name, where=str(path))


def from_bytes(
    data: bytes, *, name: str, where: str, limits: image_codec.Limits | None = None
) -> InputImage:
    """Decode the bytes of a picture file; `where` names it in messages.

    Raises:
        UserError: it is no picture, damaged, too small, too long or too large.
    """
    try:
        pixels = image_codec.decode(data, limits=limits)
    except image_codec.BadImage as error:
        raise UserError(
            f"{where}: {error}; give a PNG, JPEG, WebP, GIF, BMP or TIFF picture."
        ) from None
    return InputImage(pixels, name, hashlib.sha256(data).hexdigest())


def square(picture: InputImage, size: int) -> UInt8[np.ndarray, " s s 3"]:
    """The middle square, resized so that the shorter side fits; smaller pictures are enlarged."""
    return image_codec.center_crop(image_codec.resize_short(picture.pixels, size), size)


def mask_square(picture: InputImage, size: int) -> Float32[np.ndarray, " s s"]:
    """1 = keep, where a mask picture is dark; 0 = draw anew, where it is light.

    Cropped as `square` does, without making grey of its edges.
    """
    light = PILImage.fromarray(picture.pixels).convert("L")
    short = min(light.size)
    left, top = (light.width - short) // 2, (light.height - short) // 2
    box = (left, top, left + short, top + short)
    scaled = light.resize((size, size), PILImage.Resampling.NEAREST, box=box)
    return (np.asarray(scaled) < 128).astype(np.float32)


def _bytes(path: pathlib.Path) -> bytes:
    if not path.is_file():
        raise UserError(f"there is no picture {path}; check the path.")
    size = path.stat().st_size
    if size > MAX_FILE:
        raise UserError(f"{path} has {size} bytes; give a picture of at most {MAX_FILE}.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions.") from None
