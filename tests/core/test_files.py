import os
import pathlib
import pickle

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import (
    atomic_path,
    check_local,
    check_output,
    open_array,
    printable,
    write_atomically,
    write_shared,
)


@pytest.mark.parametrize(
    ("content", "stored"), [("Fréchet\n", b"Fr\xc3\xa9chet\n"), (b"\0", b"\0")]
)
def test_content_is_written_and_nothing_else_is_left(tmp_path, content, stored):
    path = tmp_path / "a.json"
    path.write_text("before")
    write_atomically(path, content)
    assert path.read_bytes() == stored
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"


def test_missing_folder_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a.json", "x")
    assert not list(tmp_path.iterdir())


def test_two_writers_of_a_file_do_not_take_each_others_draft(tmp_path, monkeypatch):
    """The second writer is done between the write and the rename of the first."""
    path, replace = tmp_path / "a.json", os.replace

    def replace_late(draft, target):
        monkeypatch.setattr(os, "replace", replace)
        write_shared(path, "second, and longer")
        assert path.read_text() == "second, and longer"
        replace(draft, target)

    monkeypatch.setattr(os, "replace", replace_late)
    write_shared(path, "first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_shared_file_is_whole_or_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_shared(path, b"before")
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shared(path, "after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["plain", "caf\udce9", "sur\ud83d", "猫", "a\nb"])
def test_printable_text_can_be_encoded(name: str):
    text = printable(name)
    assert text.encode()
    assert (text == name) == (name in ("plain", "猫", "a\nb"))


@pytest.mark.parametrize(
    ("name", "folder", "reason"),
    [
        ("file/x.png", False, "Not a directory"),
        ("file/a/b/x.png", False, "Not a directory"),
        ("folder", False, "Is a directory"),
        ("file", True, "exists|Not a directory"),
        ("n" * 300 + ".png", False, "name too long"),
        ("new/" + "n" * 300 + "/x.png", False, "name too long"),
        ("dangling/x.png", False, "exists|No such file"),
        ("/proc/nowhere/x.png", False, "No such file|Permission|not permitted"),
        ("/dev/null/x", True, "Not a directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_rejected_and_leaves_nothing(
    tmp_path, name, folder, reason
):
    (tmp_path / "file").write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"cannot write .*({reason}).*give another --out"):
        check_output(tmp_path / name, folder=folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "folder"), [("x.png", False), ("file", False), ("a/b/x.png", False), ("a/b", True)]
)
def test_an_output_that_can_be_written_passes_and_leaves_nothing(tmp_path, name, folder):
    (tmp_path / "file").write_text("content")
    check_output(tmp_path / name, folder=folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize(
    "path", ["gs://bucket/x", "hf://me/run", "file:///x", pathlib.Path("s3://bucket/x")]
)
def test_urls_are_no_local_paths(path):
    with pytest.raises(UserError, match=r"^--out is '(gs|hf|file|s3):.*expected a local path"):
        check_local("--out", path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a/b",
        "C:/images",
        pathlib.Path("C:/x"),
        "data.h5:/group/x",
        "tfds:coco",
        "a:b/c",
        "/gs:/",
    ],
)
def test_other_paths_are_local(path):
    check_local("--out", path)


def test_an_array_is_mapped_and_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6).reshape(2, 3))
    mapped = open_array(path, advice="make it again.")
    assert isinstance(mapped, np.memmap) and mapped.tolist() == [[0, 1, 2], [3, 4, 5]]
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], whole[:-8], b"PK" + whole):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x.npy cannot be read: .*; make it again\.$"):
            open_array(path, advice="make it again.")
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"contains pickled .object. data; make it again\.$"):
        open_array(path, advice="make it again.")
    with pytest.raises(UserError, match=r"missing.npy cannot be read: .*No such file"):
        open_array(tmp_path / "missing.npy", advice="make it again.")
