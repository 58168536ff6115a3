"""Token features of the frozen CLIP join the batches of stages that read them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import frozen_clip
from unclip_jax.experiment.loading import read
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.load import load_clip
from unclip_jax.models.clip import Clip

CHANGES = ("caption=clip_sequence", "clip_text_width=48")  # of model.model


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"), names=("clip",)) / "clip" / "export"


def settings(*more):
    spec = f"{tiny.ROOT}/experiments/prior.py:tiny"
    changes = [f"--config.model.model.{each}" for each in CHANGES]
    return read(spec, overrides=[*changes, *(f"--config.{each}" for each in more)])


def test_a_batch_gets_what_the_text_tower_says_of_its_tokens(export):
    ids, mask = cascades.tokenizer().encode(cascades.CAPTIONS, length=24)
    batch = {"tokens": ids, "token_mask": mask, "caption": np.array(cascades.CAPTIONS)}
    stored = {**batch, "z_txt": np.zeros((3, 32), np.float32)}  # of norm 1, and of other words
    got = frozen_clip.reader(export, context=24, width=48)(stored)
    cfg, params, _ = load_clip(export)
    tower = functools.partial(Clip(cfg.model).apply, method=Clip.encode_text)
    expected = jax.jit(tower)({"params": params}, jnp.asarray(ids), jnp.asarray(mask))
    np.testing.assert_allclose(got["text_seq"], expected.sequence, atol=1e-6)
    np.testing.assert_allclose(got["z_txt"], expected.pooled, atol=1e-6)  # as drawing sees it
    assert {name: got[name] is batch[name] for name in batch} == dict.fromkeys(batch, True)


def test_the_stage_asks_for_the_features_and_where_clip_lies_is_not_part_of_the_run(export):
    case = settings(f"data.clip={export}")
    assert case.build_stage().batch_spec["text_seq"].shape == (24, 48)
    assert "text_seq" not in tiny.experiment("prior").build_stage().batch_spec
    elsewhere = dataclasses.replace(case.data, clip="elsewhere")
    assert dataclasses.replace(case, data=elsewhere).identity() == case.identity()


def test_a_stage_that_reads_clip_is_asked_to_name_it():
    with pytest.raises(UserError, match="config.data.clip is empty, but this prior reads token"):
        settings()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"context": 20, "width": 48}, "config.model.model.context is 20, but .* has context 24"),
        ({"context": 24, "width": 50}, "clip_text_width is 50, but .* has text_width 48"),
    ],
)
def test_a_clip_of_other_sizes_is_rejected(export, sizes, message):
    with pytest.raises(UserError, match=message):
        frozen_clip.reader(export, **sizes)


def test_a_clip_that_did_not_make_the_embeddings_is_rejected(export):
    frozen_clip.check(export, clip_id=handoff.read_manifest(export).clip_id)
    with pytest.raises(
        UserError, match="but the embeddings were computed by cccccccccccc; give the"
    ):
        frozen_clip.check(export, clip_id="c" * 64)
