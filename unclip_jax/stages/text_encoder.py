"""Stage `text_encoder`: the encoder of a language model, frozen for the stages that read it.

Imagen reads T5-XXL's features (Saharia et al. 2022, arXiv 2205.11487, section 2.1), which are
imported, not trained. A small encoder can be trained here instead: it predicts masked
tokens of captions from the others (BERT, arXiv 1810.04805, section 3.1), without images.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.conditioning.captions import (
    EncodedCaptions,
    TokenFeatures,
    TokenIds,
    empty_caption,
)
from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Key, Keys, Mask, Metrics, Params, Scalar, Tokens
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.language_encoder import LanguageEncoder, LanguageEncoderConfig
from unclip_jax.stages.entry import StageEntry

START = "start_token"
REPLACED, RANDOM = 0.8, 0.1  # fractions of the chosen tokens; the rest are kept (BERT, section 3.1)


@dataclasses.dataclass(frozen=True)
class TextEncoderStageConfig:
    """A text encoder, and the objective of training one here.

    Attributes:
        model: the network.
        mask_share: fraction of the tokens of a caption that are predicted; the last row of the
            token table stands for a masked token, so the tokenizer must have fewer entries than
            rows.
    """

    model: LanguageEncoderConfig
    mask_share: float = 0.15

    def __post_init__(self):
        in_range("config.model.mask_share", self.mask_share, 0.0, 1.0)


def make(cfg: TextEncoderStageConfig) -> Stage:
    """Builds the `Stage` of masked-token prediction."""
    spec = batches.text_fields(cfg.model.context, cfg.model.vocab_size - 1)  # the last is the mask

    def init(key: Key) -> Params:
        zeros = one_example(spec)
        return LanguageEncoder(cfg.model).init(key, zeros["tokens"], zeros["token_mask"])["params"]

    def loss(params: Params, batch: Batch, key: Key) -> tuple[Scalar, Metrics]:
        if cfg.model.family == "clip":
            raise UserError(
                "config.model.model.family is 'clip', whose attention is causal, so that masked "
                "tokens cannot be predicted; convert a CLIP, or train a t5 or bert."
            )
        tokens, mask = batch["tokens"], batch["token_mask"]
        chosen = mask & jax.random.bernoulli(rng.fold(key, "mask"), cfg.mask_share, mask.shape)
        captions = TokenIds(corrupt(cfg, tokens, chosen=chosen, key=key), mask)
        logits = _logits(cfg, params, encode(cfg, params, captions).sequence)
        errors = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
        count = jnp.maximum(jnp.sum(chosen), 1)
        hits = jnp.sum(chosen & (jnp.argmax(logits, axis=-1) == tokens))
        value = jnp.sum(jnp.where(chosen, errors[..., 0], 0.0)) / count
        return value, {"loss": value, "accuracy": hits / count}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        return loss(params, batch, key)[1]

    return Stage(
        name="text_encoder",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=None,
        splittable=True,
        describe={"config": as_dict(cfg), "text_width": cfg.model.width},
    )


def corrupt(cfg: TextEncoderStageConfig, tokens: Tokens, *, chosen: Mask, key: Key) -> Tokens:
    """Replaces most of the chosen tokens by the mask, some by random tokens, and keeps others."""
    share = jax.random.uniform(rng.fold(key, "kind"), tokens.shape)
    last = cfg.model.vocab_size - 1
    random = jax.random.randint(rng.fold(key, "random"), tokens.shape, 0, last)
    other = jnp.where(share < REPLACED, last, jnp.where(share < REPLACED + RANDOM, random, tokens))
    return jnp.where(chosen, other, tokens)


def _logits(cfg: TextEncoderStageConfig, params: Params, x: Array) -> Float[Array, " b l v"]:
    """Returns logits from the token table, whose rows T5 initialises with standard deviation 1."""
    scale = cfg.model.width**-0.5 if cfg.model.family == "t5" else 1.0
    return jnp.einsum("b l d, v d -> b l v", x.astype(jnp.float32), params["tokens"]) * scale


def encode(cfg: TextEncoderStageConfig, params: Params, captions: TokenIds) -> TokenFeatures:
    """Returns the features of captions."""
    sequence = apply(LanguageEncoder(cfg.model), params, captions.tokens, captions.mask)
    return TokenFeatures(sequence, captions.mask)


def sample_in_chain(
    cfg: TextEncoderStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: None = None,
) -> dict[str, Any]:
    """Encodes captions and the empty one (`entry.ChainSampler`); deterministic.

    The condition START tells whether the tokenizer begins captions with a start token; without it,
    those of BERT and CLIP do, and T5's does not.
    """
    captions: TokenIds = conditions["caption"]
    start = conditions.get(START, cfg.model.family != "t5")
    empty = empty_caption(captions.tokens, captions.mask, specials=2 if start else 1)
    text = encode(cfg, params, captions)
    return {"text_features": EncodedCaptions(text, encode(cfg, params, TokenIds(*empty)))}


ENTRY = StageEntry(
    name="text_encoder",
    role="encoder",
    config=TextEncoderStageConfig,
    make=make,
    reads=lambda cfg: ("caption",),
    yields=("text_features",),
    sample=sample_in_chain,
    requires=("text_width",),
    identity="text_encoder_id",
    chain="imagen",
)
