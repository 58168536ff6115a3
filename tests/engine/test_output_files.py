"""Results on disk: the folder holds what the record lists, and paths are checked beforehand."""

import json

import numpy as np
import pytest

from unclip_jax.cli import request_command
from unclip_jax.core.checks import UserError
from unclip_jax.engine import output_files
from unclip_jax.engine.result import Result


def result(count, *, animate=None):
    images = np.zeros((count, 4, 4, 3), np.uint8)
    return Result(images=images, labels=("",) * count, record={"command": "x"}, animate=animate)


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (result(4), result(2)),
        (result(2), result(4)),
        (result(3, animate="gif"), result(3)),
        (result(2, animate="gif"), result(1, animate="webp")),
        (result(11), result(1)),
    ],
)
def test_a_second_result_leaves_nothing_of_the_first(tmp_path, first, second):
    first.save(tmp_path / "s.png")
    (tmp_path / "s" / "0000.npz").write_bytes(b"a latent of the first")
    (tmp_path / "s" / "mine.png").write_bytes(b"of the user")
    (tmp_path / "s.txt").write_bytes(b"of the user")
    second.save(tmp_path / "s.png")
    second.save(tmp_path / "other.png")
    names = [name.replace("other", "s", 1) for name in contents(tmp_path) if "other" in name]
    rest = [name for name in contents(tmp_path) if "other" not in name]
    assert rest == sorted([*names, "s/mine.png", "s.txt"])
    image_names = json.loads((tmp_path / "s.json").read_text())["images"]
    assert output_files.listed(tmp_path / "s") == [name.removeprefix("s/") for name in image_names]


def test_images_that_no_record_lists_are_rejected_before_anything_is_removed(tmp_path):
    result(2).save(tmp_path / "s.png")
    (tmp_path / "s" / "0002.png").write_bytes(b"")
    (tmp_path / "s" / "0007.npz").write_bytes(b"")
    before = contents(tmp_path)
    message = (
        r"s holds 2 images or latents that s.json does not list \(0002.png, 0007.npz\); remove"
    )
    for call in (output_files.check, result(1).save):
        with pytest.raises(UserError, match=message):
            call(tmp_path / "s.png")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "images", [["../victim.png"], ["s/../victim.png"], ["/etc/passwd"], ["victim.png"], [["x"]], 7]
)
def test_a_record_of_something_else_removes_nothing(tmp_path, images):
    (tmp_path / "victim.png").write_bytes(b"")
    (tmp_path / "s.json").write_text(json.dumps({"images": images}))
    assert output_files.earlier(tmp_path / "s.png") == []
    result(1).save(tmp_path / "s.png")
    assert (tmp_path / "victim.png").exists()


@pytest.mark.parametrize("out", ["file/x.png", "folder.png", "taken.png", "json.png", "x.jpg"])
def test_a_path_is_rejected_before_models_are_sought(tmp_path, out):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").write_text("")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "json.json").mkdir()
    parser = request_command.parser("text")
    args = parser.parse_args(["a red circle", f"--models={tmp_path}", f"--out={tmp_path / out}"])
    with pytest.raises(UserError, match=r"cannot write .*; give another out|ends in .png"):
        request_command.parse("text", args)
