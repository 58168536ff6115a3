"""The bipartite latent (z_img, x_T) of an image, from which the decoder reconstructs it.

z_img contains the content that CLIP recognises; x_T, the DDIM inversion of the decoder under that
z_img, contains everything else at the decoder's size (unCLIP, arXiv 2204.06125, section 3). A
latent may include the noise of the upsamplers (`details`). A latent file contains the arrays and
the identity of their models.
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

from unclip_jax.conditioning.captions import Caption
from unclip_jax.core import config as typed
from unclip_jax.core import digests, json_text
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.files import check_regular
from unclip_jax.core.types import Embedding, Image
from unclip_jax.diffusion import ddim_inversion
from unclip_jax.editing.upsampler_latents import UpsamplerLatents
from unclip_jax.inference import decoding, text_to_image
from unclip_jax.inference.cascade import Cascade
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.stages import decoder
from unclip_jax.stages.decoder import Condition
from unclip_jax.version import __version__

FORMAT_VERSION = 3
READABLE = (1, 2, 3)  # version 1 had no details, version 2 no digests
# Entries of the origin in a file beside its fields: the digest of every array, and of the rest.
ARRAYS, DIGEST = "arrays", "digest"
ADVICE = "encode the image again."
MAX_BYTES = 64 * 2**20  # of a file once unpacked; 64 px take 50 KB, details of 1024 px 12.6 MB


class Latent(NamedTuple):
    """Images as the decoder sees them; float32.

    Attributes:
        z_img: unit-norm CLIP embeddings.
        x_T: the noise at the last position of the chain, at the decoder's size.
        details: x_T of the upsamplers, in order (`upsampler_latents`); () = they start from
            fresh noise.
    """

    z_img: Embedding
    x_T: Image
    details: UpsamplerLatents = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsamplerLatentOrigin:
    """The upsampler and the chain of one array of the details.

    Attributes:
        upsampler_id: identity of the upsampler's parameters.
        image_size: side of its images.
        steps: grid of its inversion.
    """

    upsampler_id: str
    image_size: int
    steps: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentOrigin:
    """The models and the inversion behind a latent.

    Attributes:
        clip_id: identity of the CLIP of z_img.
        decoder_id: identity of the decoder's parameters; x_T is valid only for this one.
        image_size: side of the decoder's images.
        steps: grid of the inversion; decode on the same.
        refinements: fixed-point iterations of the inversion.
        details: origin of each array of the latent's details.
        caption: the decoder's caption; "" = none.
        source: sha256 of the image file.
        name: name of the image file, for display.
        code_version: version of unclip_jax that wrote the file.
        format_version: version of this description.
    """

    clip_id: str
    decoder_id: str
    image_size: int
    steps: str = "ddim250"
    refinements: int = 0
    details: tuple[UpsamplerLatentOrigin, ...] = ()
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
    caption: Caption | None = None,
    steps: str = "ddim250",
    refinements: int = 0,
) -> Latent:
    """Finds (z_img, x_T): CLIP, then DDIM inversion without guidance or clipping (ADM, appendix F).

    249 steps of a chain of 250 are inverted: reconstructions from all 250 are noisy.

    Args:
        cascade: configs of the stages.
        params: parameter trees as `text_to_image.sample` takes them.
        images: in [-1, 1] at the decoder's size.
        clip_images: the same at CLIP's size.
        caption: captions as the decoder reads them; None = dropped, the usual choice.
        steps: the chain; decode on the same one.
        refinements: see `ddim_inversion.invert`.

    Raises:
        UserError: the decoder was distilled.
    """
    cfg = cascade.decoder
    cfg.diffusion.check_inversion()
    z_img = text_to_image.image_embedding(cascade, params, images=clip_images)
    x_T = ddim_inversion.invert(
        decoder.denoiser(cfg, params["decoder"], Condition(z_img, caption)),
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
    caption: Caption | None = None,
    steps: str = "ddim250",
) -> Image:
    """Returns the images at the decoder's size; the inverse of `encode` with the same caption."""
    batch = latent.z_img.shape[0]
    return decoding.decode(
        cascade.decoder,
        params["decoder"],
        latent.x_T,
        condition=Condition(latent.z_img, caption),
        keys=text_to_image.keys_for(0, jnp.arange(batch)),  # unused: nothing here is random
        options=DecodeOptions(decoding.faithful(steps)),
    ).images


def take(latent: Latent, indices: Int[np.ndarray, " n"] | list[int]) -> Latent:
    """Returns the latents at `indices`, which may repeat, with their details."""
    rows = np.asarray(indices, np.int32)
    return jax.tree.map(lambda x: x[rows], latent)


def join(parts: list[Latent]) -> Latent:
    """Concatenates batches, which must have details of the same upsamplers, or none."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def save(path: pathlib.Path, latent: Latent, *, origin: LatentOrigin) -> None:
    """Writes one latent (a batch of one) as an .npz that holds arrays and JSON, no code.

    Raises:
        UserError: the file cannot be written.
    """
    arrays = {
        "z_img": np.asarray(latent.z_img[0], np.float32),
        "x_T": np.asarray(latent.x_T[0], np.float32),
    }
    arrays |= {
        _detail_name(index): np.asarray(detail[0], np.float32)
        for index, detail in enumerate(latent.details)
    }
    fields = {**typed.as_dict(origin), ARRAYS: _digests(arrays), "format_version": FORMAT_VERSION}
    note = json.dumps({**fields, DIGEST: digests.of_json(fields)}, indent=2).encode()
    try:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, origin=np.frombuffer(note, np.uint8), **arrays)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; choose another path.") from None


def load(path: pathlib.Path) -> tuple[Latent, LatentOrigin]:
    """Reads a file that `save` wrote: a batch of one, and its origin.

    Raises:
        UserError: the file is not a latent, is damaged, or has another version.
    """
    try:
        check_regular(path)
        _check_size(path)
        with np.load(path, allow_pickle=False) as file:
            note = json_text.parse_object(
                bytes(np.asarray(file["origin"], np.uint8)), where=str(path), advice=ADVICE
            )
            origin, stored = _origin(note, path)
            names = ["z_img", "x_T", *map(_detail_name, range(len(origin.details)))]
            arrays = {name: np.asarray(file[name], np.float32) for name in names}
    except UserError:
        raise
    except Exception as error:  # of the archive and of NumPy's parser, which raises anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not a latent ({reason}); give an .npz that "
            "`python -m unclip_jax.sample reconstruct` wrote, or the image itself."
        ) from None
    if stored is not None and not digests.skipped() and stored != _digests(arrays):
        raise UserError(f"{path} is damaged or was changed: a digest of its arrays; {ADVICE}")
    _check_arrays(arrays, origin, path)
    z_img, x_T, *details = (jnp.asarray(array[None]) for array in arrays.values())
    return Latent(z_img, x_T, tuple(details)), origin


def check_fits(origin: LatentOrigin, *, clip_id: str, decoder_id: str, where: str) -> None:
    """Rejects a latent of another CLIP or decoder.

    Raises:
        UserError: naming the field that differs.
    """
    for name, expected in (("clip_id", clip_id), ("decoder_id", decoder_id)):
        stored = getattr(origin, name)
        if stored != expected:
            raise UserError(
                f"{where} was made with other models: its {name} is {stored[:12]!r}, these models "
                f"have {expected[:12]!r}. Encode the image again with these models."
            )


def check_details_fit(
    origin: LatentOrigin, *, expected: tuple[UpsamplerLatentOrigin, ...], where: str
) -> None:
    """Rejects details whose upsamplers or grid differ from those of decoding.

    Raises:
        UserError: naming what differs.
    """
    for name, flag in (("upsampler_id", ""), ("image_size", ""), ("steps", "upsampler_steps")):
        stored, needed = ([getattr(d, name) for d in of] for of in (origin.details, expected))
        if stored == needed:
            continue
        if flag:
            raise UserError(
                f"{where} holds details of {flag} {', '.join(stored)}, not {', '.join(needed)}; "
                "give the same, the image itself, or details=fresh."
            )
        short = [str(d)[:12] for d in stored], [str(d)[:12] for d in needed]
        raise UserError(
            f"{where} holds details of other upsamplers: {name} {short[0]}, these models have "
            f"{short[1]}. Encode the image again with these models, or give details=fresh."
        )


def _detail_name(index: int) -> str:
    return f"details_{index}"


def _digests(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns the digest of the shape and the little-endian bytes of every array."""
    return {
        name: digests.of_bytes(f"{array.shape}".encode() + array.astype("<f4").tobytes())
        for name, array in arrays.items()
    }


def _origin(note: dict[str, Any], path: pathlib.Path) -> tuple[LatentOrigin, Any]:
    """Returns the origin in a file, and the digests of its arrays; None = it has no digests.

    Raises:
        UserError: the origin has another version, was changed, or is not valid.
    """
    version = note.get("format_version")
    if type(version) is not int or version not in READABLE:
        raise UserError(
            f"{path} has format_version {version!r}; this unclip_jax {__version__} reads "
            f"{', '.join(map(str, READABLE))}. Encode the image again."
        )
    digest, stored = note.pop(DIGEST, None), note.get(ARRAYS)
    sealed = (version > 2 or digest is not None) and not digests.skipped()
    if sealed and (digest != digests.of_json(note) or not isinstance(stored, dict)):
        raise UserError(f"{path} is damaged or was changed: the digest of its origin; {ADVICE}")
    fields = {name: value for name, value in note.items() if name != ARRAYS}
    origin = typed.build(LatentOrigin, fields, where=str(path))
    return typed.check_limits(origin, where=str(path)), stored


def _check_arrays(arrays: dict[str, np.ndarray], origin: LatentOrigin, path: pathlib.Path) -> None:
    """Rejects arrays whose shapes differ from the origin, or with values that are not finite."""
    sides = [origin.image_size, *(detail.image_size for detail in origin.details)]
    expected = {name: (side, side, 3) for name, side in zip([*arrays][1:], sides, strict=True)}
    valid = arrays["z_img"].ndim == 1
    valid &= all(arrays[name].shape == shape for name, shape in expected.items())
    if not valid or not all(np.isfinite(array).all() for array in arrays.values()):
        shapes = " and ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        needed = " and ".join(str(list(shape)) for shape in expected.values())
        raise UserError(
            f"{path} holds {shapes}; expected finite values, [z] and {needed}. Encode the image "
            "again."
        )


def _check_size(path: pathlib.Path) -> None:
    """Rejects a file that would unpack to more than any latent, before unpacking it."""
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
    in_range(f"bytes in {path}", total, 1, MAX_BYTES)
