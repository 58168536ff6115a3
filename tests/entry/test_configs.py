"""Overrides on the command line: every key works, every mistake is one line that names the fix."""

import json
import pathlib

import pytest

from tests import cascades
from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import files, loading
from unclip_jax.handoff import load

ROOT = pathlib.Path(__file__).parents[2]
PRIOR = f"{ROOT}/experiments/prior.py"


def read(*overrides, spec=f"{PRIOR}:tiny"):
    return loading.read(spec, overrides=overrides)


def test_without_overrides_the_file_speaks():
    assert loading.read(f"{PRIOR}:tiny") == loading.from_config(files.get_config(f"{PRIOR}:tiny"))


def test_keys_are_overridden_in_their_own_type():
    case = read(
        "--config.optim.learning_rate=3e-4",
        "--config.train.steps=7",
        "--config.model.sampling.steps=ddim25",
    )
    assert case.optim.learning_rate == 3e-4
    assert case.train.steps == 7
    assert case.model.sampling.steps == "ddim25"


def test_keys_that_the_file_does_not_mention_can_be_overridden():
    case = read("--config.train.eval_batches=3", "--config.model.z_scale=2.5")
    assert case.train.eval_batches == 3
    assert case.model.z_scale == 2.5


def test_lists_can_be_overridden():
    case = loading.read(
        f"{ROOT}/experiments/decoder.py:tiny",
        overrides=["--config.model.model.unet.attention_at=(16, 8)"],
    )
    assert case.model.model.unet.attention_at == (16, 8)


def test_no_size_means_the_paper():
    assert loading.read(PRIOR).model.model.width == 2048


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.learning_rat=1", "config.optim has no key 'learning_rat'. Did you mean"),
        ("--config.opt.learning_rate=1", "config has no key 'opt'"),
        ("--config.train.steps=many", "config.train.steps=many.*give a value of the key's type"),
        ("--config.train.steps=1.5", "config.train.steps"),
        ("--config.optim=3", r"config.optim is a group of keys \(adafactor_scale, b1, b2"),
        ("--config.optim.b1.x=3", "config.optim.b1 is a value, not a group"),
        ("--config.train.steps", "--config.train.steps has no value; write"),
        ("--config.train.batch_size=0", "config.train.batch_size is 0; it must be greater than 0"),
        ("--config.optim.name=adam", "unknown config.optim.name 'adam'. Did you mean 'adamw'"),
    ],
)
def test_a_wrong_override_is_named(override, message):
    with pytest.raises(UserError, match=message):
        read(override)


def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"no experiment file '.*priro.py'. Did you mean 'prior.py'"
    ):
        loading.read(f"{ROOT}/experiments/priro.py:tiny")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="defines no get_config"):
        loading.read(str(tmp_path / "empty.py"))


FINETUNE = f"{ROOT}/experiments/finetune.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("name", cascades.NAMES)
def test_training_on_takes_model_and_tokenizer_from_the_export(run, name):
    export = run / name / "export"
    case = read(f"--config.init_from={export}", spec=f"{FINETUNE}:{name}")
    description = json.dumps(case.build_stage().describe["config"], sort_keys=True)
    assert description == json.dumps(load.read_manifest(export).config, sort_keys=True)
    assert (case.name, case.size, case.init_from) == (name, "finetune", str(export))
    words = "" if name == "upsampler_256" else str(export / "tokenizer")
    assert case.data.tokenizer == words
    if name != "prior":
        assert case.data.load_size == tiny.experiment(name).data.load_size


def test_the_model_that_is_trained_on_can_still_be_overridden(run):
    where = f"--config.init_from={run / 'prior' / 'export'}"
    case = read(where, "--config.model.drop_text=0.25", spec=f"{FINETUNE}:prior")
    assert case.model.drop_text == 0.25


def test_what_cannot_be_trained_on_is_named(run, tmp_path):
    with pytest.raises(UserError, match=r"has no model of its own; name .*--config.init_from="):
        read(spec=f"{FINETUNE}:prior")
    with pytest.raises(UserError, match="is a prior, but .*finetune.py:decoder trains a decoder"):
        read(f"--config.init_from={run / 'prior' / 'export'}", spec=f"{FINETUNE}:decoder")
    with pytest.raises(UserError, match="is not a finished export"):
        read(f"--config.init_from={tmp_path}", spec=f"{FINETUNE}:decoder")
    with pytest.raises(UserError, match="unknown stage 'priro'. Did you mean 'prior'"):
        read(spec=f"{FINETUNE}:priro")
