"""The `tiny` experiments as stages, and random batches that fit them."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.experiment import files
from unclip_jax.experiment.config import from_config

ROOT = pathlib.Path(__file__).parents[2]


PARAMS = {}  # host arrays by name, config and seed; many tests begin with the same ones


@functools.cache
def experiment(name):
    return from_config(files.get_config(f"{name}:tiny"))


def init(stage, seed=0):
    """Unboxed parameters of a stage, in fresh buffers, so that a test may donate them."""
    key = (stage.name, repr(stage.describe), seed)
    if key not in PARAMS:
        params = nn.meta.unbox(jax.jit(stage.init)(jax.random.key(seed)))
        PARAMS[key] = jax.tree.map(np.array, params)
    return jax.tree.map(jnp.array, PARAMS[key])


def stirred(params, seed=1):
    """Parameters away from the zero-initialised outputs, so that results depend on everything."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


def random_batch(stage, size, seed=0):
    """A batch of noise that satisfies the stage's spec."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, field in stage.batch_spec.items():
        shape = (size, *field.shape)
        if field.dtype == "int32":
            batch[name] = rng.integers(0, field.high + 1, shape).astype(np.int32)
        elif field.dtype == "bool":
            batch[name] = np.arange(field.shape[0])[None] < rng.integers(
                2, field.shape[0], (size, 1)
            )
        else:
            batch[name] = np.clip(rng.normal(size=shape), -1, 1).astype(field.dtype)
    return batch
