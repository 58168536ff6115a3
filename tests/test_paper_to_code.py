"""docs/paper_to_code.md points at things that exist."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper_to_code.md"
FOLDERS = "unclip_jax|experiments|tests|docs|benchmarks|studies|launch"


def references(page: str) -> list[tuple[str, str]]:
    """(file, name or "") of every `file.py::name` or `file` in a page."""
    return re.findall(rf"`((?:{FOLDERS})/[\w./]+)(?:::([\w.]+))?`", page)


def defined_names(source: str) -> Iterator[str]:
    """Dotted names that a module's top level and its classes define."""

    def names(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif isinstance(node, ast.Assign):
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{name}" for name in names(node.body))

    return names(ast.parse(source).body)


def broken(page: str) -> list[str]:
    """References to files or names that do not exist."""
    result = []
    for file, name in references(page):
        path = ROOT / file
        if not path.is_file():
            result.append(f"{file} is not there")
        elif name and name not in set(defined_names(path.read_text(encoding="utf-8"))):
            result.append(f"{file} defines no {name}")
    return result


def test_every_file_and_name_on_the_page_exists():
    page = PAGE.read_text(encoding="utf-8")
    assert len(references(page)) > 60
    assert broken(page) == []


def test_every_file_and_name_on_the_page_of_dalle_exists():
    page = (ROOT / "docs" / "dalle.md").read_text(encoding="utf-8")
    assert len(references(page)) > 20
    assert broken(page) == []


def test_every_reference_is_written_so_that_it_is_checked():
    pointers = re.findall(r"`([^`]*(?:::|\.py)[^`]*)`", PAGE.read_text(encoding="utf-8"))
    assert [each for each in pointers if not references(f"`{each}`")] == []


@pytest.mark.parametrize(
    "heading", ["Sections", "Tables and figures", "Theorems", "Choices that the paper leaves open"]
)
def test_every_row_points_somewhere(heading):
    section = re.split(rf"^## {heading}.*$", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1]
    rows = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert rows and [row for row in rows if not references(row)] == []


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("`unclip_jax/stages/priors.py`", "unclip_jax/stages/priors.py is not there"),
        ("`unclip_jax/stages/prior.py::bestof`", "unclip_jax/stages/prior.py defines no bestof"),
        (
            "`unclip_jax/models/decoder.py::DecoderConfig.nul_z`",
            "unclip_jax/models/decoder.py defines no DecoderConfig.nul_z",
        ),
    ],
)
def test_a_broken_reference_is_seen(page, complaint):
    assert broken(page) == [complaint]
