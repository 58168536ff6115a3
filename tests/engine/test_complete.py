"""Completion: codes that stay, those that do not, and what cannot be completed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from unclip_jax.core.checks import UserError
from unclip_jax.data import image_codec
from unclip_jax.engine import request_fields
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import CompleteRequest, VariationsRequest
from unclip_jax.inference import completion, text_to_image
from unclip_jax.stages import dvae

CAPTION = cascades.CAPTIONS[0]
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    run = cascades.write(tmp_path_factory.mktemp("dalle"), names=("dvae", "dalle"))
    return InferenceEngine.open(run, batch=8)


def complete(engine, **values):
    values = {"image": IMAGE, "caption": CAPTION, "num": 3, **values}
    return engine.run(request_fields.build(CompleteRequest, values, name="complete"))


def test_codes_outside_the_rectangle_are_those_of_the_image(engine, monkeypatch):
    cascade, params = engine.cascade, engine.params
    images = jnp.asarray(image_codec.to_float(np.stack([IMAGE, IMAGE])))
    own = dvae.encode(cascade.decoder, params["dvae"], images)
    keep = jnp.zeros((2, 4, 4), bool).at[:, :2].set(True).at[1, :, 0].set(True)
    monkeypatch.setattr(  # shows the codes themselves
        dvae, "decode", lambda cfg, params, codes: codes[..., None].astype(jnp.float32)
    )
    run = jax.jit(functools.partial(completion.complete, cascade))
    keys = text_to_image.keys_for(0, jnp.arange(2))
    codes = run(params, engine.tokens([CAPTION] * 2), keys, images=images, keep=keep)[..., 0]
    assert np.array_equal(np.asarray(codes)[keep], np.asarray(own)[keep])
    assert np.mean(np.asarray(codes)[~keep] == np.asarray(own)[~keep]) < 0.5


def test_upsamplers_get_the_caption(engine, monkeypatch):
    arguments = {}
    monkeypatch.setattr(
        text_to_image, "upsample", lambda *a, **more: arguments.update(more) or a[2]
    )
    run = functools.partial(completion.complete, engine.cascade)
    tokens, keys = engine.tokens([CAPTION]), text_to_image.keys_for(0, jnp.arange(1))
    images, keep = jnp.zeros((1, 16, 16, 3)), jnp.ones((1, 4, 4), bool)
    jax.eval_shape(functools.partial(run, images=images, keep=keep), engine.params, tokens, keys)
    assert arguments["captions"].keys() == tokens.keys()


def test_a_request_makes_several_and_records_what_stayed(engine):
    result = complete(engine, rows=0.4, columns=0.3)
    assert result.images.shape == (3, 16, 16, 3)
    assert len({image.tobytes() for image in result.images}) == 3
    assert (result.record["kept_rows"], result.record["kept_columns"]) == (2, 1)
    assert result.note.startswith("kept 2 rows and 1 columns of 4 x 4 codes")


def test_pasted_pixels_are_those_of_the_image_and_others_those_of_the_codes(engine):
    plain, pasted = (complete(engine, rows=0.5, paste=paste).images for paste in (False, True))
    assert np.array_equal(pasted[:, :8], np.stack([IMAGE[:8]] * 3))
    assert np.abs(pasted[:, 8:].astype(int) - plain[:, 8:]).max() <= 1  # but for rounding
    assert np.any(plain[:, :8] != pasted[:, :8])


def test_edits_of_diffusion_are_rejected(engine):
    request = request_fields.build(VariationsRequest, {"image": IMAGE}, name="variations")
    with pytest.raises(
        UserError, match="variations edits the latent of a diffusion decoder, but this"
    ):
        engine.run(request)
    with pytest.raises(UserError, match="previews belong to unCLIP's decoder; the dvae"):
        engine.sample(CAPTION, negative="a blue star", guidance=2.0)


def test_models_without_codes_and_empty_rectangles_are_rejected(engine):
    message = r"keep 0 rows and 0 columns of 4 x 4 codes; keep at least one, and leave at least one"
    with pytest.raises(UserError, match=message):
        complete(engine, rows=0.0)
    with pytest.raises(UserError, match="rows 1 and columns 0 keep 4 rows"):
        complete(engine, rows=1.0)
    with pytest.raises(UserError, match="top_k is 65, but there are 64 codes"):
        complete(engine, top_k=65)
