"""Image formats by their first bytes, and metadata by the layouts of PNG, JPEG and EXIF."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unclip_jax.data import image_formats

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (PNG, "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"\xff\xd8\xff\xdb", "JPEG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WEBP"),
        (b"RIFF\x10\0\0\0WAVEfmt ", ""),
        (b"RIFX\x10\0\0\0WEBPVP8 ", ""),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x1cftypavis\0\0\0\0", "AVIF"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif", "AVIF"),  # its other brands decide
        (b"\0\0\0\x40ftypmif1" + bytes(48) + b"avis", "AVIF"),  # bytes 60 to 63
        (b"\0\0\0\x48ftypmif1" + bytes(49) + b"avif", "HEIC"),  # later than any list of brands
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", ""),  # a film
        (b"\0\0\0\x18ftypisom\0\0\0\0heic", ""),
        (b"BM\x36\x01\0\0\0\0\0\0\x36\0\0\0", "BMP"),
        (b"BMW is a make of cars", ""),
        (b"BN\x36\x01\0\0\0\0\0\0\x36\0\0\0", ""),
        (b"BM\x36\x01\0\0\x01\0\0\0\x36\0\0\0", ""),  # reserved bytes that are not 0
        (b"BM\x36\x01\0\0\0\0\0\x01\x36\0\0\0", ""),
        *((b"P%d\n2 2 255\n" % kind, "PPM") for kind in range(1, 7)),
        (b"P6 2 2 255 ", "PPM"),
        (b"P7\nWIDTH 2", ""),
        (b"P66\n2 2", ""),
        (b"Q6\n2 2 255", ""),
        (b"\0\0\0\x0cjP  \r\n", "JPEG2000"),
        (b"\xff\x4f\xff\x51", "JPEG2000"),
        (b"\xff\x0a", "JXL"),
        (b"\0\0\0\x0cJXL \r\n", "JXL"),
        (b"8BPS\0\x01", "PSD"),
        (b"\x76\x2f\x31\x01\x02", "EXR"),
        (b"qoif\0\0", "QOI"),
        (b"%!PS-Adobe-3.0", "EPS"),
        (b"\xc5\xd0\xd3\xc6", "EPS"),
        (b"II+\0", "BigTIFF"),
        (b"MM\0+", "BigTIFF"),
        (b"<svg xmlns", "SVG"),
        (b"\0\0\x01\0\x01\0", "ICO"),
        (b"", ""),
        (b"P", ""),
        (b"B", ""),
        (b"<html>", ""),
    ],
)
def test_a_format_is_named_by_the_first_bytes_of_its_specification(start: bytes, name: str):
    assert image_formats.name(start) == name
    assert image_formats.name(start + bytes(100)) == name


def directory(order: str, entries: list[tuple[int, int]], *, start: int = 8) -> bytes:
    """EXIF data with short integers in its first directory (TIFF 6.0, sections 2 and 8)."""
    mark = {"<": b"II", ">": b"MM"}[order]
    rows = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0xBEEF) for tag, value in entries]
    head = mark + struct.pack(f"{order}HI", 42, start)
    return head.ljust(start, b"\x7f") + struct.pack(f"{order}H", len(rows)) + b"".join(rows)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("start", [8, 9, 300])
@pytest.mark.parametrize("value", range(10))
def test_the_orientation_of_a_directory(order: str, start: int, value: int):
    """Values 1 to 8, at any position among other entries, in either byte order."""
    others = [(0x0100, 3), (0x0111, 4), (0x0113, 5), (0x1201, 7)]
    expected = value if 1 <= value <= 8 else 1
    for place in range(len(others) + 1):
        entries = [*others[:place], (0x0112, value), *others[place:]]
        block = directory(order, entries, start=start)
        assert image_formats.from_exif(block) == expected
        assert image_formats.from_exif(b"Exif\0\0" + block + b"and more") == expected
    assert image_formats.from_exif(directory(order, others, start=start)) == 1


@pytest.mark.parametrize("order", "<>")
def test_an_orientation_that_is_cut_or_beyond_the_directory_is_not_read(order: str):
    block = directory(order, [(0x0101, 3), (0x0112, 6)])
    assert image_formats.from_exif(block) == 6
    for size in range(len(block)):
        assert image_formats.from_exif(block[:size]) == 1
    one = directory(order, [(0x0101, 3)]) + block[-12:]  # the count leaves the second one out
    assert image_formats.from_exif(one) == 1
    for text in (b"", b"XX" + block[2:], b"I", bytes(40)):
        assert image_formats.from_exif(text) == 1


def chunk(kind: bytes, data: bytes, *, damaged: bool = False) -> bytes:
    """A chunk of a PNG: length, type, data, and the checksum of the last two."""
    check = zlib.crc32(kind + data) ^ damaged
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png(*, first: tuple[bytes, ...] = (), last: tuple[bytes, ...] = ()) -> bytes:
    """A picture with chunks before and after its pixels."""
    header = struct.pack(">IIBBBBB", 12, 9, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"".join([PNG, chunk(b"IHDR", header), *first, pixels, *last, chunk(b"IEND", b"")])


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_png_keeps_what_its_pixels_need_and_nothing_else():
    transparent = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    palette = chunk(b"PLTE", bytes(range(9)))
    text = chunk(b"tEXt", b"Title\0a picture")
    broken = chunk(b"tRNS", b"\0\1\0\2\0\3", damaged=True)
    np.testing.assert_array_equal(decode(png()), PIXELS)
    for first, expected in (
        ((text,), ()),
        ((palette, text, transparent), (palette, transparent)),
        ((broken, chunk(b"eXIf", b"II*\0")), ()),
        ((transparent, transparent, text, text), (transparent, transparent)),
    ):
        assert image_formats.essential(png(first=first, last=(text,))) == png(first=expected)


def test_a_png_that_is_cut_keeps_the_part_that_is_there():
    """Unless it ends before the length and the type of a chunk, 8 bytes, are complete."""
    whole = png()
    begins = [8, 8 + 25, len(whole) - 12]  # of the header, the pixels and the end
    for size in range(8, len(whole) + 1):
        begin = max(each for each in begins if each <= size)
        expected = whole[:size] if size - begin >= 8 else whole[:begin]
        assert image_formats.essential(whole[:size]) == expected


def test_the_orientation_of_a_png_is_in_its_exif_chunk():
    orientation = chunk(b"eXIf", directory(">", [(0x0112, 6)]))
    other = chunk(b"eXIf", directory(">", [(0x0112, 3)]))
    text = chunk(b"tEXt", directory(">", [(0x0112, 8)]))
    assert image_formats.orientation(png()) == 1
    for chunks in ((orientation,), (text, orientation), (orientation, other)):
        assert image_formats.orientation(png(first=chunks)) == 6
        assert image_formats.orientation(png(last=chunks)) == 6
    assert image_formats.orientation(png(first=(text,))) == 1


def segment(kind: int, data: bytes) -> bytes:
    """A segment of a JPEG: marker, length of all that follows the marker, data."""
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def exif(value: int) -> bytes:
    return segment(0xE1, b"Exif\0\0" + directory("<", [(0x0112, value)]))


def jpeg(*segments: bytes) -> bytes:
    """A picture with `segments` in the place of those of its writer's metadata."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", quality=95)
    plain = buffer.getvalue()
    length = 2 + struct.unpack(">H", plain[4:6])[0]
    assert plain[2:4] == b"\xff\xe0"  # JFIF, the only one that Pillow writes
    return plain[:2] + plain[2 : 2 + length] + b"".join(segments) + plain[2 + length :]


def test_a_jpeg_keeps_how_colours_are_stored_and_no_other_metadata():
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\1")
    removed = [segment(kind, b"any") for kind in (*range(0xE1, 0xEE), 0xEF, 0xFE)]
    for each in (*removed, segment(0xE1, b""), b"".join(removed)):
        assert image_formats.essential(jpeg(each)) == jpeg()
        assert image_formats.essential(jpeg(adobe, each)) == jpeg(adobe)
    restart = segment(0xDD, b"\0\0")  # the distance of restarts is part of the coding
    assert image_formats.essential(jpeg(removed[0], restart)) == jpeg(restart)
    for count in (1, 2, 3):
        assert image_formats.essential(jpeg(b"\xff" * count + removed[0])) == jpeg()  # padding
    np.testing.assert_array_equal(decode(image_formats.essential(jpeg(*removed))), decode(jpeg()))


def test_the_coded_pixels_of_a_jpeg_are_not_searched():
    """Bytes in them that look like a comment stay, as does all that follows."""
    whole = jpeg()
    start = whole.index(b"\xff\xda")
    data = whole[: start + 14] + segment(0xFE, b"no comment") + exif(6) + whole[start + 14 :]
    assert image_formats.essential(data) == data
    assert image_formats.orientation(data) == 1


def test_the_orientation_of_a_jpeg_is_in_its_first_exif_segment():
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + directory("<", [(0x0112, 8)]))
    other = segment(0xE2, b"Exif\0\0" + directory("<", [(0x0112, 8)]))
    assert image_formats.orientation(jpeg()) == 1
    for segments in itertools.permutations((xmp, other, exif(6))):
        assert image_formats.orientation(jpeg(*segments)) == 6
    assert image_formats.orientation(jpeg(exif(6), exif(3))) == 6
    assert image_formats.orientation(jpeg(xmp, other)) == 1


def test_a_jpeg_that_is_cut_keeps_the_part_that_is_there():
    """A comment is left out as far as it is there, if its marker and length, 4 bytes, are."""
    header, comment = jpeg()[:20], segment(0xFE, b"a comment")
    for size in range(2, 20 + len(comment) + 1):
        content = (header + comment)[:size]
        expected = header[:size] if size >= 24 or size <= 20 else content
        assert image_formats.essential(content) == expected
    table = segment(0xDB, b"quantisation")  # is kept
    for size in range(2, 20 + len(table) + 1):
        content = (header + table)[:size]
        assert image_formats.essential(content) == content
        assert image_formats.orientation(content) == 1


@pytest.mark.parametrize("length", [0, 1])
def test_a_jpeg_with_an_impossible_length_is_read_to_its_end(length: int):
    """The length counts itself, so that 2 is the least."""
    damaged = struct.pack(">BBH", 0xFF, 0xFE, length)
    assert image_formats.orientation(jpeg(damaged, exif(6))) == 6


def test_other_formats_are_left_as_they_are():
    for data in (b"", b"GIF89a with text", PNG[:-1], b"\xff\xd9\xff\xfe\0\4hi"):
        assert image_formats.essential(data) == data
        assert image_formats.orientation(data) == 1
