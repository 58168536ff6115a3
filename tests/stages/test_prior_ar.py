import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiler import THOROUGH
from tests.stages import tiny
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.discrete import categorical
from unclip_jax.models.application import apply
from unclip_jax.models.prior_ar import PriorAr
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.stages import prior_ar
from unclip_jax.stages.prior import best_of, unit
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.train_program import make_train_program

SIZE = 6
GREEDY = prior_ar.PriorArSamplingConfig(temperature=0.0)


def rows(most):
    """Training embeddings: random directions with falling variances."""
    draws = np.random.default_rng(0)
    spread = 0.9 ** np.arange(32)
    for _ in range(4):
        shape = (100, 32)
        yield {"z_img": draws.normal(size=shape) * spread, "z_txt": draws.normal(size=shape)}


@pytest.fixture(scope="module")
def case():
    """Config, fitted and stirred parameters, a batch."""
    cfg = tiny.experiment("prior_ar").model
    stage = prior_ar.make(cfg)
    network = tiny.random_params(stage)["network"]
    params = {"network": network, **stage.fit(rows).params}
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, SIZE))
    return cfg, params, {**batch, "z_img": jnp.asarray(next(iter(rows(6)))["z_img"][:SIZE])}


def text(batch, rows=slice(None)):
    return {name: batch[name][rows] for name in ("tokens", "token_mask", "z_txt")}


def keys(seed=0):
    return rng.per_example(jax.random.key(seed), jnp.arange(SIZE))


@pytest.fixture(scope="module")
def draw(case):
    cfg, params, _ = case
    return jax.jit(
        lambda keys, text: prior_ar.sample_codes(
            cfg, params, batch=text, keys=keys, sampling=cfg.sampling
        )
    )


def test_a_fresh_prior_is_even_over_the_buckets(case):
    cfg, _, batch = case
    stage = prior_ar.make(cfg)
    run = jax.jit(stage.loss, compiler_options=THOROUGH)
    loss, _ = run(tiny.init(stage), batch, jax.random.key(0))
    np.testing.assert_allclose(loss, np.log(cfg.model.codec.buckets), rtol=1e-6)


def test_cross_entropy_by_brute_force():
    draws = np.random.default_rng(0)
    logits, codes = draws.normal(size=(2, 3, 5)), draws.integers(0, 5, (2, 3))
    want = [
        [-np.log(np.exp(logits[b, j, codes[b, j]]) / np.exp(logits[b, j]).sum()) for j in range(3)]
        for b in range(2)
    ]
    got = categorical.cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(codes))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_loss_is_that_of_the_codes_given_those_before(case):
    """The stage's loss from the network's logits, the codec's codes and the dot's bucket."""
    cfg, params, batch = case
    codec = jax.tree.map(np.float64, params["codec"])
    z_img, z_txt = (np.float64(unit(batch[name])) for name in ("z_img", "z_txt"))
    x = (z_img - codec["mean"]) @ codec["basis"].T
    codes = [[np.sum(e <= v) for e, v in zip(codec["edges"], row, strict=True)] for row in x]
    dot = np.searchsorted(codec["dot_edges"], np.sum(z_img * z_txt, 1), side="right")
    inputs = {**text(batch), "z_txt": jnp.asarray(np.sqrt(32) * z_txt, jnp.float32)}

    @jax.jit
    def run(network, codes, dot, inputs):
        return apply(PriorAr(cfg.model), network, codes, dot=dot, **inputs)

    logits = run(params["network"], jnp.asarray(codes), jnp.asarray(dot), inputs)
    want = np.mean(categorical.cross_entropy(logits, jnp.asarray(codes)))
    never = dataclasses.replace(cfg, drop_text=0.0)
    got, _ = jax.jit(prior_ar.make(never).loss)(params, batch, jax.random.key(0))
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_greedy_codes_are_the_uncached_network_s_own_choice(case, scale):
    """Fed back through the network at once, every greedy code is the argmax at its place."""
    cfg, params, batch = case
    sampling = dataclasses.replace(GREEDY, guidance_scale=scale)

    @jax.jit
    def run(keys, batch):
        codes = prior_ar.sample_codes(cfg, params, batch=batch, keys=keys, sampling=sampling)
        dot = prior_ar.sample_dot(cfg, keys, percentile=50.0)
        inputs = {**batch, "z_txt": np.sqrt(32) * unit(batch["z_txt"])}
        logits = [
            apply(
                PriorAr(cfg.model),
                params["network"],
                codes,
                dot=dot,
                **inputs,
                keep_text=jnp.full(SIZE, keep),
            )
            for keep in (True, False)
        ]
        return codes, scale * logits[0] + (1 - scale) * logits[1]

    codes, logits = run(keys(), text(batch))
    ranked = np.sort(logits, axis=-1)
    sure = ranked[..., -1] - ranked[..., -2] > 1e-3  # elsewhere rounding may choose
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(codes)[sure], np.argmax(logits, -1)[sure])


def test_an_even_network_draws_evenly(case):
    cfg, params, batch = case
    even = {**params, "network": jax.tree.map(jnp.zeros_like, params["network"])}
    run = jax.jit(
        lambda keys, text: prior_ar.sample_codes(
            cfg, even, batch=text, keys=keys, sampling=cfg.sampling
        )
    )
    codes = np.concatenate([run(keys(seed), text(batch)) for seed in range(60)])
    count = cfg.model.codec.buckets
    counts = np.bincount(codes.ravel(), minlength=count)
    deviation = np.sqrt(codes.size / count)
    assert np.abs(counts - codes.size / count).max() < 5 * deviation


def test_the_dot_token_is_drawn_evenly_from_the_top_half(case):
    cfg, _, _ = case
    many = rng.per_example(jax.random.key(1), jnp.arange(8000))
    for percentile, least in ((50.0, 8), (70.0, 12), (0.0, 0), (99.0, 15)):
        counts = np.bincount(prior_ar.sample_dot(cfg, many, percentile=percentile), minlength=16)
        want = 8000 / (16 - least)
        assert (counts[:least] == 0).all()
        assert np.abs(counts[least:] - want).max() <= 5 * np.sqrt(want)


def test_a_row_depends_on_its_key_and_condition_alone(case, draw):
    _, _, batch = case
    whole = draw(keys(), text(batch))
    reverse = draw(keys()[::-1], text(batch, slice(None, None, -1)))
    np.testing.assert_array_equal(reverse[::-1], whole)
    other = jax.tree.map(lambda x: jnp.concatenate([x[:1], jnp.roll(x[1:], 1, 0)]), text(batch))
    np.testing.assert_array_equal(draw(keys(), other)[0], whole[0])
    assert np.any(np.asarray(draw(keys(1), text(batch))) != np.asarray(whole))


def test_embeddings_have_norm_one_and_the_best_candidate_is_kept(case, draw):
    cfg, params, batch = case
    run = jax.jit(
        lambda keys, text: prior_ar.sample(cfg, params, **text, keys=keys, num_candidates=4)
    )
    z = run(keys(), text(batch))
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1.0, rtol=1e-5)
    split = jax.vmap(lambda key: jax.random.split(key, 4))(keys()).reshape(-1)
    four = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), text(batch))
    codes = draw(split, four)  # the candidates themselves, each sampled as a row of its own
    decoded = apply(cfg.model.make_quantizer(), params["codec"], codes, method="decode")
    each = unit(decoded).reshape(SIZE, 4, -1)
    np.testing.assert_allclose(z, best_of(each, z_txt=unit(batch["z_txt"])), atol=1e-5)


def test_held_out_metrics_hold_the_position_wise_loss_and_the_cosines(case):
    cfg, params, batch = case
    result = jax.jit(prior_ar.make(cfg).evaluate)(params, batch, jax.random.key(0))
    runs = {name: value for name, value in result.items() if name.startswith("loss_")}
    assert list(runs)[:2] == ["loss_000_001", "loss_002_003"] and len(runs) == 8
    np.testing.assert_allclose(np.mean(list(runs.values())), result["loss"], rtol=1e-5)
    z_img, z_txt = unit(batch["z_img"]), unit(batch["z_txt"])
    np.testing.assert_allclose(result["cosine_data"], np.mean(np.sum(z_img * z_txt, -1)), rtol=1e-5)
    keys = rng.per_example(rng.fold(jax.random.key(0), "health"), jnp.arange(SIZE))
    samples = jax.jit(lambda p, keys: prior_ar.sample(cfg, p, **text(batch), keys=keys))(
        params, keys
    )
    assert float(result["drawn_cosine_image"]) == pytest.approx(
        float(np.mean(np.sum(samples * z_img, -1))), abs=1e-4
    )
    others = np.asarray(z_img)[[-1, *range(SIZE - 1)]]
    assert float(result["drawn_cosine_unrelated"]) == pytest.approx(
        float(np.mean(np.sum(samples * others, -1))), abs=1e-4
    )
    gap = np.mean(np.sum((samples - z_img) * z_txt, -1))
    assert float(result["baseline_gap"]) == pytest.approx(float(gap), abs=1e-4)
    values = np.float64(params["codec"]["eigenvalues"])
    want = values[:16].sum() / values.sum()
    np.testing.assert_allclose(result["explained_variance"], want, rtol=1e-5)
    assert 0 < result["codec_error"] < 0.5


def test_a_step_moves_the_network_and_leaves_the_codec_bit_for_bit(case):
    cfg, params, batch = case
    stage = prior_ar.make(cfg)
    program = make_train_program(
        stage,
        optim=OptimConfig(learning_rate=1e-2, b2=0.91, eps=1e-10, weight_decay=0.04),
        mesh=make_mesh(MeshConfig(), devices=jax.devices()[:1]),
        rules="fsdp",
        steps=10,
        ema_decay=0.9,
    )
    state = program.with_fitted(program.create(jax.random.key(0)), {"codec": params["codec"]})
    before = jax.tree.map(np.array, state.params["network"])
    for tree in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, dict(tree["codec"]), dict(params["codec"]))
    state, _ = program.step(state, batch, jax.random.key(0))
    state, _ = program.step(state, batch, jax.random.key(0))
    for tree in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, dict(tree["codec"]), dict(params["codec"]))
    changes = jax.tree.map(lambda a, b: np.any(a != np.asarray(b)), before, state.params["network"])
    assert (
        changes["out"]["kernel"]
        and changes["codes"]
        and changes["text_encoder"]["final_norm"]["bias"]
    )


def test_what_the_layout_splits_and_what_every_device_holds(case):
    """Golden shardings, by hand: Megatron's pairs over "tensor", the residual width over "fsdp"."""
    boxed = jax.eval_shape(prior_ar.make(case[0]).init, jax.random.key(0))
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    result = place.describe(place.shardings(boxed, mesh, rules="fsdp_tp"))
    network = {path.removeprefix("network/"): text for path, text in result.items()}
    attention = "latents/blocks/attention"
    for name in ("q", "k", "v", "text_k", "text_v"):
        assert network[f"{attention}/{name}/kernel"] == "-, fsdp, tensor"
    assert network[f"{attention}/out/kernel"] == "-, tensor, fsdp"
    assert network["latents/blocks/mlp/fc_1/kernel"] == "-, fsdp, tensor"
    assert network["latents/blocks/mlp/fc_2/kernel"] == "-, tensor, fsdp"
    assert network["codes"] == network["dots"] == "tensor, fsdp"
    assert network["positions"] == network["z_txt_in/kernel"] == "-, fsdp"
    assert network["out/kernel"] == "fsdp, -"
    assert not any("fsdp" in text for path, text in result.items() if path.startswith("codec/"))


def test_fitted_parameters_must_be_the_stage_s(case):
    cfg, params, _ = case
    program = make_train_program(
        prior_ar.make(cfg),
        optim=OptimConfig(),
        mesh=make_mesh(MeshConfig(), devices=jax.devices()[:1]),
        rules="fsdp",
        steps=10,
        ema_decay=0.9,
    )
    short = {**params["codec"], "mean": np.zeros(7, np.float32)}
    with pytest.raises(UserError, match=r"fitted parameters do not fit the stage: codec/mean"):
        program.with_fitted(program.abstract, {"codec": short})


def test_a_share_of_variance_becomes_a_number_of_components(case):
    cfg, _, _ = case
    codec = dataclasses.replace(cfg.model.codec, components=0, explained_variance=0.8)
    model = dataclasses.replace(cfg.model, codec=codec, latent_context=33)
    open_cfg = dataclasses.replace(cfg, model=model)
    resolved = prior_ar.resolve_from_data(open_cfg, rows)
    count = resolved.model.codec.components
    values = np.float64(prior_ar.make(resolved).fit(rows).params["codec"]["eigenvalues"])
    share = np.cumsum(values) / values.sum()
    assert share[count - 2] < 0.8 <= share[count - 1]
    assert prior_ar.resolve_from_data(cfg, rows) is cfg
    assert prior_ar.resolve_from_data(resolved, rows) is resolved


def test_settings_that_cannot_be_are_rejected(case):
    cfg, params, batch = case
    with pytest.raises(UserError, match=r"config.model.drop_text is 1.5; it must lie in \[0.0, 1"):
        dataclasses.replace(cfg, drop_text=1.5)
    with pytest.raises(UserError, match="config.model.num_candidates is 0"):
        dataclasses.replace(cfg, num_candidates=0)
    never = dataclasses.replace(cfg, drop_text=0.0)
    sampling = prior_ar.PriorArSamplingConfig(guidance_scale=2.0)
    message = (
        "guidance_scale is 2.0, but config.model.drop_text is 0: trained without drops, a model"
    )
    with pytest.raises(UserError, match=message):
        prior_ar.sample(never, params, **text(batch), keys=keys(), sampling=sampling)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(never, sampling=sampling)
