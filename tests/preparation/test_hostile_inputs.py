"""Files as people bring them: nothing ends an import, and nothing vanishes uncounted.

One table per kind; a further variant is a line.
"""

import io
import json
import os
import pathlib
import socket
import tarfile
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.preparation import hostile
from tests.preparation.hostile import ORIENTATION_ENTRY, captions, exif, image, run_prepare, write
from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest, image_codec
from unclip_jax.data.prepared import open_split as prepared_split
from unclip_jax.preparation.import_plans import FilePlan

GOOD = {"good.png": image(), "good.txt": "a good one"}


# Names.

NAMES = {
    "Latin-1": b"caf\xe9.png",
    "no byte of text": b"\xff\xfe.jpg",
    "half a surrogate pair": b"a\xed\xa0\xbd.png",
    "cut UTF-8": b"\xe4\xb8.webp",
    "in a folder of such a name": b"d\xe9r/a.png",
    "without a suffix": b"\x80\x81",
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_that_are_not_utf8(tmp_path: pathlib.Path, kind: str):
    name = NAMES[kind]
    write(tmp_path / "in", {**GOOD, name: image(1), os.path.splitext(name)[0] + b".txt": "x"})
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert list(records) == ["good"]
    assert report["skipped"] == {"name is not UTF-8": 1}


@pytest.mark.parametrize("kind", NAMES)
def test_members_with_names_that_are_not_utf8(samples, tmp_path: pathlib.Path, kind: str):
    stem = os.path.splitext(NAMES[kind])[0]
    members = [("good.png", image()), ("good.txt", b"x")]
    members += [(os.fsdecode(stem + suffix), image(1)) for suffix in (b".png", b".txt")]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    records, report = run_prepare(path, out=tmp_path / "out")
    assert list(records) == ["good"]
    assert report["skipped"] == {"name is not UTF-8": 1}


# Rows of tables.

ROWS: dict[str, tuple[Any, str]] = {
    "empty": ("", "missing file"),
    "this folder": (".", "missing file"),
    "the folder above": ("..", "path outside the folder"),
    "outside": ("../a.png", "path outside the folder"),
    "absolute": ("/etc/a.png", "path outside the folder"),
    "over-long": ("a" * 5000 + ".png", "missing file"),
    "a zero byte": ("a\0.png", "missing file"),
    "half a surrogate pair": ("sur\ud83d.png", "missing file"),
    "a number": (7, "bad metadata line"),
    "a list": (["0.png"], "bad metadata line"),
    "null": (None, "bad metadata line"),
    "a folder": ("sub", "not a regular file"),
    "not there": ("sub/gone.png", "missing file"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_with_names_that_cannot_be_used(tmp_path: pathlib.Path, kind: str):
    name, reason = ROWS[kind]
    rows = [{"file_name": each, "text": "x"} for each in ("good.png", name, "1.png")]
    text = "\n".join(json.dumps(row) for row in rows)
    images = {"good.png": image(), "1.png": image(1), "sub/note.md": ""}
    write(tmp_path / "in", {**images, "metadata.jsonl": text})
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert list(records) == ["good", "1"]
    assert report["skipped"] == {reason: 1}


LINES = {
    "cut": b'{"file_name": "1.png", "text": ',
    "Latin-1": b'{"file_name": "caf\xe9.png"}',
    "a text": b'"1.png"',
    "deep": b"[" * 100_000,
    "two objects": b'{"file_name": "1.png"} {}',
    "no caption": b'{"file_name": "1.png"}',
    "a caption of another kind": b'{"file_name": "1.png", "text": {"de": 5}}',
    "a caption that is no Unicode": b'{"file_name": "1.png", "text": "\\ud83d"}',
}


@pytest.mark.parametrize("kind", LINES)
def test_lines_that_cannot_be_used(tmp_path: pathlib.Path, kind: str):
    first = b'{"file_name": "good.png", "text": "x"}'
    text = b"\n".join([first, LINES[kind], b"", first.replace(b"good", b"2")])
    images = {"good.png": image(), "1.png": image(1), "2.png": image(2)}
    write(tmp_path / "in", {**images, "metadata.jsonl": text})
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert list(records) == ["good", "2"]
    assert 1 <= sum(report["skipped"].values()) <= 2  # the row, and perhaps the image without one


# Links and things that are no files.


def place(folder: pathlib.Path, kind: str) -> None:
    """Puts something called bad.png into `folder`."""
    path = folder / "bad.png"
    if kind == "link to nowhere":
        path.symlink_to("/nonexistent/gone.png")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "circle of links":
        path.symlink_to(folder / "other.lnk")
        (folder / "other.lnk").symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(folder / ".pipe")
        path.symlink_to(folder / ".pipe")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(folder)  # the path of a socket may be short only
            try:
                server.bind("bad.png")
            finally:
                os.chdir(here)


PLACES = {
    "link to nowhere": "missing file",
    "link to itself": "missing file",
    "circle of links": "missing file",
    "pipe": "not a regular file",
    "link to a pipe": "not a regular file",
    "link to a device": "not a regular file",
    "socket": "not a regular file",
}


@pytest.mark.parametrize("captioned", [True, False])
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_file(tmp_path: pathlib.Path, kind: str, captioned: bool):
    write(tmp_path / "in", {**GOOD, **({"bad.txt": "x"} if captioned else {})})
    place(tmp_path / "in", kind)
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert list(records) == ["good"]
    assert report["skipped"] == {PLACES[kind]: 1}


@pytest.mark.parametrize("suffix", [".txt", ".json", ".csv", ".parquet", ".tar", ".jsonl", ".dat"])
@pytest.mark.parametrize("kind", ["pipe", "link to nowhere"])
def test_no_caption_table_or_archive_is_waited_for(tmp_path: pathlib.Path, kind: str, suffix: str):
    write(tmp_path / "in", {**GOOD, "other.png": image(1)})
    place(tmp_path / "in", kind)
    (tmp_path / "in" / "bad.png").rename(tmp_path / "in" / f"other{suffix}")
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert list(records) == ["good"]
    assert report["skipped"].pop("no caption") == 1
    assert sum(report["skipped"].values()) <= 1  # the archive


def test_a_folder_with_the_name_of_an_image(tmp_path: pathlib.Path):
    write(tmp_path / "in", {**GOOD, "a.png/b.png": image(1), "a.png/b.txt": "inside"})
    records, _ = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert sorted(records) == ["a.png/b", "good"]


# Links to folders.

PAIR = {"a.png": image(1), "a.txt": "x"}
LINKS: dict[str, tuple[list[tuple[str, str]], list[str]]] = {  # links, keys
    "outside": ([("more", "../far")], ["good", "more/a"]),
    "a chain": ([("more", "../hop"), ("../hop", "far")], ["good", "more/a"]),
    "below a folder": ([("sub/more", "../../far")], ["good", "sub/more/a"]),
    "to itself": ([("loop", ".")], ["good"]),
    "to the folder above": ([("sub/up", "..")], ["good"]),
    "to a sibling, which sorts later": ([("a_link", "z"), ("z", "../far")], ["good", "a_link/a"]),
    "a loop behind a link": ([("more", "../far"), ("../far/back", ".")], ["good", "more/a"]),
}


@pytest.mark.parametrize("kind", LINKS)
def test_linked_folders_are_read_once(tmp_path: pathlib.Path, kind: str):
    links, keys = LINKS[kind]
    write(tmp_path / "far", PAIR)
    write(tmp_path / "in", {**GOOD, "sub/note.md": ""})
    for name, target in links:
        (tmp_path / "in" / name).symlink_to(target)
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert list(records) == keys
    assert report["skipped"] == {}


# Formats.

READ = [
    *(("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.pjpeg", "JPEG"), ("a.JPG", "JPEG")),
    *(("a.avif", "AVIF"), ("a.webp", "WEBP"), ("a.gif", "GIF"), ("a.dib", "BMP"), ("a.bmp", "BMP")),
    *(("a.ppm", "PPM"), ("a.pnm", "PPM"), ("a.TIF", "TIFF"), ("a.jp2", "JPEG2000")),
    *(
        ("a.heic", "PNG"),
        ("a.png", "AVIF"),
        ("a", "PNG"),
        ("a.dat", "JPEG"),
        ("a.png_large", "PNG"),
    ),
]


@pytest.mark.parametrize(("name", "kind"), READ)
def test_formats_that_are_read_whatever_their_suffix(tmp_path: pathlib.Path, name: str, kind: str):
    stem = os.path.splitext(name)[0]
    write(tmp_path / "in", {**GOOD, name: image(1, kind), f"{stem}.txt": "x"})
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert (report["read"], report["kept"]) == (2, 2)
    key = next(key for key in records if key != "good")
    assert image_codec.decode(records[key]["image"]).shape == (16, 20, 3)


FTYP = b"\0\0\0\x18ftyp"
UNREAD = {
    "a.heic": (FTYP + b"heic\0\0\0\0mif1heic", "unsupported format HEIC"),
    "a.heif": (FTYP + b"mif1\0\0\0\0mif1heic", "unsupported format HEIC"),
    "a.jpg": (FTYP + b"heix\0\0\0\0mif1heic", "unsupported format HEIC"),
    "a.jxl": (b"\xff\x0a" + b"\0" * 50, "unsupported format JXL"),
    "b.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 50, "unsupported format JXL"),
    "a.psd": (b"8BPS" + b"\0" * 50, "unsupported format PSD"),
    "a.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported format SVG"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported format EPS"),
    "a.exr": (b"\x76\x2f\x31\x01" + b"\0" * 50, "unsupported format EXR"),
    "a.png": (b"<html>404</html>", "not an image"),
    "b.png": (b"", "not an image"),
    "c.png": (image()[:60], "truncated image"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", UNREAD)
def test_formats_that_are_not_read_are_named(samples, tmp_path: pathlib.Path, name: str, packed):
    data, reason = UNREAD[name]
    files = {**GOOD, name: data, f"{name[0]}.txt": "x"}
    write(tmp_path / "in", files)
    if packed:
        samples.write_tar(
            tmp_path / "a.tar",
            [(n, d.encode() if isinstance(d, str) else d) for n, d in files.items()],
        )
    where = tmp_path / ("a.tar" if packed else "in")
    records, report = run_prepare(where, out=tmp_path / "out")
    assert list(records) == ["good"]
    assert (report["skipped"], report["named"]) == ({reason: 1}, {reason: [name[0]]})


# Keys with dots.

DOTTED: dict[str, tuple[list[str], dict[str, str]]] = {  # members, key -> member of the caption
    "versions": (["a.v1.jpg", "a.v1.txt", "a.v2.jpg", "a.v2.txt"], {"a.v1": "", "a.v2": ""}),
    "dates": (["p_2021.05.01.jpg", "p_2021.05.01.txt"], {"p_2021.05.01": ""}),
    "capitals": (["IMG.V1.JPG", "IMG.V1.TXT"], {"IMG.V1": ""}),
    "beside a plain one": (["a.jpg", "a.txt", "a.v1.jpg", "a.v1.txt"], {"a": "", "a.v1": ""}),
    "in folders": (["x.y/a.b.png", "x.y/a.b.txt"], {"x.y/a.b": ""}),
    "captions in JSON": (["a.v1.png", "a.v1.json"], {"a.v1": ""}),
    "a mask is no example": (["a.png", "a.txt", "a.mask.png"], {"a": ""}),
    "one caption for the sample": (["a.rgb.png", "a.txt"], {"a.rgb": ""}),
    "numbers": (["1.5.png", "1.5.txt", "1.6.png", "1.6.txt"], {"1.5": "", "1.6": ""}),
    "dots at the end": (["a..png", "a..txt"], {"a.": ""}),
}


@pytest.mark.parametrize("kind", DOTTED)
def test_members_with_dots_in_their_names(samples, tmp_path: pathlib.Path, kind: str):
    members, keys = DOTTED[kind]
    contents = [
        b'{"text": "x"}'
        if name.endswith("json")
        else b"x"
        if name.lower().endswith("txt")
        else image()
        for name in members
    ]
    samples.write_tar(tmp_path / "a.tar", list(zip(members, contents, strict=True)))
    records, report = run_prepare(tmp_path / "a.tar", out=tmp_path / "out")
    assert list(records) == list(keys)
    assert report["skipped"] == {}


def test_images_without_a_caption_are_counted_whatever_their_dots(samples, tmp_path: pathlib.Path):
    members = [("good.png", image()), ("good.txt", b"x")]
    members += [("a.v1.png", image()), ("a.v2.png", image()), ("a.v1.npy", b"0")]
    samples.write_tar(tmp_path / "a.tar", members)
    _, report = run_prepare(tmp_path / "a.tar", out=tmp_path / "out")
    assert report["named"] == {"no caption": ["a.v1", "a.v2"]}
    assert report["other_files"] == {".npy": 1}


# Damaged and unusual tars.


def tar_bytes(samples, tmp_path: pathlib.Path, numbers: range) -> bytes:
    samples.write_tar(tmp_path / "part.tar", samples.pairs(numbers))
    return (tmp_path / "part.tar").read_bytes()


def test_a_damaged_header_costs_one_member(samples, tmp_path: pathlib.Path):
    data = bytearray(tar_bytes(samples, tmp_path, range(6)))
    data[data.index(b"k0002.png") + 148] ^= 0x55  # in the checksum of the header
    (tmp_path / "a.tar").write_bytes(data)
    records, report = run_prepare(tmp_path / "a.tar", out=tmp_path / "out")
    assert list(records) == [f"k000{i}" for i in (0, 1, 3, 4, 5)]
    assert report["skipped"] == {"no image": 1, "damaged tar": 1}


def test_tars_in_one_file_are_all_read(samples, tmp_path: pathlib.Path):
    parts = [tar_bytes(samples, tmp_path, numbers) for numbers in (range(3), range(3, 5))]
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    records, report = run_prepare(tmp_path / "a.tar", out=tmp_path / "out")
    assert (len(records), report["skipped"]) == (5, {})


def test_one_input_that_cannot_be_read_does_not_cost_the_others(samples, tmp_path: pathlib.Path):
    samples.write_tar(tmp_path / "a.tar", samples.pairs(range(3)))
    write(tmp_path, {"b.tar": b"<html>404</html>" * 99, "c.tar": b""})
    records, report = run_prepare(f"{tmp_path}/*.tar", out=tmp_path / "out")
    assert (len(records), report["skipped"]) == (3, {"input that cannot be read": 2})


# Where captions lie.

CSV = 'file_name,text\n0.png,"a ""nice"" one"\n1.png,b\n'
COCO = json.dumps(
    {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(2)],
        "annotations": [{"image_id": i % 2, "id": i, "caption": f"c{i}"} for i in range(4)],
    }
)
ROW = {"file_name": "0.png", "text": "a"}
OTHER = {"image": "1.png", "caption": ["b", "c"]}
LAYOUTS: dict[str, tuple[dict[str, str], list[list[str]]]] = {  # beside 0.png and 1.png
    "text": ({"0.txt": "a", "1.txt": "b"}, [["a"], ["b"]]),
    "capitals": ({"0.TXT": "a", "1.CAPTION": "b"}, [["a"], ["b"]]),
    "caption": ({"0.caption": "a", "1.caption": "b"}, [["a"], ["b"]]),
    "with the suffix of the image": (
        {"0.png.txt": "a", "1.png.json": '{"caption": "b"}'},
        [["a"], ["b"]],
    ),
    "JSON": ({"0.json": '{"text": "a"}', "1.json": '["b", "c"]'}, [["a"], ["b", "c"]]),
    "classes": (
        {"0.cls": "1", "1.cls": "red_fox", "classes.txt": "wolf\nbear\n"},
        [["bear"], ["red fox"]],
    ),
    "CSV": ({"metadata.csv": CSV}, [['a "nice" one'], ["b"]]),
    "CSV of Excel": (
        {"metadata.csv": "\ufefffile_name;text\r\n0.png;a, b\r\n1.png;c\r\n"},
        [["a, b"], ["c"]],
    ),
    "CSV without quotes": (
        {"captions.csv": "image,caption\n0.png,a, b\n1.png,c"},
        [["a, b"], ["c"]],
    ),
    "TSV": ({"train.tsv": "File\tCaption\n0.png\ta\n1.png\tb\n"}, [["a"], ["b"]]),
    "pipes": (
        {"results.csv": "image_name| number| comment\n0.png| 0| a\n0.png| 1| b\n1.png| 0| c"},
        [["a", "b"], ["c"]],
    ),
    "several rows": (
        {"metadata.jsonl": "\n".join(json.dumps({**ROW, "text": t}) for t in "abc")},
        [["a", "b", "c"]],
    ),
    "lists": ({"metadata.jsonl": '{"file_name": "0.png", "text": ["a", "b"]}'}, [["a", "b"]]),
    "JSON list": ({"captions.json": json.dumps([ROW, OTHER])}, [["a"], ["b", "c"]]),
    "JSON object": (
        {"meta.json": json.dumps({"0.png": "a", "1.png": {"caption": "b"}})},
        [["a"], ["b"]],
    ),
    "COCO": ({"annotations/captions_val.json": COCO}, [["c0", "c2"], ["c1", "c3"]]),
    "COCO beside them": ({"captions.json": COCO}, [["c0", "c2"], ["c1", "c3"]]),
    "a table and files": (
        {"metadata.csv": "file_name,text\n0.png,a", "1.txt": "b"},
        [["a"], ["b"]],
    ),
    "files before a list of anything": (
        {"0.txt": "a", "1.txt": "b", "answers.json": json.dumps([{**ROW, "text": "no"}])},
        [["a"], ["b"]],
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_captions_where_they_are(tmp_path: pathlib.Path, kind: str):
    files, expected = LAYOUTS[kind]
    images = {f"{i}.png": image(i) for i in range(len(expected))}
    write(tmp_path / "in", {**images, **files})
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert [captions(records[key]) for key in sorted(records)] == expected
    assert report["skipped"] == {}


@pytest.mark.parametrize("folder", ["images", "val2014", "."])
def test_images_of_coco_where_they_lie(tmp_path: pathlib.Path, folder: str):
    write(tmp_path / "in" / folder, {f"{i}.png": image(i) for i in range(2)})
    table = tmp_path / "in" / "annotations" / "captions_val2014.json"
    write(table.parent, {table.name: COCO})
    for where in (table, tmp_path / "in"):
        records, report = run_prepare(where, out=tmp_path / f"out{where == table}")
        assert [captions(each) for each in records.values()] == [["c0", "c2"], ["c1", "c3"]]
        assert report["skipped"] == {}


def parquet(path: pathlib.Path, columns: dict[str, list], names: tuple[str, ...] = ()) -> None:
    """A Parquet file, with the names of its classes as Hugging Face states them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, path, row_group_size=2)


STRUCTS = [{"bytes": image(i), "path": f"{i}.png"} for i in range(5)]
PARQUET: dict[str, tuple[dict[str, list], list[list[str]]]] = {
    "structs": ({"image": STRUCTS, "text": list("abcde")}, [[c] for c in "abcde"]),
    "bytes": (
        {"image": [image(i) for i in range(5)], "caption": list("abcde")},
        [[c] for c in "abcde"],
    ),
    "lists": ({"image": STRUCTS, "captions": [["a", "b"]] * 5}, [["a", "b"]] * 5),
    "labels": (
        {"image": STRUCTS, "label": [0, 1, 0, 1, 1]},
        [[c] for c in ("fox", "wolf", "fox", "wolf", "wolf")],
    ),
    "sentences": ({"jpg": [image(0, "JPEG")] * 5, "sentences": [{"raw": "a"}] * 5}, [["a"]] * 5),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_parquet_of_hugging_face(tmp_path: pathlib.Path, kind: str):
    columns, expected = PARQUET[kind]
    path = tmp_path / "in" / "data" / "train-00000-of-00001.parquet"
    parquet(path, columns, ("fox", "wolf"))
    for where in (path, tmp_path / "in"):
        records, _ = run_prepare(where, out=tmp_path / f"out{where == path}")
        assert [captions(each) for each in records.values()] == expected
        assert next(iter(records)) == "train-00000-of-00001/000000"


def test_rows_of_parquet_that_cannot_be_used(tmp_path: pathlib.Path):
    images = [STRUCTS[0], {"bytes": None, "path": "../x.png"}, {"bytes": None, "path": None}]
    images += [{"bytes": b"<html>", "path": ""}, {"bytes": None, "path": "there.png"}]
    write(tmp_path / "in", {"there.png": image(9)})
    parquet(tmp_path / "in" / "a.parquet", {"image": images, "text": ["a", "b", "c", "d", "e"]})
    records, report = run_prepare(tmp_path / "in" / "a.parquet", out=tmp_path / "out")
    assert list(records) == ["a/000000", "a/000004"]
    assert report["skipped"] == {"path outside the folder": 1, "no image": 1, "not an image": 1}


def test_rows_of_parquet_stay_together_whatever_cannot_be_read(tmp_path: pathlib.Path):
    """Of 150 rows, in batches of 64, some captions are no UTF-8; no other row shifts."""
    captions_ = [b"caption %d" % i if i % 7 else b"caf\xe9 %d" % i for i in range(150)]
    raw = pyarrow.array(captions_, pyarrow.binary())
    texts = pyarrow.Array.from_buffers(pyarrow.string(), len(raw), raw.buffers())
    columns = {"image": [{"bytes": image(i), "path": ""} for i in range(150)], "text": texts}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", row_group_size=40)
    records, report = run_prepare(tmp_path / "a.parquet", out=tmp_path / "out")
    assert report["skipped"] == {"bad UTF-8": 22}
    for key, record in records.items():
        number = int(key.rpartition("/")[2])
        assert (record["caption"], record["image"]) == (f"caption {number}", image(number))


def test_rows_of_parquet_are_read_in_any_order(tmp_path: pathlib.Path):
    images = [{"bytes": image(i), "path": ""} for i in range(150)]
    parquet(tmp_path / "a.parquet", {"image": images, "text": [f"caption {i}" for i in range(150)]})
    plan = FilePlan([str(tmp_path / "a.parquet")])
    for number in (70, 3, 149, 148, 0, 65, 64, 63):
        raw = plan.read(number)
        assert (raw.caption, raw.image) == ((f"caption {number}",), image(number))
    plan.close()


def test_damaged_parquet_costs_the_rows_behind_the_damage(tmp_path: pathlib.Path):
    images = [{"bytes": image(i), "path": ""} for i in range(150)]
    table = pyarrow.table({"image": images, "text": [f"caption {i}" for i in range(150)]})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        table, path, row_group_size=75, compression="none", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    start = data.index(b"caption 75")
    data[start - 60 : start - 4] = b"\xff" * 56  # the header of a page
    path.write_bytes(data)
    records, report = run_prepare(path, out=tmp_path / "out")
    assert len(records) < 150
    assert len(records) + sum(report["skipped"].values()) == 150
    for key, record in records.items():
        number = int(key.rpartition("/")[2])
        assert (record["caption"], record["image"]) == (f"caption {number}", image(number))


def test_folders_of_tars_and_their_parquet(samples, tmp_path: pathlib.Path):
    for number in range(2):
        pairs = samples.pairs(range(3 * number, 3 * number + 3))
        samples.write_tar(tmp_path / "in" / f"{number:05d}.tar", pairs)
        parquet(tmp_path / "in" / f"{number:05d}.parquet", {"url": ["x"], "caption": ["y"]})
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert list(records) == [f"k{i:04d}" for i in range(6)]
    assert report["other_files"] == {".parquet": 2}


BRACES = {
    "{00000..00002}": ["00000", "00001", "00002"],
    "{0..2}": ["0", "1", "2"],
    "{a,b}": ["a", "b"],
    "{a,b}{1..2}": ["a1", "a2", "b1", "b2"],
    "{2..0}": ["2", "1", "0"],
    "{}": ["{}"],
}


@pytest.mark.parametrize("pattern", BRACES)
def test_braces(samples, tmp_path: pathlib.Path, pattern: str):
    for number, name in enumerate(BRACES[pattern]):
        samples.write_tar(tmp_path / f"t-{name}.tar", samples.pairs(range(number, number + 1)))
    records, _ = run_prepare(f"train={tmp_path}/t-{pattern}.tar", out=tmp_path / "out")
    assert list(records) == [f"k{i:04d}" for i in range(len(BRACES[pattern]))]


def test_a_shard_that_a_range_names_must_exist(samples, tmp_path: pathlib.Path):
    samples.write_tar(tmp_path / "t-0.tar", samples.pairs(range(1)))
    with pytest.raises(UserError, match=r"input .*t-1.tar does not exist"):
        run_prepare(f"{tmp_path}/t-{{0..1}}.tar", out=tmp_path / "out")


REFUSED = {
    "a spreadsheet": (
        {"captions.xlsx": b"PK"},
        r"2 no caption \(0, 1\) \(other files there: 1 .xlsx",
    ),
    "a list of something else": ({"x.json": "[1, 2]"}, r"1 .json \(x.json\)"),
    "a table without names": ({"x.csv": "a,b\n1,2"}, r"1 .csv \(x.csv\)"),
    "captions of other names": ({"a0.txt": "a", "a1.txt": "b"}, r"2 .txt \(a0.txt\)"),
    "arrays": ({"0.npy": b"", "1.npy": b"", "b.h5": b""}, r"2 .npy \(0.npy\), 1 .h5 \(b.h5\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_rejections_say_what_lies_there(tmp_path: pathlib.Path, kind: str):
    files, message = REFUSED[kind]
    write(tmp_path / "in", {"0.png": image(), "1.png": image(1), **files})
    with pytest.raises(UserError, match=message):
        run_prepare(tmp_path / "in", out=tmp_path / "out", options=("--max-bad=0.05",))


# Notes beside the pixels.


@pytest.mark.parametrize("kind", hostile.BROKEN_NOTES)
def test_notes_never_cost_a_png(kind: str):
    data = hostile.BROKEN_NOTES[kind]()
    np.testing.assert_array_equal(image_codec.decode(data), image_codec.decode(image()))
    assert (image_codec.format_of(data), image_codec.short_side(data)) == ("png", hostile.SIZE[1])
    assert image_codec.is_lossless(data)  # so that it can be stored reduced


@pytest.mark.parametrize("kind", hostile.BROKEN_SEGMENTS)
def test_notes_never_cost_a_jpeg(kind: str):
    plain = image(kind="JPEG", quality=95)
    decoded = image_codec.decode(hostile.BROKEN_SEGMENTS[kind]())
    np.testing.assert_array_equal(decoded, image_codec.decode(plain))


BAD_TAGS = {
    "a number for a text": (0x10E, 12, 1, b"\n\0\0\0"),
    "a type that does not exist": (0x10E, 99, 1, b"\0\0\0\0"),
    "an offset beyond the end": (0x10F, 2, 9999, b"\xff\xff\xff\0"),
    "a fraction by zero": (0x11A, 5, 1, b"\0\0\0\0"),
    "further notes nowhere": (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    "positions nowhere": (0x8825, 4, 1, b"\xff\xff\xff\x7f"),
}


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("kind", BAD_TAGS)
def test_images_are_turned_whatever_else_their_notes_say(kind: str, broken: bool):
    note = exif(BAD_TAGS[kind], ORIENTATION_ENTRY)
    jpeg = hostile.with_segment(0xE1, b"Exif\0\0" + note)
    png = hostile.with_chunk(b"eXIf", note)
    if broken:  # so that the other notes are left out
        png = hostile.with_chunk(b"tEXt", b"a\0b", crc=0, data=png)
    for data in (jpeg, png):
        assert image_codec.decode(data).shape == (20, 16, 3)


# Pixels of more than 8 bits.


def tiff(array: np.ndarray, tags: dict[int, Any] | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF", tiffinfo=tags or {})
    return buffer.getvalue()


RAMP = np.tile(np.linspace(0, 1, 16), (16, 1))
DEEP = {
    "16 bits": tiff((RAMP * 65535).astype(np.uint16)),
    "12 bits in 16": tiff((RAMP * 4095).astype(np.uint16), {281: 4095}),
    "32 bits with a range": tiff((RAMP * 1000).astype(np.int32), {281: 1000}),
    "floats with a range": tiff(RAMP.astype(np.float32), {340: 0.0, 341: 1.0}),
    "floats around zero": tiff((RAMP * 2 - 1).astype(np.float32), {340: -1.0, 341: 1.0}),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_pixels_are_scaled_by_their_range(kind: str):
    decoded = image_codec.decode(DEEP[kind])
    np.testing.assert_allclose(decoded[..., 1], RAMP * 255, atol=1)


VAGUE = {
    "floats": tiff(RAMP.astype(np.float32)),
    "integers": tiff((RAMP * 1000).astype(np.int32)),
    "signed": tiff((RAMP * 1000).astype(np.int16)),
    "infinite": tiff(np.where(RAMP > 0.9, np.inf, RAMP).astype(np.float32), {340: 0.0, 341: 1.0}),
    "an empty range": tiff(RAMP.astype(np.float32), {340: 1.0, 341: 1.0}),
}


@pytest.mark.parametrize("kind", VAGUE)
def test_deep_pixels_without_a_range_are_rejected_for_that_reason(kind: str):
    with pytest.raises(image_codec.BadImage, match="unsupported pixels: .*(range|not finite)"):
        image_codec.decode(VAGUE[kind])


def test_the_smallest_side_of_an_image_is_stated(tmp_path: pathlib.Path):
    sizes = {"a": (40, 30), "b": (90, 25), "c": (26, 90), "tiny": (20, 9)}
    files: dict[str, bytes | str] = {}
    for name, size in sizes.items():
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "PNG")
        files |= {f"{name}.png": buffer.getvalue(), f"{name}.txt": name}
    write(tmp_path / "in", files)
    _, report = run_prepare(tmp_path / "in", out=tmp_path / "out", options=("--min-side=10",))
    assert (report["min_side"], report["named"]) == (25, {"too small": ["tiny"]})
    assert dataset_manifest.read(tmp_path / "out").split("train").min_side == 25
    assert prepared_split(tmp_path / "out", split="train").min_side == 25
    small = ("--min-side=10", "--max-side=12")
    _, report = run_prepare(tmp_path / "in", out=tmp_path / "small", options=small)
    assert report["min_side"] == 12
