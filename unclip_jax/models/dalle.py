"""DALL-E's transformer: caption tokens and image codes in one causal stream (arXiv 2102.12092).

    token 0, token 1, ...  token m-1 | start of image, code 0,  code 1, ...
       |        |                    |       |           |
    token 1, token 2, ...            |    code 0      code 1,   ...

A slot without a token holds a learned vector of its position. States of the image are numbered by
the code that they predict and carry the row and the column of its place (appendix B.1).

minDALL-E is the same machine with other options: the last state of the caption predicts code 0, so
there is no start of image and states carry the place of their own code, from a single table; and
captions are filled up with an ordinary token.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from unclip_jax.backbones.causal_transformer import Cache, CausalTransformer, Patterns
from unclip_jax.backbones.layers import LayerNorm, compute_dtype, dense, normal, zeros
from unclip_jax.backbones.transformer import TransformerConfig
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.types import Mask, Tokens
from unclip_jax.models.text import CaptionEmbedding
from unclip_jax.parallel.axes import by_example, sharded

Codes = Int[Array, " b k"]


@dataclasses.dataclass(frozen=True)
class DalleConfig:
    """Sizes of DALL-E's transformer.

    Attributes:
        width: of the residual stream.
        depth: number of layers.
        heads: must divide the width.
        context: length of every caption.
        vocab_size: rows of the token table.
        grid: side of the grid of codes.
        code_count: number of codes.
        attention: patterns of the layers ("row", "column", "convolution", "full"), repeated to
            the depth; () = the paper's order.
        kernel: side of the window of "convolution".
        start_of_image: False lets the last state of the caption predict code 0.
        image_positions: "grid", a row and a column, or "table", one vector per place.
        pad_token: id that fills captions up; None = learned vectors.
        head_bias: both heads have biases.
        remat: "none", "block" or "dots".
        dtype: compute dtype; logits are in float32.
    """

    width: int
    depth: int
    heads: int
    context: int
    vocab_size: int
    grid: int
    code_count: int
    attention: tuple[str, ...] = ()
    kernel: int = 11
    start_of_image: bool = True
    image_positions: str = "grid"
    pad_token: int | None = None
    head_bias: bool = True
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        one_of("config.model.model.image_positions", self.image_positions, ("grid", "table"))
        if self.pad_token is not None:
            in_range("config.model.model.pad_token", self.pad_token, 0, self.vocab_size - 1)
        if not self.start_of_image and set(self.attention) != {"full"}:
            raise UserError(
                f"config.model.model.attention is {list(self.attention)}, whose sparse patterns "
                "begin at the start of image; without it, set attention to ('full',)."
            )

    @property
    def length(self) -> int:
        """Number of codes of an image."""
        return self.grid**2

    @property
    def transformer(self) -> TransformerConfig:
        """Config of the causal transformer."""
        return TransformerConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            causal=True,
            remat=self.remat,
            dtype=self.dtype,
        )


class StreamLogits(NamedTuple):
    """Predictions for a whole stream.

    Attributes:
        text: of every token but the first.
        codes: of every code.
    """

    text: Float[Array, " b l v"]
    codes: Float[Array, " b k n"]


class Dalle(nn.Module):
    """Predicts the next token or code from all before it; uniform when fresh."""

    cfg: DalleConfig

    def setup(self):
        """Creates the submodules; their names are the parameter paths of checkpoints."""
        cfg, exact = self.cfg, jnp.dtype("float32")
        self.captions = CaptionEmbedding(
            cfg.vocab_size, cfg.context, cfg.width, padding=cfg.pad_token is None
        )
        table = sharded(normal(0.02), "vocab", "embed")
        self.codes = self.param("codes", table, (cfg.code_count, cfg.width))
        if cfg.start_of_image:
            start = sharded(normal(0.02), "embed")
            self.image_start = self.param("image_start", start, (cfg.width,))
        places = sharded(normal(0.01), "position", "embed")
        if cfg.image_positions == "grid":
            self.rows = self.param("rows", places, (cfg.grid, cfg.width))
            self.columns = self.param("columns", places, (cfg.grid, cfg.width))
        else:
            self.places = self.param("places", places, (cfg.length, cfg.width))
        self.stream = CausalTransformer(cfg.transformer)
        self.final_norm = LayerNorm()
        # float32, for a cross-entropy over thousands; zero, so that a fresh loss is ln n
        options = {"axes": ("embed", "out"), "dtype": exact, "init": zeros}
        options["use_bias"] = cfg.head_bias
        self.text_out = dense(cfg.vocab_size, name="text_out", **options)
        self.code_out = dense(cfg.code_count, name="code_out", **options)

    def __call__(
        self, tokens: Tokens, token_mask: Mask, codes: Codes, *, patterns: Patterns
    ) -> StreamLogits:
        """Computes the logits of every token and code, given those before it.

        Args:
            tokens: caption ids.
            token_mask: True at real tokens; False everywhere drops the caption.
            codes: of the image in raster order; the last is ignored.
            patterns: masks of the layers over the stream.
        """
        image = jnp.take(self.codes, codes[:, :-1], axis=0)
        if self.cfg.start_of_image:
            start = jnp.broadcast_to(self.image_start[None, None], (len(codes), 1, self.cfg.width))
            image = jnp.concatenate([start, image], axis=1)
        x = self._stream(tokens, token_mask, image + self._places()[None, : image.shape[1]])
        x, _ = self.stream(x, patterns=patterns)
        x, context = self._normed(x), self.cfg.context
        return StreamLogits(
            self.text_out(x[:, : context - 1]), self.code_out(x[:, -self.cfg.length :])
        )

    def start(
        self, tokens: Tokens, token_mask: Mask, *, patterns: Patterns
    ) -> tuple[Float[Array, " b n"], Cache]:
        """Computes the logits of code 0 and the cache for `step`; arguments as above."""
        first = None
        if self.cfg.start_of_image:
            first = self.image_start + self._places()[0]
            first = jnp.broadcast_to(first[None, None], (len(tokens), 1, self.cfg.width))
        slots = self.cfg.context + self.cfg.length
        x = self._stream(tokens, token_mask, first)
        x, cache = self.stream(x, keep=slots, patterns=patterns)
        assert cache is not None
        return self.code_out(self._normed(x[:, -1:]))[:, 0], cache

    def step(
        self, code: Int[Array, " b"], cache: Cache, *, index: Int[Array, ""], patterns: Patterns
    ) -> tuple[Float[Array, " b n"], Cache]:
        """Computes the logits of code `index` + 1 after sampling `code` as code `index`."""
        index = index + int(self.cfg.start_of_image)  # of the state, after the caption
        x = jnp.take(self.codes, code, axis=0) + self._places()[index][None]
        x, cache = self.stream.step(
            x[:, None].astype(compute_dtype(self.cfg.dtype)),
            cache,
            position=self.cfg.context + index,
            patterns=patterns,
        )
        return self.code_out(self._normed(x))[:, 0], cache

    def _stream(
        self, tokens: Tokens, token_mask: Mask, image: Float[Array, " b j d"] | None
    ) -> Float[Array, " b s d"]:
        """Returns the states of a caption and of the first codes, if there are any."""
        if self.cfg.pad_token is not None:
            tokens = jnp.where(token_mask, tokens, self.cfg.pad_token)
        x = self.captions(tokens, token_mask)
        x = x if image is None else jnp.concatenate([x, image], axis=1)
        return by_example(x.astype(compute_dtype(self.cfg.dtype)))

    def _places(self) -> Float[Array, " k d"]:
        """Returns the position of every code: that of its row and that of its column."""
        if self.cfg.image_positions == "table":
            return self.places
        places = self.rows[:, None] + self.columns[None]
        return places.reshape(self.cfg.length, self.cfg.width)

    def _normed(self, x: Float[Array, " b l d"]) -> Float[Array, " b l d"]:
        return self.final_norm(x).astype(jnp.float32)
