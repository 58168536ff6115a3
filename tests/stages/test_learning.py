"""CLIP and the priors learn from every condition, on small worlds in which each tells something.

A condition that is ignored, dropped always or wired to another input costs nothing when it is
exchanged. Networks are trained for seconds; a difference counts if it is five of its standard
errors wide.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.stages import tiny
from tests.stages.test_conditions import CONFIGS, MODULES
from unclip_jax.core import rng
from unclip_jax.models.clip import ClipConfig
from unclip_jax.stages import clip

pytestmark = pytest.mark.nightly
BATCH, STEPS, BATCHES = 64, 600, 24
KEY = jax.random.key(0)


def words(classes: jax.Array) -> dict[str, jax.Array]:
    """Captions of four tokens, all of which name a class."""
    tokens = jnp.broadcast_to(2 + classes[:, None], (len(classes), 6))
    return {"tokens": tokens, "token_mask": jnp.broadcast_to(jnp.arange(6)[None] < 4, tokens.shape)}


def signs(key: jax.Array, name: str, count: int) -> jax.Array:
    return jax.random.rademacher(rng.fold(key, name), (count,), jnp.float32)


def embeddings(key: jax.Array, count: int = BATCH) -> dict[str, jax.Array]:
    """z_img is told by the caption's class and, in other directions, by the sign of z_txt."""
    classes = jax.random.randint(rng.fold(key, "class"), (count,), 0, 2)
    sign = signs(key, "sign", count)
    small = 0.2 * jax.random.normal(rng.fold(key, "small"), (2, count, 4))
    z_txt = sign[:, None] * jnp.array([[1.0, 0.0, 0.0, 0.0]]) + small[0]
    by_class = (2 * classes - 1)[:, None] * jnp.array([[0.0, 1.0, 0.0, 0.0]])
    z_img = by_class + sign[:, None] * jnp.array([[0.0, 0.0, 1.0, 0.0]]) + small[1]
    return {**words(classes), "z_txt": z_txt, "z_img": z_img}


def pairs(key: jax.Array, count: int = BATCH) -> dict[str, jax.Array]:
    """Images and captions of the same class of twelve."""
    classes = jax.random.randint(key, (count,), 0, 12)
    colours = jax.random.uniform(jax.random.key(7), (12, 3), minval=-1.0)[classes]
    image = jnp.broadcast_to(colours[:, None, None], (count, 8, 8, 3))
    return {**words(classes), "image": image}


CLIP = clip.ClipStageConfig(ClipConfig(8, 8, 4, 16, 1, 2, 16, 1, 2, 6, 20))
LEARNERS = {
    "prior": (dataclasses.replace(CONFIGS["prior"], drop_text=0.1), embeddings),
    "prior_ar": (dataclasses.replace(CONFIGS["prior_ar"], drop_text=0.1), embeddings),
    "clip": (CLIP, pairs),
}
CONDITIONS = {
    "prior": (("tokens",), ("z_txt",)),
    "prior_ar": (("tokens",), ("z_txt",)),
    "clip": (("tokens",), ("image",)),
}


@functools.cache
def trained(name: str):
    """Config, stage and averaged parameters of a stage trained on its small world."""
    cfg, world = LEARNERS[name]
    stage = {**MODULES, "clip": clip}[name].make(cfg)
    params = tiny.init(stage)
    if stage.fit is not None:
        blocks = [jax.tree.map(np.asarray, world(rng.fold(KEY, "fit", i), 256)) for i in range(8)]
        params = {**params, **stage.fit(lambda most: iter(blocks)).params}
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))

    def step(carry, index):
        params, average, state = carry
        key = rng.fold(KEY, "train", index)
        grads = jax.grad(lambda p: stage.loss(p, world(rng.fold(key, "data")), key)[0])(params)
        updates, state = tx.update(grads, state)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 0.02)
        return (params, average, state), None

    start = (params, params, tx.init(params))
    average = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(STEPS))[0][1])(start)
    return cfg, stage, average


def significance(differences) -> float:
    """The mean in standard errors."""
    x = np.asarray(differences, np.float64)
    return float(x.mean() / (x.std() / np.sqrt(x.size) + 1e-12))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_wrong_condition_costs_a_trained_stage_each_of_them(name):
    _, stage, params = trained(name)
    world = LEARNERS[name][1]
    loss = jax.jit(lambda batch, key: stage.evaluate(params, batch, key)["loss"])
    for fields in CONDITIONS[name]:
        costs = []
        for index in range(BATCHES):
            key = rng.fold(KEY, "held out", index)
            batch = world(rng.fold(key, "data"))
            wrong = {**batch, **{f: jnp.roll(batch[f], 1, axis=0) for f in fields}}
            costs.append(loss(wrong, key) - loss(batch, key))
        assert significance(costs) > 5, (fields, np.mean(costs))
