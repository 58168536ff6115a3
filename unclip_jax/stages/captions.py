"""A caption as a frozen CLIP sees it, for stages that read CLIP's features instead of token ids.

Karlo's way: its prior and decoder have no text model of their own, and what stands for "no
caption" is what CLIP makes of the empty one.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Embedding, Mask, Tokens

CAPTION_FIELDS = ("tokens", "token_mask", "text_seq")


@struct.dataclass
class TokenIds:
    """Captions for a stage with a text model of its own.

    Attributes:
        tokens: ids at the stage's context length.
        mask: True at real tokens; False everywhere is no caption.
    """

    tokens: Tokens
    mask: Mask


@struct.dataclass
class ClipText:
    """What CLIP's text tower says of captions.

    Attributes:
        z_txt: raw embeddings, not normalised.
        sequence: features of all slots after the final norm.
        mask: True at real tokens.
    """

    z_txt: Embedding
    sequence: Float[Array, " b l d"]
    mask: Mask


def empty_caption(tokens: Tokens, mask: Mask) -> tuple[Int[Array, " 1 l"], Bool[Array, " 1 l"]]:
    """The empty caption, start and end token alone, as one row, out of any batch of captions.

    Every caption begins with the start token and ends, where its mask does, with the end token.
    """
    last = jnp.sum(mask[0]) - 1
    ids = jnp.zeros_like(tokens[:1]).at[0, :2].set(jnp.stack([tokens[0, 0], tokens[0, last]]))
    return ids, (jnp.arange(tokens.shape[1]) < 2)[None]


def repeated(empty: ClipText, count: int) -> ClipText:
    """One row repeated `count` times; `count` rows as they are."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), empty)


def needed(what: str, text: ClipText | None) -> ClipText:
    """The features of `what`.

    Raises:
        UserError: they were not given.
    """
    if text is None:
        raise UserError(
            f"this stage reads what CLIP says of {what}, which was not given; run CLIP's text "
            "tower on it (text_to_image.clip_text does)."
        )
    return text


@struct.dataclass
class EncodedCaptions:
    """CLIP's features of captions, and of the empty caption that guidance leads away from.

    Attributes:
        text: one row per caption.
        empty: one row.
    """

    text: ClipText
    empty: ClipText


def conditions(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Packs batch fields into the conditions of a chain, by name.

    "tokens" and "token_mask" become "caption", and with "text_seq" the features of "z_txt" become
    "clip_text", whose first row stands for the empty caption; other fields are conditions.
    """
    packed = {name: x for name, x in fields.items() if name not in CAPTION_FIELDS}
    if "tokens" in fields:
        packed["caption"] = TokenIds(fields["tokens"], fields["token_mask"])
    if "text_seq" in fields:
        text = ClipText(fields["z_txt"], fields["text_seq"], fields["token_mask"])
        packed["clip_text"] = EncodedCaptions(text, jax.tree.map(lambda x: x[:1], text))
    return packed
