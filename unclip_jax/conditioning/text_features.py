"""Frozen text features in batches and in sampling, for the stages that read them.

The same null stands for a dropped caption in training and for the unconditional branch of guidance:
zeros of the network's own (Imagen), or the features of the empty caption (DeepFloyd IF).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unclip_jax.conditioning.captions import EncodedCaptions, TokenFeatures, repeated
from unclip_jax.core.batch import BatchSpec, Field
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Batch, Key, Params, Scale
from unclip_jax.diffusion import guidance
from unclip_jax.models.application import apply
from unclip_jax.models.text_condition import TextConditionConfig, TextFeatures
from unclip_jax.objectives import gaussian

DROP, EMPTY = "config.model.drop_text", "config.data.empty_captions"


def fields(cfg: TextConditionConfig) -> BatchSpec:
    """Returns the batch fields of text features; bfloat16 halves the bytes of a batch."""
    return {
        "text_features": Field((cfg.context, cfg.width), "bfloat16"),
        "text_mask": Field((cfg.context,), "bool"),
    }


def inputs(batch: Batch) -> dict[str, Any]:
    """Returns the arguments of a network for the captions of a batch."""
    return {"features": batch["text_features"], "mask": batch["text_mask"]}


def swapped(batch: Batch) -> Batch:
    """Returns a batch with the captions of other examples."""
    return {**batch, **{n: jnp.roll(batch[n], 1, axis=0) for n in ("text_features", "text_mask")}}


def check_drops(cfg: TextConditionConfig, share: float) -> None:
    """Rejects drops of captions by a network without a null of its own.

    Raises:
        UserError: the share is not 0.
    """
    if cfg.null == "empty" and share > 0:
        raise UserError(
            f"{DROP} is {share}, but text.null is 'empty': the features of the empty caption stand "
            "for no caption. Set it to 0, and config.data.empty_captions to that share."
        )


def check_text_path(cfg: TextConditionConfig, *, attention: bool, norm: str) -> None:
    """Rejects text to attend to where the U-Net has no attention, and norms over hidden slots.

    Args:
        cfg: the path of text.
        attention: True if the U-Net has attention.
        norm: its `context_norm`.

    Raises:
        UserError: it has none; or the norm is "group", whose statistics are over all slots, of
            which padding "mask" hides some.
    """
    if cfg.attend and not attention:
        raise UserError(
            "text.attend is on, but unet.attention_at is empty, so nothing would attend to the "
            "caption; name the sides that do, or turn text.attend off."
        )
    if cfg.attend and norm == "group" and cfg.padding == "mask":
        raise UserError(
            "unet.context_norm is 'group', whose statistics are over all slots, but text.padding "
            "is 'mask', which hides those behind the caption; set context_norm to 'layer', or "
            "padding to 'seen' (DeepFloyd IF)."
        )


def check_guidance(
    cfg: TextConditionConfig, scale: Scale, *, drop: float, empty: float | None
) -> None:
    """Rejects guidance of a network that was never trained without captions.

    Args:
        cfg: the path of text.
        scale: of the guidance.
        drop: share of training captions that were dropped.
        empty: share that were the empty caption; None = not known.

    Raises:
        UserError: the scale is not 1, and the share of the network's null is 0.
    """
    drops = {DROP: drop} if cfg.null == "zero" else {EMPTY: empty}
    shares = {name: share for name, share in drops.items() if share is not None}
    gaussian.check_guidance(scale, drops=shares)


def keep_masks(
    cfg: TextConditionConfig, key: Key, *, batch_size: int, drop: float
) -> dict[str, Any]:
    """Draws the examples of a training batch that keep their caption."""
    if cfg.null != "zero":
        return {}
    return {"keep_text": guidance.keep_mask(key, batch_size=batch_size, drop=drop)}


def encode(
    module: nn.Module,
    cfg: TextConditionConfig,
    params: Params,
    captions: EncodedCaptions[TokenFeatures],
    *,
    method: Callable[..., TextFeatures],
    guided: bool,
) -> TextFeatures:
    """Returns the encoded captions of sampling: one row each, and as many nulls if guided.

    Args:
        module: the network.
        cfg: its path of text.
        params: its parameters.
        captions: features of the captions and of the empty one.
        method: the module's method that encodes captions.
        guided: True appends the branch without captions.
    """
    text, count = captions.text, captions.text.mask.shape[0]
    if not guided:
        return apply(module, params, text.sequence, text.mask, method=method)
    keep_text = None
    if cfg.null == "zero":
        both = jax.tree.map(lambda x: jnp.concatenate([x, x]), text)
        keep_text = jnp.arange(2 * count) < jnp.full(2 * count, count)
    else:
        empty = repeated(captions.empty, count)
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), text, empty)
    return apply(module, params, both.sequence, both.mask, keep_text, method=method)
