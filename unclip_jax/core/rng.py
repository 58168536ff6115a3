"""Random keys by address: a key depends on (seed, step, purpose) alone, not on earlier draws.

So a resumed run equals an uninterrupted one, and an additional draw changes no other.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unclip_jax.core.types import Key, Keys


def fold(key: Key, *address: int | str | Int[Array, ""]) -> Key:
    """Returns the key at `address` below `key`: `fold(key, step, "noise")`."""
    for part in address:
        data = zlib.crc32(part.encode()) if isinstance(part, str) else part
        key = jax.random.fold_in(key, data)
    return key


def per_example(key: Key, indices: Int[Array, " b"]) -> Keys:
    """Returns one key per example, so that example i does not depend on its batch."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def fold_each(keys: Keys, *address: int | str | Int[Array, ""]) -> Keys:
    """Applies `fold` to every key of a batch."""
    return jax.vmap(lambda key: fold(key, *address))(keys)


def normal_each(keys: Keys, shape: tuple[int, ...]) -> Float[Array, " b *s"]:
    """Samples a standard normal array of `shape` per key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
