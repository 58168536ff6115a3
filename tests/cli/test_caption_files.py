"""Captions on the command line, from a file and from standard input."""

import io
import os
import pathlib

import pytest

from unclip_jax.cli import request_command
from unclip_jax.core.checks import UserError
from unclip_jax.engine.requests import TextRequest

BOTH = ("a red circle", "two stars")
FILES = {
    "Unix": b"a red circle\ntwo stars\n",
    "Windows": b"a red circle\r\ntwo stars\r\n",
    "old Macintosh": b"a red circle\rtwo stars\r",
    "with a mark": b"\xef\xbb\xbfa red circle\ntwo stars",
    "UTF-16": "a red circle\r\ntwo stars\r\n".encode("utf-16"),
    "empty lines": b"\n a red circle \n\n\ttwo stars\n\n",
}


def captions(*arguments: str) -> tuple[str, ...]:
    """Returns the captions that `sample` takes from these arguments."""
    command, rest = request_command.choose([*arguments, "--models=runs/none", "--out=x.png"])
    args = request_command.parser(command).parse_args(rest)
    request, _ = request_command.parse(command, args)
    assert isinstance(request, TextRequest)
    return tuple(request.captions)


class Stdin:
    def __init__(self, data: bytes):
        self.buffer = io.BytesIO(data)


@pytest.mark.parametrize("kind", FILES)
def test_a_caption_per_line(tmp_path: pathlib.Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "p.txt").write_bytes(FILES[kind])
    assert captions(f"--captions={tmp_path}/p.txt") == BOTH
    assert captions("text", "--captions", f"{tmp_path}/p.txt") == BOTH
    for arguments in (("-",), ("--captions=-",), ("--captions", "-")):
        monkeypatch.setattr("sys.stdin", Stdin(FILES[kind]))
        assert captions(*arguments) == BOTH


def test_captions_on_the_command_line():
    assert captions(*BOTH) == BOTH
    assert captions("a fox - and a wolf", "") == ("a fox - and a wolf", "")
    assert captions("no_such_file.txt", "@home") == ("no_such_file.txt", "@home")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no caption; write one per line"),
        (b"\r\n \n", "holds no caption"),
        (b"caf\xe9\n", "cannot be read .*save it as UTF-8"),
        (b"\xff\xfe\xff", "cannot be read .*save it as UTF-8"),
        (b"a" * (2**24 + 1), "is larger than 16 MiB"),
    ],
)
def test_files_that_hold_no_captions(tmp_path, content: bytes, message: str, monkeypatch):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path}/p.txt {message}"):
        captions(f"--captions={tmp_path}/p.txt")
    monkeypatch.setattr("sys.stdin", Stdin(content))
    with pytest.raises(UserError, match=f"standard input {message}"):
        captions("-")


def test_files_that_are_not_there(tmp_path: pathlib.Path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none.txt", "", "pipe"):
        with pytest.raises(UserError, match="there is no file .*; check --captions"):
            captions(f"--captions={tmp_path}/{name}")


@pytest.mark.parametrize("argument", ["p.txt", "@p.txt", "./p.txt", "below/p.csv", "@below/p.csv"])
def test_a_caption_that_is_the_name_of_a_file(tmp_path, argument: str, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("p.txt", "below/p.csv"):
        (tmp_path / name).write_text("a fox")
    name = str(pathlib.Path(argument.removeprefix("@")))
    with pytest.raises(UserError, match=f"is the name of a file; give --captions={name} to read"):
        captions(argument)


def test_captions_are_given_once():
    with pytest.raises(
        UserError, match="on the command line and by --captions; use only one of them"
    ):
        captions("a fox", "--captions=-")
    with pytest.raises(UserError, match="no caption is given; write one, or --captions=FILE"):
        captions()
