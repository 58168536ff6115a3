"""Chains run with recorded noise instead of random noise."""

import jax
import jax.numpy as jnp

from unclip_jax.backbones.layers import TimeEmbedding
from unclip_jax.diffusion import samplers
from unclip_jax.objectives import gaussian


class Recorded:
    """Stands in for `samplers.run`: x_T and noise come from a recording, by shape."""

    def __init__(self, *draws):
        self.draws = {x_T.shape: (x_T, noises) for x_T, noises in draws}
        self.run = samplers.run

    def __call__(self, denoise, x_T, **options):
        x_T, noises = self.draws[x_T.shape]
        return self.run(denoise, x_T, noise=with_last(noises), **options)


class Chain:
    """The steps of a sampling config, and its thresholding."""

    def __init__(self, diffusion, sampling):
        self.solver, self.table = gaussian.solver_and_plan(diffusion, sampling)
        self.threshold = lambda denoise: gaussian.thresholded(denoise, diffusion, sampling)


def chain(diffusion, sampling):
    return Chain(diffusion, sampling)


def walk(denoise, x_T, noises, chain):
    """x after every step; noises[k] is that of step k, and the last step takes none."""
    denoise = chain.threshold(denoise)

    def body(x_t, inputs):
        at, noise = inputs
        pred = denoise(x_t, jnp.broadcast_to(at.t, x_t.shape[:1]))
        x_s, _ = chain.solver.advance(x_t, (), pred=pred, at=at, noise=noise)
        return x_s, x_s

    rows = (samplers.on_device(chain.table), with_last(noises))
    return jax.jit(lambda x: jax.lax.scan(body, x, rows)[1])(x_T)


def with_last(noises):
    """The noise of every step, zeros for the last."""
    return jnp.concatenate([noises, jnp.zeros_like(noises[:1])])


def time_embedding(loaded, t, *, params=None):
    cfg = loaded.cfg.model.unet
    module = TimeEmbedding(cfg.channels, cfg.emb_width, 1000, jnp.dtype("float32"))
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": (params or loaded.params)["time"]}, t)
