"""Filters by metadata: what an expression means, what it may hold, and where columns come from."""

import io
import json
import pathlib
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.preparation.test_import_plans import file_plan, outcomes
from tests.preparation.test_prepare import run
from unclip_jax.core.checks import UserError
from unclip_jax.data.prepared import open_split
from unclip_jax.preparation.filters import FILTERED, Uids, Where
from unclip_jax.preparation.items import RawExample, Skip

FACTS = {
    "similarity": 0.31,
    "punsafe": "0.02",  # as CSV has it
    "original_width": 640,
    "original_height": 200,
    "language": "de",
    "caption": "ein Hund",
    "clip similarity": 0.4,
    "nothing": None,
    "nan": float("nan"),
}


def outcome(text: str) -> str:
    try:
        Where(text).check(FACTS)
    except Skip as skip:
        return skip.reason
    return "kept"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("similarity > 0.28 and punsafe < 0.5", True),
        ("similarity > 0.28 and punsafe < 0.01", False),
        ("similarity > 0.31", False),
        ("similarity >= 0.31", True),
        ("similarity > 0.9 or language == 'de'", True),
        ("not language == 'de'", False),
        ("language != 'en'", True),
        ("min(original_width, original_height) >= 256", False),
        ("max(original_width, original_height) >= 256", True),
        ("original_width / original_height < 3", False),
        ("original_width - 3 * original_height > 39", True),
        ("0.3 < similarity < 0.32", True),
        ("0.3 < similarity < 0.31", False),
        ("language in ('en', 'de')", True),
        ("language not in ['en', 'de']", False),
        ("'Hund' in caption", True),
        ("len(caption) == 8", True),
        ("abs(-similarity) > 0.3", True),
        ("`clip similarity` > 0.3 and `clip similarity` < 0.5", True),
        ("punsafe + 1 == 1.02", True),
    ],
)
def test_expressions(text: str, expected: bool):
    assert outcome(text) == ("kept" if expected else FILTERED)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("simlarity > 0.2", "metadata without simlarity"),
        ("nothing > 0.2", "metadata without nothing"),
        ("nan < 1", "metadata without nan"),
        ("language > 3", "metadata of another type than --where compares"),
        ("caption * 1000000000 > 3", "metadata of another type than --where compares"),
        ("similarity / 0 > 1", "metadata of another type than --where compares"),
    ],
)
def test_columns_that_cannot_be_compared_are_named(text: str, reason: str):
    assert outcome(text) == reason


REFUSED = """
similarity >
similarity = 3
a; b
x := 3
`a > 3
3 ** 9 ** 9
a.b > 3
__import__('os').system('true')
open('x')
a[0] > 1
[x for x in a]
lambda: 1
min(a, key=b)
min(*a)
b'x' == a
f'{a}' == 'b'
1j > a
a if b else c
a @ b
a % 2
a // 2
"""
LONG = ("", "(" * 300 + "a" + ")" * 300, "not " * 100 + "a", "a" * 3000)


@pytest.mark.parametrize("text", [*REFUSED.strip().splitlines(), *LONG])
def test_other_forms_are_rejected_in_one_line(text: str):
    with pytest.raises(UserError, match="^--where (is|has) ") as error:
        Where(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def metadata(index: int) -> dict:
    return {"similarity": index / 10, "uid": f"{index:032x}", "key": f"k{index:04d}"}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def as_tar(samples, folder: pathlib.Path) -> pathlib.Path:
    path = folder / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(6):
            add(tar, f"k{i:04d}.png", samples.png(i))
            add(tar, f"k{i:04d}.txt", b"a caption")
            add(tar, f"k{i:04d}.json", json.dumps(metadata(i)).encode())
    return path


def as_folder(samples, folder: pathlib.Path) -> pathlib.Path:
    for i in range(6):
        (folder / f"k{i:04d}.png").write_bytes(samples.png(i))
        (folder / f"k{i:04d}.txt").write_text("a caption")
        (folder / f"k{i:04d}.json").write_text(json.dumps(metadata(i)))
    return folder


def as_table(samples, folder: pathlib.Path, suffix: str) -> pathlib.Path:
    rows = []
    for i in range(6):
        (folder / f"k{i:04d}.png").write_bytes(samples.png(i))
        rows.append({"file_name": f"k{i:04d}.png", "text": "a caption", **metadata(i)})
    path = folder / f"metadata{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(str(cell) for cell in row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def as_parquet(samples, folder: pathlib.Path) -> pathlib.Path:
    rows = [
        {"image": {"bytes": samples.png(i), "path": None}, "text": "a caption", **metadata(i)}
        for i in range(6)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "k.parquet")
    return folder / "k.parquet"


FORMS = {
    "tar": as_tar,
    "folder": as_folder,
    "jsonl": lambda samples, folder: as_table(samples, folder, ".jsonl"),
    "csv": lambda samples, folder: as_table(samples, folder, ".csv"),
    "table in Parquet": lambda samples, folder: as_table(samples, folder, ".parquet"),
    "Parquet": as_parquet,
}


def row_numbers(plan) -> list[int]:
    """Numbers of the examples that can be read; the others are filtered out."""
    result = outcomes(plan)
    assert all(isinstance(value, RawExample) or value == FILTERED for value in result.values()), (
        result
    )
    return [i for i, value in enumerate(result.values()) if isinstance(value, RawExample)]


@pytest.mark.parametrize("form", FORMS)
def test_columns_come_from_wherever_metadata_lie(samples, tmp_path: pathlib.Path, form: str):
    path = FORMS[form](samples, tmp_path)
    assert row_numbers(file_plan(path, where=Where("similarity > 0.25"))) == [3, 4, 5]
    uids_file = tmp_path / "uids.txt"
    uids_file.write_text("".join(f"{i:032x}\n" for i in (1, 4)))
    assert row_numbers(file_plan(path, uids=Uids(uids_file))) == [1, 4]
    both = file_plan(path, where=Where("similarity > 0.25"), uids=Uids(uids_file))
    assert row_numbers(both) == [4]
    prints = {file_plan(path).fingerprint, both.fingerprint}
    prints.add(file_plan(path, where=Where("similarity > 0.26")).fingerprint)
    assert len(prints) == 3


def test_uids_as_datacomp_publishes_them(tmp_path: pathlib.Path):
    rows = np.array([(1, 2), (2**63, 5)], dtype="u8,u8")
    np.save(tmp_path / "subset.npy", rows)
    uids = Uids(tmp_path / "subset.npy")
    assert uids.identity == ["00000000000000010000000000000002", "80000000000000000000000000000005"]
    uids.check("a", {"uid": "80000000000000000000000000000005"})
    with pytest.raises(Skip, match=FILTERED):
        uids.check("a", {"uid": "80000000000000000000000000000006"})


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\xff", None])
def test_lists_of_uids_that_cannot_be_read(tmp_path: pathlib.Path, content):
    path = tmp_path / "uids.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="^--uids=.*uids.txt"):
        Uids(path)
    np.save(tmp_path / "x.npy", np.arange(3))
    with pytest.raises(UserError, match="DataComp's .npy"):
        Uids(tmp_path / "x.npy")


def test_prepare_reports_what_was_filtered_and_does_not_count_it_as_bad(
    samples, tmp_path: pathlib.Path, capsys
):
    path = as_tar(samples, tmp_path)
    out = tmp_path / "out"
    run(path, f"--out={out}", "--tokenizer=none", "--where", "similarity > 0.45", "--max-bad=0")
    assert [record["key"] for record in open_split(out, split="train")] == ["k0005"]
    report = json.loads((out / "report.json").read_text())["train"]
    assert (report["read"], report["kept"], report["skipped"]) == (6, 1, {FILTERED: 5})
    assert "5 skipped, filtered out: k0000" in capsys.readouterr().out
    with pytest.raises(UserError, match="other inputs or options|another|differ"):
        run(path, f"--out={out}", "--tokenizer=none", "--where", "similarity > 0.35")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("similarity > 2", "would be empty: 6 filtered out"),
        ("simlarity > 0.2", "metadata without simlarity"),
    ],
)
def test_filters_that_keep_nothing_are_one_line(samples, tmp_path, where, message):
    path = as_tar(samples, tmp_path)
    with pytest.raises(UserError, match=message):
        run(path, f"--out={tmp_path / 'out'}", "--tokenizer=none", "--where", where)


def test_worlds_have_no_metadata(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="worlds have no metadata"):
        run("shapes:train=3", f"--out={tmp_path}", "--where=a > 1")
