"""Priors of other libraries: what their conversion rejects (tests/parity compares the networks)."""

import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from unclip_jax.convert import dalle2_pytorch, importing
from unclip_jax.convert.importing import ImportOptions
from unclip_jax.core.checks import UserError

Z, HEADS, HEAD_DIM = 8, 2, 4
LAYER = f"{dalle2_pytorch.LAYERS}.0"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Enough of a MindEye2 prior of one block that it is recognised."""
    shapes = {
        "null_brain_embeds": (3, Z),
        "null_image_embed": (3, Z),
        "to_time_embeds.0.1.net.2.weight": (Z, 2 * Z),
        dalle2_pytorch.BIAS: (32, HEADS),
        f"{LAYER}.0.to_kv.weight": (2 * HEAD_DIM, Z),
        f"{LAYER}.1.5.weight": (Z, 4 * Z),
    }
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_file({f"net.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}, path)
    return path


def test_another_type_than_float32_is_rejected(weights, tmp_path):
    with pytest.raises(UserError, match="stored in float32; leave out --dtype=bfloat16"):
        importing.convert([weights], tmp_path / "run", options=ImportOptions(dtype="bfloat16"))


@pytest.mark.parametrize("stages", [("prior",), ("dalle", "prior")])
def test_a_choice_of_stages_is_for_pipelines(weights, tmp_path, stages):
    message = f"--stages={','.join(stages)} chooses .* is converted as a whole .embedding_prior.; l"
    with pytest.raises(UserError, match=message):
        importing.convert([weights], tmp_path / "run", options=ImportOptions(stages=stages))


def test_a_choice_among_the_stages_of_a_chain_of_codes_is_rejected(tmp_path, monkeypatch):
    parts = [types.SimpleNamespace(name=name) for name in ("dvae", "dalle")]
    monkeypatch.setattr(importing, "_codes_in", lambda *_: importing._Codes(parts, "terms"))
    with pytest.raises(
        UserError, match="--stages=dalle chooses .* as a whole .dvae, dalle.; leave"
    ):
        importing.convert([tmp_path], tmp_path / "run", options=ImportOptions(stages=("dalle",)))


def test_sources_that_would_not_be_read_are_rejected(weights, tmp_path):
    with pytest.raises(UserError, match="prior.safetensors is converted alone, but .* was given"):
        importing.convert([weights, tmp_path], tmp_path / "run")
    with pytest.raises(UserError, match=f"is converted alone, but {tmp_path} was given too"):
        importing.find_stages([weights, tmp_path])


def test_unknown_stages_are_rejected(tmp_path):
    with pytest.raises(UserError, match="unknown stage in --stages 'priro'. Did you mean 'prior'"):
        importing.convert([tmp_path], tmp_path / "run", options=ImportOptions(stages=("priro",)))


def test_tensors_that_are_missing_are_listed(weights, tmp_path):
    with pytest.raises(UserError, match=r"does not fit the architecture in \d+ tensors: .*to_q"):
        importing.convert([weights], tmp_path / "run")
    assert not (tmp_path / "run").exists()
