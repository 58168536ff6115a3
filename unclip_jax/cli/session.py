"""What every command on pictures does: read or invert them, draw, and write with a record."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.cli import flags, output
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.inference import image_files, latents, upsampler_latents
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.image_files import InputImage
from unclip_jax.inference.latents import Latent, LatentOrigin
from unclip_jax.inference.requests import DecodeRequest
from unclip_jax.version import __version__


class Encoded(NamedTuple):
    """Pictures, or latents made earlier, ready to be edited.

    Attributes:
        latent: one per input, in order.
        origins: what each belongs to.
        pictures: as given; None where a latent was given.
    """

    latent: Latent
    origins: list[LatentOrigin]
    pictures: list[InputImage | None]


def encode(
    studio: InferenceEngine, paths: Sequence[pathlib.Path], args: argparse.Namespace
) -> Encoded:
    """The latents of pictures and .npz latents in any mixture.

    Raises:
        UserError: a file cannot be used, or a latent is of other models or another chain.
    """
    fresh = {
        path: image_files.read(path)
        for path in dict.fromkeys(paths)
        if path.suffix.lower() != ".npz"
    }
    found = _invert(studio, fresh, args) if fresh else {}
    found |= {path: _stored(studio, path, args) for path in paths if path not in fresh}
    bare = [path for path in paths if not found[path][0].details]
    if 0 < len(bare) < len(paths):
        raise UserError(
            f"{bare[0]} holds no details for the upsamplers, as other inputs do; encode its "
            "picture again, or give --details=fresh."
        )
    parts, origins = zip(*(found[path] for path in paths), strict=True)
    given = [fresh.get(path) for path in paths]
    return Encoded(latents.join(list(parts)), list(origins), given)


def details_wanted(studio: InferenceEngine, args: argparse.Namespace) -> bool:
    """Whether upsamplers are to draw from noise of the pictures' own."""
    wanted = args.details == "inverted" and not args.no_upsample
    return wanted and bool(upsampler_latents.leading(studio.cascade))


def caption_of(encoded: Encoded) -> str | None:
    """The caption under which all of them were inverted, which decoding must repeat.

    Raises:
        UserError: they differ.
    """
    captions = {origin.caption for origin in encoded.origins}
    if len(captions) > 1:
        raise UserError(
            f"the latents were inverted with different captions ({sorted(captions)}); encode the "
            "pictures again with one --caption or without."
        )
    return captions.pop() or None


def negatives(args: argparse.Namespace, count: int) -> list[str] | None:
    """The negative caption for every image, or None."""
    return None if args.negative is None else [args.negative] * count


def order(
    args: argparse.Namespace, latent: Latent, *, caption: str | None, **changes: Any
) -> DecodeRequest:
    """An order for a path: the same key for every frame, unless `changes` say otherwise."""
    count = latent.z_img.shape[0]
    flags.check_count(count)
    given: dict[str, Any] = {
        "latent": latent,
        "captions": [caption] * count,
        "indices": [0] * count,
        "seed": args.seed,
        "options": flags.options(args),
        "negative": negatives(args, count),
        "upsample": not args.no_upsample,
        "upsampler_steps": getattr(args, "upsampler_steps", None),
    }
    return DecodeRequest(**{**given, **changes})


def finish(
    args: argparse.Namespace,
    studio: InferenceEngine,
    images: np.ndarray,
    *,
    labels: Sequence[str],
    inputs: Sequence[LatentOrigin | InputImage] = (),
    columns: int | None = None,
    facts: dict[str, Any] | None = None,
) -> str:
    """Write everything and say what was written."""
    record = {
        "command": args.command,
        "arguments": args.argv,
        "code_version": __version__,
        "models": {"path": str(args.models), **studio.facts()},
        "inputs": [_input(given) for given in inputs],
        "labels": list(labels),
        **(facts or {}),
    }
    left_out = ""
    if getattr(args, "details", None) == "inverted" and not args.no_upsample:
        left_out = upsampler_latents.left_out(studio.cascade)
        record["details_left_out"] = left_out
    output.write(args.out, images, captions=labels, record=record, columns=columns)
    if getattr(args, "animate", None):
        output.animate(args.out.with_suffix(f".{args.animate}"), images)
    note = f" ({left_out})" if left_out else ""
    return f"wrote {args.out}: {len(images)} images of {images.shape[1]} px{note}\n"


def _invert(
    studio: InferenceEngine, fresh: dict[pathlib.Path, InputImage], args: argparse.Namespace
) -> dict[pathlib.Path, tuple[Latent, LatentOrigin]]:
    """The latent of every picture."""
    read, caption = list(fresh.values()), args.caption or None
    captions = [caption] * len(read)
    how = {"steps": args.steps, "refinements": args.refine}
    made = studio.encode(read, captions=captions, **how)
    origins = [studio.origin(one, **how, caption=caption) for one in read]
    if details_wanted(studio, args):
        grid = {"steps": args.upsampler_steps}
        base = studio.decode(made, captions=captions, steps=args.steps)
        found = studio.encode_details(base, read, **grid, refinements=args.refine)
        made, held = made._replace(details=found), studio.detail_origins(**grid)
        origins = [dataclasses.replace(origin, details=held) for origin in origins]
    each = [latents.take(made, [index]) for index in range(len(read))]
    return dict(zip(fresh, zip(each, origins, strict=True), strict=True))


def _stored(
    studio: InferenceEngine, path: pathlib.Path, args: argparse.Namespace
) -> tuple[Latent, LatentOrigin]:
    """A latent made earlier, with its details only where they are wanted."""
    latent, origin = latents.load(path)
    latents.check_fits(
        origin, clip_id=studio.clip_id, decoder_id=studio.decoder_id, where=str(path)
    )
    if origin.steps != args.steps:
        raise UserError(
            f"{path} was inverted with --steps {origin.steps}, not {args.steps}; give the same, or "
            "the picture itself."
        )
    if not details_wanted(studio, args):
        return latent._replace(details=()), dataclasses.replace(origin, details=())
    if origin.details:
        expected = studio.detail_origins(args.upsampler_steps)
        latents.check_details_fit(origin, expected=expected, where=str(path))
    return latent, origin


def _input(given: LatentOrigin | InputImage) -> dict[str, Any]:
    if isinstance(given, InputImage):
        return {"name": given.name, "sha256": given.sha256}
    return as_dict(given)
