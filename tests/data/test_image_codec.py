import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from unclip_jax.core.picture import to_uint8
from unclip_jax.data import image_codec

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def saved(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
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
    with pytest.raises(image_codec.BadImage) as caught:
        image_codec.decode(data, limits=image_codec.Limits(**limits))
    assert str(caught.value).startswith(caught.value.reason)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(kind: str):
    data = saved(Image.fromarray(NOISE), kind)
    np.testing.assert_array_equal(image_codec.decode(data), NOISE)
    assert image_codec.is_lossless(data)


def test_jpeg_and_webp_come_back_nearly():
    smooth = np.linspace(0, 255, 32 * 32, dtype=np.uint8).reshape(32, 32, 1).repeat(3, axis=2)
    for kind in ("JPEG", "WEBP"):
        data = saved(Image.fromarray(smooth), kind, quality=95)
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
    rgb = image_codec.decode(saved(Image.fromarray(rgba)))
    assert rgb[0, 0].tolist() == [200, 0, 0]
    assert rgb[0, 7].tolist() == [255, 255, 255]


def test_half_transparency_is_blended():
    rgba = np.full((8, 8, 4), (0, 0, 0, 128), np.uint8)
    assert abs(int(image_codec.decode(saved(Image.fromarray(rgba)))[0, 0, 0]) - 127) <= 1


def test_palette_with_a_transparent_entry():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putpixel((0, 0), 0)
    rgb = image_codec.decode(saved(picture, transparency=0))
    assert rgb[0, 0].tolist() == [255, 255, 255]
    assert rgb[1, 1].tolist() == [10, 20, 30]


def test_grey_and_bilevel_become_rgb():
    grey = image_codec.decode(saved(Image.fromarray(NOISE[..., 0])))
    np.testing.assert_array_equal(grey, NOISE[..., :1].repeat(3, axis=2))
    assert image_codec.decode(saved(Image.new("1", (8, 8), 1))).min() == 255
    pair = image_codec.decode(saved(Image.fromarray(np.full((8, 8, 2), (90, 255), np.uint8))))
    assert pair[0, 0].tolist() == [90, 90, 90]


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.tile(np.array([0, 257 * 77, 65535, 128], np.uint16), (8, 2))
    rgb = image_codec.decode(saved(Image.fromarray(ramp)))
    assert rgb[0, :4, 0].tolist() == [0, 77, 255, 0]


def test_cmyk_becomes_rgb():
    rgb = image_codec.decode(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = rgb[8, 8].tolist()
    assert red > 200
    assert max(green, blue) < 60


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows run from the right
    rgb = image_codec.decode(saved(Image.fromarray(NOISE), exif=exif))
    np.testing.assert_array_equal(rgb, np.rot90(NOISE, k=-1))


def test_a_colour_profile_does_no_harm():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = image_codec.decode(saved(Image.fromarray(NOISE), icc_profile=profile))
    np.testing.assert_array_equal(rgb, NOISE)


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert image_codec.decode(data)[0, 0].tolist() == [255, 0, 0]


def test_bombs_are_rejected_before_they_are_decoded():
    assert reason(huge_png(9_000, 9_000)) == "decompression bomb"
    assert reason(huge_png(10_000, 10_000)) == "decompression bomb"  # 100 megapixels
    assert reason(huge_png(60_000, 60_000)) == "decompression bomb"
    assert reason(saved(Image.fromarray(NOISE)), max_pixels=767) == "decompression bomb"
    image_codec.decode(saved(Image.fromarray(NOISE)), limits=image_codec.Limits(max_pixels=768))


def test_what_is_too_small_or_too_long():
    assert reason(saved(Image.new("RGB", (1, 1)))) == "too small"
    assert reason(saved(Image.new("RGB", (7, 50)))) == "too small"
    assert reason(saved(Image.new("RGB", (10, 81)))) == "absurd aspect ratio"
    image_codec.decode(saved(Image.new("RGB", (10, 80))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_file_is_rejected(kind: str, share: float):
    data = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    assert reason(data[: int(share * len(data))]) in ("truncated image", "not an image")


def test_what_is_no_image():
    for data in (b"", b"hello", b"<html>404</html>", b"BMW is a make of cars", b"\0" * 100):
        assert reason(data) == "not an image"


def test_floats_have_no_known_range():
    picture = Image.fromarray(np.zeros((16, 16), np.float32))
    assert reason(saved(picture, "TIFF")) == "unsupported pixels"


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
    data = saved(original, "JPEG", quality=95, subsampling=0, exif=exif)
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
