"""What every command on pictures does: read or invert them, draw, and write with a record."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.commands import arguments, output, pictures
from unclip_jax.commands.pictures import Picture
from unclip_jax.commands.studio import Order, Studio
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.pipeline import latents
from unclip_jax.pipeline.latents import Latent, Origin
from unclip_jax.version import __version__


class Encoded(NamedTuple):
    """Pictures, or latents made earlier, ready to be edited.

    Attributes:
        latent: one per input, in order.
        origins: what each belongs to.
        pictures: as given; None where a latent was given.
    """

    latent: Latent
    origins: list[Origin]
    pictures: list[Picture | None]


def encode(studio: Studio, paths: Sequence[pathlib.Path], args: argparse.Namespace) -> Encoded:
    """The latents of pictures and .npz latents in any mixture.

    Raises:
        UserError: a file cannot be used, or a latent is of other models or another chain.
    """
    found: list[tuple[Latent, Origin, Picture | None]] = []
    fresh = {
        path: pictures.read(path) for path in dict.fromkeys(paths) if path.suffix.lower() != ".npz"
    }
    how = {"caption": args.caption or None, "steps": args.steps, "refinements": args.refine}
    made = studio.encode(list(fresh.values()), **how) if fresh else None
    order = list(fresh)
    for path in paths:
        if path in fresh and made is not None:
            one = latents.take(made, [order.index(path)])
            found.append((one, studio.origin(fresh[path], **how), fresh[path]))
        else:
            found.append((*_stored(studio, path, args), None))
    parts, origins, given = zip(*found, strict=True)
    return Encoded(latents.join(list(parts)), list(origins), list(given))


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
) -> Order:
    """An order for a path: the same key for every frame, unless `changes` say otherwise."""
    count = latent.z_img.shape[0]
    arguments.check_count(count)
    given: dict[str, Any] = {
        "latent": latent,
        "captions": [caption] * count,
        "indices": [0] * count,
        "seed": args.seed,
        "options": arguments.options(args),
        "negative": negatives(args, count),
        "upsample": not args.no_upsample,
    }
    return Order(**{**given, **changes})


def finish(
    args: argparse.Namespace,
    studio: Studio,
    images: np.ndarray,
    *,
    labels: Sequence[str],
    inputs: Sequence[Origin | Picture] = (),
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
    output.write(args.out, images, captions=labels, record=record, columns=columns)
    if getattr(args, "animate", None):
        output.animate(args.out.with_suffix(f".{args.animate}"), images)
    return f"wrote {args.out}: {len(images)} images of {images.shape[1]} px\n"


def _stored(studio: Studio, path: pathlib.Path, args: argparse.Namespace) -> tuple[Latent, Origin]:
    latent, origin = latents.load(path)
    latents.check_fits(
        origin, clip_id=studio.clip_id, decoder_id=studio.decoder_id, where=str(path)
    )
    if origin.steps != args.steps:
        raise UserError(
            f"{path} was inverted with --steps {origin.steps}, not {args.steps}; give the same, or "
            "the picture itself."
        )
    return latent, origin


def _input(given: Origin | Picture) -> dict[str, Any]:
    if isinstance(given, Picture):
        return {"name": given.name, "sha256": given.sha256}
    return as_dict(given)
