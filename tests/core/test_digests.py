"""Digests against sha256sum's values, and what is rejected of files and JSON text."""

import hashlib
import json
import os
import pathlib
import time

import pytest

from unclip_jax.core import digests, files, json_text
from unclip_jax.core.checks import UserError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "sub").mkdir()
    for number in range(5):
        (tmp_path / "sub" / f"{number}.bin").write_bytes(bytes([number]) * 1000)
    (tmp_path / "abc").write_text("abc")
    return tmp_path


def test_digests_are_sha256_by_path(folder):
    stored = digests.of_files(folder, files.regular_files(folder))
    assert stored["abc"] == digests.of_file(folder / "abc") == ABC
    assert list(stored) == ["abc", *(f"sub/{number}.bin" for number in range(5))]
    assert stored["sub/3.bin"] == hashlib.sha256(b"\3" * 1000).hexdigest()
    digests.check_files(folder, stored, advice="x")


def test_the_digest_of_json_sees_values_alone():
    value = {"b": [1, 2.5, None], "a": "é"}
    again = json.loads(json.dumps(dict(reversed(value.items())), indent=3))
    assert digests.of_json(value) == digests.of_json(again)
    others = [{**value, "b": [1, 2.5]}, {**value, "a": "e"}, {**value, "c": 0}, {"a": "é"}]
    assert len({digests.of_json(v) for v in [value, *others]}) == 5


def test_changed_and_missing_files_are_named(folder, monkeypatch):
    stored = digests.of_files(folder, files.regular_files(folder))
    (folder / "sub" / "2.bin").write_bytes(b"\2" * 999 + b"\3")
    with pytest.raises(UserError, match=r"digest of sub/2.bin differs from the stored one; copy"):
        digests.check_files(folder, stored, advice="copy.")
    monkeypatch.setenv(digests.SKIP, "1")
    digests.check_files(folder, stored, advice="copy.")
    for path in (folder / "sub").iterdir():
        path.unlink()
    message = r"lacks sub/0.bin, sub/1.bin, sub/2.bin, and 2 more; copy"
    with pytest.raises(UserError, match=message):
        digests.check_files(folder, stored, advice="copy.")


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a device"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "a named pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else tmp_path)
    for function in (digests.of_file, files.read_small, files.check_regular):
        with pytest.raises(UserError, match=f"is {kind}; expected a regular file"):
            function(path)
    if kind != "a folder":
        with pytest.raises(UserError, match=kind):
            files.regular_files(tmp_path)


def test_a_link_to_a_file_is_a_file(folder):
    (folder / "link").symlink_to("abc")
    assert digests.of_file(folder / "link") == ABC
    assert "link" in files.regular_files(folder)
    assert files.regular_files(folder / "none") == []


def test_a_small_file_is_not_large(folder):
    with pytest.raises(UserError, match=r"abc has 3 bytes; .* at most 2"):
        files.read_small(folder / "abc", most=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ("[-Infinity]", "-Infinity is no number"),
        ('{"a": [1e999]}', "a number that is not finite"),
        ("9" * 5000, "cannot be read as JSON"),
        ("[" * 100_000, "nested too deeply|cannot be read"),
        ("[" * 100 + "]" * 100, "nested deeper than 64 levels"),
        ('{"a":' * 80 + "1" + "}" * 80, "nested deeper than 64 levels"),
        (r'["\ud800"]', "text that is not Unicode"),
        (r'{"a": {"\udfff": 1}}', "text that is not Unicode"),
    ],
)
def test_text_that_is_no_json_is_rejected(text, message):
    with pytest.raises(UserError, match=f"here.*({message}).*do this"):
        json_text.parse(text, where="here", advice="do this.")


def test_json_is_parsed_to_its_value():
    nested = json.loads("[" * 60 + "]" * 60)
    assert json_text.parse(json.dumps(nested), where="", advice="") == nested
    assert json_text.parse_object(b'{"a": "\xc3\xa9"}', where="", advice="") == {"a": "é"}
    with pytest.raises(UserError, match="here holds a list, not an object"):
        json_text.parse_object("[1]", where="here", advice="")


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of files whose content is hashed."""
    names: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: names.append(file.name) or digest(file, kind)
    )
    return names


def test_a_file_is_read_once_until_it_changes(folder, monkeypatch, reads):
    monkeypatch.setattr(digests, "_MIN_AGE", -1.0)
    path = folder / "abc"
    assert [digests.of_file(path) for _ in range(3)] == [ABC] * 3
    assert len(reads) == 1
    facts = path.stat()
    time.sleep(0.02)  # longer than the resolution of the file system's times
    path.write_text("abd")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as damage that keeps the time
    assert digests.of_file(path) == hashlib.sha256(b"abd").hexdigest()
    assert len(reads) == 2


def test_a_file_that_was_written_just_now_is_read_again(folder, reads):
    assert [digests.of_file(folder / "abc") for _ in range(2)] == [ABC] * 2
    assert len(reads) == 2
