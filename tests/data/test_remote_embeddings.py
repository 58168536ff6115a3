"""Embeddings in object stores: those of a local folder, written and read there."""

import pickle

import numpy as np
import pytest

from tests.data.test_embeddings import CAPTIONS, KEYS, Z_IMG, Z_TXT
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url
from unclip_jax.data.embedding_writer import EmbeddingFolder
from unclip_jax.data.remote_embeddings import RemoteEmbeddings, open_embeddings

INFO = {"clip_id": "abc"}


@pytest.fixture
def url(google_store, tmp_path):
    return google_store / tmp_path.name


def write(folder: EmbeddingFolder, *indices: int) -> None:
    for index in indices:
        rows = slice(4 * index, 4 * index + 4)
        vectors = {"z_img": Z_IMG[rows], "z_txt": Z_TXT[rows]}
        folder.write(index, keys=KEYS[rows], captions=CAPTIONS[rows], vectors=vectors)


@pytest.fixture
def source(url) -> RemoteEmbeddings:
    write(EmbeddingFolder(url, info=INFO), 2, 0)  # jobs of an array
    folder = EmbeddingFolder(str(url), info=INFO)
    assert folder.missing(range(3)) == [1] and folder.is_written(0)
    write(folder, 1)
    source = folder.finish(3)
    assert isinstance(source, RemoteEmbeddings)
    return source


def test_objects_are_the_files_of_a_folder(url, source, tmp_path):
    folder = EmbeddingFolder(tmp_path / "local", info=INFO)
    write(folder, 0, 1, 2)
    folder.finish(3)
    local = {
        path.relative_to(tmp_path / "local").as_posix(): path.read_bytes()
        for path in (tmp_path / "local").rglob("*")
        if path.is_file()
    }
    assert {name: (url / name).read_bytes() for name in url.files()} == local


def test_rows_are_read_by_ranges(source):
    half = Z_IMG.astype(np.float16).astype(np.float32)
    assert len(source) == 10 and source.dim("z_img") == 3 and source.info() == INFO
    for index in (0, 5, 9):
        record = source[index]
        assert (record["key"], record["caption"]) == (KEYS[index], CAPTIONS[index])
        np.testing.assert_array_equal(record["z_img"], half[index])
    np.testing.assert_array_equal(source.vectors("z_img", 3, 9), half[3:9])
    rows = np.array([9, 1, 4, 0, 2, 8])
    np.testing.assert_array_equal(source.take("z_img", rows), half[rows])
    assert source.take_keys(rows) == [KEYS[row] for row in rows]
    np.testing.assert_allclose(source.stats("z_img").mean, half.mean(axis=0, dtype=np.float64))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.row(7)["z_img"], half[7])


def test_a_row_takes_one_request_per_field(source, monkeypatch):
    source.row(0)
    calls, read_range = [], Url.read_range
    monkeypatch.setattr(Url, "read_range", lambda *a: (calls.append(a), read_range(*a))[1])
    source.row(1)
    assert [(stop - start) for _, start, stop in calls] == [6, 6]


def test_a_report_takes_one_request(url, source, monkeypatch):
    folder, verbs, request = EmbeddingFolder(url, info=INFO), [], Url._request
    monkeypatch.setattr(Url, "_request", lambda u, v, c: (verbs.append(v), request(u, v, c))[1])
    assert folder.is_written(1) and not folder.is_written(7)
    assert verbs == ["read", "read"]


def test_what_is_missing_is_one_line(url, source):
    with pytest.raises(UserError, match="holds no embeddings with a stats.json of this version"):
        open_embeddings(f"{url}/nowhere")
    with pytest.raises(UserError, match="embeddings with clip_id = 'abc', now it is 'x'"):
        EmbeddingFolder(url, info={"clip_id": "x"})
    array = url / "img_emb" / "img_emb_0002.npy"
    array.write_bytes(array.read_bytes()[:-2])
    with pytest.raises(UserError, match="img_emb_0002.npy ends before byte .* cut short"):
        open_embeddings(url).row(9)
    array.write_bytes(b"x" * 200)
    with pytest.raises(UserError, match="img_emb_0002.npy cannot be read as an array"):
        open_embeddings(url).row(9)
    EmbeddingFolder(url / "part", info=INFO)
    with pytest.raises(UserError, match="/part is half-written; run the same"):
        open_embeddings(url / "part")
