"""Conditions of a prior between embedding spaces as tokens of a transformer.

A vector becomes one or more tokens, a sequence one token per element, token ids their embeddings.
Where a condition is dropped or padding, there are learned vectors.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import compute_dtype, dense, normal
from unclip_jax.backbones.token_denoiser import TokenDenoiser
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.axes import sharded

Conditions = Mapping[str, Any]  # by name: [b z] or [b l z] float32, or ids [b l]
Masks = Mapping[str, Any]  # by name of a sequence: [b l], True at real tokens; none = all


@dataclasses.dataclass(frozen=True)
class ConditionConfig:
    """One condition.

    Attributes:
        name: batch field that holds it.
        shape: of one example, [z] or [l, z]; [l] for token ids.
        vocab_size: number of token ids; 0 = the condition is no token ids.
        ragged: sequences have different lengths, and a mask in the field NAME_mask.
    """

    name: str
    shape: tuple[int, ...]
    vocab_size: int = 0
    ragged: bool = False

    def __post_init__(self):
        rank = len(self.shape)
        if rank not in (1, 2) or (self.vocab_size and rank != 1) or min(self.shape) < 1:
            raise UserError(
                f"condition {self.name!r} has shape {list(self.shape)}; give [z] for a vector, "
                "[l, z] for a sequence, or [l] with vocab_size for token ids."
            )

    @property
    def sequence(self) -> bool:
        """True if it has a token axis."""
        return len(self.shape) == 2 or bool(self.vocab_size)


class ConditionedTokens(TokenDenoiser):
    """Base class of networks that attend to conditions.

    Its config also has the fields conditions and vector_tokens.
    """

    def _conditions(
        self, conditions: Conditions, masks: Masks, keep: Bool[Array, " b c"] | None
    ) -> Float[Array, " b l d"]:
        """Returns the tokens of all conditions, of which `keep` drops some (None = none)."""
        parts = [
            self._condition(one, conditions, masks, None if keep is None else keep[:, i])
            for i, one in enumerate(self.cfg.conditions)
        ]
        return jnp.concatenate(parts, axis=1)

    def _condition(
        self,
        one: ConditionConfig,
        conditions: Conditions,
        masks: Masks,
        keep: Bool[Array, " b"] | None,
    ) -> Float[Array, " b l d"]:
        """Returns the tokens of one condition; a learned vector of its position where it is empty.

        All are empty where the condition is dropped.
        """
        x = conditions[one.name]
        if one.vocab_size:
            init = sharded(normal(0.02), "vocab", "embed")
            table = self.param(f"{one.name}_table", init, (one.vocab_size, self.cfg.width))
            tokens, real = jnp.take(table, jnp.maximum(x, 0), axis=0), x >= 0
        elif one.sequence:
            tokens, real = self._project(f"{one.name}_in", x), jnp.ones(x.shape[:2], bool)
        else:
            width, count = self.cfg.width, self.cfg.vector_tokens
            dtype = compute_dtype(self.cfg.dtype)
            layer = dense(width * count, name=f"{one.name}_in", axes=("z", "embed"), dtype=dtype)
            tokens = layer(x.astype(dtype)).reshape(len(x), count, width)
            real = jnp.ones(tokens.shape[:2], bool)
        if one.ragged:
            real = real & masks[one.name]
        if keep is not None:
            real = real & keep[:, None]
        return self._filled(f"null_{one.name}", tokens, real)

    def _filled(
        self, name: str, tokens: Float[Array, " b l d"], real: Bool[Array, " b m"], rows: int = 0
    ) -> Float[Array, " b l d"]:
        """Returns tokens with learned vectors in place of those that are not real."""
        null = self._table(name, rows or tokens.shape[1])
        return jnp.where(real[..., None], tokens, null[None].astype(tokens.dtype))
