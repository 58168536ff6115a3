"""Pairs of arrays: every format gives the same rows, and every mistake is one line."""

import io
import sys
import tarfile
import types

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import safetensors.numpy

from unclip_jax.core.batch import Field
from unclip_jax.core.checks import UserError
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.pairs import column_files
from unclip_jax.pairs.conditions import read_conditions
from unclip_jax.pairs.config import PairsConfig
from unclip_jax.pairs.matching import open_pairs

N, D = 12, 3
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(N, 2)).astype(np.float32)
KEYS = [f"k{i}" for i in range(N)]
LENGTHS = [1 + i % 4 for i in range(N)]
SEQUENCES = [np.full((n, 2), i, np.float32) for i, n in enumerate(LENGTHS)]


def npy(folder, array, name="a", keys=None):
    np.save(folder / f"{name}.npy", array)
    if keys is not None:
        (folder / f"{name}.keys.txt").write_text("\n".join(keys))
    return str(folder / f"{name}.npy")


def npz(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return f"{folder}/a.npz:x"


def save_compressed(folder, **arrays):
    np.savez_compressed(folder / "c.npz", **arrays)
    return f"{folder}/c.npz:x"


def parquet(folder, write=pyarrow.parquet.write_table, name="a.parquet"):
    table = pyarrow.table({"x": X.tolist(), "key": KEYS, "other": [0] * N})
    write(table, str(folder / name))
    return f"{folder}/{name}:x"


def feather(folder):
    table = pyarrow.table({"x": X.tolist(), "key": KEYS})
    with (
        pyarrow.OSFile(str(folder / "a.arrow"), "wb") as file,
        pyarrow.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=5)
    return f"{folder}/a.arrow:x"


def tensors(folder):
    safetensors.numpy.save_file({"x": X, "other": Y}, folder / "a.safetensors")
    return f"{folder}/a.safetensors:x"


def hdf5(folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "a.h5", "w") as file:
        file["betas/x"], file["key"] = X, KEYS
    return f"{folder}/a.h5:betas/x"


def tar(folder):
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as archive:
            for i in range(shard * 6, shard * 6 + 6):
                add(archive, f"{KEYS[i]}.x.npy", X[i])
                add(archive, f"{KEYS[i]}.other.npy", Y[i])
    return f"{folder}/s-*.tar:x.npy"


def add(archive, name, array):
    data = io.BytesIO()
    np.save(data, array)
    member = tarfile.TarInfo(name)
    member.size = data.tell()
    data.seek(0)
    archive.addfile(member, data)


def clip_folder(folder):
    writer = EmbeddingWriter(folder / "train", shard_size=5, info={})
    writer.add(KEYS, [""] * N, z_img=X, z_txt=-X)
    writer.finish()
    return f"{folder}/train:img_emb"


FORMATS = {
    "npy": lambda f: npy(f, X, keys=KEYS),
    "npz": lambda f: npz(f, x=X, key=np.array(KEYS), z=Y),
    "fortran": lambda f: npz(f, x=np.asfortranarray(X), keys=np.array(KEYS)),
    "compressed": lambda f: save_compressed(f, x=X, key=np.array(KEYS)),
    "parquet": parquet,
    "arrow": feather,
    "safetensors": tensors,
    "hdf5": hdf5,
    "tar": tar,
    "clip-retrieval": clip_folder,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_same_rows_and_keys(name, tmp_path):
    column = column_files.open_column(FORMATS[name](tmp_path))
    assert len(column) == N and column.shape == (D,) and not column.ragged
    np.testing.assert_array_equal(np.stack([column[i] for i in range(N)]), X)
    np.testing.assert_array_equal(column.block(2, 7), X[2:7])
    if name != "safetensors":
        assert list(column.keys) == KEYS


def test_arrays_are_mapped_not_read(tmp_path):
    for location in (npy(tmp_path, X), npz(tmp_path, x=X), tensors(tmp_path)):
        assert isinstance(column_files.open_column(location).values, np.memmap)


@pytest.mark.parametrize("name", ["npz", "safetensors", "parquet", "hdf5"])
def test_sequences_of_different_lengths(name, tmp_path):
    by_key = dict(zip(KEYS, SEQUENCES, strict=True))
    if name == "npz":
        np.savez(tmp_path / "a.npz", **by_key)
        where = f"{tmp_path}/a.npz:*"
    elif name == "safetensors":
        safetensors.numpy.save_file(by_key, tmp_path / "a.safetensors")
        where = f"{tmp_path}/a.safetensors:*"
    elif name == "parquet":
        table = pyarrow.table({"x": [s.tolist() for s in SEQUENCES], "key": KEYS})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        where = f"{tmp_path}/a.parquet:x"
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for key, sequence in by_key.items():
                file[f"seq/{key}"] = sequence
        where = f"{tmp_path}/a.h5:seq/*"
    column = column_files.open_column(where)
    assert column.ragged and column.shape == (4, 2)
    for i, key in enumerate(column.keys):
        np.testing.assert_array_equal(column[i], by_key[key])


def test_hdf5_without_its_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(UserError, match="is an HDF5 file, which needs h5py; run `pip install"):
        column_files.open_column(f"{tmp_path}/a.h5:x")


def open_data(tmp_path, x=X, y=Y, **options):
    return open_pairs(PairsConfig(x=npy(tmp_path, x, "x"), y=npy(tmp_path, y, "y"), **options))


def source(data, split="train"):
    return data.open_split(split, data.fields())


def test_rows_are_matched_by_number(tmp_path):
    data = open_data(tmp_path)
    train, validation = source(data), source(data, "validation")
    assert (len(train), len(validation)) == (11, 1)
    records = [*(train[i] for i in range(11)), validation[0]]
    order = [int(record["key"]) for record in records]
    assert sorted(order) == list(range(N))
    np.testing.assert_array_equal(np.stack([r["x"] for r in records]), X[order])
    np.testing.assert_array_equal(np.stack([r["y"] for r in records]), Y[order])
    blocks = list(train.blocks(100, size=4))
    assert [len(block["x"]) for block in blocks] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([b["y"] for b in blocks]), Y[order[:11]])


def open_keyed(tmp_path, x_keys, y_keys, **options):
    x = npy(tmp_path, X[: len(x_keys)], "x", keys=x_keys)
    y = npy(tmp_path, Y[: len(y_keys)], "y", keys=y_keys)
    return open_pairs(PairsConfig(x=x, y=y, **options))


def test_repeats_of_a_key_are_all_combinations(tmp_path):
    data = open_keyed(tmp_path, ["a", "b", "a"], ["b", "a", "b"])
    assert {tuple(row) for row in data.rows.tolist()} == {(0, 1), (2, 1), (1, 0), (1, 2)}
    held_out = data.keys[data.validation]
    assert len(set(held_out.tolist())) == 1  # all pairs of one key, so that none leaks
    assert not set(held_out.tolist()) & set(data.keys[~data.validation].tolist())


def test_repeats_are_averaged(tmp_path):
    data = open_keyed(tmp_path, ["a", "b", "a"], ["b", "a"], repeats="mean", eval_share=0.0)
    by_key = {record["key"]: record for record in (source(data)[i] for i in range(2))}
    np.testing.assert_allclose(by_key["a"]["x"], (X[0] + X[2]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(by_key["a"]["y"], Y[1])
    np.testing.assert_array_equal(by_key["b"]["x"], X[1])


def test_repeats_are_averaged_within_a_subject(tmp_path):
    (tmp_path / "subjects.txt").write_text("one\ntwo\none\ntwo\n")
    options = {"repeats": "mean", "eval_share": 0.0, "subjects": f"{tmp_path}/subjects.txt"}
    data = open_keyed(tmp_path, ["a", "a", "a", "b"], ["a", "b"], **options)
    fields = data.fields()
    rows = data.open_split("train", fields)
    records = [rows[i] for i in range(len(rows))]
    assert [(r["key"], int(r["subject"])) for r in records] == [("a", 0), ("a", 1), ("b", 1)]
    for record, x in zip(records, [(X[0] + X[2]) / 2, X[1], X[3]], strict=True):
        np.testing.assert_allclose(record["x"], x, rtol=1e-6)


def test_sequences_are_padded_and_masked(tmp_path):
    np.savez(tmp_path / "s.npz", **dict(zip(KEYS, SEQUENCES, strict=True)))
    y = npy(tmp_path, Y, "y", keys=KEYS)
    data = open_pairs(PairsConfig(x=f"{tmp_path}/s.npz:*", y=y, eval_share=0.0))
    records = {r["key"]: r for r in (source(data)[i] for i in range(N))}
    for i, key in enumerate(KEYS):
        assert records[key]["x"].shape == (4, 2)
        assert records[key]["x_mask"].sum() == LENGTHS[i]
        np.testing.assert_array_equal(records[key]["x"][: LENGTHS[i]], SEQUENCES[i])
        assert not records[key]["x"][LENGTHS[i] :].any()


def test_token_ids_are_a_condition(tmp_path):
    ids = np.arange(N * 4, dtype=np.int64).reshape(N, 4)
    x = f"text={npy(tmp_path, ids, 'ids')},brain={npy(tmp_path, X, 'x')}"
    data = open_pairs(PairsConfig(x=x, y=npy(tmp_path, Y, "y")))
    fields = data.fields()
    assert fields["text"] == Field((4,), "int32", -1, 4 * N - 1)
    assert fields["brain"] == Field((D,), "float32")
    record = source(data)[0]
    np.testing.assert_array_equal(record["text"], ids[int(record["key"])])


def test_groups_are_not_separated(tmp_path):
    groups = npy(tmp_path, np.arange(N) % 4, "groups")
    data = open_data(tmp_path, groups=groups, eval_share=0.5)
    held_out = set((data.rows[data.validation, 0] % 4).tolist())
    assert len(held_out) == 2
    assert not held_out & set((data.rows[~data.validation, 0] % 4).tolist())


def test_subjects_are_numbered(tmp_path):
    names = ["s2", "s1"] * (N // 2)
    (tmp_path / "subjects.txt").write_text("\n".join(names))
    data = open_data(tmp_path, subjects=f"{tmp_path}/subjects.txt")
    assert data.subjects is not None and data.subjects[1] == ("s1", "s2")
    record = source(data)[0]
    assert data.subjects[1][record["subject"]] == names[int(record["key"])]


def test_subjects_and_their_pairs_are_logged(tmp_path, caplog):
    (tmp_path / "subjects.txt").write_text("s2 \n s1\n" * 3 + "s1\n" * (N - 6))
    (tmp_path / "splits.txt").write_text("train\nvalidation\n" * 2 + "train\n" * (N - 4))
    names = ("subjects", "splits")
    with caplog.at_level("INFO"):
        open_data(tmp_path, **{name: f"{tmp_path}/{name}.txt" for name in names})
    assert caplog.messages == ["subjects: s1 (7 pairs, 2 held out), s2 (3 pairs, 0 held out)"]


def test_subjects_are_those_of_a_model_by_their_labels(tmp_path):
    names = ["s2", "s10"] * (N // 2)
    (tmp_path / "subjects.txt").write_text("\n".join(names))
    data = open_data(tmp_path, subjects=f"{tmp_path}/subjects.txt", eval_share=0.0)
    assert data.fields()["subject"].labels == ("s10", "s2")  # sorted as text
    model = ("s1", "s2", "s10")
    fields = {**data.fields(), "subject": Field((), "int32", 0, 2, model)}
    rows = data.open_split("train", fields)
    assert [model[rows[i]["subject"]] for i in range(N)] == [
        names[int(rows[i]["key"])] for i in range(N)
    ]
    with pytest.raises(UserError, match=r"layer per subject .s1; s2; s10.; give .* .--subjects of"):
        open_data(tmp_path).open_split("train", fields)
    fields["subject"] = Field((), "int32", 0, 1, ("s1", "s2"))
    with pytest.raises(UserError, match=r"no layer for the subject 's10'; this prior has s1, s2\."):
        data.open_split("train", fields)


def broken(x):
    x = X.copy()
    x[[3, 5], 1] = np.nan
    return x


def test_bad_rows_are_rejected_or_skipped_by_name(tmp_path, caplog):
    with pytest.raises(
        UserError, match=r"2 of 12 rows of x .* hold NaN or inf, first row 3; correct"
    ):
        open_data(tmp_path, broken(X))
    data = open_data(tmp_path, broken(X), bad_rows="skip", eval_share=0.0)
    assert sorted(data.rows[:, 0].tolist()) == [i for i in range(N) if i not in (3, 5)]
    assert "2 of 12 rows of x" in caplog.text and "left out" in caplog.text


def test_float16_overflow_is_named(tmp_path):
    half = X.astype(np.float16)
    half[4, 0] = np.inf
    with pytest.raises(UserError, match=r"1 of 12 rows of x .* inf in float16, which ends at 65"):
        open_data(tmp_path, half)


def test_keys_without_partner_are_rejected_or_skipped(tmp_path, caplog):
    with pytest.raises(UserError, match=r"1 keys of x .* have no partner, first 'c'; correct them"):
        open_keyed(tmp_path, ["a", "b", "c"], ["a", "b"])
    data = open_keyed(tmp_path, ["a", "b", "c"], ["a", "b"], bad_rows="skip")
    assert data.keys.tolist() == ["a", "b"]
    assert "1 keys of x" in caplog.text


def test_files_are_opened_again_when_they_change(tmp_path):
    cfg = PairsConfig(x=npy(tmp_path, X, "x", KEYS), y=npy(tmp_path, Y, "y", KEYS))
    assert open_pairs(cfg) is open_pairs(cfg) and len(open_pairs(cfg).rows) == N
    (tmp_path / "x.keys.txt").write_text("\n".join([*KEYS[:-1], "another"]))
    with pytest.raises(UserError, match="have no partner"):
        open_pairs(cfg)
    npy(tmp_path, X[:5], "x", KEYS[:5])
    npy(tmp_path, Y[:5], "y", KEYS[:5])
    assert len(open_pairs(cfg).rows) == 5


def split_by(tmp_path, groups):
    (tmp_path / "splits.txt").write_text("\n".join(["train", "validation"] * (N // 2)))
    return open_data(tmp_path, groups=npy(tmp_path, groups, "g"), splits=f"{tmp_path}/splits.txt")


def test_a_group_in_two_splits_is_rejected(tmp_path):
    assert split_by(tmp_path, np.arange(N) % 2).validation.tolist() == [False, True] * (N // 2)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match="6 groups are in both splits of .*splits.txt, first '0'"):
        split_by(other, np.arange(N) // 2)


def model_of(tmp_path, **fields):
    data = open_data(tmp_path)
    return data.open_split("train", data.fields() | fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: PairsConfig(x="a.npy").named(), "config.data.y is empty; give arrays, such as"),
        (
            lambda p: PairsConfig(x="y=a.npy,b=c.npy", y="d").named(),
            "the part 'y=a.npy'; give NAME",
        ),
        (lambda p: open_data(p, X[:5]), r"different numbers of rows \(x 5, y 12\)"),
        (lambda p: open_data(p, repeats="mean"), "'mean', but the columns have no keys"),
        (lambda p: open_data(p, x=X.astype("S3")), "holds .S3; give floating point"),
        (lambda p: open_data(p, y=Y.astype(np.int32)), "holds int32; the target must be floating"),
        (lambda p: open_data(p, np.full_like(X, np.nan), bad_rows="skip"), "no pair is left"),
        (
            lambda p: open_data(p, groups=npy(p, Y[:3, 0], "g")),
            "groups has 3 labels, .* has 12 rows",
        ),
        (lambda p: open_data(p, groups=npy(p, Y, "g")), r"rows of shape \[2\]; give one label"),
        (
            lambda p: open_data(p, eval_share=0.0).open_split("validation", {}),
            "does not read|the valid",
        ),
        (lambda p: model_of(p, x=Field((4,), "float32")), r"x has rows \[3\]"),
        (lambda p: model_of(p, z=Field((4,), "float32")), "the model reads x, y, z; config.data.x"),
        (lambda p: column_files.open_column(f"{p}/none.npy"), "there is no .*none.npy"),
        (lambda p: column_files.open_column(f"{p}/a.csv"), "unknown format; give .npy"),
        (lambda p: column_files.open_column(npz(p, x=X) + "y"), "has no array 'xy'. Did you mean"),
        (
            lambda p: column_files.open_column(npz(p, x=X, z=Y)[:-2]),
            "has 2 arrays; name one: .*npz:",
        ),
        (lambda p: column_files.open_column(npy(p, X[0, 0])), r"has shape \[\]; give vectors"),
        (
            lambda p: open_pairs(PairsConfig(x=npy(p, X[:, 0], "x"), y=npy(p, Y, "y"))),
            r"x.npy has shape \[12\]; give vectors",
        ),
        (lambda p: column_files.open_column(npy(p, X, keys=KEYS[:3])), "12 rows but 3 keys"),
        (
            lambda p: column_files.open_column(parquet(p)[:-1] + "other"),
            "is a single number; give a",
        ),
        (
            lambda p: column_files.open_column(tar(p)[:-5] + "no.npy"),
            "holds no rows; check the name",
        ),
    ],
)
def test_mistakes_are_one_line(call, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)


def test_a_target_longer_than_the_model_is_rejected(tmp_path):
    np.savez(tmp_path / "s.npz", **dict(zip(KEYS, SEQUENCES, strict=True)))
    x = npy(tmp_path, X, "x", keys=KEYS)
    data = open_pairs(PairsConfig(x=x, y=f"{tmp_path}/s.npz:*"))
    fields = data.fields()
    longer = fields | {"y": Field((6, 2), "float32"), "y_mask": Field((6,), "bool")}
    assert data.open_split("train", longer)[0]["y"].shape == (6, 2)
    shorter = fields | {"y": Field((3, 2), "float32"), "y_mask": Field((3,), "bool")}
    with pytest.raises(UserError, match=r"y has rows \[4, 2\], the model takes \[3, 2\] at most"):
        data.open_split("train", shorter)


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match="a.npy cannot be read: it holds no array of numb"):
        column_files.open_column(f"{tmp_path}/a.npy")


def test_labels_come_from_text_and_tables(tmp_path):
    (tmp_path / "g.txt").write_text("a\nb\n")
    assert column_files.labels(f"{tmp_path}/g.txt").tolist() == ["a", "b"]
    (tmp_path / "g.txt").write_text(" a\nb \n")
    assert column_files.labels(f"{tmp_path}/g.txt").tolist() == ["a", "b"]
    with pytest.raises(
        UserError, match="2 is not a file of labels; give a .txt file with one label"
    ):
        column_files.labels("2")
    pyarrow.parquet.write_table(pyarrow.table({"g": [1, 2]}), tmp_path / "g.parquet")
    assert column_files.labels(f"{tmp_path}/g.parquet:g").tolist() == ["1", "2"]
    with pytest.raises(UserError, match="has no column 'h'"):
        column_files.labels(f"{tmp_path}/g.parquet:h")


def test_a_share_of_the_groups_is_chosen_anew(tmp_path):
    """At least one, unless the share is 0 or there is no other; the same one every time."""
    data = open_data(tmp_path, groups=npy(tmp_path, np.arange(N) // 3, "groups"), eval_share=0.0)
    assert not data.validation.any()
    for share, groups in ((0.0, 0), (0.01, 1), (0.3, 1), (0.5, 2), (0.7, 3), (1.0, 4)):
        division = data.divided(share)
        assert division.validation.sum() == 3 * groups
        assert len(set((np.flatnonzero(division.validation) // 3).tolist())) == groups
        np.testing.assert_array_equal(division.validation, data.divided(share).validation)
    assert len({tuple(data.divided(share).validation.tolist()) for share in (0.3, 0.5, 0.7)}) == 3
    alone = open_data(tmp_path, groups=npy(tmp_path, np.zeros(N), "groups"), eval_share=0.0)
    assert not alone.divided(0.3).validation.any() and alone.divided(0.8).validation.all()


def test_pairs_are_read_by_their_number_alone(tmp_path):
    train = source(open_data(tmp_path, eval_share=0.0))
    assert train[N - 1]["key"] == str(N - 1)
    for index in (-1, N, 10**6):
        with pytest.raises(IndexError):
            train[index]


def test_the_digest_of_pairs_is_of_their_content(tmp_path):
    def digest(x=X, y=Y, keys=None, **options):
        x, y = npy(tmp_path, x, "x", keys=keys), npy(tmp_path, y, "y", keys=keys)
        data = open_pairs(PairsConfig(x=x, y=y, **options))
        return source(data).digest

    other_x = X.copy()
    other_x[7, 1] += 1
    same, other = digest(eval_share=0.0), [digest(other_x, eval_share=0.0)]
    other += [digest(Y, X, eval_share=0.0), digest(X[:-1], Y[:-1], eval_share=0.0), digest()]
    other += [digest(X[::-1], Y[::-1], eval_share=0.0)]
    assert digest(eval_share=0.0) == same and len(same) == 64
    other += [digest(keys=KEYS, eval_share=0.0)]
    assert len({same, *other}) == 7


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (256, range(256)), (511, range(0, 511, 2))]
)
def test_256_pairs_evenly_spaced_stand_for_a_data_set(tmp_path, monkeypatch, count, expected):
    x = np.arange(count, dtype=np.float32)[:, None]
    train = source(open_data(tmp_path, x, x, eval_share=0.0))
    indices, get = [], type(train).__getitem__
    record = lambda pairs, index: (indices.append(index), get(pairs, index))[1]  # noqa: E731
    monkeypatch.setattr(type(train), "__getitem__", record)
    assert len(train.digest) == 64
    assert indices == list(expected)


def test_the_subjects_of_an_even_choice_of_pairs(tmp_path):
    (tmp_path / "subjects.txt").write_text("\n".join(f"s{i % 5}" for i in range(N)))
    data = open_data(tmp_path, subjects=f"{tmp_path}/subjects.txt", eval_share=0.0)
    train = source(data)
    for most, rows in ((3, [0, 4, 8]), (5, [0, 2, 4, 7, 9]), (N, range(N)), (99, range(N))):
        assert train.subjects(most) == [f"s{i % 5}" for i in rows]
        blocks = list(train.blocks(most, size=2))
        assert [len(block["x"]) for block in blocks[:-1]] == [2] * (len(blocks) - 1)
        np.testing.assert_array_equal(np.concatenate([b["x"] for b in blocks]), X[list(rows)])
    assert source(open_data(tmp_path)).subjects(3) is None


def test_conditions_alone_are_read_with_their_keys(tmp_path, caplog):
    whole = read_conditions(npy(tmp_path, X, "x", KEYS))
    assert (whole.keys, whole.total) == (KEYS, N)
    np.testing.assert_array_equal(np.stack(whole.rows["x"]), X)
    np.testing.assert_array_equal(whole.numbers, np.arange(N))
    second = Y.copy()
    second[8] = np.inf
    two = f"a={npy(tmp_path, broken(X), 'a')},b={npy(tmp_path, second, 'b', KEYS)}"
    with pytest.raises(
        UserError, match=r"2 of 12 rows of a .* hold NaN or inf, first row 3; correct"
    ):
        read_conditions(two)
    some = read_conditions(two, bad_rows="skip")
    numbers = [0, 1, 2, 4, 6, 7, 9, 10, 11]
    assert some.keys is None and some.total == N and some.numbers.tolist() == numbers
    assert list(some.rows) == ["a", "b"]
    np.testing.assert_array_equal(np.stack(some.rows["a"]), X[numbers])
    np.testing.assert_array_equal(np.stack(some.rows["b"]), Y[numbers])
    other = f"b={npy(tmp_path, second, 'b', KEYS)},a={npy(tmp_path, broken(X), 'a')}"
    assert read_conditions(other, bad_rows="skip").keys == [KEYS[i] for i in numbers]


def test_conditions_without_rows_or_of_different_lengths_are_rejected(tmp_path):
    two = f"a={npy(tmp_path, X, 'a')},b={npy(tmp_path, Y[:5], 'b')}"
    with pytest.raises(UserError, match=r"different numbers of rows \(a 12, b 5\); give the same"):
        read_conditions(two)
    nothing = npy(tmp_path, np.full_like(X, np.nan), "n")
    with pytest.raises(UserError, match=r"no row of .*n.npy is left; it is empty, or every row"):
        read_conditions(nothing, bad_rows="skip")


def test_keys_beside_an_array_may_be_an_array(tmp_path):
    where = npy(tmp_path, X, keys=["other"] * N)
    np.save(tmp_path / "a.keys.npy", np.array(KEYS))
    assert list(column_files.open_column(where).keys) == KEYS  # before lines of text
    np.save(tmp_path / "a.keys.npy", np.array([key.encode() for key in KEYS]))
    assert list(column_files.open_column(where).keys) == KEYS
    np.save(tmp_path / "a.keys.npy", np.arange(N))
    assert list(column_files.open_column(where).keys) == [str(i) for i in range(N)]


class Group(dict):
    """A group of datasets, by name or by path."""

    def __getitem__(self, name):
        first, _, rest = name.strip("/").partition("/")
        if not first:
            return self
        item = super().__getitem__(first)
        return item[rest] if rest else item

    def __contains__(self, name):
        try:
            return self[name] is not None
        except KeyError:
            return False

    def visititems(self, call, prefix=""):
        for name, item in self.items():
            call(prefix + name, item)
            if isinstance(item, Group):
                item.visititems(call, f"{prefix}{name}/")


@pytest.fixture
def h5(tmp_path, monkeypatch):
    """A stand-in for h5py whose only file has two groups, an array and keys."""
    sequences = Group({key: np.full((n, 2), n) for key, n in zip("ab", (2, 3), strict=True)})
    content = Group(key=np.array([key.encode() for key in KEYS]), betas=Group(x=X), s=sequences)
    library = types.ModuleType("h5py")
    library.File = lambda path, mode: content if mode == "r" else None
    monkeypatch.setitem(sys.modules, "h5py", library)
    for name in ("a.h5", "a.hdf5"):
        (tmp_path / name).write_bytes(b"")
    return content


def test_arrays_of_hdf5_are_named_by_their_path(h5, tmp_path):
    for name in ("a.h5:betas/x", "a.hdf5:betas/x"):
        column = column_files.open_column(f"{tmp_path}/{name}")
        np.testing.assert_array_equal(column.values, X)
        assert list(column.keys) == KEYS
    for name in ("s/*", "/s/*"):
        ragged = column_files.open_column(f"{tmp_path}/a.h5:{name}")
        assert list(ragged.keys) == ["a", "b"] and ragged.shape == (3, 2)
    with pytest.raises(UserError, match="has no array 'betas/y'. Did you mean 'betas/x'"):
        column_files.open_column(f"{tmp_path}/a.h5:betas/y")
    with pytest.raises(UserError, match="has 3 arrays; name one: .*:NAME. Known: betas/x, s/a, s"):
        column_files.open_column(f"{tmp_path}/a.h5")
    with pytest.raises(UserError, match=r"there is no file .*none.h5 \(of .*none.h5:x\)"):
        column_files.open_column(f"{tmp_path}/none.h5:x")


def test_the_only_array_of_hdf5_needs_no_name_and_may_have_no_keys(h5, tmp_path):
    for name in ("key", "betas"):
        del h5[name]
    h5["s"].pop("a")
    column = column_files.open_column(f"{tmp_path}/a.h5")
    np.testing.assert_array_equal(column.values, np.full((3, 2), 3))
    assert column.keys is None
    h5["b"], h5["c"] = h5.pop("s")["b"], np.ones((2, 2))
    assert len(column_files.open_column(f"{tmp_path}/a.h5:*")) == 2  # of the file itself


def test_a_row_that_a_table_lacks_is_not_finite(tmp_path):
    rows = [row.tolist() for row in X]
    rows[4] = None
    table = pyarrow.table({"x": pyarrow.array(rows, pyarrow.list_(pyarrow.float32()))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    column = column_files.open_column(f"{tmp_path}/a.parquet:x")
    assert column.keys is None and np.isnan(column[4]).all()
    np.testing.assert_array_equal(column[5], X[5])
    with pytest.raises(UserError, match="1 of 12 rows of x .* first row 4"):
        open_pairs(PairsConfig(x=f"{tmp_path}/a.parquet:x", y=npy(tmp_path, Y, "y")))


def test_several_tables_are_one_column(tmp_path):
    for number, rows in enumerate((slice(0, 5), slice(5, 12))):
        table = pyarrow.table({"x": X[rows].tolist(), "image_path": KEYS[rows]})
        pyarrow.parquet.write_table(table, tmp_path / f"t{number}.parquet")
    column = column_files.open_column(f"{tmp_path}/t*.parquet:x")
    np.testing.assert_array_equal(column.values, X)
    assert list(column.keys) == KEYS  # as clip-retrieval names them
    assert len(column_files.column_state(f"{tmp_path}/t*.parquet:x")) == 2
