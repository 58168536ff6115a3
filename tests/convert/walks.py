"""Chains walked with recorded noise instead of drawn noise."""

import jax
import jax.numpy as jnp

from unclip_jax.diffusion import respace, samplers
from unclip_jax.models.layers import TimeEmbedding
from unclip_jax.stages import gaussian


class Recorded:
    """Stands in for `samplers.sample`: starts and noises come from a recording, by shape."""

    def __init__(self, *draws):
        self.draws = {x_T.shape: (x_T, noises) for x_T, noises in draws}

    def __call__(self, denoise, x_T, *, schedule, step, **unused):
        x_T, noises = self.draws[x_T.shape]
        noises = jnp.concatenate([noises, jnp.zeros_like(noises[:1])])

        def body(x_t, inputs):
            at, noise = inputs
            pred = denoise(x_t, jnp.broadcast_to(at.t, x_t.shape[:1]))
            return step(x_t, pred, at, noise), None

        return jax.lax.scan(body, x_T, (samplers.step_inputs(schedule), noises))[0]


class Chain:
    """The steps of a sampling config, and its thresholding."""

    def __init__(self, diffusion, sampling):
        self.schedule = respace.strided(diffusion.chain(), steps=sampling.steps)
        self.rule = samplers.ancestral(sampling.variance)
        self.threshold = lambda denoise: gaussian.thresholded(denoise, diffusion, sampling)


def chain(diffusion, sampling):
    return Chain(diffusion, sampling)


def walk(denoise, x_T, noises, chain):
    """x after every step; noises[k] is that of step k, and the last step takes none."""
    noises = jnp.concatenate([noises, jnp.zeros_like(noises[:1])])
    denoise = chain.threshold(denoise)

    def body(x_t, inputs):
        at, noise = inputs
        pred = denoise(x_t, jnp.broadcast_to(at.t, x_t.shape[:1]))
        x_s = chain.rule(x_t, pred, at, noise)
        return x_s, x_s

    steps = (samplers.step_inputs(chain.schedule), noises)
    return jax.jit(lambda x: jax.lax.scan(body, x, steps)[1])(x_T)


def time_embedding(loaded, t, *, params=None):
    cfg = loaded.cfg.model.unet
    module = TimeEmbedding(cfg.channels, cfg.emb_width, 1000, jnp.dtype("float32"))
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": (params or loaded.params)["time"]}, t)
