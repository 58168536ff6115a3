"""Overrides on the command line: every key works, every mistake is one line that names the fix."""

import pathlib

import pytest

from unclip_jax import configs
from unclip_jax.core.checks import UserError

ROOT = pathlib.Path(__file__).parents[2]
PRIOR = f"{ROOT}/experiments/prior.py"


def read(*overrides, spec=f"{PRIOR}:tiny"):
    return configs.read(spec, overrides=overrides)


def test_without_overrides_the_file_speaks():
    assert configs.read(f"{PRIOR}:tiny") == configs.from_config(configs.load(f"{PRIOR}:tiny"))


def test_keys_are_overridden_in_their_own_type():
    made = read(
        "--config.optim.learning_rate=3e-4",
        "--config.train.steps=7",
        "--config.model.sampling.steps=ddim25",
    )
    assert made.optim.learning_rate == 3e-4
    assert made.train.steps == 7
    assert made.model.sampling.steps == "ddim25"


def test_keys_that_the_file_does_not_mention_can_be_overridden():
    made = read("--config.train.eval_batches=3", "--config.model.z_scale=2.5")
    assert made.train.eval_batches == 3
    assert made.model.z_scale == 2.5


def test_lists_can_be_overridden():
    made = configs.read(
        f"{ROOT}/experiments/decoder.py:tiny",
        overrides=["--config.model.model.unet.attention_at=(16, 8)"],
    )
    assert made.model.model.unet.attention_at == (16, 8)


def test_no_size_means_the_paper():
    assert configs.read(PRIOR).model.model.width == 2048


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.learning_rat=1", "config.optim has no key 'learning_rat'. Did you mean"),
        ("--config.opt.learning_rate=1", "config has no key 'opt'"),
        ("--config.train.steps=many", "config.train.steps=many.*give a value of the key's type"),
        ("--config.train.steps=1.5", "config.train.steps"),
        ("--config.optim=3", r"config.optim is a group of keys \(b1, b2"),
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
        configs.read(f"{ROOT}/experiments/priro.py:tiny")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="defines no get_config"):
        configs.read(str(tmp_path / "empty.py"))
