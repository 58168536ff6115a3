"""Indices of tars: 24 bytes per record, and records read by one range of bytes each."""

import hashlib
import io
import json
import pathlib
import struct
import tarfile

import pytest

from tests import object_stores
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url
from unclip_jax.data import records, tar_index, tar_source
from unclip_jax.data.dataset import FeatureKeys
from unclip_jax.data.tar_index import Place, ReadOptions, TarShard, parse_sample, read_range

OPTIONS = ReadOptions()


def pack(*members: tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """Members as they stand in a tar, without its end."""
    parts = []
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        parts += [info.tobuf(form), data, bytes(-len(data) % 512)]
    return b"".join(parts)


def record(image: bytes, caption: str, key: str, **more) -> records.Record:
    return {"image": image, "caption": caption, "key": key, "scene": "", **more}


def digest(data: bytes) -> int:
    """The first eight bytes of the SHA-256, the lowest first."""
    return struct.unpack("<Q", hashlib.sha256(data).digest()[:8])[0]


@pytest.fixture
def tars(tmp_path: pathlib.Path) -> tuple[pathlib.Path, list[tuple[records.Record, Place]]]:
    """A folder with two tars, and four records in them, of which none is the first of its tar."""
    rows = []
    for name in "ab":
        samples = [(f"k{name}{i}", b"image" + b"." * 300 * i, f"caption {i}") for i in range(3)]
        data = b""
        for key, image, caption in samples:
            members = pack((f"{key}.png", image), (f"{key}.txt", caption.encode()))
            place = Place(str(tmp_path / f"{name}.tar"), len(data), len(members), digest(members))
            rows.append((record(image, caption, key), place))
            data += members
        (tmp_path / f"{name}.tar").write_bytes(data + bytes(1024))
    return tmp_path, [rows[i] for i in (4, 1, 2, 5)]


def test_an_index_leads_to_the_records_and_is_as_documented(tars):
    folder, rows = tars
    options = ReadOptions(caption_field="TEXT", prefix=False, facts=("a", "b"))
    result = tar_index.write_index(folder / "i.tar_index", iter(rows), options=options)
    whole = hashlib.sha256()
    for each, _ in rows:
        data = records.encode(each)
        whole.update(struct.pack("<Q", len(data)) + data)
    assert result == (4, whole.hexdigest())
    line, _, table = (folder / "i.tar_index").read_bytes().partition(b"\n")
    places = [str(folder / "b.tar"), str(folder / "a.tar")]  # in the order of their first records
    sizes = [pathlib.Path(path).stat().st_size for path in places]
    assert json.loads(line) == {
        "format": 1,
        "tars": [list(pair) for pair in zip(places, sizes, strict=True)],
        "options": {"caption_field": "TEXT", "prefix": False, "facts": ["a", "b"]},
    }
    entries = [struct.unpack_from("<IIQQ", table, 24 * i) for i in range(4)]
    assert len(table) == 24 * 4 == tar_index.ROW_BYTES * 4
    assert entries == [
        (places.index(place.path), place.size, place.offset, place.digest) for _, place in rows
    ]
    shard = TarShard(folder / "i.tar_index")
    assert shard.num_records() == 4 and shard.options == options
    assert [shard.place(i) for i in range(4)] == [place for _, place in rows]


def test_records_are_read_from_the_tars(tars):
    folder, rows = tars
    tar_index.write_index(folder / "i.tar_index", rows, options=OPTIONS)
    shard = TarShard(folder / "i.tar_index")
    contents = [records.decode(data) for data in shard.read([3, 0, 1, 2, 0])]
    assert contents == [rows[i][0] for i in (3, 0, 1, 2, 0)]


def test_an_index_and_its_tars_may_lie_in_a_store(tars):
    folder, rows = tars
    with object_stores.google():
        store = Url(f"gs://{object_stores.BUCKET}/indexed")
        for name in "ab":
            (store / f"{name}.tar").write_bytes((folder / f"{name}.tar").read_bytes())
        remote = [(r, p._replace(path=f"{store}/{p.path[-5:]}")) for r, p in rows]
        tar_index.write_index(folder / "i.tar_index", remote, options=OPTIONS)
        (store / "i.tar_index").write_bytes((folder / "i.tar_index").read_bytes())
        for place in (folder / "i.tar_index", store / "i.tar_index"):
            shard = TarShard(place)
            assert [records.decode(data) for data in shard.read(range(4))] == [r for r, _ in rows]


def test_an_index_without_records(tmp_path: pathlib.Path):
    result = tar_index.write_index(tmp_path / "i.tar_index", [], options=OPTIONS)
    assert result == (0, hashlib.sha256().hexdigest())
    assert TarShard(tmp_path / "i.tar_index").num_records() == 0


def test_a_tar_of_another_size_or_content_is_named(tars):
    folder, rows = tars
    path = folder / "a.tar"
    content = path.read_bytes()
    tar_index.write_index(folder / "i.tar_index", rows, options=OPTIONS)
    place = rows[1][1]
    buffer = bytearray(content)
    buffer[place.offset + 512] ^= 1  # of the image, not of a header
    path.write_bytes(buffer)
    shard = TarShard(folder / "i.tar_index")
    with pytest.raises(UserError, match=r"a.tar has changed since .*i.tar_index was written"):
        shard.read([1])
    assert records.decode(shard.read([2])[0]) == rows[2][0]  # others are as they were
    for change in (-1, 1):
        tar_index._check_size.cache_clear()
        path.write_bytes(content[:change] if change < 0 else content + b"\0")
        message = f"a.tar has {len(content) + change} bytes, {len(content)} when it was indexed"
        with pytest.raises(UserError, match=message):
            shard.read([2])
    tar_index._check_size.cache_clear()
    path.unlink()
    with pytest.raises(UserError, match=r"a.tar, which .*i.tar_index lists, cannot be read: No "):
        shard.read([2])


def test_a_range_ends_with_its_tar(tmp_path: pathlib.Path):
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(range(100)))
    assert read_range(str(path), 0, 3) == b"\0\1\2"
    assert read_range(str(path), 97, 2) == b"ab"
    assert read_range(str(path), 97, 9) == b"abc"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data.replace(b'"format": 1', b'"format": 2', 1),
        lambda data: data.replace(b'"tars"', b'"cars"', 1),
        lambda data: data.replace(b'"options"', b'"potions"', 1),
        lambda data: data.replace(b'"prefix"', b'"suffix"', 1),
        lambda data: b"[]\n" + data,
        lambda data: b"",
        lambda data: b"no index\n",
    ],
)
def test_a_damaged_index_is_rejected(tars, damage):
    folder, rows = tars
    path = folder / "i.tar_index"
    tar_index.write_index(path, rows, options=OPTIONS)
    data = path.read_bytes()
    path.write_bytes(damage(data))
    with pytest.raises(UserError, match=r"i.tar_index is not a readable index of tars"):
        TarShard(path)
    path.write_bytes(data)
    assert TarShard(path).num_records() == 4


def test_an_index_that_cannot_be_written(tmp_path: pathlib.Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory; choose another"):
        tar_index.write_index(tmp_path / "file" / "i.tar_index", [], options=OPTIONS)


IMAGE, TEXT = ("k.png", b"pixels"), ("k.txt", b"a cat")
FACTS = json.dumps({"caption": "of the facts", "TEXT": ["one", "two", "one"], "width": 7}).encode()


@pytest.mark.parametrize(
    ("members", "options", "expected"),
    [
        ([IMAGE, TEXT], {}, record(b"pixels", "a cat", "k")),
        ([TEXT, IMAGE], {}, record(b"pixels", "a cat", "k")),
        ([IMAGE, TEXT], {"prefix": True}, record(b"pixels", "a cat", "t.tar/k")),
        # a dot begins the suffix, in the last part of a name alone; its case is no matter
        ([("a.b/c.PNG", b"x"), ("a.b/c.Txt", b"t")], {}, record(b"x", "t", "a.b/c")),
        ([("c.seg.png", b"y"), ("c.png", b"x"), ("c.txt", b"t")], {}, record(b"x", "t", "c")),
        # captions of a text file are preferred, in this order
        ([IMAGE, ("k.text", b"3"), ("k.caption", b"2"), TEXT], {}, record(b"pixels", "a cat", "k")),
        ([IMAGE, ("k.text", b"3"), ("k.caption", b"2")], {}, record(b"pixels", "2", "k")),
        ([IMAGE, ("k.json", FACTS), TEXT], {}, record(b"pixels", "a cat", "k")),
        ([IMAGE, ("k.json", b"damaged"), TEXT], {}, record(b"pixels", "a cat", "k")),
        ([IMAGE, ("k.json", FACTS)], {}, record(b"pixels", "of the facts", "k")),
        (
            [IMAGE, ("k.json", FACTS)],
            {"caption_field": "TEXT"},
            record(b"pixels", "one", "k", captions=["one", "two"]),
        ),
        ([IMAGE, ("k.json", b'["one"]')], {}, record(b"pixels", "one", "k")),
        (
            [IMAGE, TEXT, ("k.json", FACTS)],
            {"facts": ("width", "height")},
            record(b"pixels", "a cat", "k", facts={"width": 7}),
        ),
        ([IMAGE, TEXT, ("k.json", FACTS)], {"facts": ("x",)}, record(b"pixels", "a cat", "k")),
        # no complete sample, or more than one
        ([IMAGE], {}, None),
        ([TEXT], {}, None),
        ([IMAGE, ("k.txt", b" \0\n")], {}, None),
        ([IMAGE, ("k.json", b"{}")], {}, None),
        ([IMAGE, ("k.json", b"damaged")], {}, None),
        ([IMAGE, TEXT], {"facts": ("width",)}, None),
        ([IMAGE, ("j.txt", b"a cat")], {}, None),
        ([IMAGE, ("a/k.txt", b"a cat")], {}, None),
        ([IMAGE, TEXT, ("l.png", b"")], {}, None),
        ([], {}, None),
    ],
)
def test_a_sample_is_read_from_its_members(members, options, expected):
    result = parse_sample(pack(*members), ReadOptions(**options), tar="/data/t.tar")
    assert result == expected


def test_members_that_are_no_files_or_are_cut_make_no_sample():
    folder = tarfile.TarInfo("k")  # of the same key
    folder.type = tarfile.DIRTYPE
    whole = pack(IMAGE, TEXT)
    assert parse_sample(whole, OPTIONS, tar="t") is not None
    assert parse_sample(whole + folder.tobuf(), OPTIONS, tar="t") is None
    for size in (100, 512, 515, 1024, 1100, len(whole) - 510):
        assert parse_sample(whole[:size], OPTIONS, tar="t") is None


def test_long_names_in_the_formats_of_tar():
    key = "folder/" + "n" * 150
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = pack((f"{key}.png", b"x"), (f"{key}.txt", b"t"), form=form)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert len(archive.getmembers()) == 2
        assert parse_sample(data, OPTIONS, tar="t") == record(b"x", "t", key)


def test_a_folder_of_tars_without_an_index_is_rejected(tmp_path: pathlib.Path, samples):
    message = (
        r"tars:.*a b' is not an index of tars; .* '.*a b' --index --out=DIR` and give tars:DIR"
    )
    with pytest.raises(UserError, match=message.replace("b' is", "b is")):
        tar_source.open_dataset(str(tmp_path / "a b"), FeatureKeys())
    samples.write_folder(tmp_path / "a b", [3])
    result = tar_source.open_dataset(str(tmp_path / "a b"), FeatureKeys())
    assert len(result.open_split("train")) == 3


def test_an_index_in_a_store_is_opened_as_a_data_set(tmp_path: pathlib.Path, samples):
    samples.write_folder(tmp_path, [3])
    with object_stores.google():
        store = Url(f"gs://{object_stores.BUCKET}/index")
        object_stores.upload(tmp_path, store)
        result = tar_source.open_dataset(str(store), FeatureKeys())
        assert len(result.open_split("train")) == 3


def test_the_first_line_of_an_index_has_16_mib_at_most(tars):
    folder, rows = tars
    path = folder / "i.tar_index"
    tar_index.write_index(path, rows, options=OPTIONS)
    line, _, table = path.read_bytes().partition(b"\n")
    for length, fits in ((2**24, True), (2**24 + 1, False)):
        longer = line[:-1] + b" " * (length - 1 - len(line)) + line[-1:] + b"\n"
        assert len(longer) == length
        path.write_bytes(longer + table)
        if fits:
            assert TarShard(path).num_records() == 4
        else:
            with pytest.raises(UserError, match="not a readable index of tars"):
                TarShard(path)
