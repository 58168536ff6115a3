"""`reconstruct`: pictures through their bipartite latents and back, and the latents as files."""

import argparse
import pathlib

import numpy as np

from unclip_jax.cli import flags, session
from unclip_jax.inference import image_files, latents
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.metrics.psnr import psnr

DESCRIPTION = "Encode pictures to their latents, save these, and decode them again."


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = flags.parser("reconstruct", DESCRIPTION)
    parser.add_argument("pictures", type=pathlib.Path, nargs="+", help="pictures or .npz latents")
    flags.add_decoding(parser)
    flags.add_encoding(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace, *, studio: InferenceEngine | None = None) -> str:
    """Write each picture beside its reconstruction, and OUT/NNNN.npz with its latent."""
    flags.check(args)
    flags.check_count(len(args.pictures))
    studio = studio or InferenceEngine.open(args.models, batch=args.batch)
    encoded = session.encode(studio, args.pictures, args)
    drawn = studio.draw(
        session.order(args, encoded.latent, caption=session.caption_of(encoded))
    ).images
    labels, shown, errors = [], [], []
    for index, (picture, origin) in enumerate(zip(encoded.pictures, encoded.origins, strict=True)):
        if picture is not None:
            original = image_files.square(picture, drawn.shape[1])
            errors.append(float(psnr(original[None], drawn[index][None])[0]))
            shown.append(original)
            labels.append(origin.name)
        shown.append(drawn[index])
        error = f": {errors[-1]:.1f} dB" if picture is not None else ""
        labels.append(f"reconstruction of {origin.name}{error}")
    said = session.finish(
        args,
        studio,
        np.stack(shown),
        labels=labels,
        inputs=encoded.origins,
        columns=2 if errors else None,
        facts={"psnr_db": errors},
    )
    for index, origin in enumerate(encoded.origins):
        path = args.out.with_suffix("") / f"{index:04d}.npz"
        latents.save(path, latents.take(encoded.latent, [index]), origin=origin)
    return said
