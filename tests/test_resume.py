"""Interrupted and continued, a run ends in the same bits: the options with the most moving parts.

Nightly, because real stages are compiled; the parts have quick tests of their own.
"""

import pathlib

import jax
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core.trees import flatten_paths
from unclip_jax.data import dataset_manifest, records
from unclip_jax.data.image_codec import encode_png
from unclip_jax.experiment import training_run
from unclip_jax.experiment.loading import read
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.training import loop

pytestmark = pytest.mark.nightly

SETTINGS = {
    "clip": ["optim.sam=0.1", "optim.sam_batch=2", "data.mixture=('{}/small',)"],
    "upsampler_1024": ["data.blur=0.0", "data.bsr=0.7", "model.augment.most=0.5"],
    "upsampler_256": ["data.blur=0.5", "optim.sam=0.05", "train.accumulate=2"],
}
COMMON = ["steps=5", "batch_size=16", "save_every=2", "eval_every=0", "sample_every=0"]  # of train


def write(folder: pathlib.Path, count: int, seed: int) -> None:
    """A prepared folder with pictures of noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    pictures = rng.integers(0, 256, (count, 80, 64, 3), dtype=np.uint8)
    case = [
        {"image": encode_png(x), "caption": f"noise {i}", "key": f"{seed}-{i}", "scene": ""}
        for i, x in enumerate(pictures)
    ]
    name = records.shard_name("train", 0, 1)
    result = records.write_shard(folder / name, iter(case))
    shards = (dataset_manifest.Shard(name, result.written, result.sha256),)
    split = dataset_manifest.make_split("train", shards, plan="test", sources=("test",))
    tokenizer = caption_tokenizer.train([record["caption"] for record in case], vocab_size=600)
    tokenizer.save(folder / dataset_manifest.TOKENIZER)
    manifest = dataset_manifest.DatasetManifest().with_split(split)
    dataset_manifest.write(folder, manifest.with_tokenizer(tokenizer.hash))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "large", 20, 0)
    write(folder / "small", 7, 1)
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_with_every_option_continues_bit_for_bit(name, data, tmp_path, monkeypatch):
    keys = [each.format(data) for each in SETTINGS[name]]
    keys += [f"train.{each}" for each in COMMON]
    keys += [f"data.path={data / 'large'}", "data.eval_split=", "optim.warmup_steps=2"]
    spec = f"{tiny.ROOT}/experiments/{name}.py:tiny"
    experiment = read(spec, overrides=[f"--config.{key}" for key in keys])

    def bits(folder: str) -> dict[str, bytes]:
        state, _, _ = training_run.train(experiment, tmp_path / folder)
        return {path: np.asarray(x).tobytes() for path, x in flatten_paths(state).items()}

    expected = bits("whole")
    ask = loop.DevicePrefetcher.next

    def falter(prefetcher):
        if prefetcher._count == 3:
            raise RuntimeError("power cut")
        return ask(prefetcher)

    with monkeypatch.context() as patch:
        patch.setattr(loop.DevicePrefetcher, "next", falter)
        with pytest.raises(RuntimeError, match="power cut"):
            bits("cut")
    assert bits("cut") == expected
    assert jax.device_count() > 1
