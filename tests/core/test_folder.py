"""Folders of outputs: small files are read whole, and nothing else is."""

import os

import pytest

from unclip_jax.core import folder as folders
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import read_small
from unclip_jax.core.folder import Folder


def test_a_file_is_read_and_a_missing_one_is_none(tmp_path):
    folder = Folder(tmp_path)
    folder.write("part/a.json", "content")
    assert folder.read("part/a.json") == b"content"
    assert folder.read("part/b.json") is None
    assert folder.read("part/a.json/b") is None
    folder.remove(["part/a.json", "part/b.json"])
    assert folder.read("part/a.json") is None


def test_what_is_no_small_file_is_rejected(tmp_path, monkeypatch):
    (tmp_path / "large.json").write_bytes(b"12345")
    monkeypatch.setattr(folders, "read_small", lambda path: read_small(path, most=4))
    with pytest.raises(UserError, match=r"large.json has 5 bytes; a file of its kind has at most"):
        Folder(tmp_path).read("large.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match=r"pipe.json is a named pipe; expected a regular file"):
        Folder(tmp_path).read("pipe.json")
