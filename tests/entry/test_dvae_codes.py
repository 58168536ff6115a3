"""Codes of the frozen discrete VAE take the place of images in the batches of DALL-E."""

import dataclasses
import functools
import itertools
import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from tests.stages import tiny
from unclip_jax import embed, prepare
from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codes, sources
from unclip_jax.data.dataset import without_image
from unclip_jax.data.image_codes import CodedSource, CodeWriter
from unclip_jax.experiment import frozen_dvae, input_pipeline
from unclip_jax.experiment.loading import read
from unclip_jax.handoff import load as handoff
from unclip_jax.inference import image_codes as inference_codes
from unclip_jax.inference.load import load_dvae
from unclip_jax.stages import dvae


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = cascades.write(tmp_path_factory.mktemp("run"), names=("dvae", "dalle", "clip"))
    inputs = ["shapes:train=40,validation=16", f"--out={folder}/data", "--image-size=16"]
    prepare.main([*inputs, f"--tokenizer={folder}/tokenizer"])
    return folder


def settings(run_dir, *more):
    data = [f"data.path={run_dir}/data", f"data.dvae={run_dir}/dvae/export"]
    changes = ["train.batch_size=8", *data, *more]
    spec = f"{tiny.ROOT}/experiments/dalle.py:tiny"
    return read(spec, overrides=[f"--config.{each}" for each in changes])


def test_images_are_replaced_by_their_codes(run_dir):
    export = run_dir / "dvae" / "export"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    result = frozen_dvae.reader(export, load_size=16)(
        {"image": pixels, "caption": np.array(["a"] * 3)}
    )
    images = pixels / np.float32(127.5) - np.float32(1)
    cfg, params, _ = load_dvae(export)
    expected = jax.jit(functools.partial(dvae.encode, cfg))(params, jnp.asarray(images))
    assert result.keys() == {"codes", "caption"}
    np.testing.assert_array_equal(result["codes"], np.asarray(expected).reshape(3, 16))


def test_training_reads_codes_and_knows_whose_they_are(run_dir):
    experiment = settings(run_dir)
    stage = experiment.build_stage()
    inputs = input_pipeline.open_inputs(experiment, stage)
    (batch,) = itertools.islice(iter(inputs.train), 1)
    batches.check(stage.batch_spec, {name: batch[name] for name in stage.batch_spec})
    assert len(np.unique(batch["codes"])) > 1 and "image" not in batch
    card = handoff.read_manifest(run_dir / "dvae" / "export")
    assert inputs.facts["dvae_id"] == card.dvae_id is not None
    export = run_dir / "dvae" / "export"
    assert inputs.train.origin["dvae"] == handoff.content_digest(export)
    elsewhere = dataclasses.replace(experiment.data, dvae="elsewhere")
    other = dataclasses.replace(experiment, data=elsewhere)
    assert other.identity() == experiment.identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("data.dvae=", "config.data.dvae is empty, but stage 'dalle' is trained on the codes"),
        ("data.load_size=32", "load_size is 32, but the discrete VAE in .* reads images of 16 pix"),
        ("model.model.grid=2", "config.model.model.grid is 2, but .* has grid 4; set it to that"),
        ("model.model.code_count=63", "code_count is 63, but .* has code_count 64"),
    ],
)
def test_a_discrete_vae_that_does_not_fit_is_rejected(run_dir, changes, message):
    def open_inputs():
        experiment = settings(run_dir, changes)
        return input_pipeline.open_inputs(experiment, experiment.build_stage())

    with pytest.raises(UserError, match=message):
        open_inputs()


def test_an_exported_transformer_is_trained_on_with_the_codes_of_its_run(run_dir):
    where = run_dir / "dalle" / "export"
    spec = f"{tiny.ROOT}/experiments/finetune.py:dalle"
    experiment = read(spec, overrides=[f"--config.init_from={where}"])
    assert experiment.model == tiny.experiment("dalle").model
    assert experiment.data.dvae == str(run_dir / "dvae" / "export")
    assert experiment.data.load_size == 16 and experiment.data.embeddings == ""


def test_another_stage_is_no_discrete_vae(run_dir):
    with pytest.raises(UserError, match="is a clip; give the export of a dvae"):
        frozen_dvae.reader(run_dir / "clip" / "export", load_size=16)


# Codes on disk.


@pytest.fixture(scope="module")
def codes(run_dir):
    out = run_dir / "codes"
    command = ["codes", f"--dvae={run_dir}/dvae/export", f"--data={run_dir}/data", f"--out={out}"]
    embed.main([*command, "--batch=7"])
    return out


def batches_of(experiment):
    """The first batch of training and the whole validation split, without images."""
    inputs = input_pipeline.open_inputs(experiment, experiment.build_stage())
    (first,) = itertools.islice(iter(inputs.train), 1)
    return [first, *inputs.held_out()]


def test_stored_codes_are_those_of_the_images_in_every_batch(run_dir, codes):
    stored = batches_of(settings(run_dir, f"data.codes={codes}", "data.dvae="))
    computed = batches_of(settings(run_dir))
    assert len(stored) == len(computed) == 3
    for own, expected in zip(stored, computed, strict=True):
        assert own["codes"].dtype == np.int32
        for name in ("codes", "tokens", "token_mask"):
            np.testing.assert_array_equal(own[name], expected[name])


def test_an_interrupted_encoding_continues_behind_its_last_file(run_dir, codes, tmp_path):
    info = {k: v for k, v in image_codes.read_info(codes / "train").items() if k != "finished"}
    whole = np.load(codes / "train" / "codes_0000.npy")
    writer = CodeWriter(tmp_path / "train", info=info, shard=16)
    writer.add(whole[:20])  # one file of 16; the last 4 are unwritten
    source = sources.open_source(f"{run_dir}/data", split="train")
    with pytest.raises(UserError, match="is half-written; run the same `embed codes` command"):
        CodedSource(source, tmp_path / "train")
    command = ["codes", f"--dvae={run_dir}/dvae/export", f"--data={run_dir}/data"]
    embed.main([*command, f"--out={tmp_path}", "--splits", "train"])
    files = sorted((tmp_path / "train").glob("codes_*.npy"))
    assert [len(np.load(path)) for path in files] == [16, 24]
    coded = pickle.loads(pickle.dumps(CodedSource(source, tmp_path / "train")))
    np.testing.assert_array_equal([coded[i]["codes"] for i in range(40)], whole)


def test_a_complete_folder_stays_complete_while_the_command_runs_again(
    run_dir, codes, tmp_path, monkeypatch
):
    folder = copy_with(codes, tmp_path / "codes")
    before = (folder / "train" / "info.json").stat()
    readers = []

    def read(source, **_):
        readers.append(CodedSource(source, folder / "train"))  # as a training would
        return iter(())

    monkeypatch.setattr(inference_codes, "_batches", read)
    command = ["codes", f"--dvae={run_dir}/dvae/export", f"--data={run_dir}/data"]
    embed.main([*command, f"--out={folder}", "--splits", "train"])
    assert len(readers) == 1
    assert (folder / "train" / "info.json").stat().st_mtime_ns == before.st_mtime_ns


def test_a_complete_folder_that_is_written_to_is_half_written_until_the_end(codes, tmp_path):
    folder = copy_with(codes, tmp_path / "codes") / "train"
    info = {k: v for k, v in image_codes.read_info(folder).items() if k != "finished"}
    rows = np.load(folder / "codes_0000.npy")
    (folder / "codes_0000.npy").unlink()
    writer = CodeWriter(folder, info=info, shard=8)
    writer.add(rows[:8])
    assert image_codes.read_info(folder)["finished"] is False
    writer.finish()
    assert image_codes.read_info(folder)["finished"] is True


def test_images_are_not_read_for_stored_codes(run_dir, codes):
    source = sources.open_source(f"{run_dir}/data", split="train")
    coded = CodedSource(source, codes / "train")
    expected = coded[3]

    class WithoutImage:
        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            raise AssertionError("an image is read")

        def without_image(self, index):
            return {name: value for name, value in source[index].items() if name != "image"}

    coded._source = WithoutImage()
    record = without_image(coded, 3)
    assert record.keys() == expected.keys() - {"image"}
    np.testing.assert_array_equal(record["codes"], expected["codes"])


def test_stored_codes_are_of_one_data_set(run_dir, codes):
    with pytest.raises(UserError, match=r"config.data.codes is '.*codes', codes of .* leave codes"):
        settings(run_dir, f"data.codes={codes}", "data.mixture=('elsewhere',)")
    assert settings(run_dir, "data.mixture=('elsewhere',)").data.mixture == ("elsewhere",)


def copy_with(codes, folder, *, rows=None, **info):
    """A copy of the codes of the training split with other facts."""
    shutil.copytree(codes, folder)
    stored = image_codes.read_info(folder / "train")
    (folder / "train" / "info.json").write_text(json.dumps({**stored, **info}))
    if rows is not None:
        np.save(folder / "train" / "codes_0000.npy", rows)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dvae_id": "ab" * 32}, "are of the discrete VAE abababababab, but that in .* is"),
        ({"grid": 2}, "config.model.model.grid is 4, but the discrete VAE of the codes in .* 2"),
        ({"code_count": 63}, "code_count is 64, but the discrete VAE of the codes in .* has"),
        ({"data_digest": "x"}, "are of other records; compute them again with `python -m"),
        ({"finished": False}, "is half-written; run the same `embed codes` command again"),
        ({"rows": np.zeros((40, 9), np.uint16)}, r"is uint16\[40, 9\]; expected rows of 16 codes"),
        ({"rows": np.zeros((9, 16), np.uint16)}, "holds codes of 9 images for 40 records"),
        ({"rows": np.full((40, 16), 64, np.uint16)}, "codes_0000.npy holds code 64 in row .*; the"),
    ],
)
def test_codes_that_do_not_fit_are_rejected(run_dir, codes, tmp_path, changes, message):
    folder = copy_with(codes, tmp_path / "codes", **changes)
    with pytest.raises(UserError, match=message):
        batches_of(settings(run_dir, f"data.codes={folder}"))


def test_mirrored_images_have_no_stored_codes(run_dir):
    with pytest.raises(UserError, match="config.data.flip is on, but config.data.codes are those"):
        settings(run_dir, "data.codes=x", "data.flip=True")


def test_folders_of_other_codes_and_too_many_codes_are_rejected(codes, tmp_path):
    info = image_codes.read_info(codes / "train")
    with pytest.raises(UserError, match="holds codes with grid = 4, now it is 8; choose another"):
        CodeWriter(codes / "train", info={**info, "grid": 8})
    with pytest.raises(UserError, match="has 65537 codes; files store at most 65536"):
        CodeWriter(tmp_path, info={**info, "code_count": 65537})
    with pytest.raises(UserError, match=f"no codes in {tmp_path}/none; compute them again"):
        image_codes.read_info(tmp_path / "none")
