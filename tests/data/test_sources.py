import io
import pathlib
import pickle
import sys
from concurrent import futures
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest, prepared, sources
from unclip_jax.data.dataset import FeatureKeys, content_digest
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.data.prepared import ShardSource


class Toy(tfds.core.GeneratorBasedBuilder):
    """Five captioned pictures."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = epath.Path(__file__)
    samples: Any = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["red_fox", "grey_wolf"]),
            "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            yield (
                i,
                {
                    "image": io.BytesIO(self.samples.png(i)),
                    "caption": f"Bild {i} ä",
                    "label": i % 2,
                    "captions": {"text": [f"first {i}", "second"]},
                },
            )


@pytest.fixture(scope="module")
def toy(samples, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tfds")
    Toy.samples = samples
    Toy(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_records_in_the_order_of_shards(source: ShardSource, samples):
    assert len(source) == 10
    assert [source[i] for i in range(10)] == [samples.record(i) for i in range(10)]


@pytest.mark.parametrize("index", [-1, 10])
def test_indices_outside(source: ShardSource, index: int):
    with pytest.raises(IndexError):
        source[index]


def test_many_threads_read_the_same(source: ShardSource):
    order = np.random.default_rng(0).integers(0, 10, 200).tolist()
    with futures.ThreadPoolExecutor(8) as pool:
        keys = [record["key"] for record in pool.map(source.__getitem__, order)]
    assert keys == [f"k{i:04d}" for i in order]


def test_sources_can_be_sent_to_other_processes(source: ShardSource):
    source[3]
    again = pickle.loads(pickle.dumps(source))
    assert (len(again), again[9]["key"]) == (10, "k0009")


def test_a_shard_cut_short_is_found_at_once(folder: pathlib.Path):
    shard = folder / "train-00002-of-00003.array_record"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="00002-of-00003.* 0 readable records, the manifest says 6"):
        prepared.open_split(folder, split="train")


def test_a_shard_that_breaks_later_is_found_on_reading(source: ShardSource, folder: pathlib.Path):
    source = pickle.loads(pickle.dumps(source))  # not opened yet
    (folder / "train-00000-of-00003.array_record").write_bytes(b"")
    with pytest.raises(UserError, match="0 readable records, the manifest says 4"):
        source[0]


def test_a_damaged_record_is_named(folder: pathlib.Path):
    shard = folder / "train-00000-of-00003.array_record"
    content = bytearray(shard.read_bytes())
    at = content.find(b"number 2")
    content[at : at + 8] = b"NUMBER 2"
    shard.write_bytes(content)
    source = prepared.open_split(folder, split="train")
    assert source[1]["key"] == "k0001"
    with pytest.raises(UserError, match="record 2 of .*00000-of-00003.* is damaged"):
        source[2]


def test_an_unknown_split(folder: pathlib.Path):
    with pytest.raises(UserError, match="no split 'test'"):
        sources.open_source(str(folder), split="test")


@pytest.mark.parametrize("path", ["tdfs:toy", pathlib.Path("tdfs:toy")])
def test_unknown_scheme(path: str | pathlib.Path):
    message = "data set 'tdfs:toy' has an unknown scheme 'tdfs'. Did you mean 'tfds'\\? .*prepare"
    with pytest.raises(UserError, match=message):
        sources.open_source(path, split="train")


def test_folder_with_a_colon_in_its_name(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    folder.rename(folder.parent / "tfds:toy")
    monkeypatch.chdir(folder.parent)
    assert sources.open_dataset("tfds:toy").prepared_dir == pathlib.Path("tfds:toy")


def test_data_sets_and_folders_of_images(folder: pathlib.Path, tmp_path: pathlib.Path):
    assert sources.is_dataset(folder)
    assert sources.is_dataset("tfds:shapes")
    assert not sources.is_dataset(tmp_path)
    assert not sources.is_dataset("images.npz")


def test_splits_and_tokenizer_of_a_prepared_data_set(folder: pathlib.Path):
    dataset = sources.open_dataset(folder)
    assert (dataset.splits, dataset.tokenizer_dir, dataset.tokenizer_hash) == (("train",), None, "")
    dataset_manifest.write(folder, dataset_manifest.read(folder).with_tokenizer("abc"))
    assert sources.open_dataset(folder).tokenizer_dir is None  # the folder no longer exists
    (folder / "tokenizer").mkdir()
    dataset = sources.open_dataset(folder)
    assert (dataset.tokenizer_dir, dataset.tokenizer_hash) == (folder / "tokenizer", "abc")


def test_splits_of_a_tfds_set(toy: pathlib.Path):
    dataset = sources.open_dataset(f"tfds:toy@{toy}")
    assert (dataset.splits, dataset.tokenizer_dir) == (("train",), None)


def test_tfds_sets_are_read_without_tensorflow(toy: pathlib.Path, samples):
    source = sources.open_source(f"tfds:toy@{toy}", split="train")
    result = {source[i]["caption"]: source[i] for i in range(len(source))}
    assert sorted(result) == [f"Bild {i} ä" for i in range(5)]
    for i in range(5):
        assert result[f"Bild {i} ä"]["image"] == samples.png(i)
        assert result[f"Bild {i} ä"]["scene"] == ""
    assert len({record["key"] for record in result.values()}) == 5
    assert "tensorflow" not in sys.modules


def test_tfds_labels_become_words(toy: pathlib.Path):
    source = sources.open_source(
        f"tfds:toy@{toy}", split="train[:2]", keys=FeatureKeys(caption="label")
    )
    assert len(source) == 2
    assert {source[i]["caption"] for i in range(2)} <= {"red fox", "grey wolf"}


def test_of_several_tfds_captions_the_first_is_taken(toy: pathlib.Path):
    keys = FeatureKeys(caption="captions/text")
    source = sources.open_source(f"tfds:toy@{toy}", split="train", keys=keys)
    assert sorted(source[i]["caption"] for i in range(5)) == [f"first {i}" for i in range(5)]


def test_unknown_tfds_set(toy: pathlib.Path):
    with pytest.raises(UserError, match="no TFDS data set 'unheard_of' in .*array_record"):
        sources.open_source(f"tfds:unheard_of@{toy}", split="train")


def test_unknown_tfds_split(toy: pathlib.Path):
    with pytest.raises(UserError, match="'toy', split 'vali': Unknown split"):
        sources.open_source(f"tfds:toy@{toy}", split="vali")


def test_unknown_tfds_feature(toy: pathlib.Path):
    with pytest.raises(UserError, match="no feature 'title'.*caption.*Set --image-key"):
        sources.open_source(f"tfds:toy@{toy}", split="train", keys=FeatureKeys(caption="title"))


def test_tfds_records_have_all_captions(toy: pathlib.Path):
    keys = FeatureKeys(caption="captions/text")
    record = sources.open_source(f"tfds:toy@{toy}", split="train", keys=keys)[2]
    assert record["captions"] == [record["caption"], "second"]
    assert "captions" not in sources.open_source(f"tfds:toy@{toy}", split="train")[2]


def test_tfds_set_that_was_never_prepared(toy: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="must be prepared on this machine"):
        sources.open_source(f"tfds:toy@{tmp_path}", split="train")


def embed(directory: pathlib.Path, keys: list[str], **info: str):
    writer = EmbeddingWriter(directory, info=info)
    vectors = np.arange(len(keys) * 2, dtype=np.float32).reshape(-1, 2)
    writer.add(keys, [""] * len(keys), z_img=vectors, z_txt=-vectors)
    return writer.finish()


def test_joined_records_carry_their_embeddings(source: ShardSource, tmp_path: pathlib.Path):
    keys = [f"k{i:04d}" for i in range(10)]
    joined_source = sources.JoinedSource(source, embed(tmp_path / "e", keys))
    assert len(joined_source) == 10
    record = joined_source[7]
    assert record["key"] == "k0007"
    assert record["image"] == source[7]["image"]
    assert record["caption"] == "picture number 7"  # the data set's own caption
    np.testing.assert_array_equal(record["z_img"], [14, 15])
    np.testing.assert_array_equal(record["z_txt"], [-14, -15])


def test_embeddings_of_these_records_need_no_keys(source, tmp_path, monkeypatch):
    keys = [f"k{i:04d}" for i in range(10)]
    joined_source = sources.JoinedSource(
        source, embed(tmp_path / "e", keys, data_digest=content_digest(source))
    )
    monkeypatch.setattr(joined_source._embeddings, "_table", None)
    np.testing.assert_array_equal(joined_source[7]["z_img"], [14, 15])
    wrong = embed(tmp_path / "w", keys[::-1], data_digest=content_digest(source))
    with pytest.raises(UserError, match="record 0 is 'k0000', but embedding 0 .* of 'k0009'"):
        sources.JoinedSource(source, wrong)


def test_joining_another_number_of_embeddings(source: ShardSource, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="holds 1 embeddings for 10 records"):
        sources.JoinedSource(source, embed(tmp_path / "e", ["k0000"]))


def test_joining_embeddings_of_other_records(source: ShardSource, tmp_path: pathlib.Path):
    keys = [f"k{i:04d}" for i in range(9)] + ["other"]
    with pytest.raises(UserError, match="record 9 is 'k0009'.* of 'other'.*unclip_jax.embed"):
        sources.JoinedSource(source, embed(tmp_path / "e", keys))
