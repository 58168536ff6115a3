"""The bipartite latent: an image as (z_img, x_T), from which the decoder gives it back.

z_img is what CLIP recognises; x_T, found by DDIM inversion of the decoder under that z_img, is
everything else (unCLIP, arXiv 2204.06125, section 3). A latent is a small file: two arrays and a
note of the models that it belongs to.
"""

import dataclasses
import json
import pathlib
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core import config as typed
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.types import Embedding, Image, Mask, Tokens
from unclip_jax.diffusion import inversion
from unclip_jax.pipeline import decoding, text_to_image
from unclip_jax.pipeline.decoding import Condition, DecodeOptions
from unclip_jax.pipeline.text_to_image import Cascade
from unclip_jax.version import __version__

FORMAT_VERSION = 1
MAX_BYTES = 64 * 2**20  # of a file once unpacked; a 64 px latent has 50 KB


class Latent(NamedTuple):
    """Images as the decoder sees them; float32.

    Attributes:
        z_img: unit-norm CLIP embeddings.
        x_T: the noise at the last position of the chain, at the decoder's size.
    """

    z_img: Embedding
    x_T: Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What a latent belongs to and how it was found.

    Attributes:
        clip_id: identity of the CLIP that made z_img.
        decoder_id: identity of the decoder's parameters; x_T means nothing to another one.
        image_size: side of the decoder's images.
        steps: grid of the inversion; decode on the same.
        refinements: fixed-point iterations of the inversion.
        caption: the caption given to the decoder; "" = none.
        source: sha256 of the image file.
        name: of the image file, for people.
        code_version: version of unclip_jax that wrote the file.
        format_version: version of this record.
    """

    clip_id: str
    decoder_id: str
    image_size: int
    steps: str = "ddim250"
    refinements: int = 0
    caption: str = ""
    source: str = ""
    name: str = ""
    code_version: str = __version__
    format_version: int = FORMAT_VERSION


def encode(
    cascade: Cascade,
    params: dict[str, Any],
    *,
    images: Image,
    clip_images: Float[Array, " b hc wc c"],
    tokens: Tokens,
    token_mask: Mask,
    steps: str = "ddim250",
    refinements: int = 0,
) -> Latent:
    """Find (z_img, x_T): CLIP, then DDIM inversion without guidance or clipping (ADM, appendix F).

    Of a chain of 250 steps 249 are inverted, since inverting all of them leaves noise.

    Args:
        cascade: configs of the stages.
        params: parameter trees as `text_to_image.sample` takes them.
        images: in [-1, 1] at the decoder's size.
        clip_images: the same at CLIP's size.
        tokens: captions for the decoder; all padding = none, the usual choice.
        token_mask: True at real tokens.
        steps: the chain; decode on the same one.
        refinements: `inversion.invert`.
    """
    cfg = cascade.decoder
    z_img = text_to_image.image_embedding(cascade, params, images=clip_images)
    condition = Condition(z_img, tokens, token_mask)
    x_T = inversion.invert(
        decoding.denoiser(cfg, params["decoder"], condition=condition),
        images,
        schedule=decoding.chain_of(cfg, steps),
        refinements=refinements,
    )
    return Latent(z_img, x_T)


def decode(
    cascade: Cascade,
    params: dict[str, Any],
    latent: Latent,
    *,
    tokens: Tokens,
    token_mask: Mask,
    steps: str = "ddim250",
) -> Image:
    """The images back at the decoder's size; the inverse of `encode` with the same caption."""
    batch = latent.z_img.shape[0]
    return decoding.decode(
        cascade.decoder,
        params["decoder"],
        latent.x_T,
        condition=Condition(latent.z_img, tokens, token_mask),
        keys=text_to_image.keys_for(0, jnp.arange(batch)),  # unused: nothing here is random
        options=DecodeOptions(decoding.faithful(steps)),
    ).images


def take(latent: Latent, indices: Int[np.ndarray, " n"] | list[int]) -> Latent:
    """The latents at `indices`, repeated where an index is."""
    kept = np.asarray(indices, np.int32)
    return jax.tree.map(lambda x: x[kept], latent)


def join(parts: list[Latent]) -> Latent:
    """Several batches as one."""
    return Latent(*(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def save(path: pathlib.Path, latent: Latent, *, origin: Origin) -> None:
    """Write one latent (a batch of one) as an .npz that holds arrays and JSON, no code.

    Raises:
        UserError: the place cannot be written.
    """
    note = json.dumps(typed.as_dict(origin), indent=2).encode()
    arrays = {
        "z_img": np.asarray(latent.z_img[0], np.float32),
        "x_T": np.asarray(latent.x_T[0], np.float32),
        "origin": np.frombuffer(note, np.uint8),
    }
    try:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; choose another place.") from None


def load(path: pathlib.Path) -> tuple[Latent, Origin]:
    """Read a file of `save`: a batch of one, and what it belongs to.

    Raises:
        UserError: it is no such file, or damaged, or of another version.
    """
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as file:
            z_img, x_T = (np.asarray(file[name], np.float32) for name in ("z_img", "x_T"))
            note = json.loads(bytes(np.asarray(file["origin"], np.uint8)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is not a latent ({str(error) or type(error).__name__}); give an .npz that "
            "`python -m unclip_jax.sample reconstruct` wrote, or the image itself."
        ) from None
    version = note.get("format_version") if isinstance(note, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {version!r}; this unclip_jax {__version__} reads "
            f"{FORMAT_VERSION}. Encode the image again."
        )
    origin = typed.build(Origin, note, where=str(path))
    side = origin.image_size
    whole = z_img.ndim == 1 and x_T.shape == (side, side, 3)
    if not whole or not (np.isfinite(z_img).all() and np.isfinite(x_T).all()):
        raise UserError(
            f"{path} holds z_img {list(z_img.shape)} and x_T {list(x_T.shape)}; expected finite "
            f"values, [z] and [{side}, {side}, 3]. Encode the image again."
        )
    return Latent(jnp.asarray(z_img[None]), jnp.asarray(x_T[None])), origin


def check_fits(origin: Origin, *, clip_id: str, decoder_id: str, where: str) -> None:
    """Refuse a latent of other models.

    Raises:
        UserError: naming the field that differs.
    """
    for name, ours in (("clip_id", clip_id), ("decoder_id", decoder_id)):
        theirs = getattr(origin, name)
        if theirs != ours:
            raise UserError(
                f"{where} was made with other models: its {name} is {theirs[:12]!r}, these models "
                f"have {ours[:12]!r}. Encode the image again with these models."
            )


def _check_size(path: pathlib.Path) -> None:
    """Refuse what would unpack to more than any latent, before unpacking it."""
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
    in_range(f"bytes in {path}", total, 1, MAX_BYTES)
