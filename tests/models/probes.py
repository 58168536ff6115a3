"""Parameters away from zero and views of them, for the tests of several networks."""

import functools
import importlib.util
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.experiment.config import from_config

ROOT = pathlib.Path(__file__).parents[2]


def paper(name):
    """The model config of a paper-sized experiment."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config(module.get_config("paper")).model.model


def shapes(module, *args, **kwargs):
    """Unboxed shapes of the parameters; nothing is computed."""
    case = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    return nn.meta.unbox(case)["params"]


def count(tree):
    """Number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def paths(tree):
    """Slash-separated paths of the leaves."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in flat}


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(module, variables, *args, method=None, **kwargs):
    """`module.apply`, compiled as a whole: one operation at a time takes several times as long."""
    return module.apply(variables, *args, method=method, **kwargs)


def fresh(module, *args, **kwargs):
    """Variables as initialised, unboxed; compiled, which is quicker than one op at a time."""
    init = jax.jit(lambda key: module.init(key, *args, **kwargs))
    return nn.meta.unbox(init(jax.random.key(0)))


def random_variables(module, *args, **kwargs):
    """Variables drawn at random without running the init, so that nothing is zero; no compiling.

    Kernels have deviation 0.3, gains of norms lie around 1.
    """
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        gain = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(gain, 0.3, leaf.shape), leaf.dtype)

    return {"params": jax.tree_util.tree_map_with_path(draw, shapes(module, *args, **kwargs))}
