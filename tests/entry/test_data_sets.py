"""Every kind of data set goes through training's loader, embedding and evaluation.

`rendered` shows all that it takes to add a kind: one function, registered under a scheme.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests import cascades
from tests.stages import tiny
from unclip_jax import embed, evaluate, prepare
from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.data import sources
from unclip_jax.data.dataset import Dataset
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.data.shapes import generator
from unclip_jax.data.shapes.builder import Shapes
from unclip_jax.data.world_builder import WorldConfig
from unclip_jax.evaluation import image_sets
from unclip_jax.experiment import input_pipeline
from unclip_jax.inference import batch_sampling

COUNTS = {"train": 24, "validation": 8}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """An untrained cascade without upsamplers."""
    folder = tmp_path_factory.mktemp("run")
    return cascades.write(folder, names=("clip", "prior", "decoder"))


@pytest.fixture(scope="module")
def tfds_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    config = WorldConfig(name="few", **COUNTS, compositional=1)
    Shapes(data_dir=folder, config=config, file_format="array_record").download_and_prepare()
    return f"tfds:shapes/few@{folder}"


@pytest.fixture(scope="module")
def prepared_set(run_dir):
    counts = ",".join(f"{name}={count}" for name, count in COUNTS.items())
    prepare.main([f"shapes:{counts}", f"--out={run_dir}/data", f"--tokenizer={run_dir}/tokenizer"])
    return f"{run_dir}/data"


def records(split):
    return list(generator.scenes(split, seed=0, start=0, count=COUNTS[split]))


def rendered(location, keys):
    """Opens scenes rendered from the seed that the location names."""
    assert location == "0"
    return Dataset(splits=tuple(COUNTS), open_split=records)


@pytest.fixture(scope="module")
def toy_set():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.SOURCES, "rendered", rendered)
        yield "rendered:0"


@pytest.fixture(scope="module", params=["prepared_set", "tfds_set", "toy_set"])
def data(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def embeddings(data, run_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    embed.main([f"--clip={run_dir}/clip/export", f"--data={data}", f"--out={folder}"])
    return folder


def training(data, **changes):
    mine = tiny.experiment("clip")
    return dataclasses.replace(mine, data=dataclasses.replace(mine.data, path=data, **changes))


def test_training_reads_batches_as_specified(data, run_dir):
    experiment = training(data, tokenizer=f"{run_dir}/tokenizer")
    stage = experiment.build_stage()
    inputs = input_pipeline.open_inputs(experiment, stage)
    batches.check(stage.batch_spec, next(inputs.train))
    (held_out,) = inputs.held_out()
    assert held_out["caption"].tolist() == [r["caption"] for r in records("validation")]
    batches.check(stage.batch_spec, held_out)


def test_every_split_is_embedded(embeddings):
    for split, count in COUNTS.items():
        keys = [row["key"] for row in EmbeddingSource(embeddings / split)]
        assert keys == [record["key"] for record in records(split)]
        assert len(keys) == count


def test_embeddings_join_their_data_set(data, embeddings, run_dir):
    mine = tiny.experiment("prior")
    data_config = dataclasses.replace(
        mine.data, path=data, embeddings=str(embeddings), tokenizer=f"{run_dir}/tokenizer"
    )
    mine = dataclasses.replace(mine, data=data_config)
    stage = mine.build_stage()
    batches.check(stage.batch_spec, next(input_pipeline.open_inputs(mine, stage).train))


def test_a_cascade_is_evaluated(data, run_dir, tmp_path, monkeypatch):
    if data != "rendered:0":  # sampling does not depend on the data set

        def sample_images(loaded, captions, **options):
            return np.zeros((len(captions), 16, 16, 3), np.uint8)

        monkeypatch.setattr(batch_sampling, "sample_images", sample_images)
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("data"))
    evaluate.main([f"--models={tmp_path}/run", f"--data={data}", "--num=2"])
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["retrieval"]["pairs"] == COUNTS["validation"]
    assert result["checker"]["z_img"]["joint"]["total"] == 2


def test_a_set_of_images_has_captions(data):
    images = image_sets.open_set(data, image_sets.ImageSetOptions(num=4))
    assert images.captions == tuple(record["caption"] for record in records("validation")[:4])
    assert images.size == (64, 64)
    assert sum(len(batch) for batch in images.batches(3, slice(None))) == 4


def test_a_data_set_is_prepared_with_a_tokenizer(data, tmp_path, prepared_set):
    if data == prepared_set:
        pytest.skip("a prepared folder is not an input")
    prepare.main([f"validation={data}", f"--out={tmp_path}/data", "--vocab-size=520"])
    dataset = sources.open_dataset(tmp_path / "data")
    assert dataset.splits == ("validation",)
    source = dataset.open_split("validation")
    assert [source[i] for i in range(len(source))] == records("validation")
    assert dataset.tokenizer_dir is not None
    with pytest.raises(UserError, match="'train' would mix .* with other inputs; give it a split"):
        prepare.main([data, str(tmp_path), f"--out={tmp_path}/other"])


def test_a_data_set_without_a_tokenizer_names_the_key(tfds_set):
    experiment = training(tfds_set)
    with pytest.raises(UserError, match="no tokenizer of its own; set config.data.tokenizer to"):
        input_pipeline.open_inputs(experiment, experiment.build_stage())
