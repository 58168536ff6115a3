"""The `tiny` experiments as stages, and random batches that fit them."""

import functools
import pathlib

import flax.linen as nn
import jax
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
    return jax.device_put(PARAMS[key], may_alias=False)  # a copy, without a program per shape


def random_params(stage, seed=0):
    """Parameters at random, none of them zero, without the compilation of most of the init.

    Constants are read from the init's jaxpr. Kernels have the deviation (fan in)^-1/2; parameters
    of other names are initialised. Noise of deviation 0.05 is added to all.
    """
    key = (stage.name, repr(stage.describe), seed, "random")
    if key not in PARAMS:
        rng = np.random.default_rng(seed)
        traced, shapes = jax.make_jaxpr(
            lambda key: nn.meta.unbox(stage.init(key)), return_shape=True
        )(jax.random.key(seed))
        paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
        names = [path[-1].key for path, _ in paths]
        starts = constants(traced.jaxpr)
        for i, (name, (_, leaf)) in enumerate(zip(names, paths, strict=True)):
            if name == "kernel" and i not in starts:
                fan_in = leaf.shape[-2] if leaf.ndim < 4 else np.prod(leaf.shape[:-1])
                starts[i] = rng.normal(0, fan_in**-0.5, leaf.shape)
            elif name in ("bias", "scale"):  # of layers in a scan, whose constants are inside
                starts.setdefault(i, float(name == "scale"))
        others = [i for i in range(len(names)) if i not in starts]
        if others:
            few = jax.jit(lambda key: [jax.tree.leaves(stage.init(key))[i] for i in others])
            starts |= dict(zip(others, few(jax.random.key(seed)), strict=True))
        leaves = [
            (np.asarray(starts[i]) + rng.normal(0, 0.05, leaf.shape)).astype(leaf.dtype)
            for i, (_, leaf) in enumerate(paths)
        ]
        PARAMS[key] = jax.tree.unflatten(structure, leaves)
    return jax.device_put(PARAMS[key], may_alias=False)  # a copy, without a program per shape


def constants(jaxpr):
    """Values of those outputs of a jaxpr that are the same number everywhere, by position."""
    arrays = {
        equation.outvars[0]: equation.invars[0].val
        for equation in jaxpr.eqns
        if equation.primitive.name == "broadcast_in_dim" and hasattr(equation.invars[0], "val")
    }
    values = {}
    for i, out in enumerate(jaxpr.outvars):
        if hasattr(out, "val"):
            values[i] = out.val
        elif out in arrays:
            values[i] = arrays[out]
    return values


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
