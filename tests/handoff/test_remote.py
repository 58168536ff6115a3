"""Exports in object stores: copied once, with their digests compared."""

import json

import numpy as np
import pytest

from tests import object_stores
from unclip_jax import embed
from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url
from unclip_jax.handoff import export, load, remote, shipped
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.inference import dataset_embedding


@pytest.fixture
def place(google_store, tmp_path, monkeypatch):
    """An export in a run directory of the store, and a cache of its own."""
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
    place = google_store / tmp_path.name / "clip" / "export"
    upload(tmp_path / "export", place, value=1.0)
    return place


def upload(folder, place, *, value: float) -> None:
    manifest = Manifest(stage="clip", size="tiny", step=1, config={})
    params = {"w": np.full((2, 3), value, np.float32)}
    export.write_export(
        folder, params=params, manifest=manifest, tokenizer_dir=None, layout="safetensors"
    )
    object_stores.upload(folder, place)


def weights(folder) -> np.ndarray:
    return np.asarray(load.read_params(folder, abstract={"w": np.zeros((2, 3), np.float32)})["w"])


def test_a_local_path_stays_as_it_is(tmp_path):
    assert remote.local_export(tmp_path) == tmp_path
    assert remote.local_export(str(tmp_path)) == tmp_path


def test_an_export_is_copied_once(place, tmp_path, monkeypatch):
    folder = remote.local_export(str(place))
    assert (weights(folder) == 1.0).all()
    monkeypatch.setattr(Url, "download", None)  # a second copy would fail
    assert remote.local_export(place) == folder


def test_embed_reads_the_clip_through_its_copy(place, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        dataset_embedding, "embed_dataset", lambda _, **kwargs: calls.append(kwargs)
    )
    embed.main([f"--clip={place}", "--data=data", f"--out={tmp_path / 'out'}"])
    assert calls[0]["clip"] == remote.local_export(place)


def test_another_export_at_the_same_place_is_another_copy(place, tmp_path):
    before = remote.local_export(place)
    upload(tmp_path / "export", place, value=2.0)
    after = remote.local_export(place)
    assert before != after and (weights(after) == 2.0).all() and (weights(before) == 1.0).all()


def test_a_run_directory_is_copied(place):
    url = str(place).removesuffix("/clip/export")
    run = shipped.run_directory(url)
    assert [path.name for path in run.iterdir()] == ["clip"]
    assert (weights(run / "clip" / "export") == 1.0).all()
    assert shipped.run_directory(Url(url)) == run


def test_a_file_that_does_not_fit_its_manifest_is_rejected_and_not_kept(place):
    content = (place / export.TENSORS).read_bytes()
    (place / export.TENSORS).write_bytes(content[:-4] + b"\0\0\0\1")
    for _ in range(2):
        with pytest.raises(UserError, match=r"the digest of params.safetensors differs"):
            remote.local_export(place)
    (place / export.TENSORS).write_bytes(content)
    assert (weights(remote.local_export(place)) == 1.0).all()


def test_a_manifest_without_its_files(place):
    (place / export.TENSORS).unlink()
    with pytest.raises(UserError, match=r"cannot read .*params.safetensors: no such object"):
        remote.local_export(place)
    assert not list((storage.cache_folder() / "exports").iterdir())


def test_a_file_of_the_manifest_that_points_elsewhere_is_rejected(place):
    manifest = json.loads((place / export.MANIFEST).read_bytes())
    manifest["files"]["../../escaped"] = "0" * 64
    (place / export.MANIFEST).write_bytes(json.dumps(manifest).encode())
    with pytest.raises(UserError, match="manifest.json"):
        remote.local_export(place)


def test_what_is_no_export(google_store):
    with pytest.raises(UserError, match=r"gs://bucket/none is not a finished export"):
        remote.local_export("gs://bucket/none")
    with pytest.raises(UserError, match=r"gs://bucket/none holds no exports"):
        shipped.run_directory("gs://bucket/none")
    with pytest.raises(UserError, match="another kind than gs:// and s3://"):
        shipped.run_directory("hf://me/run")


def test_a_cache_that_cannot_be_written(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "file"))
    with pytest.raises(UserError, match="^cannot copy gs://.*another folder with UNCLIP_CACHE"):
        remote.local_export(place)
