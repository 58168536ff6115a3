"""Formats of encoded images: recognition by content, and the parts that determine the pixels."""

import io
import struct
import zlib

_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_COLOUR = (0xE0, 0xEE)  # APP0 (JFIF) and APP14 (Adobe), which state how colours are stored
_ORIENTATION = 0x0112  # tag of EXIF

# First bytes of a file, by format, including formats that this package does not read.
_STARTS: tuple[tuple[bytes, str], ...] = (
    (_PNG, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\xff\x0a", "JXL"),
    (b"\x00\x00\x00\x0cJXL ", "JXL"),
    (b"8BPS", "PSD"),
    (b"\x76\x2f\x31\x01", "EXR"),
    (b"qoif", "QOI"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"<svg", "SVG"),
    (b"\x00\x00\x01\x00", "ICO"),
)
_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def name(data: bytes) -> str:
    """Returns the format of an image by its first bytes, such as "HEIC"; "" if unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brands = data[8:64]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIC" if data[8:12] in _HEIF else ""
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return "BMP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PPM"
    return next((kind for start, kind in _STARTS if data.startswith(start)), "")


def essential(data: bytes) -> bytes:
    """Returns a PNG or JPEG without text, profiles and other metadata; other formats unchanged.

    The pixels do not depend on these. The EXIF orientation is removed too; `orientation` reads it.
    """
    if data.startswith(_PNG):
        return _PNG + b"".join(
            chunk for kind, chunk in _png_chunks(data) if _is_essential(kind, chunk)
        )
    if data.startswith(b"\xff\xd8"):
        return _jpeg_without_metadata(data)
    return data


def orientation(data: bytes) -> int:
    """Reads the EXIF orientation, 1 to 8, of a PNG or JPEG; 1 if it is missing or damaged."""
    block = b""
    if data.startswith(_PNG):
        block = next((chunk[8:-4] for kind, chunk in _png_chunks(data) if kind == b"eXIf"), b"")
    elif data.startswith(b"\xff\xd8"):
        segments = (part for kind, part in _jpeg_segments(data) if kind == 0xE1)
        block = next((part[4:] for part in segments if part[4:10] == b"Exif\0\0"), b"")
    return from_exif(block)


def from_exif(block: bytes) -> int:
    """Returns the orientation in the first directory of EXIF data; 1 if it has none.

    Other entries, which may be damaged, are not read.
    """
    data = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return 1
    (start,) = struct.unpack(f"{order}I", data[4:8])
    count = int.from_bytes(data[start : start + 2], "little" if order == "<" else "big")
    for index in range(count):
        entry = data[start + 2 + 12 * index :][:12]
        if len(entry) == 12 and struct.unpack(f"{order}H", entry[:2])[0] == _ORIENTATION:
            (value,) = struct.unpack(f"{order}H", entry[8:10])
            return value if 1 <= value <= 8 else 1
    return 1


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Splits a PNG into chunks; the last may be incomplete."""
    chunks, position = [], len(_PNG)
    while position + 8 <= len(data):
        (size,) = struct.unpack(">I", data[position : position + 4])
        end = position + 12 + size
        chunks.append((data[position + 4 : position + 8], data[position:end]))
        position = end
    return chunks


def _is_essential(kind: bytes, chunk: bytes) -> bool:
    if kind in _CRITICAL:
        return True
    whole = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
    return kind == b"tRNS" and whole


def _jpeg_segments(data: bytes) -> list[tuple[int, bytes]]:
    """Splits the header of a JPEG into segments; the last one, 0xDA, extends to the end."""
    segments, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        kind = data[position + 1]
        if kind == 0xFF:  # padding
            position += 1
            continue
        if kind == 0xDA:
            break
        (size,) = struct.unpack(">H", data[position + 2 : position + 4])
        segments.append((kind, data[position : position + 2 + size]))
        position += 2 + max(size, 2)
    return [*segments, (0xDA, data[position:])]


def _jpeg_without_metadata(data: bytes) -> bytes:
    buffer = io.BytesIO(data[:2])
    buffer.seek(2)
    for kind, part in _jpeg_segments(data):
        is_metadata = 0xE0 <= kind <= 0xEF or kind == 0xFE
        if not is_metadata or kind in _JPEG_COLOUR:
            buffer.write(part)
    return buffer.getvalue()
