"""Initialisation and application of networks."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unclip_jax.core.batch import BatchSpec, abstract
from unclip_jax.core.types import Batch, Params


def one_example(spec: BatchSpec) -> Batch:
    """Returns a batch of one example, all zeros, to initialise a network with."""
    return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in abstract(spec, 1).items()}


def apply(module: nn.Module, params: Params, *inputs: Any, **options: Any) -> Any:
    """Runs a network on its parameters; without the union in Flax's own annotation."""
    return module.apply({"params": params}, *inputs, **options)
