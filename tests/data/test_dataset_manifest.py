import json
import pathlib

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest
from unclip_jax.data.dataset_manifest import DatasetManifest, Shard, make_split
from unclip_jax.version import __version__

SHARDS = (Shard("train-0", 3, "aa"), Shard("train-1", 4, "bb"))


def split(name: str = "train", shards: tuple[Shard, ...] = SHARDS) -> dataset_manifest.Split:
    return make_split(name, shards, plan="p", sources=("x", "y"))


def test_counts_add_up_and_order_matters():
    assert split().count == 7
    assert split().hash != split(shards=SHARDS[::-1]).hash
    others = tuple(Shard("other", shard.count, shard.sha256) for shard in SHARDS)
    assert split().hash == split(shards=others).hash


def test_written_manifests_come_back(tmp_path: pathlib.Path):
    case = (
        DatasetManifest().with_split(split()).with_split(split("validation")).with_tokenizer("abc")
    )
    dataset_manifest.write(tmp_path, case)
    again = dataset_manifest.read(tmp_path)
    assert again == case
    assert (again.tokenizer, again.code_version) == ("abc", __version__)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_split_is_replaced_by_name():
    case = DatasetManifest().with_split(split()).with_split(split("validation"))
    again = case.with_split(split("train", SHARDS[:1]))
    assert sorted(s.name for s in again.splits) == ["train", "validation"]
    assert again.split("train").count == 3


def test_unknown_split():
    with pytest.raises(UserError, match="no split 'trian'.*Did you mean 'train'"):
        DatasetManifest().with_split(split()).split("trian")


def test_missing_folder(tmp_path: pathlib.Path):
    with pytest.raises(
        UserError, match="no data set at .*unclip_jax.prepare shapes --out=.*/nowhere`"
    ):
        dataset_manifest.read(tmp_path / "nowhere")


def test_unfinished_folder(tmp_path: pathlib.Path):
    (tmp_path / "train-00000-of-00002.array_record").write_bytes(b"")
    with pytest.raises(UserError, match="has no manifest.json.*did not finish.*again"):
        dataset_manifest.read(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"'])
def test_damaged_manifest(tmp_path: pathlib.Path, content: str):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="is damaged; prepare the data set again"):
        dataset_manifest.read(tmp_path)


def test_manifest_of_another_format(tmp_path: pathlib.Path):
    dataset_manifest.write(tmp_path, DatasetManifest())
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads 1"):
        dataset_manifest.read(tmp_path)


def test_missing_shard(tmp_path: pathlib.Path):
    (tmp_path / "train-0").touch()
    with pytest.raises(UserError, match="train-1 is missing, though manifest.json lists it"):
        dataset_manifest.shard_paths(tmp_path, split())
