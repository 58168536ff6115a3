"""Files as people bring them, good and bad: builders for tests of `prepare`."""

import io
import json
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from unclip_jax import prepare
from unclip_jax.data.prepared import open_split
from unclip_jax.data.records import Record

SIZE = (20, 16)  # width and height of every whole image


def image(number: int = 0, kind: str = "PNG", **options) -> bytes:
    """An encoded gradient; another one for every number."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.stack([rows * 9 + number, columns * 9, rows + columns], -1) % 256
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def write(folder: pathlib.Path, files: Mapping[Any, bytes | str]) -> pathlib.Path:
    """Writes files below `folder`; names may be bytes."""
    for name, content in files.items():
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    return folder


def run_prepare(*inputs: pathlib.Path | str, out: pathlib.Path, options: tuple[str, ...] = ()):
    """Prepares inputs and returns the records by key, and the report of the split."""
    fixed = (f"--out={out}", "--tokenizer=none", "--max-bad=1", "--workers=0")
    prepare.main([*(str(each) for each in inputs), *fixed, *options])
    report = json.loads((out / "report.json").read_text())["train"]
    source = open_split(out, split="train")
    records: dict[str, Record] = {source[i]["key"]: source[i] for i in range(len(source))}
    assert report["read"] == report["kept"] + sum(report["skipped"].values())
    assert report["kept"] == len(records)
    counts = {reason: len(keys) for reason, keys in report["named"].items()}
    assert counts == report["skipped"]
    return records, report


def captions(record: Record) -> list[str]:
    return record.get("captions", [record["caption"]])


# Notes beside the pixels.


def with_chunk(
    kind: bytes,
    content: bytes,
    *,
    crc: int | None = None,
    after: bool = False,
    data: bytes | None = None,
) -> bytes:
    """A PNG with one more chunk before its pixels, or after them."""
    data = data or image()
    check = zlib.crc32(kind + content) if crc is None else crc
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
    at = data.index(b"IEND" if after else b"IDAT") - 4
    return data[:at] + chunk + data[at:]


def with_text(size: int) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("workflow", "x" * size, zip=True)
    return image(pnginfo=info)


def with_segment(marker: int, content: bytes, *, size: int | None = None) -> bytes:
    """A JPEG with one more segment in its header, which may state a wrong size."""
    data = image(kind="JPEG", quality=95)
    length = len(content) + 2 if size is None else size
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", length) + content + data[2:]


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of (tag, type, count, four bytes of value)."""
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack("<HHI4s", tag, kind, count, value)
    return body + b"\0\0\0\0"


ORIENTATION_ENTRY = (0x112, 3, 1, struct.pack("<HH", 6, 0))
BROKEN_NOTES: dict[str, Callable[[], bytes]] = {
    "large text": lambda: with_text(2_000_000),
    "many texts": lambda: with_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 9_000_000)),
    "large profile": lambda: image(icc_profile=b"\0" * 2_000_000),
    "text with a wrong checksum": lambda: with_chunk(b"tEXt", b"a\0b", crc=0),
    "unknown chunk with a wrong checksum": lambda: with_chunk(b"abCd", b"content", crc=7),
    "profile that is no profile": lambda: with_chunk(b"iCCP", b"no zero byte"),
    "background of the wrong size": lambda: with_chunk(b"bKGD", b""),
    "resolution cut off": lambda: with_chunk(b"pHYs", b"\0\0"),
    "gamma cut off": lambda: with_chunk(b"gAMA", b""),
    "text after the pixels": lambda: with_chunk(b"tEXt", b"\xff" * 9, crc=1, after=True),
    "EXIF of noise": lambda: with_chunk(b"eXIf", bytes(range(40))),
}
BROKEN_SEGMENTS: dict[str, Callable[[], bytes]] = {
    "EXIF of noise": lambda: with_segment(0xE1, b"Exif\0\0" + bytes(range(60))),
    "EXIF cut off": lambda: with_segment(0xE1, b"Exif\0\0II*\0"),
    "text that is a number": lambda: with_segment(
        0xE1, b"Exif\0\0" + exif((0x10E, 12, 1, b"\n\0\0\0"))
    ),
    "profile without an end": lambda: with_segment(0xE2, b"ICC_PROFILE\0\x01\x05" + b"\0" * 9),
    "several images that are none": lambda: with_segment(0xE2, b"MPF\0II*\0\xff\xff\xff\x7f"),
    "Photoshop cut off": lambda: with_segment(0xED, b"Photoshop 3.0\x008BIM\x03"),
    "comment of noise": lambda: with_segment(0xFE, bytes(range(256))),
}
