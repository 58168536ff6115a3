"""Reads images and masks of any source, size and mode."""

import hashlib
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image as PILImage

from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec

MAX_FILE = 256 * 2**20  # bytes; 64 megapixels of uncompressed RGB have 183 MiB
FORMATS = "a PNG, JPEG, WebP, GIF, BMP or TIFF image"


class InputImage(NamedTuple):
    """An image at its original size, not encoded.

    Attributes:
        pixels: uint8 RGB, upright.
        name: file name, for labels.
        sha256: digest of the file.
        path: path of the file as the user wrote it, for provenance; `name` without a file.
    """

    pixels: UInt8[np.ndarray, "_ _ 3"]
    name: str
    sha256: str
    path: str = ""


class EncodedImage(NamedTuple):
    """An image encoded as its bipartite latent, accepted wherever an image would be inverted.

    Attributes:
        latent: a `latents.Latent`, a batch of one.
        origin: its `latents.LatentOrigin`: the models and the chain that it belongs to.
        path: path of its file as the user wrote it, for provenance; the image's name without one.
    """

    latent: Any
    origin: Any
    path: str = ""

    @property
    def name(self) -> str:
        """File name, for labels."""
        return pathlib.Path(self.path).name

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the latent as an .npz file, which requests accept in place of the image."""
        from unclip_jax.editing import latents  # imports JAX, which reading images does not need

        latents.save(pathlib.Path(path), self.latent, origin=self.origin)


ImageInput = InputImage | EncodedImage | PILImage.Image | np.ndarray | bytes | str | pathlib.Path


def read(value: Any, *, where: str = "image", latent: bool = False) -> InputImage | EncodedImage:
    """Reads an image from a path, the bytes of a file, a Pillow image or a uint8 array.

    Args:
        value: the image; an `InputImage` or `EncodedImage` is returned unchanged.
        where: its name in messages, if it has no path.
        latent: True also accepts a latent, or the path of one (.npz).

    Raises:
        UserError: there is no such file, or it cannot be used as an image.
    """
    if isinstance(value, InputImage) or (latent and isinstance(value, EncodedImage)):
        return value
    if isinstance(value, (str, pathlib.Path)):
        path = pathlib.Path(value)
        if latent and path.suffix.lower() == ".npz":
            from unclip_jax.editing import latents

            return EncodedImage(*latents.load(path), str(path))
        return from_bytes(_bytes(path), name=path.name, where=str(path), path=str(path))
    if isinstance(value, np.ndarray):
        value = _from_array(value, where)
    if isinstance(value, PILImage.Image):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        value = buffer.getvalue()
    if not isinstance(value, bytes):
        raise UserError(f"{where} is {str(value)[:40]!r}; give an image file.")
    return from_bytes(value, name=f"{where}.png", where=where)


def decoded(images: Iterable[ImageInput]) -> list[InputImage]:
    """Narrows the images of a request, which has read them, to their type."""
    return [image for image in images if isinstance(image, InputImage)]


def from_bytes(
    data: bytes,
    *,
    name: str,
    where: str,
    path: str = "",
    limits: image_codec.ImageLimits | None = None,
) -> InputImage:
    """Decodes the bytes of an image file; `where` names it in messages.

    Raises:
        UserError: it is not an image, or damaged, too small, too elongated or too large.
    """
    try:
        pixels = image_codec.decode(data, limits=limits)
    except image_codec.BadImage as error:
        raise UserError(f"{where}: {error}; give {FORMATS}.") from None
    return InputImage(pixels, name, hashlib.sha256(data).hexdigest(), path or name)


def square(image: InputImage, size: int) -> UInt8[np.ndarray, " s s 3"]:
    """Returns the middle square, resized so that the shorter side fits; enlarges small images."""
    return image_codec.center_crop(image_codec.resize_short(image.pixels, size), size)


def squares(images: Sequence[InputImage], size: int) -> Float32[np.ndarray, " n s s 3"]:
    """Stacks the middle squares of images, in [-1, 1]."""
    return image_codec.to_float(np.stack([square(image, size) for image in images]))


def mask_square(image: InputImage, size: int) -> Float32[np.ndarray, " s s"]:
    """Returns 1 (keep) where a mask image is dark and 0 (fill) where it is light.

    Crops as `square` does, without interpolating edges to grey.
    """
    light = PILImage.fromarray(image.pixels).convert("L")
    short = min(light.size)
    left, top = (light.width - short) // 2, (light.height - short) // 2
    box = (left, top, left + short, top + short)
    scaled = light.resize((size, size), PILImage.Resampling.NEAREST, box=box)
    return (np.asarray(scaled) < 128).astype(np.float32)


def _from_array(array: np.ndarray, where: str) -> PILImage.Image:
    """Returns a uint8 array [h, w], [h, w, 3] or [h, w, 4] as a Pillow image.

    Raises:
        UserError: another type or shape.
    """
    color = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not color:
        raise UserError(
            f"{where} is an array of {array.dtype} {list(array.shape)}; give uint8 [h, w, 3]."
        )
    return PILImage.fromarray(array)


def _bytes(path: pathlib.Path) -> bytes:
    """Returns the bytes of an image file.

    Raises:
        UserError: the file does not exist, is too large, or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"there is no image {path}; check the path.")
    size = path.stat().st_size
    if size > MAX_FILE:
        raise UserError(f"{path} has {size} bytes; give an image of at most {MAX_FILE}.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions.") from None
