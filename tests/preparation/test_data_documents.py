"""docs/data.md and docs/troubleshooting.md say what the code does.

Every tree of data.md is built and prepared; every message of troubleshooting.md is one of the code,
and every reason why a record is skipped is in it.
"""

import ast
import pathlib
import re
import tarfile
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.preparation.hostile import captions, image, run_prepare, write
from tests.preparation.test_hostile_inputs import STRUCTS, parquet
from unclip_jax.data.captions import FIELDS
from unclip_jax.data.image_codec import SUFFIXES
from unclip_jax.preparation import tables

DATA = (ROOT / "docs" / "data.md").read_text("utf-8")
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
TREES = re.findall(r"```tree\n(.*?)```", DATA, re.DOTALL)
RETURN_REASONS = ("whole_file", "name_problem", "_key_problem")  # functions
LEAST = 8  # characters of a message by which it is looked for


def files(tree: str) -> dict[str, str]:
    """The files of a tree and their contents."""
    result = {}
    for line in tree.splitlines()[1:]:
        name, _, content = line.strip().partition(" ")
        result[name] = content.strip().replace(" ⏎ ", "\n")
    return result


def build(folder: pathlib.Path, tree: str) -> None:
    """Writes a tree; a folder called *.tar becomes a tar, images get pixels."""
    contents: dict[str, bytes | str] = {}
    for number, (name, content) in enumerate(files(tree).items()):
        if name.endswith(".parquet"):
            texts = content.removeprefix("image, text: ").splitlines()
            parquet(folder / name, {"image": STRUCTS[: len(texts)], "text": texts})
        elif name.lower().endswith(SUFFIXES):
            kind = "PNG" if name.endswith("png") else "JPEG"
            contents[name] = image(number, kind)
        else:
            contents[name] = content
    write(folder, contents)
    for packed in folder.glob("*.tar"):
        members = sorted(packed.iterdir())
        with tarfile.open(folder / "new", "w") as tar:
            for member in members:
                tar.add(member, member.name)
                member.unlink()
        packed.rmdir()
        (folder / "new").rename(packed)


@pytest.mark.parametrize("number", range(len(TREES)))
def test_every_layout_of_the_document_is_read(tmp_path: pathlib.Path, number: int):
    tree = TREES[number]
    build(tmp_path / "in", tree)
    records, report = run_prepare(tmp_path / "in", out=tmp_path / "out")
    assert report["skipped"] == {}
    images = [name for name in files(tree) if name.lower().endswith(SUFFIXES)]
    rows = [row for name, row in files(tree).items() if name.endswith(".parquet")]
    assert len(records) == len(images) + sum(len(row.splitlines()) for row in rows)
    for record in records.values():
        for caption in captions(record):
            assert caption in tree or caption == "brown bear"
    assert tree.startswith(("photos/", "coco/", "shards/", "data/"))


def test_the_document_names_every_field_and_suffix():
    for name in (*tables.FILE_FIELDS, *FIELDS):
        assert f"`{name}`" in DATA, name
    assert len(TREES) == 10


def strings(folder: pathlib.Path) -> list[str]:
    """The texts of a package; of formatted ones all parts, with … between them."""
    result = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    each.value if isinstance(each, ast.Constant) else "…" for each in node.values
                ]
                result.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                result.append(node.value)
    return result


STRINGS = strings(ROOT / "unclip_jax")


def messages() -> Iterator[str]:
    """The messages in the first column of every table."""
    for line in TROUBLE.splitlines():
        if line.startswith("| `"):
            yield from re.findall(r"`([^`]+)`", line.split(" | ")[0])


@pytest.mark.parametrize("message", sorted(set(messages())))
def test_every_message_is_one_of_the_code(message: str):
    parts = [part.strip(" ;,.") for part in message.split("…")]
    parts = [part for part in parts if len(part) >= LEAST] or parts[:1]
    for part in parts:
        assert any(part in text for text in STRINGS), part


def reasons() -> set[str]:
    """Every reason why `prepare` skips a record, as the code states it."""
    result = set()
    modules = [*(ROOT / "unclip_jax" / "preparation").glob("*.py")]
    for path in [*modules, ROOT / "unclip_jax" / "data" / "image_codec.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            values: list[ast.AST] = []
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", "")
                values += node.args[:1] if name in ("Skip", "BadImage") else []
                values += [word.value for word in node.keywords if word.arg == "skip"]
            elif isinstance(node, ast.FunctionDef) and node.name in RETURN_REASONS:
                returns = [each for each in ast.walk(node) if isinstance(each, ast.Return)]
                values += [each.value for each in returns if each.value is not None]
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "reason":
                values.append(node.value)
            elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
                values += node.value.elts[1:]
            for value in values:
                for part in ast.walk(value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        result.add(part.value)
    return {reason for reason in result if len(reason) >= LEAST}


def test_every_reason_is_in_the_document():
    texts = set(messages())
    code = reasons()
    assert {"bad UTF-8", "no caption", "truncated tar", "absurd aspect ratio"} <= code
    assert not {each for each in code if not {each, f"{each}…", f"{each.strip()} …"} & texts}
