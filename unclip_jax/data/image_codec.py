"""Decoding of images of any origin to uint8 RGB arrays, and encoding.

Decoding refuses before it allocates: an image's size is read from its header and checked first.
All resizing is Pillow's (antialiased), because features and FID depend on it.
"""

import dataclasses
import io
import struct

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from unclip_jax.core.checks import UserError

Pixels = UInt8[np.ndarray, "_ _ 3"]

# Only raster formats whose decoders are plain code; never EPS and its like, which run programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, MemoryError)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on the size of usable images.

    Attributes:
        max_pixels: more are refused before decoding.
        min_side: the shorter side must have at least this many pixels.
        max_aspect: longer side over shorter side, at most.
    """

    max_pixels: int = 64_000_000
    min_side: int = 8
    max_aspect: float = 8.0


class BadImage(UserError):
    """An image that cannot be used; `reason` is one of a few fixed phrases, for counting."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def decode(data: bytes, *, limits: Limits | None = None) -> Pixels:
    """Decodes to RGB: upright, transparency over white, grey and CMYK converted, 16 bits to 8.

    Raises:
        BadImage: not an image, truncated, too small, too long, a decompression bomb, or a pixel
            format without a meaning as colour.
    """
    image = _open(data)
    _check_size(image, limits or Limits())
    try:
        image.load()
        return np.asarray(_to_rgb(_upright(image)))
    except BadImage:
        raise
    except _DAMAGED as error:
        raise BadImage("truncated image", str(error)) from error


def encode_png(image: Pixels) -> bytes:
    """Encodes as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(image: Pixels, *, quality: int = 95) -> bytes:
    """Encodes as JPEG without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def is_lossless(data: bytes) -> bool:
    """True if the file's format stores pixels exactly (WebP counts as lossy)."""
    return _open(data).format in ("PNG", "GIF", "BMP", "TIFF", "PPM")


def format_of(data: bytes) -> str:
    """Returns the format of an image's bytes in lower case, "png" or "jpeg" for example.

    Raises:
        BadImage: the format is not one of FORMATS.
    """
    return str(_open(data).format).lower()


def resize_short(image: Pixels, size: int) -> Pixels:
    """Resizes so that the shorter side is `size`; the aspect ratio is kept.

    Halving with a box filter while the image is at least twice too large, then bicubic: the
    procedure of ADM's centre crop.
    """
    height, width = image.shape[:2]
    if min(height, width) == size:
        return image
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        halved = (picture.size[0] // 2, picture.size[1] // 2)
        picture = picture.resize(halved, Image.Resampling.BOX)
    scale = size / min(picture.size)
    target = (max(size, round(picture.size[0] * scale)), max(size, round(picture.size[1] * scale)))
    return np.asarray(picture.resize(target, Image.Resampling.BICUBIC))


def crop(image: Pixels, size: int, *, top: int, left: int) -> Pixels:
    """Returns the `size` x `size` window whose upper left corner is (top, left)."""
    return image[top : top + size, left : left + size]


def center_crop(image: Pixels, size: int) -> Pixels:
    """Returns the middle `size` x `size` window; both sides must be at least `size`."""
    height, width = image.shape[:2]
    return crop(image, size, top=(height - size) // 2, left=(width - size) // 2)


def random_crop(image: Pixels, size: int, *, rng: np.random.Generator) -> Pixels:
    """Returns a random `size` x `size` window, every position equally likely."""
    height, width = image.shape[:2]
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    return crop(image, size, top=int(top), left=int(left))


def flip(image: Pixels) -> Pixels:
    """Mirrors left and right."""
    return image[:, ::-1]


def to_float(images: UInt8[np.ndarray, "*b h w c"]) -> Float32[np.ndarray, "*b h w c"]:
    """Maps 0..255 to [-1, 1], the ends exactly; `core.picture.to_uint8` is the inverse."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _open(data: bytes) -> Image.Image:
    """Reads the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("decompression bomb", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise BadImage("not an image", f"{len(data)} bytes of no known format") from error
    except _DAMAGED as error:
        raise BadImage("truncated image", str(error)) from error


def _check_size(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if width * height > limits.max_pixels:
        raise BadImage(
            "decompression bomb", f"{width}x{height} pixels, at most {limits.max_pixels} allowed"
        )
    if short < limits.min_side:
        raise BadImage("too small", f"{width}x{height} pixels, sides below {limits.min_side}")
    if long > limits.max_aspect * short:
        raise BadImage(
            "absurd aspect ratio", f"{width}x{height} pixels, beyond {limits.max_aspect:g} to 1"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Rotates by the EXIF orientation, and ignores one that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any pixel format to RGB."""
    if image.mode.startswith("I"):  # 16-bit grey, under one of Pillow's several names
        grey = np.clip(np.asarray(image).astype(np.float64) / 257, 0, 255)
        return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("unsupported pixels", "floating point values without a known range")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
