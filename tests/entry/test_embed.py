"""The embed command on a small prepared data set and an untrained CLIP."""

import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests import cascades
from tests.preparation.hostile import image, write
from unclip_jax import embed, prepare
from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec, sources
from unclip_jax.data.embedding_writer import EmbeddingFolder
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.data.remote_embeddings import open_embeddings
from unclip_jax.inference import dataset_embedding, embedding_join, load
from unclip_jax.models.clip import Clip
from unclip_jax.tokenization import caption_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run directory with an untrained cascade, and data with its tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    cascades.write(folder)
    inputs = ["shapes:train=40,validation=10", f"--out={folder}/data"]
    prepare.main([*inputs, f"--tokenizer={folder}/tokenizer"])
    return folder


def arguments(place: pathlib.Path, out: pathlib.Path):
    return [
        f"--clip={place}/clip/export",
        f"--data={place}/data",
        f"--out={out}",
        "--batch=16",
        "--dtype=float32",
    ]


def test_rows_are_the_frozen_clips_embeddings_in_order(place, tmp_path):
    embed.main(arguments(place, tmp_path))
    case = EmbeddingSource(tmp_path / "train")
    source = sources.open_source(place / "data", split="train")
    cfg, params, card = load.load_clip(place / "clip" / "export")
    size = cfg.model.image_size
    picks = [0, 15, 16, 39]  # first, the seam of two batches, the last
    records = [source[i] for i in picks]
    images = np.stack(
        [image_codec.resize_short(image_codec.decode(record["image"]), size) for record in records]
    )
    captions = [record["caption"] for record in records]
    tokens, mask = caption_tokenizer.load(place / "tokenizer").encode(
        captions, length=cfg.model.context
    )
    out = jax.jit(Clip(cfg.model).apply)(
        {"params": params},
        jnp.asarray(image_codec.to_float(images)),
        jnp.asarray(tokens),
        jnp.asarray(mask),
    )
    for row, index in enumerate(picks):
        assert case[index]["key"] == records[row]["key"]
        np.testing.assert_allclose(case[index]["z_img"], out.z_img[row], atol=1e-5)
        np.testing.assert_allclose(case[index]["z_txt"], out.z_txt[row], atol=1e-5)
    assert len(case) == 40
    assert case.info()["clip_id"] == card.clip_id


def test_raw_embeddings_have_the_same_directions_and_say_what_they_are(place, tmp_path):
    only = ["--splits", "validation"]
    embed.main([*arguments(place, tmp_path / "unit"), *only])
    embed.main([*arguments(place, tmp_path / "raw"), "--raw", *only])
    unit, raw = (EmbeddingSource(tmp_path / name / "validation") for name in ("unit", "raw"))
    for field in ("z_img", "z_txt"):
        stored = raw.vectors(field, 0, 10)
        length = np.linalg.norm(stored, axis=1, keepdims=True)
        assert np.abs(length - 1).min() > 0.01
        np.testing.assert_allclose(stored / length, unit.vectors(field, 0, 10), atol=1e-5)
    assert (unit.info().get("embedding"), raw.info()["embedding"]) == (None, "raw")
    with pytest.raises(UserError):  # the folder holds the others
        embed.main([*arguments(place, tmp_path / "unit"), "--raw", *only])


@pytest.fixture
def labelled(monkeypatch):
    """An encoder that is not compiled and depends on its whole batch, and small shards."""
    monkeypatch.setattr(dataset_embedding, "compile_encoder", _of_the_batch)
    monkeypatch.setattr(dataset_embedding, "SHARD_SIZE", 16)


def _of_the_batch(module, **options):
    def encode(params, images, tokens, mask):
        flat = images.reshape(len(images), -1)
        z = jnp.stack([flat.mean(axis=1), flat.std(axis=1), tokens.sum(axis=1) / 1e4], axis=1)
        return z + z.sum() / 100, z

    return encode


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of embeddings."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_interrupted_embedding_continues(place, tmp_path, monkeypatch, labelled):
    command = [*arguments(place, tmp_path / "cut"), "--splits", "train", "--dtype=float16"]
    embed.main([*command, f"--out={tmp_path}/whole"])
    embedded, calls = dataset_embedding._embedded, []

    def fails_late(*inputs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embedded(*inputs)

    monkeypatch.setattr(dataset_embedding, "_embedded", fails_late)
    with pytest.raises(KeyboardInterrupt):
        embed.main(command)
    with pytest.raises(UserError, match="half-written; run the same .*unclip_jax.embed"):
        EmbeddingSource(tmp_path / "cut" / "train")
    (tmp_path / "cut/train/img_emb/img_emb_0002.npy").write_bytes(b"killed while wri")
    embed.main(command)
    assert len(calls) == 4  # the third shard alone was embedded again
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    rows = np.load(tmp_path / "cut/train/img_emb/img_emb_0001.npy")
    assert rows.dtype == np.float16 and rows.shape == (16, 3)
    embed.main(command)
    assert len(calls) == 4


def test_jobs_of_an_array_write_the_same_bits_and_the_last_completes(place, tmp_path, labelled):
    command = [*arguments(place, tmp_path / "array"), "--splits", "train"]
    embed.main([*command, f"--out={tmp_path}/whole"])
    for share in ("2/3", "0/3"):
        embed.main([*command, f"--shard={share}"])
        with pytest.raises(UserError, match="is half-written"):
            EmbeddingSource(tmp_path / "array" / "train")
    embed.main([*command, "--shard=1/3"])
    assert contents(tmp_path / "array") == contents(tmp_path / "whole")


def test_processes_share_the_shards_of_each_job(place, tmp_path, monkeypatch, labelled):
    monkeypatch.setattr(dataset_embedding, "SHARD_SIZE", 8)
    command = [*arguments(place, tmp_path / "together"), "--splits", "train"]
    embed.main([*command, f"--out={tmp_path}/whole"])
    monkeypatch.setattr(dataset_embedding, "gather", lambda value: [value])
    for job, index, shards in ((1, 1, {3}), (1, 0, {2, 3}), (0, 1, {1, 2, 3}), (0, 0, {*range(5)})):
        together = types.SimpleNamespace(**vars(jax))
        together.process_count, together.process_index = (lambda: 2), (lambda index=index: index)
        monkeypatch.setattr(dataset_embedding, "jax", together)
        embed.main([*command, f"--shard={job}/2"])
        files = (tmp_path / "together" / "train" / "img_emb").iterdir()
        assert {int(path.stem[-4:]) for path in files} == shards
    assert contents(tmp_path / "together") == contents(tmp_path / "whole")


def test_a_folder_that_processes_do_not_share_is_rejected(place, tmp_path, labelled, monkeypatch):
    report = EmbeddingFolder._report
    monkeypatch.setattr(EmbeddingFolder, "_report", lambda f, i: {} if i == 1 else report(f, i))
    with pytest.raises(UserError, match="lacks the shards 1 of 3; run the same command again"):
        embed.main([*arguments(place, tmp_path), "--splits", "train"])


@pytest.mark.parametrize("share", ["3", "3/3", "a/b", "-1/2"])
def test_shares_are_checked(place, tmp_path, share):
    with pytest.raises(UserError, match="--shard is .*; give I/N with 0 <= I < N"):
        embed.main([*arguments(place, tmp_path), f"--shard={share}"])


def write_data(place: pathlib.Path, out: pathlib.Path, what: str) -> None:
    prepare.main([what, f"--out={out}", f"--tokenizer={place}/tokenizer"])


@pytest.mark.parametrize(
    "other",
    [
        "shapes:train=21",
        "shapes:train=19",
        "shapes:train=20 --seed=1",
        "shapes:train=20 --image-size=32",
        "portraits:train=20",
    ],
)
def test_embeddings_of_data_rebuilt_are_rejected(place, tmp_path, other, monkeypatch):
    monkeypatch.setattr(dataset_embedding, "compile_encoder", _constant)
    write_data(place, tmp_path / "data", "shapes:train=20")
    again = [
        f"--clip={place}/clip/export",
        f"--data={tmp_path}/data",
        f"--out={tmp_path}/e",
        "--batch=16",
    ]
    embed.main(again)
    before = (tmp_path / "e/train/img_emb/img_emb_0000.npy").stat().st_mtime_ns
    (tmp_path / "data").rename(tmp_path / "moved")
    embed.main([*again, f"--data={tmp_path}/moved"])  # the same data elsewhere
    what, *options = other.split()
    prepare.main([what, *options, f"--out={tmp_path}/data", f"--tokenizer={place}/tokenizer"])
    with pytest.raises(UserError, match="holds embeddings of other records: their data_digest"):
        embed.main(again)
    assert (tmp_path / "e/train/img_emb/img_emb_0000.npy").stat().st_mtime_ns == before


def _constant(module, **options):
    """An encoder that is not compiled."""

    def encode(params, images, tokens, mask):
        return (jnp.ones((len(images), 4)),) * 2

    return encode


def test_all_captions_are_embedded_on_request(place, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_embedding, "compile_encoder", _constant)
    write(
        tmp_path / "in",
        {
            **{f"{i}.png": image(i) for i in range(3)},
            "0.txt": "a fox",
            "1.json": '["a wolf", "two wolves"]',
            "2.json": '["a bear", "two bears", "bears"]',
        },
    )
    write_data(place, tmp_path / "data", str(tmp_path / "in"))
    again = [f"--clip={place}/clip/export", f"--data={tmp_path}/data", f"--out={tmp_path}/e"]
    embed.main([*again, "--all-captions", "--batch=8"])
    stored = EmbeddingSource(tmp_path / "e" / "train")
    rows = [stored[i] for i in range(len(stored))]
    assert [row["key"] for row in rows] == ["0", "1", "1", "2", "2", "2"]
    assert [row["caption"] for row in rows[3:]] == ["a bear", "two bears", "bears"]
    source = sources.open_source(tmp_path / "data", split="train")
    joined_source = sources.JoinedSource(source, EmbeddingSource(tmp_path / "e" / "train"))
    assert [joined_source[i]["z_txt"].shape for i in range(3)] == [(1, 4), (2, 4), (3, 4)]
    with pytest.raises(UserError, match="holds embeddings with captions = 'all', now it is None"):
        embed.main(again)


def test_embeddings_of_version_0_1_0_are_continued_on_their_own_data_alone(
    place, tmp_path, monkeypatch
):
    monkeypatch.setattr(dataset_embedding, "compile_encoder", _constant)
    out = [*arguments(place, tmp_path / "e"), "--splits", "validation"]
    embed.main(out)
    stats = tmp_path / "e" / "validation" / "stats.json"
    content = json.loads(stats.read_text())
    del content["info"]["data_digest"], content["digest"], content["files"]
    stats.write_text(json.dumps(content))
    embed.main(out)
    prepare.main(
        [
            "shapes:validation=10",
            f"--out={tmp_path}/data",
            f"--tokenizer={place}/tokenizer",
            "--seed=5",
        ]
    )
    with pytest.raises(UserError, match="holds embeddings with data_digest = None, now it is"):
        embed.main([*out, f"--data={tmp_path}/data"])


def test_data_of_another_tokenizer_is_rejected(place, tmp_path):
    data = tmp_path / "data"
    prepare.main(["shapes:train=30,validation=10", f"--out={data}", "--vocab-size=514"])
    broken = [f"--clip={place}/clip/export", f"--data={data}", f"--out={tmp_path}/out"]
    with pytest.raises(UserError, match="the data set has tokenizer .*, the CLIP export"):
        embed.main(broken)


def test_an_export_that_is_no_clip_is_rejected(place, tmp_path):
    wrong = [f"--clip={place}/prior/export", *arguments(place, tmp_path)[1:]]
    with pytest.raises(UserError, match="is a prior; give the export of a CLIP"):
        embed.main(wrong)


def _of_the_row(module, **options):
    """An encoder of unit vectors that is not compiled: colours of four parts of the image."""

    def encode(params, images, tokens, mask):
        half = images.shape[1] // 2
        parts = [images[:, :half, :half], images[:, half:, :half], images[:, :, half:]]
        z = jnp.concatenate([part.std(axis=(1, 2)) - 0.2 for part in parts], axis=1)
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        return z, -z

    return encode


def clip_retrieval(folder, keys, vectors, *, split=25) -> pathlib.Path:
    """Writes embeddings of images as clip-retrieval does, in two parts."""
    for number, rows in enumerate((slice(0, split), slice(split, None))):
        table = pyarrow.table({"image_path": keys[rows], "caption": ["other"] * len(keys[rows])})
        for kind in ("img_emb", "metadata"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
        part = vectors[rows].astype(np.float16)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", part)
    return folder


@pytest.fixture
def foreign(place, tmp_path, monkeypatch):
    """The records of the data, and their embeddings by a frozen encoder, in the same order."""
    monkeypatch.setattr(dataset_embedding, "compile_encoder", _of_the_row)
    monkeypatch.setattr(dataset_embedding, "SHARD_SIZE", 16)
    source = sources.open_source(place / "data", split="train")
    encoder, _ = dataset_embedding.load_encoder(
        place / "clip" / "export", tokenizer_hash="", batch_size=40, raw=False, workers=2
    )
    z_img, _ = dataset_embedding.embed_records(source, range(40), encoder)
    return source, z_img


def join(place, folder, out, *options) -> None:
    data = [f"--clip={place}/clip/export", f"--data={place}/data", f"--out={out}"]
    embed.main(["join", str(folder), *data, "--splits", "train", *options])


def test_joined_embeddings_are_written_to_stores(place, foreign, tmp_path, google_store):
    source, z_img = foreign
    keys = [f"{source[i]['key']}.jpg" for i in range(30)]
    folder = clip_retrieval(tmp_path / "in", keys, z_img[:30])
    url = google_store / tmp_path.name
    for out in (tmp_path / "out", url):
        join(place, folder, out)
    local, stored = (open_embeddings(out / "train") for out in (tmp_path / "out", url))
    assert len(stored) == len(local) == 30
    for one, other in zip(stored, local, strict=True):
        np.testing.assert_equal(one, other)
    joined_source = sources.JoinedSource(source, stored)
    assert [joined_source[i]["key"] for i in range(30)] == [source[i]["key"] for i in range(30)]


def test_embeddings_of_another_tool_are_joined_by_key(place, foreign, tmp_path, capsys):
    source, z_img = foreign
    order = np.random.default_rng(0).permutation(40)
    order = order[~np.isin(order, [3, 20])]  # which that tool could not read
    keys = [f"/elsewhere/{source[int(i)]['key']}.jpg" for i in order]
    folder = clip_retrieval(tmp_path / "in", [*keys, "k.jpg"], z_img[[*order, 3]])
    for _ in range(2):
        join(place, folder, tmp_path / "out")
        line = capsys.readouterr().out
        assert line.startswith("train: 38 of 40 records have an embedding")
    joined_source = sources.JoinedSource(source, EmbeddingSource(tmp_path / "out" / "train"))
    assert [joined_source[i]["key"] for i in range(len(joined_source))] == [
        source[i]["key"] for i in range(40) if i not in (3, 20)
    ]
    for place_in_set, number in enumerate(i for i in range(40) if i not in (3, 20)):
        np.testing.assert_array_equal(
            joined_source[place_in_set]["z_img"],
            z_img[number].astype(np.float16).astype(np.float32),
        )
        assert joined_source[place_in_set]["caption"] == source[number]["caption"]
    assert "clip_id" in EmbeddingSource(tmp_path / "out" / "train").info()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda k, z: (["x" + key for key in k], z), (), "no record of train has an embedding"),
        (lambda k, z: (k, z[::-1]), (), "not of this CLIP or not of these images: 16 records"),
        (lambda k, z: (k, z[:, :5]), (), "has embeddings of 5 dimensions, this CLIP of 9"),
        (lambda k, z: (k, z * 3), (), "embeddings of norm 3; add --raw, if they are"),
        (lambda k, z: (k, z), ("--raw",), "embeddings of norm 1; leave out --raw"),
        (lambda k, z: ([*k[:-1], k[0]], z), (), "has several embeddings of "),
        (lambda k, z: (k, z), ("--key-parts=0",), "--key-parts"),
    ],
)
def test_embeddings_that_do_not_belong(place, foreign, tmp_path, change, options, message):
    source, z_img = foreign
    keys, vectors = change([source[i]["key"] for i in range(40)], z_img)
    folder = clip_retrieval(tmp_path / "in", keys, vectors)
    with pytest.raises(UserError, match=message):
        join(place, folder, tmp_path / "out", *options)


@pytest.mark.parametrize("size", [1, 16])
def test_records_of_one_name_are_rejected(tmp_path, foreign, place, monkeypatch, size):
    monkeypatch.setattr(dataset_embedding, "SHARD_SIZE", size)
    source, z_img = foreign
    records = [{**source[i], "key": f"{i}/same"} for i in range(2)]
    folder = EmbeddingFolder(tmp_path / "out", info={})
    rows = EmbeddingSource(clip_retrieval(tmp_path / "in", ["same", "b"], z_img[:2], split=1))
    encoder, _ = dataset_embedding.load_encoder(
        place / "clip" / "export", tokenizer_hash="", batch_size=4, raw=False, workers=1
    )
    index = embedding_join._KeyIndex(rows, 1)
    with pytest.raises(UserError, match="several records have the key '1/same'.*--key-parts"):
        embedding_join._join(records, index, encoder, folder, raw=False, workers=1)
