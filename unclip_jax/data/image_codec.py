"""Decoding of images of any source to uint8 RGB arrays, and encoding.

The size of an image is read from its header and checked before any pixels are decoded. All resizing
is Pillow's (antialiased), because features and FID depend on it.
"""

import dataclasses
import io
import struct

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, features

from unclip_jax.core.checks import UserError
from unclip_jax.data import image_formats

Pixels = UInt8[np.ndarray, "_ _ 3"]

# Only raster formats that Pillow decodes itself; EPS, for example, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM")
SUFFIXES = (  # of these formats
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".webp", ".avif", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError)
_TURNS = {  # EXIF orientation -> transposition that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_METADATA_ERRORS = ("not an image", "truncated image", "unreadable image")  # retried without them
_RANGE_TAGS = ((340, 341), (280, 281))  # TIFF tags of the smallest and largest value


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """Bounds on the size of usable images.

    Attributes:
        max_pixels: images with more are rejected before they are decoded.
        min_side: smallest allowed shorter side in pixels.
        max_aspect: largest allowed ratio of the longer to the shorter side.
    """

    max_pixels: int = 64_000_000
    min_side: int = 8
    max_aspect: float = 8.0


ANY_SIZE = ImageLimits(max_pixels=2**31, min_side=1, max_aspect=float("inf"))  # for checked records


class BadImage(UserError):
    """An image that cannot be used; `reason` is one of a few fixed phrases, for counting."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def decode(data: bytes, *, limits: ImageLimits | None = None, reduced: int = 0) -> Pixels:
    """Decodes to RGB: upright, alpha over white, grey and CMYK converted, 16 bits to 8.

    Damaged metadata (text, profiles, EXIF) do not prevent decoding.

    Args:
        data: the encoded image.
        limits: bounds on its size.
        reduced: decodes a JPEG at a half, a quarter or an eighth of its size, from the lowest
            frequencies of its blocks, if both sides keep at least this many pixels; 0 = full size.

    Raises:
        BadImage: the data are not an image, truncated, too small, too elongated, a decompression
            bomb, or of a pixel format that cannot be converted to RGB.
    """
    limits = limits or ImageLimits()
    try:
        image = _load(data, limits, reduced)
        turn = _orientation(image)
    except BadImage as error:
        pixels_only = image_formats.essential(data)
        if error.reason not in _METADATA_ERRORS or pixels_only == data:
            raise
        try:
            image = _load(pixels_only, limits, reduced)
        except BadImage:
            raise error from None
        turn = image_formats.orientation(data)
    if turn in _TURNS:
        image = image.transpose(_TURNS[turn])
    try:
        return np.asarray(_to_rgb(image))
    except BadImage:
        raise
    except Exception as error:
        raise BadImage("unsupported pixels", f"{image.mode}: {error}") from error


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


def is_image(start: bytes) -> bool:
    """True if a file that begins with these bytes is an image, whether or not `decode` reads it."""
    return bool(image_formats.name(start))


def is_lossless(data: bytes) -> bool:
    """True if the file's format stores pixels exactly (WebP counts as lossy)."""
    return _header(data).format in ("PNG", "GIF", "BMP", "DIB", "TIFF", "PPM")


def format_of(data: bytes) -> str:
    """Returns the format of an encoded image in lower case, such as "png" or "jpeg".

    Raises:
        BadImage: the format is not one of FORMATS.
    """
    kind = str(_header(data).format)
    return "jpeg" if kind == "MPO" else kind.lower()  # several JPEGs in one file


def short_side(data: bytes) -> int:
    """Returns the shorter side of an encoded image in pixels, from its header.

    Raises:
        BadImage: the header cannot be read.
    """
    return min(_header(data).size)


def resize_short(image: Pixels, size: int) -> Pixels:
    """Resizes so that the shorter side is `size`; the aspect ratio is kept.

    A box filter halves the image while it is at least twice too large, then bicubic interpolation
    resizes it, as in ADM's centre crop.
    """
    height, width = image.shape[:2]
    if min(height, width) == size:
        return image
    resized = Image.fromarray(image)
    while min(resized.size) >= 2 * size:
        halved = (resized.size[0] // 2, resized.size[1] // 2)
        resized = resized.resize(halved, Image.Resampling.BOX)
    scale = size / min(resized.size)
    target = (max(size, round(resized.size[0] * scale)), max(size, round(resized.size[1] * scale)))
    return np.asarray(resized.resize(target, Image.Resampling.BICUBIC))


def crop(image: Pixels, size: int, *, top: int, left: int) -> Pixels:
    """Returns the `size` x `size` window with the upper left corner (top, left)."""
    return image[top : top + size, left : left + size]


def center_crop(image: Pixels, size: int) -> Pixels:
    """Returns the central `size` x `size` window; both sides must be at least `size`."""
    height, width = image.shape[:2]
    return crop(image, size, top=(height - size) // 2, left=(width - size) // 2)


def random_crop(image: Pixels, size: int, *, rng: np.random.Generator) -> Pixels:
    """Returns a random `size` x `size` window, every position equally likely."""
    height, width = image.shape[:2]
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    return crop(image, size, top=int(top), left=int(left))


def flip(image: Pixels) -> Pixels:
    """Mirrors the image horizontally."""
    return image[:, ::-1]


def to_float(images: UInt8[np.ndarray, "*b h w c"]) -> Float32[np.ndarray, "*b h w c"]:
    """Maps 0..255 to [-1, 1]; `core.picture.to_uint8` is the inverse."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _open(data: bytes) -> Image.Image:
    """Opens an image, which reads only its header."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("decompression bomb", str(error)) from error
    except Exception as error:  # decoders raise anything on a damaged header
        kind = image_formats.name(data)
        if not kind:
            raise BadImage("not an image", f"{len(data)} bytes of no known format") from error
        if not _reads(kind):
            raise BadImage(f"unsupported format {kind}", "convert it to PNG or JPEG") from error
        raise BadImage("truncated image", f"its {kind} header cannot be read") from error


def _header(data: bytes) -> Image.Image:
    """Opens an image that `decode` accepts, without its metadata if these are damaged."""
    try:
        return _open(data)
    except BadImage as error:
        if error.reason not in _METADATA_ERRORS:
            raise
        return _open(image_formats.essential(data))


def _check_size(image: Image.Image, limits: ImageLimits) -> None:
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


def _load(data: bytes, limits: ImageLimits, reduced: int) -> Image.Image:
    """Opens an image, checks its size and decodes its pixels."""
    image = _open(data)
    _check_size(image, limits)
    try:
        if reduced:
            image.draft(None, (reduced, reduced))
        image.load()
    except MemoryError as error:
        raise BadImage("too large for the memory", str(image.size)) from error
    except _DAMAGED as error:
        raise BadImage("truncated image", str(error)) from error
    except Exception as error:
        raise BadImage("unreadable image", f"{type(error).__name__}: {error}") from error
    return image


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of a decoded image; 1 if it cannot be read."""
    if image.format == "TIFF":  # Pillow has applied it
        return 1
    block = image.info.get("exif")
    if isinstance(block, bytes):
        return image_formats.from_exif(block)
    try:
        return int(image.getexif().get(0x0112, 1))  # also finds it in XMP
    except Exception:  # damaged metadata do not prevent decoding
        return 1


def _reads(kind: str) -> bool:
    """True if this installation reads images of this format."""
    return kind in FORMATS and (kind != "AVIF" or bool(features.check("avif")))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any pixel format to RGB."""
    if image.mode.startswith(("I", "F")):
        low, high = _value_range(image)
        grey = (np.asarray(image).astype(np.float64) - low) * (255 / (high - low))
        if not np.isfinite(grey).all():
            raise BadImage("unsupported pixels", "values that are not finite")
        return Image.fromarray(np.rint(np.clip(grey, 0, 255)).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _value_range(image: Image.Image) -> tuple[float, float]:
    """Returns the values of black and white in a grey image of more than 8 bits.

    Raises:
        BadImage: 32-bit integers or floating point values whose range the file does not state.
    """
    tags = getattr(image, "tag_v2", {})
    for first, last in _RANGE_TAGS:
        low, high = (_number(tags.get(tag)) for tag in (first, last))
        if high is not None and high > (low or 0.0):
            return low or 0.0, high
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM", "JPEG2000"):
        return 0.0, 65535.0
    kind = "floating point values" if image.mode == "F" else "integers of 32 bits"
    raise BadImage("unsupported pixels", f"{kind} without a known range")


def _number(value: object) -> float | None:
    """Returns the number in a TIFF tag, which may be a tuple of one per channel."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    return float(value) if isinstance(value, (int, float)) else None
