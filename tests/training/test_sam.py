"""Sharpness-aware gradients: closed forms on quadratics, replicas by brute force, any devices."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toy
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import PairwiseLoss
from unclip_jax.parallel.mesh import BATCH_AXES, MeshConfig, make_mesh
from unclip_jax.stages.clip import contrastive, contrastive_share
from unclip_jax.training import differentiation, embedding_cache, sam
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.step import gradients
from unclip_jax.training.train_program import make_train_program

KEY = jax.random.key(3)
RHO = 0.3
FLAT, DEEP = MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)
LAYOUTS = pytest.mark.parametrize("config", [FLAT, DEEP], ids=["data8", "data2fsdp2tensor2"])
AXES = (*BATCH_AXES, sam.REPLICA)


def params():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=(3,)), jnp.float32), "s": jnp.float32(0.4)}


def batch(size: int = 32):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(size, 3)).astype(np.float32)
    return {"x": x, "y": rng.normal(size=size).astype(np.float32)}


def square(params, batch, key):
    """Half the mean squared error of a plane: a quadratic in (w, s)."""
    error = batch["x"] @ params["w"] + params["s"] - batch["y"]
    return 0.5 * jnp.mean(error**2), {"error": jnp.mean(error)}


def by_hand(x, y):
    """(matrix, vector) with gradient = matrix @ (w, s) - vector for these examples."""
    a = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    return a.T @ a / len(x), a.T @ y / len(x)


def flat(tree) -> np.ndarray:
    return np.append(np.asarray(tree["w"], np.float64), float(tree["s"]))


def run(gradient, loss=square, values=None, data=None):
    return jax.jit(lambda p, b: gradient(loss, p, b, KEY))(values or params(), data or batch())


@pytest.mark.parametrize("size", [1.0, 1e-10, 1e-19, 1e-22, 1e-30, 1e19, 1e30, 3e38])
def test_a_perturbation_is_as_long_as_it_should_be_whatever_the_gradients_length(size):
    """Squares of single precision underflow below 1e-19 and overflow above 1e19."""
    origin = {"a": jnp.zeros(4), "b": jnp.zeros((2, 3))}
    gradient = jax.tree.map(
        lambda x: jnp.linspace(-size, 0.5 * size, x.size).reshape(x.shape), origin
    )
    neighbour = jax.jit(lambda p, g: sam.perturbed(p, g, rho=0.1))(origin, gradient)
    step = np.concatenate([np.ravel(leaf) for leaf in neighbour.values()]).astype(np.float64)
    along = np.concatenate([np.ravel(leaf) for leaf in gradient.values()]).astype(np.float64)
    np.testing.assert_allclose(step, 0.1 * along / np.linalg.norm(along), rtol=1e-5, atol=1e-8)


def test_a_gradient_of_zero_moves_nothing():
    origin = {"a": jnp.ones(4), "b": jnp.ones((2, 3))}
    neighbour = sam.perturbed(origin, jax.tree.map(jnp.zeros_like, origin), rho=0.1)
    jax.tree.map(np.testing.assert_array_equal, neighbour, origin)


def test_sam_on_a_quadratic_is_the_closed_form():
    result, metrics = run(sam.whole_batch(RHO))
    matrix, vector = by_hand(**batch())
    start = flat(params())
    up = matrix @ start - vector
    neighbour = start + RHO * up / np.linalg.norm(up)
    np.testing.assert_allclose(flat(result), matrix @ neighbour - vector, rtol=1e-5)

    def value(at):
        error = np.append(batch()["x"], np.ones((32, 1)), axis=1) @ at - batch()["y"]
        return 0.5 * np.mean(error**2)

    np.testing.assert_allclose(metrics["loss"], value(start), rtol=1e-5)
    np.testing.assert_allclose(metrics["sharpness"], value(neighbour) - value(start), rtol=1e-3)


@pytest.mark.parametrize(("config", "examples"), [(FLAT, 1), (FLAT, 4), (DEEP, 4)])
def test_sam_per_replica_is_the_mean_of_closed_forms(config: MeshConfig, examples: int):
    result, metrics = run(sam.per_replica(RHO, examples=examples, mesh=make_mesh(config)))
    start, total = flat(params()), np.zeros(4)
    data = batch()
    for first in range(0, 32, examples):
        matrix, vector = by_hand(*(data[name][first : first + examples] for name in ("x", "y")))
        up = matrix @ start - vector
        total += matrix @ (start + RHO * up / np.linalg.norm(up)) - vector
    np.testing.assert_allclose(flat(result), total / (32 / examples), rtol=1e-5, atol=1e-6)
    plain, expected = gradients(square, params(), data, KEY)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], expected["error"], rtol=1e-4)
    assert metrics["sharpness"] > 0
    assert np.abs(flat(result) - flat(plain)).max() > 0.01


def test_one_replica_is_the_whole_batch():
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    one, _ = run(sam.per_replica(RHO, examples=32, mesh=mesh))
    whole, _ = run(sam.whole_batch(RHO))
    np.testing.assert_allclose(flat(one), flat(whole), rtol=1e-6)


def test_sam_without_perturbation_is_the_plain_gradient():
    plain, expected = gradients(square, params(), batch(), KEY)
    per_replica = sam.per_replica(0.0, examples=2, mesh=make_mesh(MeshConfig()))
    for gradient in (sam.whole_batch(0.0), per_replica):
        result, metrics = run(gradient)
        np.testing.assert_allclose(flat(result), flat(plain), rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
        assert metrics["sharpness"] == 0


def test_sam_of_a_vanishing_gradient_is_finite():
    still, _ = run(sam.whole_batch(RHO), loss=lambda p, b, k: (0.0 * jnp.sum(p["w"]), {}))
    np.testing.assert_array_equal(still["w"], 0.0)


def test_replicas_and_their_keys_do_not_depend_on_the_devices():
    def noisy(params, batch, key):
        return square(params, {**batch, "y": batch["y"] + jax.random.normal(key, (4,))}, key)

    def on(mesh):
        return flat(run(sam.per_replica(RHO, examples=4, mesh=mesh), loss=noisy)[0])

    alone = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    np.testing.assert_allclose(on(make_mesh(DEEP)), on(alone), rtol=1e-5)


def noisy(params, batch, key):
    return square(params, {**batch, "y": batch["y"] + jax.random.normal(key, (32,))}, key)


@pytest.mark.parametrize("count", [1, 2])
def test_both_passes_see_the_same_noise(count: int):
    """The second gradient is of the loss that was perturbed, with its drops and timesteps."""
    size = 32 // count
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    replicas = sam.per_replica(RHO, examples=size, mesh=mesh)

    def own(params, batch, key):
        return square(params, {**batch, "y": batch["y"] + jax.random.normal(key, (size,))}, key)

    data = batch()
    parts = [{k: v[i * size :][:size] for k, v in data.items()} for i in range(count)]
    keys = [rng.fold(KEY, sam.REPLICA, i) for i in range(count)]
    total = np.zeros(4)
    for part, key in zip(parts, keys, strict=True):
        y = part["y"] + np.asarray(jax.random.normal(key, (size,)), np.float64)
        matrix, vector = by_hand(part["x"], y)
        up = matrix @ flat(params()) - vector
        total += matrix @ (flat(params()) + RHO * up / np.linalg.norm(up)) - vector
    result, _ = run(replicas, loss=own)
    np.testing.assert_allclose(flat(result), total / count, rtol=1e-4, atol=1e-6)


def test_both_passes_over_the_whole_batch_see_the_same_noise():
    y = batch()["y"] + np.asarray(jax.random.normal(KEY, (32,)), np.float64)
    matrix, vector = by_hand(batch()["x"], y)
    up = matrix @ flat(params()) - vector
    expected = matrix @ (flat(params()) + RHO * up / np.linalg.norm(up)) - vector
    result, _ = run(sam.whole_batch(RHO), loss=noisy)
    np.testing.assert_allclose(flat(result), expected, rtol=1e-4, atol=1e-6)


# A contrastive loss: replicas see each other's embeddings.


def towers():
    rng = np.random.default_rng(2)
    return {
        "image": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
        "text": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
        "log_scale": jnp.float32(1.2),
    }


def pairs(size: int = 16):
    rng = np.random.default_rng(4)
    return {
        "image": rng.normal(size=(size, 6)).astype(np.float32),
        "text": rng.normal(size=(size, 5)).astype(np.float32),
    }


def embed(params, batch):
    def unit(z):
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True)

    sides = (unit(batch[name] @ params[name]) for name in ("image", "text"))
    return (*sides, jnp.exp(params["log_scale"]))


def contrast(params, batch, key):
    z_img, z_txt, scale = embed(params, batch)
    return contrastive(z_img, z_txt, scale=scale).loss, {}


def contrast_share(params, batch, key):
    z_img, z_txt, scale = embed(params, batch)
    return contrastive_share(z_img, z_txt, scale=scale, axes=AXES).loss, {}


def by_definition(own, data, examples: int):
    """The loss of replicas with parameters of their own, written out pair by pair."""
    out = [
        embed(own[i], {k: v[i * examples : (i + 1) * examples] for k, v in data.items()})
        for i in range(len(own))
    ]
    z_img, z_txt = (jnp.concatenate([o[side] for o in out]) for side in (0, 1))
    scale = jnp.concatenate([jnp.full(examples, o[2]) for o in out])
    total = 0.0
    for i in range(len(z_img)):
        for mine, theirs in ((z_img, z_txt), (z_txt, z_img)):
            logits = scale[i] * (theirs @ mine[i])
            total += jax.scipy.special.logsumexp(logits) - logits[i]
    return total / (2 * len(z_img))


def test_the_shares_of_a_contrastive_loss_make_the_whole():
    gradient = sam.per_replica(0.0, examples=2, mesh=make_mesh(DEEP))
    result, metrics = run(gradient, contrast_share, towers(), pairs())
    plain, expected = gradients(contrast, towers(), pairs(), KEY)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    for name, value in plain.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-4, atol=1e-6)


@LAYOUTS
def test_contrastive_replicas_are_perturbed_as_defined(config: MeshConfig):
    examples, count, data = 2, 8, pairs()
    slope = jax.jit(jax.grad(lambda own: by_definition(own, data, examples)))
    up = slope([towers()] * count)
    neighbour = [sam.perturbed(towers(), g, rho=RHO) for g in up]
    want = jax.tree.map(lambda *parts: sum(parts), *slope(neighbour))
    gradient = sam.per_replica(RHO, examples=examples, mesh=make_mesh(config))
    result, _ = run(gradient, contrast_share, towers(), data)
    whole, _ = run(sam.whole_batch(RHO), contrast, towers(), data)
    for name, value in want.items():
        np.testing.assert_allclose(result[name], value, rtol=2e-4, atol=1e-6)
    assert np.abs(result["image"] - whole["image"]).max() > 1e-3


# One replica, or one microbatch, at a time.


class Embedded(NamedTuple):
    z_img: jax.Array
    z_txt: jax.Array
    scale: jax.Array


def embed_with_noise(params, batch, key):
    """Embeddings of images with noise of their own, so that wrong keys show."""
    noise = 0.3 * jax.random.normal(key, batch["image"].shape)
    return Embedded(*embed(params, {**batch, "image": batch["image"] + noise}))


def shares(axes):
    def share(out):
        how = {"scale": out.scale, "axes": axes}
        contrast = contrastive_share(out.z_img, out.z_txt, **how)
        return contrast.loss, {"top1": contrast.top1_image}

    return share


PAIRWISE = PairwiseLoss(embed_with_noise, shares)


@LAYOUTS
def test_replicas_one_at_a_time_have_the_gradient_of_all_at_once(config: MeshConfig):
    mesh, examples = make_mesh(config), 2
    data = pairs(32)
    direct = sam.per_replica(RHO, examples=examples, mesh=mesh)
    expected, facts = run(direct, PAIRWISE.replica_loss(AXES), towers(), data)
    cached = embedding_cache.sam_per_replica(PAIRWISE, RHO, examples=examples, mesh=mesh)
    result, metrics = run(cached, contrast, towers(), data)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=2e-4, atol=1e-6)
    for name in ("loss", "sharpness", "top1"):
        np.testing.assert_allclose(metrics[name], facts[name], rtol=1e-3, atol=1e-6)


def test_replicas_one_at_a_time_are_perturbed_as_defined():
    examples, count, data = 2, 8, pairs()
    slope = jax.jit(jax.grad(lambda own: by_definition(own, data, examples)))
    neighbour = [sam.perturbed(towers(), g, rho=RHO) for g in slope([towers()] * count)]
    want = jax.tree.map(lambda *parts: sum(parts), *slope(neighbour))
    still = PairwiseLoss(lambda p, b, k: Embedded(*embed(p, b)), shares)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:2])
    result, _ = run(
        embedding_cache.sam_per_replica(still, RHO, examples=examples, mesh=mesh),
        contrast,
        towers(),
        data,
    )
    for name, value in want.items():
        np.testing.assert_allclose(result[name], value, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_microbatches_share_one_contrastive_loss(parts: int):
    """The gradient is that of all pairs, where a mean over microbatches sees a part of them."""
    data, keys = pairs(), [rng.fold(KEY, index) for index in range(parts)]

    def whole(params):
        out = [
            embed_with_noise(params, {k: v[index::parts] for k, v in data.items()}, key)
            for index, key in enumerate(keys)
        ]
        sides = (jnp.concatenate([o[side] for o in out]) for side in (0, 1))
        return contrastive(*sides, scale=out[0].scale).loss

    value, expected = jax.jit(jax.value_and_grad(whole))(towers())
    result, metrics = run(
        embedding_cache.accumulated(PAIRWISE, parts=parts), contrast, towers(), data
    )
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    for name, slope in expected.items():
        np.testing.assert_allclose(result[name], slope, rtol=2e-4, atol=1e-6)


# As an option of a run.


def program(optim: OptimConfig, *, stage=toy.TOY, devices=8):
    config, rules = {8: (MeshConfig(fsdp=4, tensor=2), "fsdp_tp"), 1: (MeshConfig(), "dp")}[devices]
    mesh = make_mesh(config, devices=jax.devices()[:devices])
    return make_train_program(stage, optim=optim, mesh=mesh, rules=rules, steps=10, ema_decay=0.9)


@pytest.mark.parametrize("examples", [0, 4])
def test_a_sharded_step_is_that_of_one_device(examples: int):
    optim = OptimConfig(learning_rate=0.01, sam=0.5, sam_batch=examples)
    results = []
    for ready in (program(optim), program(optim, devices=1)):
        state, metrics = ready.step(ready.create(KEY), toy.batch_at(0), KEY)
        results.append((state.params["map"]["kernel"], metrics["grad_norm"], metrics["sharpness"]))
    for sharded, alone in zip(*results, strict=True):
        np.testing.assert_allclose(sharded, alone, rtol=2e-4, atol=1e-6)


def test_a_loss_of_the_whole_batch_must_know_replicas():
    stage = dataclasses.replace(toy.TOY, splittable=False)
    with pytest.raises(UserError, match="sam_batch is 4, but the loss of stage 'toy' .*; use 0"):
        program(OptimConfig(sam=0.1, sam_batch=4), stage=stage)
    program(OptimConfig(sam=0.1), stage=stage)
    program(OptimConfig(sam_batch=4), stage=stage)  # sam is off


PAIRED = dataclasses.replace(
    toy.TOY,
    splittable=False,
    pairwise=PairwiseLoss(lambda p, b, k: jnp.zeros((len(b["x"]), 1)), lambda axes: None),
)


@pytest.mark.parametrize(
    ("optim", "accumulate", "gradient", "remaining"),
    [
        ({}, 1, "gradients", 1),
        ({}, 4, "accumulated", 1),
        ({"sam": 0.1}, 4, "whole_batch", 1),
        ({"sam": 0.1, "sam_batch": 4}, 1, "per_replica", 1),
        ({"sam": 0.1, "sam_batch": 4, "sam_cached": True}, 1, "sam_per_replica", 1),
        ({"sam_batch": 4, "sam_cached": True}, 2, "accumulated", 1),
    ],
)
def test_settings_select_the_gradient(optim, accumulate, gradient, remaining):
    selected = differentiation.choose(
        PAIRED, optim=OptimConfig(**optim), mesh=make_mesh(MeshConfig()), accumulate=accumulate
    )
    assert gradient in selected.gradient.__qualname__.split(".")
    assert selected.accumulate == remaining


def test_replicas_already_split_a_batch():
    optim = OptimConfig(sam=0.1, sam_batch=4)
    with pytest.raises(UserError, match="accumulate is 2, but the replicas .*sam_cached=True"):
        differentiation.check_split(PAIRED, accumulate=2, optim=optim)


def test_one_replica_at_a_time_needs_replicas():
    with pytest.raises(UserError, match="sam_cached is True, but sam_batch is 0"):
        OptimConfig(sam=0.1, sam_cached=True)


def test_embeddings_are_needed_to_process_one_replica_at_a_time():
    optim = OptimConfig(sam=0.1, sam_batch=4, sam_cached=True)
    with pytest.raises(UserError, match="sam_cached is True, .* no embeddings .* use False"):
        program(optim)


def test_a_replica_must_fit_into_a_shard(tmp_path):
    optim = OptimConfig(sam=0.1, sam_batch=4)
    with pytest.raises(UserError, match="sam_batch is 4, which does not divide the 2 examples"):
        toy.run(tmp_path, optim=optim)
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    assert sam.copies(optim, mesh=mesh, batch_size=16) == 2
    assert sam.copies(OptimConfig(sam=0.1), mesh=mesh, batch_size=16) == 0
    cached = dataclasses.replace(optim, sam_cached=True)
    assert sam.copies(cached, mesh=mesh, batch_size=16) == 1
    assert sam.parts(cached, mesh=mesh, batch_size=16) == 2
    assert sam.parts(optim, mesh=mesh, batch_size=16) == 1


@pytest.mark.parametrize("change", [{"sam": -0.1}, {"sam_batch": -1}])
def test_settings_below_zero_are_rejected(change):
    with pytest.raises(UserError, match=r"config.optim.sam(_batch)? is -"):
        OptimConfig(**change)
