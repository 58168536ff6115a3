"""Sampled embeddings as files: each format gives back what was written."""

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy

from unclip_jax.core.checks import UserError
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.inference.embedding_files import write_embeddings
from unclip_jax.pairs.column_files import open_column

SAMPLES = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
KEYS = ["a", "b", "c"]


def test_npy(tmp_path):
    write_embeddings(SAMPLES, tmp_path / "z.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), SAMPLES)
    write_embeddings(SAMPLES[:, :1], tmp_path / "one.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), SAMPLES[:, 0])


def test_safetensors(tmp_path):
    write_embeddings(SAMPLES, tmp_path / "z.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "z.safetensors")
    np.testing.assert_array_equal(tensors["image_embeds"], SAMPLES.reshape(6, 4))
    assert tensors["row"].tolist() == [0, 0, 1, 1, 2, 2]


def test_parquet(tmp_path):
    write_embeddings(SAMPLES, tmp_path / "z.parquet", keys=KEYS)
    table = pyarrow.parquet.read_table(tmp_path / "z.parquet").to_pylist()
    assert [(row["key"], row["row"], row["sample"]) for row in table[:3]] == [
        ("a", 0, 0),
        ("a", 0, 1),
        ("b", 1, 0),
    ]
    np.testing.assert_array_equal([row["embedding"] for row in table], SAMPLES.reshape(6, 4))


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES.reshape(3, 1, 4, 2)])
def test_parquet_is_float32_and_a_column_of_training_data(samples, tmp_path):
    write_embeddings(samples, tmp_path / "z.parquet", keys=KEYS)
    kind = pyarrow.parquet.read_schema(tmp_path / "z.parquet").field("embedding").type
    while pyarrow.types.is_nested(kind):
        kind = kind.value_type
    assert kind == pyarrow.float32()
    column = open_column(f"{tmp_path}/z.parquet:embedding")
    flat = samples.reshape(-1, *samples.shape[2:])
    np.testing.assert_array_equal(column.block(0, len(column)), flat)


def test_a_folder_of_clip_retrieval(tmp_path):
    write_embeddings(SAMPLES, tmp_path / "z", keys=KEYS)
    source = EmbeddingSource(tmp_path / "z")
    np.testing.assert_array_equal(source.vectors("z_img", 0, 6), SAMPLES.reshape(6, 4))
    assert source[3]["key"] == "b/1"
    assert not list((tmp_path / "z" / "text_emb").glob("*.npy"))  # they embed no caption
    with pytest.raises(UserError, match="holds embeddings already"):
        write_embeddings(SAMPLES, tmp_path / "z")


@pytest.mark.parametrize(
    ("name", "samples", "keys", "message"),
    [
        ("z.txt", SAMPLES, None, "unknown format; end it in .npy, .safetensors or .parquet"),
        ("z.npy", SAMPLES, ["a"], "there are 1 keys for 3 rows; give one each"),
        ("z", SAMPLES[..., None], None, "would hold sequences"),
    ],
)
def test_what_cannot_be_written_is_rejected(name, samples, keys, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_embeddings(samples, tmp_path / name, keys=keys)
