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


def random_params(stage, seed=0):
    """Parameters of a stage at random, none of them zero, without the compilation of its init.

    Kernels of linear layers have the deviation (fan in)^-1/2 and gains lie around 1; parameters of
    other names are initialised. Noise of deviation 0.05 is added to all.
    """
    key = (stage.name, repr(stage.describe), seed, "random")
    if key not in PARAMS:
        rng = np.random.default_rng(seed)
        shapes, structure = jax.tree_util.tree_flatten_with_path(abstract(stage))
        names = [path[-1].key for path, _ in shapes]
        others = [i for i, name in enumerate(names) if name not in ("kernel", "bias", "scale")]

        def initialise(key):
            leaves = jax.tree.leaves(nn.meta.unbox(stage.init(key)))
            return [leaves[i] for i in others]

        values = jax.jit(initialise)(jax.random.key(seed)) if others else []
        leaves = dict(zip(others, values, strict=True))
        for i, (name, (_, leaf)) in enumerate(zip(names, shapes, strict=True)):
            noise = rng.normal(0, 0.05, leaf.shape)
            if name == "kernel" and leaf.ndim < 4:
                fan_in = np.prod(leaf.shape) / leaf.shape[-1]
                noise += rng.normal(0, fan_in**-0.5, leaf.shape)
            start = np.asarray(leaves.get(i, float(name == "scale")))
            leaves[i] = (start + noise).astype(leaf.dtype)
        PARAMS[key] = jax.tree.unflatten(structure, [leaves[i] for i in range(len(names))])
    return jax.tree.map(jnp.array, PARAMS[key])


def abstract(stage):
    """Unboxed shapes of the parameters of a stage."""
    return nn.meta.unbox(jax.eval_shape(stage.init, jax.random.key(0)))


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
