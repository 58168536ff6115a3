import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from unclip_jax.core.picture import to_uint8
from unclip_jax.data import image_codec

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be width x height pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def reason(data: bytes, **limits) -> str:
    with pytest.raises(image_codec.BadImage) as error:
        image_codec.decode(data, limits=image_codec.ImageLimits(**limits))
    assert str(error.value).startswith(error.value.reason)
    return error.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(kind: str):
    data = encode(Image.fromarray(NOISE), kind)
    np.testing.assert_array_equal(image_codec.decode(data), NOISE)
    assert image_codec.is_lossless(data)


def test_jpeg_and_webp_come_back_nearly():
    smooth = np.linspace(0, 255, 32 * 32, dtype=np.uint8).reshape(32, 32, 1).repeat(3, axis=2)
    for kind in ("JPEG", "WEBP"):
        data = encode(Image.fromarray(smooth), kind, quality=95)
        assert np.abs(image_codec.decode(data).astype(int) - smooth).max() <= 8
        assert not image_codec.is_lossless(data)
    again = image_codec.decode(image_codec.encode_jpeg(smooth))
    assert np.abs(again.astype(int) - smooth).max() <= 8


def test_png_round_trip():
    np.testing.assert_array_equal(image_codec.decode(image_codec.encode_png(NOISE)), NOISE)


def test_transparency_lies_over_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (200, 0, 0, 255)
    rgba[:, 4:] = (0, 0, 0, 0)
    rgb = image_codec.decode(encode(Image.fromarray(rgba)))
    assert rgb[0, 0].tolist() == [200, 0, 0]
    assert rgb[0, 7].tolist() == [255, 255, 255]


def test_half_transparency_is_blended():
    rgba = np.full((8, 8, 4), (0, 0, 0, 128), np.uint8)
    assert abs(int(image_codec.decode(encode(Image.fromarray(rgba)))[0, 0, 0]) - 127) <= 1


def test_palette_with_a_transparent_entry():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putpixel((0, 0), 0)
    rgb = image_codec.decode(encode(picture, transparency=0))
    assert rgb[0, 0].tolist() == [255, 255, 255]
    assert rgb[1, 1].tolist() == [10, 20, 30]


def test_grey_and_bilevel_become_rgb():
    grey = image_codec.decode(encode(Image.fromarray(NOISE[..., 0])))
    np.testing.assert_array_equal(grey, NOISE[..., :1].repeat(3, axis=2))
    assert image_codec.decode(encode(Image.new("1", (8, 8), 1))).min() == 255
    pair = image_codec.decode(encode(Image.fromarray(np.full((8, 8, 2), (90, 255), np.uint8))))
    assert pair[0, 0].tolist() == [90, 90, 90]


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.tile(np.array([0, 257 * 77, 65535, 128], np.uint16), (8, 2))
    rgb = image_codec.decode(encode(Image.fromarray(ramp)))
    assert rgb[0, :4, 0].tolist() == [0, 77, 255, 0]


def test_cmyk_becomes_rgb():
    rgb = image_codec.decode(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = rgb[8, 8].tolist()
    assert red > 200
    assert max(green, blue) < 60


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows run from the right
    rgb = image_codec.decode(encode(Image.fromarray(NOISE), exif=exif))
    np.testing.assert_array_equal(rgb, np.rot90(NOISE, k=-1))


def test_a_colour_profile_does_no_harm():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = image_codec.decode(encode(Image.fromarray(NOISE), icc_profile=profile))
    np.testing.assert_array_equal(rgb, NOISE)


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert image_codec.decode(data)[0, 0].tolist() == [255, 0, 0]


def test_bombs_are_rejected_before_they_are_decoded():
    assert reason(huge_png(9_000, 9_000)) == "decompression bomb"
    assert reason(huge_png(10_000, 10_000)) == "decompression bomb"  # 100 megapixels
    assert reason(huge_png(60_000, 60_000)) == "decompression bomb"
    assert reason(encode(Image.fromarray(NOISE)), max_pixels=767) == "decompression bomb"
    image_codec.decode(
        encode(Image.fromarray(NOISE)), limits=image_codec.ImageLimits(max_pixels=768)
    )


def test_what_is_too_small_or_too_long():
    assert reason(encode(Image.new("RGB", (1, 1)))) == "too small"
    assert reason(encode(Image.new("RGB", (7, 50)))) == "too small"
    assert reason(encode(Image.new("RGB", (10, 81)))) == "absurd aspect ratio"
    image_codec.decode(encode(Image.new("RGB", (10, 80))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_file_is_rejected(kind: str, share: float):
    data = encode(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    assert reason(data[: int(share * len(data))]) in ("truncated image", "not an image")


def test_what_is_no_image():
    for data in (b"", b"hello", b"<html>404</html>", b"BMW is a make of cars", b"\0" * 100):
        assert reason(data) == "not an image"


def test_floats_have_no_known_range():
    picture = Image.fromarray(np.zeros((16, 16), np.float32))
    assert reason(encode(picture, "TIFF")) == "unsupported pixels"


@pytest.mark.parametrize("shape", [(64, 96), (200, 130), (300, 301), (20, 40)])
def test_resizing_sets_the_short_side_and_keeps_the_ratio(shape: tuple[int, int]):
    small = image_codec.resize_short(np.zeros((*shape, 3), np.uint8), 32)
    assert min(small.shape[:2]) == 32
    ratio = max(shape) / min(shape)
    assert abs(max(small.shape[:2]) - 32 * ratio) <= 1


def test_a_checkerboard_shrinks_to_grey():
    # nearest-neighbour resizing, a known defect of other trainers, would keep black and white
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = image_codec.resize_short(board[..., None].repeat(3, axis=2), 32)
    assert np.abs(small.astype(int) - 127).max() <= 1


def test_shrinking_by_a_power_of_two_is_an_area_mean():
    picture = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pairs = picture.astype(int)
    across = (pairs[:, 0::2] + pairs[:, 1::2] + 1) // 2  # Pillow rounds after each direction
    want = (across[0::2] + across[1::2] + 1) // 2
    np.testing.assert_array_equal(image_codec.resize_short(picture, 32), want)


def test_resizing_keeps_a_image_of_the_right_size():
    picture = RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    np.testing.assert_array_equal(image_codec.resize_short(picture, 64), picture)


def test_crops():
    picture = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    np.testing.assert_array_equal(image_codec.center_crop(picture, 4), picture[1:5, 2:6])
    np.testing.assert_array_equal(image_codec.crop(picture, 2, top=4, left=7), picture[4:, 7:])
    np.testing.assert_array_equal(image_codec.flip(image_codec.flip(picture)), picture)
    assert image_codec.flip(picture)[0, 0].tolist() == picture[0, 8].tolist()


def test_random_crops_reach_every_place_equally():
    where = np.zeros((5, 6, 3), np.uint8)
    where[..., 0] = np.arange(30).reshape(5, 6)
    rng = np.random.default_rng(1)
    corners = [int(image_codec.random_crop(where, 3, rng=rng)[0, 0, 0]) for _ in range(2400)]
    places, counts = np.unique(corners, return_counts=True)
    assert places.tolist() == [r * 6 + c for r in range(3) for c in range(4)]
    assert counts.min() > 200 - 5 * np.sqrt(200)


def test_floats_and_bytes_are_inverse_and_reach_the_ends():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    floats = image_codec.to_float(every)
    assert (floats.min(), floats.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(floats), every)
    np.testing.assert_array_equal(
        to_uint8(np.float32([[[[-3.0, 3.0, 0.0]]]])).ravel(), [0, 255, 128]
    )


@pytest.mark.parametrize(
    ("reduced", "factor"), [(64, 4), (76, 4), (77, 2), (152, 2), (153, 1), (1, 8)]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(reduced, factor, orientation):
    """Its pixels are the means of squares of those of the whole image, nearly."""
    y, x = np.mgrid[:304, :512] / 40
    waves = np.stack([np.sin(x + y), np.cos(x), np.sin(y)], axis=-1)
    original = Image.fromarray(np.uint8(128 + 100 * waves))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(original, "JPEG", quality=95, subsampling=0, exif=exif)
    whole = image_codec.decode(data).astype(np.float64)
    height, width = whole.shape[:2]
    squares = whole.reshape(height // factor, factor, width // factor, factor, 3)
    result = image_codec.decode(data, reduced=reduced)
    assert result.shape == (height // factor, width // factor, 3)
    assert np.abs(result - squares.mean(axis=(1, 3))).mean() < 1.0


def test_other_formats_are_decoded_whole():
    data = image_codec.encode_png(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    )
    np.testing.assert_array_equal(image_codec.decode(data, reduced=8), image_codec.decode(data))


UPRIGHT = {  # EXIF orientation -> what a viewer does (CIPA DC-008, section 4.6.4)
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, k=-1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright_once(orientation: int, kind: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    rgb = image_codec.decode(encode(Image.fromarray(NOISE), kind, exif=exif, **options))
    np.testing.assert_array_equal(rgb, UPRIGHT[orientation](NOISE))


@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_an_orientation_may_be_stated_in_xmp(orientation: int):
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><x tiff:Orientation="{orientation}"/></x:xmpmeta>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    rgb = image_codec.decode(encode(Image.fromarray(NOISE), pnginfo=info))
    np.testing.assert_array_equal(rgb, UPRIGHT[orientation](NOISE))


def test_an_orientation_that_cannot_be_read_turns_nothing():
    """As of ImageMagick's text with EXIF in hexadecimal digits, where these are none."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n      8\nno digits\n")
    data = encode(Image.fromarray(NOISE), pnginfo=info)
    with pytest.raises(ValueError, match="fromhex"):
        Image.open(io.BytesIO(data)).getexif()
    np.testing.assert_array_equal(image_codec.decode(data), NOISE)


def with_chunk(data: bytes, kind: bytes, content: bytes, *, damage: int = 0) -> bytes:
    """A PNG with another chunk after its header, of a wrong checksum if `damage` is not 0."""
    check = zlib.crc32(kind + content) ^ damage
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("orientation", [1, 6])
def test_damaged_metadata_cost_no_image_and_no_orientation(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = with_chunk(encode(Image.fromarray(NOISE), exif=exif), b"tEXt", b"a\0b", damage=1)
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(image_codec.decode(data), UPRIGHT[orientation](NOISE))
    assert image_codec.format_of(data) == "png"
    assert image_codec.is_lossless(data) and image_codec.short_side(data) == 24
    # other errors are not tolerated: the first is reported
    assert reason(data[:-30]) == "truncated image"
    assert reason(data, min_side=25) == "truncated image"


def test_pixels_that_are_cut_are_not_taken_for_damaged_metadata():
    data = encode(Image.fromarray(NOISE), "JPEG", comment=b"a comment", quality=95)
    assert reason(data[: len(data) // 2]) == "truncated image"


@pytest.mark.parametrize(
    ("kind", "name", "lossless"),
    [
        ("PNG", "png", True),
        ("BMP", "bmp", True),
        ("TIFF", "tiff", True),
        ("GIF", "gif", True),
        ("PPM", "ppm", True),
        ("JPEG", "jpeg", False),
        ("MPO", "jpeg", False),  # several JPEGs in one file, as cameras of phones write
        ("WEBP", "webp", False),
    ],
)
def test_formats_are_named_and_sides_read_from_the_header(kind, name, lossless):
    options = {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}
    data = encode(Image.fromarray(NOISE), kind, **(options if kind == "MPO" else {}))
    assert image_codec.format_of(data) == name
    assert image_codec.is_lossless(data) == lossless
    assert image_codec.short_side(data) == 24
    assert image_codec.short_side(encode(Image.new("RGB", (11, 90)), kind)) == 11


def test_headers_of_what_cannot_be_read():
    for function in (image_codec.format_of, image_codec.short_side, image_codec.is_lossless):
        with pytest.raises(image_codec.BadImage, match="decompression bomb"):
            function(huge_png(60_000, 60_000))
        with pytest.raises(image_codec.BadImage, match="not an image: 5 bytes of no known"):
            function(b"hello")
        with pytest.raises(image_codec.BadImage, match="unsupported format PSD: convert it to PNG"):
            function(b"8BPS" + bytes(50))
        with pytest.raises(image_codec.BadImage, match="truncated image: its PNG header cannot"):
            function(encode(Image.fromarray(NOISE))[:20])


def test_limits_are_inclusive():
    """64 megapixels, sides of 8 pixels and a ratio of 8 to 1 are the last that pass."""
    for width, height in ((8_000, 8_000), (64_000_000, 1)):
        assert reason(huge_png(width, height), min_side=1, max_aspect=1e9) == "truncated image"
    assert reason(huge_png(64_000_001, 1), min_side=1, max_aspect=1e9) == "decompression bomb"
    assert image_codec.decode(encode(Image.new("RGB", (8, 8)))).shape == (8, 8, 3)
    assert image_codec.decode(encode(Image.new("RGB", (64, 8)))).shape == (8, 64, 3)
    assert reason(encode(Image.new("RGB", (8, 65)))) == "absurd aspect ratio"
    assert reason(encode(Image.new("RGB", (65, 8)))) == "absurd aspect ratio"
    tiny = encode(Image.new("RGB", (1, 900)))
    assert image_codec.decode(tiny, limits=image_codec.ANY_SIZE).shape == (900, 1, 3)


def tiff(values: list[float], dtype: str, **tags: float) -> bytes:
    """A TIFF of one row of 8 pixels, over 8 rows, with tags that state its range of values."""
    numbers = {"low": 340, "high": 341, "min": 280, "max": 281}
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[numbers[name]] = value
        whole = dtype != "float32" and name in ("min", "max")
        info.tagtype[numbers[name]] = 3 if whole else 12  # short or double
    picture = Image.fromarray(np.tile(np.array(values, dtype), (8, 8 // len(values))))
    return encode(picture, "TIFF", tiffinfo=info)


@pytest.mark.parametrize(
    ("values", "dtype", "tags", "grey"),
    [
        ([0, 257, 65535, 32896], "uint16", {}, [0, 1, 255, 128]),
        ([0, 500, 1000, 2000], "uint16", {"max": 1000}, [0, 128, 255, 255]),
        ([100, 550, 1000, 0], "uint16", {"min": 100, "max": 1000}, [0, 128, 255, 0]),
        ([0.0, 0.5, 1.0, 2.0], "float32", {"low": 0.0, "high": 1.0}, [0, 128, 255, 255]),
        ([-1.0, 0.0, 1.0, -9.0], "float32", {"low": -1.0, "high": 1.0}, [0, 128, 255, 0]),
        ([0.0, 1.0, 2.0, 4.0], "float32", {"high": 2.0}, [0, 128, 255, 255]),
        # the tags of any type come before those of integers
        (
            [0, 500, 1000, 2000],
            "uint16",
            {"max": 9, "low": 0.0, "high": 1000.0},
            [0, 128, 255, 255],
        ),
        # a range that is empty is none
        ([0, 257, 65535, 32896], "uint16", {"min": 7, "max": 7}, [0, 1, 255, 128]),
    ],
)
def test_values_of_more_than_8_bits_are_scaled_from_their_stated_range(values, dtype, tags, grey):
    rgb = image_codec.decode(tiff(values, dtype, **tags))
    assert rgb[3, :4].tolist() == [[value] * 3 for value in grey]


@pytest.mark.parametrize(
    ("values", "dtype", "tags", "detail"),
    [
        ([0.0, 1.0], "float32", {}, "floating point values without a known range"),
        ([0.0, 1.0], "float32", {"low": 1.0, "high": 1.0}, "floating point values without a known"),
        ([0.0, np.nan], "float32", {"high": 1.0}, "values that are not finite"),
        ([0, 70_000], "int32", {}, "integers of 32 bits without a known range"),
    ],
)
def test_values_without_a_meaning_as_grey_are_rejected(values, dtype, tags, detail):
    with pytest.raises(image_codec.BadImage, match=f"unsupported pixels: {detail}"):
        image_codec.decode(tiff(values, dtype, **tags))


def test_a_number_in_a_tag():
    for value, number in (
        (3, 3.0),
        (2.5, 2.5),
        ((4, 5), 4.0),
        ((), None),
        (None, None),
        ("7", None),
    ):
        assert image_codec._number(value) == number


@pytest.mark.parametrize(
    ("shape", "size", "result"),
    [
        ((64, 96), 32, (32, 48)),
        ((63, 95), 32, (32, 48)),  # 48.25
        ((40, 1000), 7, (7, 175)),
        ((1000, 33), 32, (970, 32)),
        ((9, 8), 16, (18, 16)),
        ((16, 16), 16, (16, 16)),
    ],
)
def test_sides_after_resizing(shape, size, result):
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert image_codec.resize_short(pixels, size).shape == (*result, 3)


def test_resizing_halves_by_means_and_then_is_bicubic():
    """Once from 48 to 24, since 24 is less than twice 16."""
    pixels = RNG.integers(0, 256, (48, 48, 3), dtype=np.uint8)
    halved = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BOX)
    expected = np.asarray(halved.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(image_codec.resize_short(pixels, 16), expected)
    single = np.asarray(Image.fromarray(pixels).resize((25, 25), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(image_codec.resize_short(pixels, 25), single)


def test_an_odd_margin_is_larger_at_the_end():
    pixels = np.arange(7 * 8 * 3, dtype=np.uint8).reshape(7, 8, 3)
    np.testing.assert_array_equal(image_codec.center_crop(pixels, 4), pixels[1:5, 2:6])
    np.testing.assert_array_equal(image_codec.center_crop(pixels, 7), pixels[:, :7])


def test_encoders():
    pixels = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(image_codec.encode_jpeg(pixels))) as image:
        assert image.format == "JPEG" and image.layer[0][1:3] == image.layer[1][1:3]  # 4:4:4
        assert max(image.quantization[0]) <= 12  # quality 95
    sizes = [len(image_codec.encode_jpeg(pixels, quality=quality)) for quality in (30, 95, 96)]
    assert sizes == sorted(set(sizes)) and sizes[1] == len(image_codec.encode_jpeg(pixels))
    assert image_codec.is_image(image_codec.encode_jpeg(pixels)[:8])
    assert image_codec.is_image(b"8BPS") and not image_codec.is_image(b"hello")
