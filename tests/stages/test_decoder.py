import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.stages import decoder


@pytest.fixture(scope="module")
def made():
    cfg = tiny.experiment("decoder").model
    stage = decoder.make(cfg)
    params = tiny.stirred(tiny.init(stage))
    return cfg, params, jax.tree.map(jnp.asarray, tiny.random_batch(stage, 4))


@pytest.fixture(scope="module")
def run(made):
    cfg, params, _ = made
    traces = []

    @jax.jit
    def sample(keys, z_img, tokens, token_mask):
        traces.append(1)
        return decoder.sample(
            cfg, params, z_img=z_img, tokens=tokens, token_mask=token_mask, keys=keys
        )

    sample.traces = traces
    return sample


def arguments(batch):
    return batch["z_img"], batch["tokens"], batch["token_mask"]


def test_an_image_depends_on_its_key_and_condition_alone(made, run):
    _, _, batch = made
    keys = rng.per_example(jax.random.key(0), jnp.arange(4))
    whole = run(keys, *arguments(batch))
    shuffled = run(keys[::-1], *(x[::-1] for x in arguments(batch)))
    np.testing.assert_allclose(shuffled[::-1], whole, atol=1e-5)
    other = jax.tree.map(lambda x: np.concatenate([x[:1], np.roll(x[1:], 1, 0)]), batch)
    np.testing.assert_allclose(run(keys, *arguments(other))[0], whole[0], atol=1e-5)


def test_many_seeds_and_prompts_are_one_trace(made, run):
    _, _, batch = made
    for seed in range(3):
        run(rng.per_example(jax.random.key(seed), jnp.arange(4)), *arguments(batch))
    assert len(run.traces) == 1


def test_the_norm_of_z_img_does_not_matter(made, run):
    _, _, batch = made
    keys = rng.per_example(jax.random.key(0), jnp.arange(4))
    z_img, tokens, mask = arguments(batch)
    np.testing.assert_allclose(
        run(keys, z_img, tokens, mask), run(keys, 3 * z_img, tokens, mask), atol=1e-5
    )


def test_the_papers_decoder_learns_its_variance():
    cfg = tiny.experiment("decoder").model
    learned = dataclasses.replace(cfg.diffusion, learned_variance=True)
    with pytest.raises(UserError, match="out_channels is 3; .*learned_variance=True needs 6"):
        dataclasses.replace(cfg, diffusion=learned)


def test_learned_range_sampling_needs_a_learned_variance(made):
    cfg, params, batch = made
    sampling = dataclasses.replace(cfg.sampling, variance="learned_range")
    keys = rng.per_example(jax.random.key(0), jnp.arange(4))
    with pytest.raises(UserError, match="trained without a learned variance; use 'small'"):
        decoder.sample(
            cfg,
            params,
            z_img=batch["z_img"],
            tokens=batch["tokens"],
            token_mask=batch["token_mask"],
            keys=keys,
            sampling=sampling,
        )
