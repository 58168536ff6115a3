"""Inputs that were edited since a split was prepared are noticed; those that moved are not."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.preparation.hostile import image, run_prepare, write
from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest, sources
from unclip_jax.data.dataset import Dataset
from unclip_jax.preparation import import_plans, importer

FILES = {
    **{f"{i}.png": image(i) for i in range(4)},
    **{f"{i}.txt": f"caption {i}" for i in range(2)},
    "metadata.csv": "file_name,text\n2.png,caption 2\n",
    "3.json": '{"text": "caption 3"}',
}


def replace_bytes(path: pathlib.Path, old: bytes, new: bytes) -> None:
    """Changes bytes in place; size and time of modification stay."""
    facts = path.stat()
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


EDITS: dict[str, Callable[[pathlib.Path], object]] = {
    "caption": lambda folder: replace_bytes(folder / "0.txt", b"caption", b"drawing"),
    "row": lambda folder: replace_bytes(folder / "metadata.csv", b"caption", b"drawing"),
    "JSON": lambda folder: replace_bytes(folder / "3.json", b"caption", b"drawing"),
    "image": lambda folder: (folder / "1.png").write_bytes(image(9)),
    "images swapped": lambda folder: [
        (folder / f"{i}.png").write_bytes(image(1 - i)) for i in range(2)
    ],
    "image that is damaged now": lambda folder: replace_bytes(folder / "1.png", b"IDAT", b"IDAx"),
    "image added": lambda folder: write(folder, {"4.png": image(), "4.txt": "x"}),
    "image removed": lambda folder: (folder / "1.png").unlink(),
    "caption removed": lambda folder: (folder / "1.txt").unlink(),
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "in", FILES)


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_noticed(folder: pathlib.Path, tmp_path: pathlib.Path, edit: str):
    before, _ = run_prepare(folder, out=tmp_path / "out", options=("--shards=2",))
    assert len(before) == 4
    EDITS[edit](folder)
    with pytest.raises(
        UserError, match="already holds a split 'train'.* inputs .*; choose another"
    ):
        run_prepare(folder, out=tmp_path / "out", options=("--shards=2",))


def test_the_place_of_an_edit_is_named(folder: pathlib.Path, tmp_path: pathlib.Path):
    run_prepare(folder, out=tmp_path / "out", options=("--shards=4",))
    replace_bytes(folder / "1.txt", b"caption", b"drawing")
    with pytest.raises(UserError, match=r"have changed since \(an image or caption of 1 \.\. 1\)"):
        run_prepare(folder, out=tmp_path / "out", options=("--shards=4",))


def test_edits_of_the_names_of_classes_are_noticed(tmp_path: pathlib.Path):
    folder = write(tmp_path / "in", {"0.png": image(), "0.cls": "1", "classes.txt": "fox\nwolf"})
    run_prepare(folder, out=tmp_path / "out")
    replace_bytes(folder / "classes.txt", b"wolf", b"bear")
    with pytest.raises(UserError, match="have changed since"):
        run_prepare(folder, out=tmp_path / "out")


@pytest.mark.parametrize("edit", [False, True])
def test_edits_of_images_that_a_parquet_file_names_are_noticed(tmp_path: pathlib.Path, edit: bool):
    folder = write(tmp_path / "in", {"0.png": image()})
    images = [{"bytes": None, "path": "0.png"}, {"bytes": image(1), "path": "1.png"}]
    table = pyarrow.table({"image": images, "text": ["a fox", "a wolf"]})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    run_prepare(folder / "a.parquet", out=tmp_path / "out")
    if edit:
        (folder / "0.png").write_bytes(image(2))
    with pytest.raises(UserError, match="changed since") if edit else contextlib.nullcontext():
        run_prepare(folder / "a.parquet", out=tmp_path / "out")


@pytest.mark.parametrize("edit", ["caption", "image"])
def test_edits_in_tars_are_noticed(samples, tmp_path: pathlib.Path, edit: str):
    path = tmp_path / "a.tar"
    samples.write_tar(path, samples.pairs(range(3)))
    run_prepare(path, out=tmp_path / "out")
    if edit == "caption":
        replace_bytes(path, b"picture number 1", b"drawing number 1")
    else:
        members = samples.pairs(range(3))
        members[2] = (members[2][0], samples.png(7))
        samples.write_tar(path, members)
    with pytest.raises(UserError, match="inputs have changed since|made from other inputs"):
        run_prepare(path, out=tmp_path / "out")


MOVES: dict[str, Callable[[pathlib.Path], Any]] = {
    "nothing": lambda folder: folder,
    "touched": lambda folder: [os.utime(path) for path in folder.iterdir()] and folder,
    "moved": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "copied": lambda folder: pathlib.Path(shutil.copytree(folder, folder.with_name("copy"))),
    "rewritten": lambda folder: write(folder, FILES),
    "linked": lambda folder: _link(folder),
}


def _link(folder: pathlib.Path) -> pathlib.Path:
    folder.with_name("link").symlink_to(folder)
    return folder.with_name("link")


@pytest.mark.parametrize("move", MOVES)
def test_the_same_inputs_are_accepted_wherever_they_lie(
    folder: pathlib.Path, tmp_path: pathlib.Path, move: str, monkeypatch: pytest.MonkeyPatch
):
    run_prepare(folder, out=tmp_path / "out")
    before = (tmp_path / "out" / "train-00000-of-00001.array_record").stat().st_mtime_ns
    where = MOVES[move](folder)
    run_prepare(where, out=tmp_path / "out")
    reads = []
    read = import_plans.FilePlan.read
    monkeypatch.setattr(
        import_plans.FilePlan, "read", lambda plan, index: reads.append(index) or read(plan, index)
    )
    run_prepare(where, out=tmp_path / "out")  # the second time nothing is read
    assert reads == []
    after = (tmp_path / "out" / "train-00000-of-00001.array_record").stat().st_mtime_ns
    assert after == before


def test_an_interrupted_import_writes_the_shards_of_edited_inputs_again(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    write_shard, shards = importer.records.write_shard, []

    def fail(path, records):
        if len(shards) == 3:
            raise KeyboardInterrupt
        shards.append(path.name)
        return write_shard(path, records)

    monkeypatch.setattr(importer.records, "write_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        run_prepare(folder, out=tmp_path / "out", options=("--shards=4",))
    replace_bytes(folder / "0.txt", b"caption", b"drawing")
    shards.clear()
    records, _ = run_prepare(folder, out=tmp_path / "out", options=("--shards=4",))
    assert records["0"]["caption"] == "drawing 0"
    assert shards == [f"train-0000{i}-of-00004.array_record" for i in (1, 3)]  # 2.png is the first


def test_splits_of_version_0_1_0_are_named(folder: pathlib.Path, tmp_path: pathlib.Path):
    run_prepare(folder, out=tmp_path / "out")
    path = tmp_path / "out" / dataset_manifest.FILE
    content = json.loads(path.read_text())
    content["splits"][0].pop("signature")
    for shard in content["splits"][0]["shards"]:
        shard.pop("inputs")
    path.write_text(json.dumps(content))
    assert dataset_manifest.read(tmp_path / "out").split("train").count == 4


class Rows(list):
    """A source that counts its reads."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return super().__getitem__(index)


@pytest.fixture
def places(samples, monkeypatch: pytest.MonkeyPatch) -> dict[str, Rows]:
    """Data sets of the scheme "rows" by their locations."""
    records = [samples.record(i) for i in range(4)]
    other_records = [*records[:3], {**records[3], "caption": "another"}]
    places = {"here": Rows(records), "there": Rows(records), "edited": Rows(other_records)}
    monkeypatch.setitem(
        sources.SOURCES, "rows", lambda place, keys: Dataset(("train",), lambda _: places[place])
    )
    return places


def test_data_sets_of_a_scheme_are_known_by_their_content(places, tmp_path: pathlib.Path):
    run_prepare("rows:here", out=tmp_path / "out")
    run_prepare("rows:there", out=tmp_path / "out")
    with pytest.raises(UserError, match="already holds a split 'train' made from other inputs"):
        run_prepare("rows:edited", out=tmp_path / "out")


def test_a_record_of_a_data_set_is_read_once_to_know_it_and_once_to_write_it(places, tmp_path):
    run_prepare("rows:here", out=tmp_path / "out")
    assert places["here"].reads == 2 * len(places["here"])


def test_an_interrupted_import_of_a_data_set_that_changed_since(
    places, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    # As of a large data set, of which the digest covers a sample that does not differ.
    monkeypatch.setattr(import_plans, "content_digest", lambda source: "sample")
    write_split = importer.dataset_manifest.make_split
    monkeypatch.setattr(importer.dataset_manifest, "make_split", None)
    with pytest.raises(TypeError):
        run_prepare("rows:here", out=tmp_path / "out")
    monkeypatch.setattr(importer.dataset_manifest, "make_split", write_split)
    records, _ = run_prepare("rows:edited", out=tmp_path / "out")
    assert "another" in {record["caption"] for record in records.values()}
