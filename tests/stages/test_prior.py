import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import stubs, tiny
from unclip_jax.core import rng
from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import process
from unclip_jax.diffusion.analytic import VarianceTable
from unclip_jax.stages import prior, prior_config


@pytest.fixture(scope="module")
def case():
    cfg = tiny.experiment("prior").model
    stage = prior.make(cfg)
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, 6))
    return cfg, tiny.init(stage), batch


def test_the_scale_is_17_2_at_the_papers_width():
    cfg = tiny.experiment("prior").model
    wide = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, embed_dim=1024))
    np.testing.assert_allclose(wide.scale, 17.2, rtol=1e-6)


def test_the_other_scaling_gives_every_dimension_variance_one():
    cfg = tiny.experiment("prior").model
    wide = dataclasses.replace(
        cfg, scaling="unit_rms", model=dataclasses.replace(cfg.model, embed_dim=1024)
    )
    assert wide.scale == 32.0 and wide.origin.data_variance == 1.0
    # at the same t, 5.4 dB less noise than with the paper's
    gain = 20 * np.log10(wide.scale / dataclasses.replace(wide, scaling="pixel_rms").scale)
    assert gain == pytest.approx(5.4, abs=0.05)


def test_the_scale_gives_unit_vectors_the_rms_of_pixels():
    z = np.random.default_rng(0).normal(size=(100, 1024))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    rms = np.sqrt(np.mean((17.2 * z) ** 2))
    np.testing.assert_allclose(rms, prior_config.PIXEL_RMS, rtol=1e-3)


def test_best_of_takes_the_largest_dot_product_of_each_row_by_brute_force():
    draws = np.random.default_rng(0)
    candidates = draws.normal(size=(5, 4, 8)).astype(np.float32)
    z_txt = draws.normal(size=(5, 8)).astype(np.float32)
    result = prior.best_of(jnp.array(candidates), z_txt=jnp.array(z_txt))
    for row in range(5):
        best = max(candidates[row], key=lambda z: float(z @ z_txt[row]))
        np.testing.assert_array_equal(result[row], best)


def draw(case, *, count, keys, rows=slice(None)):
    cfg, params, batch = case
    text = {name: batch[name][rows] for name in ("tokens", "token_mask", "z_txt")}
    run = jax.jit(
        lambda keys, text: prior.sample(cfg, params, **text, keys=keys, num_candidates=count)
    )
    return run(keys, text)


def test_more_candidates_never_lower_the_dot_product(case):
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    z_txt = unit(case[2]["z_txt"])
    many = jnp.sum(draw(case, count=8, keys=keys) * z_txt, -1)
    cfg, params, batch = case
    text = {name: jnp.repeat(batch[name], 8, 0) for name in ("tokens", "token_mask", "z_txt")}
    split = jax.vmap(lambda key: jax.random.split(key, 8))(keys)
    # the candidates themselves, each from its own call of `sample`
    singles = prior.gaussian.run(
        prior.denoiser(cfg, params, batch=text, scale=1.0),
        shape=(cfg.model.embed_dim,),
        keys=split.reshape(-1),
        diffusion=cfg.diffusion,
        sampling=cfg.sampling,
    )
    scores = jnp.sum(unit(singles).reshape(6, 8, -1) * z_txt[:, None], -1)
    np.testing.assert_allclose(many, scores.max(1), atol=1e-4)


def test_samples_have_norm_one(case):
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    z = draw(case, count=2, keys=keys)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1.0, rtol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(case):
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    whole = draw(case, count=2, keys=keys)
    part = draw(case, count=2, keys=keys[2:4], rows=slice(2, 4))
    np.testing.assert_allclose(part, whole[2:4], atol=1e-5)


def test_guidance_of_a_model_that_ignores_text_changes_nothing(case):
    """Fresh outputs do not depend on the caption only if the network does not; so zero it."""
    cfg, params, batch = case
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


def test_the_unconditional_branch_sees_neither_caption_nor_z_txt(case):
    cfg, _, batch = case
    params = tiny.random_params(prior.make(cfg))
    x_t, t = jnp.ones((6, cfg.model.embed_dim)), jnp.full(6, 500)

    @functools.partial(jax.jit, static_argnames="scale")
    def x_0(batch, scale):
        return prior.denoiser(cfg, params, batch=batch, scale=scale)(x_t, t).x_0

    other = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), batch)
    np.testing.assert_allclose(x_0(batch, 0.0), x_0(other, 0.0), atol=1e-6)
    assert np.abs(x_0(batch, 1.0) - x_0(other, 1.0)).max() > 1e-3


@pytest.mark.parametrize("target", ["x_0", "eps", "v"])
def test_the_loss_of_saying_nothing_is_the_power_of_the_target(case, target):
    cfg, params, batch = case
    cfg = dataclasses.replace(cfg, diffusion=dataclasses.replace(cfg.diffusion, target=target))
    nothing = jax.tree.map(jnp.zeros_like, params)
    many = jax.tree.map(lambda x: jnp.repeat(x, 50, axis=0), batch)
    got = float(jax.jit(prior.make(cfg).loss)(nothing, many, jax.random.key(0))[0])
    x_0 = cfg.scale**2 / cfg.model.embed_dim  # 0.289: unit vectors at the RMS of pixels
    alpha_bar = cfg.diffusion.chain().alpha_bar
    power = {"x_0": x_0, "eps": 1.0, "v": np.mean(alpha_bar + (1 - alpha_bar) * x_0)}[target]
    # of 300 draws of t, and 300 x 32 of eps
    assert got == pytest.approx(power, rel=1e-5 if target == "x_0" else 0.1)


def test_the_rank_of_the_true_embedding_by_brute_force():
    draws = np.random.default_rng(0)
    guess, z_img = (jnp.asarray(draws.normal(size=(9, 5)), jnp.float32) for _ in range(2))
    ranks = []
    for row in range(9):
        order = sorted(range(9), key=lambda other: -float(guess[row] @ z_img[other]))
        ranks.append(1 + order.index(row))
    assert float(prior.mean_rank(guess, z_img)) == pytest.approx(np.mean(ranks))
    assert float(prior.mean_rank(z_img, unit(z_img))) < 3  # itself is among the nearest
    assert float(prior.mean_rank(jnp.zeros((9, 5)), z_img)) == 9  # knowing nothing is worst


def test_diagnostics_of_a_prior_that_knows_the_truth(case, monkeypatch):
    cfg, params, batch = case
    chain, x_0 = cfg.diffusion.chain(), cfg.scale * unit(batch["z_img"])

    def knows(*_, **__):
        return lambda x_t, t: process.from_x_0(x_0, x_t, alpha_bar=chain.level(t, ndim=2))

    monkeypatch.setattr(prior, "denoiser", knows)
    metrics = prior.make(cfg).evaluate(params, batch, jax.random.key(0))
    for name in ("cosine_image", "drawn_cosine_image", "drawn_norm", "rank_image"):
        assert float(metrics[name]) == pytest.approx(1.0, abs=1e-4), name
    assert float(metrics["baseline_gap"]) == pytest.approx(0.0, abs=1e-4)
    assert float(metrics["cosine_text"]) == pytest.approx(float(metrics["cosine_data"]), abs=1e-4)


def test_the_power_of_eps_of_a_prior_that_says_nothing_is_a_closed_form(case, monkeypatch):
    """x_0 = 0 leaves eps = x_t / noise, of power 1 + SNR scale^2 / d, at each step of the table."""
    cfg, _, batch = case
    stubs.replace(monkeypatch, prior, lambda x_t, t: jnp.zeros_like(x_t))
    many = jax.tree.map(lambda x: jnp.repeat(x, 200, axis=0), batch)
    steps = np.array([0, 400, 999])
    result = prior.eps_power(cfg, {}, many, timesteps=steps, key=jax.random.key(0))
    alpha_bar = cfg.diffusion.chain().alpha_bar[steps]
    expected = 1 + alpha_bar / (1 - alpha_bar) * cfg.scale**2 / cfg.model.embed_dim
    np.testing.assert_allclose(result, expected, rtol=0.03)  # 1,200 x 32 draws of the noise


def test_standardisation_is_by_mean_and_deviation_of_the_training_data():
    cfg = dataclasses.replace(tiny.experiment("prior").model, standardise=True)
    draws = np.random.default_rng(0)
    blocks = [{"z_img": 2.0 + 0.3 * draws.normal(size=(50, 32))} for _ in range(4)]
    limits = []

    def rows(most):
        limits.append(most)
        return iter(blocks)

    resolved = prior.resolve_from_data(cfg, rows)
    z = np.concatenate([block["z_img"] for block in blocks])
    np.testing.assert_allclose(resolved.z_mean, z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(resolved.z_std, z.std(0), rtol=1e-5)
    assert limits == [2**18]
    assert prior.resolve_from_data(resolved, rows) is resolved  # once measured, it stays
    latent = prior.to_latent(resolved, jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(np.mean(latent, axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.std(latent, axis=0), 1.0, rtol=1e-4)
    blocks[:] = [{"z_img": np.where(np.arange(32) == 5, 1.0, z)}]
    with pytest.raises(UserError, match="dimension 5 of z_img is the same in all 200 training"):
        prior.resolve_from_data(cfg, rows)


def test_guidance_of_a_prior_that_was_trained_without_drops_is_rejected(case):
    cfg, params, batch = case
    whole = dataclasses.replace(cfg, drop_text=0.0)
    guided = dataclasses.replace(cfg.sampling, guidance_scale=2.0)
    message = (
        "guidance_scale is 2.0, but config.model.drop_text is 0: trained without drops, a model"
    )
    with pytest.raises(UserError, match=message):
        dataclasses.replace(whole, sampling=guided)
    text = {name: batch[name] for name in ("tokens", "token_mask", "z_txt")}
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    with pytest.raises(UserError, match=message):
        prior.sample(whole, params, **text, keys=keys, sampling=guided)


def test_the_table_variance_needs_the_priors_own_table(case):
    cfg, params, batch = case
    text = {name: batch[name] for name in ("tokens", "token_mask", "z_txt")}
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    sampling = dataclasses.replace(cfg.sampling, variance="table")
    with pytest.raises(UserError, match="no variance table with this model; make one"):
        prior.sample(cfg, params, **text, keys=keys, sampling=sampling)
    table = VarianceTable(
        origin=dataclasses.replace(cfg.origin, target="eps"),
        timesteps=(0,),
        eps_power=(1.0,),
        examples=1,
    )
    with pytest.raises(UserError, match="target is 'eps' in the table and 'x_0' in the model"):
        prior.sample(cfg, params, **text, keys=keys, sampling=sampling, table=table)


def test_settings_out_of_range_are_rejected():
    cfg = tiny.experiment("prior").model
    with pytest.raises(UserError, match=r"config.model.drop_text is 1.5; it must lie in \[0.0, 1"):
        dataclasses.replace(cfg, drop_text=1.5)
    with pytest.raises(UserError, match="config.model.num_candidates is 0"):
        dataclasses.replace(cfg, num_candidates=0)
    with pytest.raises(UserError, match="unknown config.model.scaling 'pixel'. Did you mean"):
        dataclasses.replace(cfg, scaling="pixel")
