"""Every stage learns from every condition, on small worlds in which each is informative.

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

from tests.compiler import THOROUGH
from tests.stages import tiny
from tests.stages.test_conditions import CONFIGS, MODULES
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core import rng
from unclip_jax.models.clip import ClipConfig
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages import clip, decoder, upsampler
from unclip_jax.stages.decoder import Condition

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
    """z_img depends on the caption's class and, in other directions, on the sign of z_txt.

    The sign of its last direction depends on neither, so that samples of one condition differ.
    """
    classes = jax.random.randint(rng.fold(key, "class"), (count,), 0, 2)
    sign = signs(key, "sign", count)
    small = 0.2 * jax.random.normal(rng.fold(key, "small"), (2, count, 4))
    z_txt = sign[:, None] * jnp.array([[1.0, 0.0, 0.0, 0.0]]) + small[0]
    by_class = (2 * classes - 1)[:, None] * jnp.array([[0.0, 1.0, 0.0, 0.0]])
    z_img = by_class + sign[:, None] * jnp.array([[0.0, 0.0, 1.0, 0.0]]) + small[1]
    z_img = z_img + signs(key, "free", count)[:, None] * jnp.array([[0.0, 0.0, 0.0, 1.0]])
    return {**words(classes), "z_txt": z_txt, "z_img": z_img}


def pairs(key: jax.Array, count: int = BATCH) -> dict[str, jax.Array]:
    """Images and captions of the same class of twelve."""
    classes = jax.random.randint(key, (count,), 0, 12)
    colours = jax.random.uniform(jax.random.key(7), (12, 3), minval=-1.0)[classes]
    image = jnp.broadcast_to(colours[:, None, None], (count, 8, 8, 3))
    return {**words(classes), "image": image}


def images(key: jax.Array, count: int = BATCH) -> dict[str, jax.Array]:
    """The sign of z_img sets a red spot, the caption's class a green one.

    Spots are small: a larger one could be seen in x_t under most of the noise.
    """
    classes = jax.random.randint(rng.fold(key, "class"), (count,), 0, 2)
    sign = signs(key, "sign", count)
    z_img = sign[:, None] * jnp.array([[0.0, 1.0, 0.0, 0.0]])
    z_img = z_img + 0.2 * jax.random.normal(rng.fold(key, "small"), (count, 4))
    blue = signs(key, "blue", count)
    image = jnp.zeros((count, 8, 8, 3)).at[:, 0:2, 0:2, 0].set(sign[:, None, None])
    image = image.at[:, 4:6, 4:6, 1].set(2.0 * classes[:, None, None] - 1.0)
    image = image.at[:, :, :, 2].set(0.8 * blue[:, None, None])
    return {**words(classes), "z_img": z_img, "image": image}


def mosaics(key: jax.Array, count: int = BATCH) -> dict[str, jax.Array]:
    """Images of random squares of 2 x 2 pixels, and the same at half the size."""
    low_res = 0.8 * jax.random.rademacher(key, (count, 4, 4, 3), jnp.float32)
    image = jnp.repeat(jnp.repeat(low_res, 2, axis=1), 2, axis=2)
    return {"image": image, "low_res": low_res}


CLIP = clip.ClipStageConfig(ClipConfig(8, 8, 4, 16, 1, 2, 16, 1, 2, 6, 20))
LEARNERS = {
    "prior": (dataclasses.replace(CONFIGS["prior"], drop_text=0.1), embeddings),
    "prior_ar": (dataclasses.replace(CONFIGS["prior_ar"], drop_text=0.1), embeddings),
    "clip": (CLIP, pairs),
    "decoder": (dataclasses.replace(CONFIGS["decoder"], drop_z=0.1, drop_text=0.1), images),
    "upsampler": (CONFIGS["upsampler"], mosaics),
}
CONDITIONS = {
    "prior": (("tokens",), ("z_txt",)),
    "prior_ar": (("tokens",), ("z_txt",)),
    "clip": (("tokens",), ("image",)),
    "decoder": (("tokens",), ("z_img",)),
    "upsampler": (("low_res",),),
}


@functools.cache
def train_stage(name: str):
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
    train = jax.jit(
        lambda s: jax.lax.scan(step, s, jnp.arange(STEPS))[0][1], compiler_options=THOROUGH
    )
    average = train(start)
    return cfg, stage, average


def significance(differences) -> float:
    """The mean in standard errors."""
    x = np.asarray(differences, np.float64)
    return float(x.mean() / (x.std() / np.sqrt(x.size) + 1e-12))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_wrong_condition_costs_a_trained_stage_each_of_them(name):
    _, stage, params = train_stage(name)
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


GUIDED = SamplingConfig(steps="10", guidance_scale=1.5)


def held_out(name: str) -> dict[str, jax.Array]:
    return LEARNERS[name][1](rng.fold(KEY, "sampled"))


def sample_stage(name: str, batch: dict[str, jax.Array], keys: jax.Array) -> np.ndarray:
    """Samples of a trained stage for the conditions of a batch."""
    cfg, _, params = train_stage(name)

    @jax.jit
    def sample(batch, keys):
        if name == "upsampler":
            plain = SamplingConfig(steps="10")
            return upsampler.sample(
                cfg, params, low_res=batch["low_res"], keys=keys, sampling=plain
            )
        caption = (batch["tokens"], batch["token_mask"])
        if name == "decoder":
            condition = Condition(batch["z_img"], TokenIds(*caption))
            return decoder.sample(cfg, params, condition, keys=keys, sampling=GUIDED)
        options = {"z_txt": batch["z_txt"], "keys": keys, "num_candidates": 1}
        if name == "prior":
            options["sampling"] = GUIDED
        texts = dict(zip(("tokens", "token_mask"), caption, strict=True))
        return MODULES[name].sample(cfg, params, **texts, **options)

    return np.asarray(sample(batch, keys))


def follows(name: str, samples: np.ndarray, batch: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Agreement of each sample with each of its conditions, from about -1 to 1."""
    if name == "upsampler":
        return {"low_res": (samples * np.asarray(batch["image"])).mean((1, 2, 3))}
    by_class = 2.0 * np.asarray(batch["tokens"])[:, 0] - 5.0
    if name == "decoder":
        red = samples[:, 0:2, 0:2, 0].mean((1, 2))
        green = samples[:, 4:6, 4:6, 1].mean((1, 2))
        return {"z_img": red * np.sign(batch["z_img"])[:, 1], "tokens": green * by_class}
    return {
        "z_txt": samples[:, 2] * np.sign(batch["z_txt"])[:, 0],
        "tokens": samples[:, 1] * by_class,
    }


@pytest.mark.parametrize("name", ["prior", "prior_ar", "decoder", "upsampler"])
def test_what_changes_samples_of_trained_stages_and_what_does_not(name):
    """
    | changed                | samples change            |
    |------------------------|---------------------------|
    | a condition            | towards the new one alone |
    | seed                   | yes                       |
    | other rows             | no                        |
    | nothing                | no                        |
    """
    batch, keys = held_out(name), rng.per_example(KEY, jnp.arange(BATCH))
    samples = sample_stage(name, batch, keys)
    right = follows(name, samples, batch)
    for field, agreement in right.items():
        assert significance(agreement) > 5, (name, field)
        wrong = {**batch, field: jnp.roll(batch[field], 1, axis=0)}
        message = (
            {**wrong, "image": jnp.roll(batch["image"], 1, axis=0)} if field == "low_res" else wrong
        )
        effect = follows(name, sample_stage(name, wrong, keys), message)
        for other in right:  # the others lead where they led before
            assert significance(effect[other]) > 5, (name, field, other)
    again = sample_stage(name, batch, keys)
    np.testing.assert_array_equal(again, samples)
    others = jax.tree.map(lambda x: x.at[1::2].set(jnp.roll(x, 2, axis=0)[1::2]), batch)
    other_keys = keys.at[1::2].set(rng.per_example(jax.random.key(9), jnp.arange(BATCH))[1::2])
    np.testing.assert_array_equal(sample_stage(name, others, other_keys)[::2], samples[::2])
    other_seed = sample_stage(name, batch, rng.per_example(jax.random.key(9), jnp.arange(BATCH)))
    difference = np.abs(other_seed - samples).reshape(BATCH, -1).max(1) > 1e-3
    assert difference.mean() > (0.5 if name == "prior_ar" else 0.9)  # few codes, few samples
