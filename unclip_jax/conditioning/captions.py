"""Captions as stages read them: token ids, or the features of a frozen CLIP or language model.

Karlo's prior and decoder have no text model of their own and read CLIP's features. In place of a
learned null they have CLIP's features of the empty caption.
"""

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Embedding, Mask, Tokens

CAPTION_FIELDS = ("tokens", "token_mask", "text_seq", "text_features", "text_mask")


class TokenIds(NamedTuple):
    """Captions for a stage with a text model of its own.

    Attributes:
        tokens: ids at the stage's context length.
        mask: True at real tokens; False everywhere is no caption.
    """

    tokens: Tokens
    mask: Mask


@struct.dataclass
class ClipText:
    """Captions as the output of CLIP's text tower.

    Attributes:
        z_txt: raw embeddings, not normalised.
        sequence: features of all slots after the final norm.
        mask: True at real tokens.
    """

    z_txt: Embedding
    sequence: Float[Array, " b l d"]
    mask: Mask


@struct.dataclass
class TokenFeatures:
    """Captions as the output of a frozen language model (Imagen, section 2.1).

    Attributes:
        sequence: features of all slots.
        mask: True at real tokens.
    """

    sequence: Float[Array, " b l d"]
    mask: Mask


Caption = TokenIds | ClipText
T = TypeVar("T", TokenIds, ClipText, TokenFeatures)
F = TypeVar("F", ClipText, TokenFeatures)


def empty_caption(
    tokens: Tokens, mask: Mask, *, specials: int = 2
) -> tuple[Int[Array, " 1 l"], Bool[Array, " 1 l"]]:
    """Returns the empty caption as one row: start and end token, or the end token alone.

    It is read off any batch of captions: each begins with the start token and ends, where its mask
    does, with the end token.

    Args:
        tokens: ids of captions.
        mask: True at real tokens.
        specials: 2 with a start token, 1 without (T5).
    """
    last = jnp.sum(mask[0]) - 1
    enclosing = jnp.stack([tokens[0, 0], tokens[0, last]])[-specials:]
    ids = jnp.zeros_like(tokens[:1]).at[0, :specials].set(enclosing)
    return ids, (jnp.arange(tokens.shape[1]) < specials)[None]


def repeated(caption: T, count: int) -> T:
    """Returns one row repeated `count` times; `count` rows as they are."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), caption)


def clip_features(caption: Caption | None, *, of: str) -> ClipText:
    """Returns a caption that must be CLIP's features.

    Args:
        caption: the caption.
        of: its name in the message.

    Raises:
        UserError: it is missing, or token ids.
    """
    if not isinstance(caption, ClipText):
        raise UserError(
            f"this stage reads CLIP's features of {of}, which were not passed; run CLIP's text "
            "tower on it (text_to_image.clip_text does)."
        )
    return caption


@struct.dataclass
class EncodedCaptions(Generic[F]):
    """Features of captions, and of the empty caption that guidance leads away from.

    Attributes:
        text: one row per caption.
        empty: one row.
    """

    text: F
    empty: F


def conditions(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Packs batch fields into the conditions of a chain, by name.

    "tokens" and "token_mask" become "caption", and with "text_seq" the features of "z_txt" become
    "clip_text", whose first row stands for the empty caption, as does that of "text_features" with
    "text_mask"; other fields are conditions.
    """
    packed = {name: x for name, x in fields.items() if name not in CAPTION_FIELDS}
    if "tokens" in fields:
        packed["caption"] = TokenIds(fields["tokens"], fields["token_mask"])
    if "text_seq" in fields:
        text = ClipText(fields["z_txt"], fields["text_seq"], fields["token_mask"])
        packed["clip_text"] = EncodedCaptions(text, jax.tree.map(lambda x: x[:1], text))
    if "text_features" in fields:
        features = TokenFeatures(fields["text_features"], fields["text_mask"])
        packed["text_features"] = EncodedCaptions(features, jax.tree.map(lambda x: x[:1], features))
    return packed
