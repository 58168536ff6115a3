import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.stages import prior


@pytest.fixture(scope="module")
def made():
    cfg = tiny.experiment("prior").model
    stage = prior.make(cfg)
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, 6))
    return cfg, tiny.init(stage), batch


def test_the_scale_is_17_2_at_the_papers_width():
    cfg = tiny.experiment("prior").model
    wide = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, embed_dim=1024))
    np.testing.assert_allclose(wide.scale, 17.2, rtol=1e-6)


def test_the_scale_gives_unit_vectors_the_rms_of_pixels():
    z = np.random.default_rng(0).normal(size=(100, 1024))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    rms = np.sqrt(np.mean((17.2 * z) ** 2))
    np.testing.assert_allclose(rms, prior.PIXEL_RMS, rtol=1e-3)


def test_best_of_takes_the_largest_dot_product_of_each_row_by_brute_force():
    draws = np.random.default_rng(0)
    candidates = draws.normal(size=(5, 4, 8)).astype(np.float32)
    z_txt = draws.normal(size=(5, 8)).astype(np.float32)
    chosen = prior.best_of(jnp.array(candidates), z_txt=jnp.array(z_txt))
    for row in range(5):
        best = max(candidates[row], key=lambda z: float(z @ z_txt[row]))
        np.testing.assert_array_equal(chosen[row], best)


def draw(made, *, count, keys, rows=slice(None)):
    cfg, params, batch = made
    text = {name: batch[name][rows] for name in ("tokens", "token_mask", "z_txt")}
    run = jax.jit(
        lambda keys, text: prior.sample(cfg, params, **text, keys=keys, num_candidates=count)
    )
    return run(keys, text)


def test_more_candidates_never_lower_the_dot_product(made):
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    z_txt = prior.unit(made[2]["z_txt"])
    many = jnp.sum(draw(made, count=8, keys=keys) * z_txt, -1)
    cfg, params, batch = made
    text = {name: jnp.repeat(batch[name], 8, 0) for name in ("tokens", "token_mask", "z_txt")}
    split = jax.vmap(lambda key: jax.random.split(key, 8))(keys)
    # the candidates themselves, each drawn on its own path through `sample`
    singles = prior.gaussian.run(
        prior.denoiser(cfg, params, batch=text, scale=1.0),
        shape=(cfg.model.embed_dim,),
        keys=split.reshape(-1),
        diffusion=cfg.diffusion,
        sampling=cfg.sampling,
    )
    scores = jnp.sum(prior.unit(singles).reshape(6, 8, -1) * z_txt[:, None], -1)
    np.testing.assert_allclose(many, scores.max(1), atol=1e-4)


def test_samples_have_norm_one(made):
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    z = draw(made, count=2, keys=keys)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1.0, rtol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(made):
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    whole = draw(made, count=2, keys=keys)
    part = draw(made, count=2, keys=keys[2:4], rows=slice(2, 4))
    np.testing.assert_allclose(part, whole[2:4], atol=1e-5)


def test_guidance_of_a_model_that_ignores_text_changes_nothing(made):
    """Fresh outputs do not depend on the caption only if the network does not; so zero it."""
    cfg, params, batch = made
    params = jax.tree.map(jnp.zeros_like, params)
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    text = {name: batch[name] for name in ("tokens", "token_mask", "z_txt")}
    runs = [
        prior.gaussian.run(
            prior.denoiser(cfg, params, batch=text, scale=scale),
            shape=(cfg.model.embed_dim,),
            keys=keys,
            diffusion=cfg.diffusion,
            sampling=cfg.sampling,
        )
        for scale in (1.0, 3.0)
    ]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-5)


def test_settings_out_of_range_are_refused():
    cfg = tiny.experiment("prior").model
    with pytest.raises(UserError, match=r"prior.drop_text is 1.5; it must lie in \[0.0, 1.0\]"):
        dataclasses.replace(cfg, drop_text=1.5)
    with pytest.raises(UserError, match="prior.num_candidates is 0"):
        dataclasses.replace(cfg, num_candidates=0)
