"""`blend`: one picture between several pictures and captions, by weight."""

import argparse
import pathlib

import jax.numpy as jnp

from unclip_jax.cli import flags, session
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.inference import edits
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.latents import Latent

DESCRIPTION = "Draw the weighted mean, on the sphere, of what CLIP sees in pictures and captions."


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = flags.parser("blend", DESCRIPTION)
    weighted = {"nargs": "+", "action": "append", "default": [], "metavar": ("WHAT", "WEIGHT")}
    parser.add_argument("--picture", help="a picture or .npz, and its weight (1)", **weighted)
    parser.add_argument("--text", help="a caption, and its weight (1)", **weighted)
    parser.add_argument(
        "--noise",
        choices=("inverted", "fresh"),
        default="inverted",
        help="x_T from the pictures, by weight; or fresh noise, another for each of --num",
    )
    parser.add_argument("--num", type=int, default=1, help="pictures to draw with fresh noise")
    flags.add_decoding(parser)
    flags.add_encoding(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace, *, studio: InferenceEngine | None = None) -> str:
    """Write the blend."""
    flags.check(args)
    in_range("--num", args.num, 1, flags.MAX_IMAGES)
    names, picture_weights = _weighted("--picture", args.picture)
    captions, text_weights = _weighted("--text", args.text)
    flags.check_captions(captions)
    if len(names) + len(captions) < 2:
        raise UserError(
            f"a blend needs at least two things, not {len(names) + len(captions)}; give --picture "
            "FILE WEIGHT and --text CAPTION WEIGHT as often as you like."
        )
    fresh = args.noise == "fresh" or not any(picture_weights)
    if args.num > 1 and not fresh:
        raise UserError(f"--num is {args.num}, but only --noise fresh differs from draw to draw.")
    args.details = "fresh" if fresh else args.details  # what is not used need not be found
    studio = studio or InferenceEngine.open(args.models, batch=args.batch)
    parts, encoded = [], None
    if names:
        encoded = session.encode(studio, [pathlib.Path(name) for name in names], args)
        parts.append(encoded.latent.z_img)
    if captions:
        indices = list(range(len(captions)))
        parts.append(studio.imagine(captions, seed=args.seed, indices=indices))
    z_img = edits.blend(jnp.concatenate(parts), weights=picture_weights + text_weights)
    if fresh or encoded is None:
        x_T = studio.fresh_noise(seed=args.seed, indices=list(range(args.num)))
        latent = Latent(jnp.repeat(z_img, args.num, axis=0), x_T)
    else:
        x_T = edits.blend_noise(encoded.latent.x_T, weights=picture_weights)
        found = edits.blend_details(encoded.latent.details, weights=picture_weights)
        latent = Latent(z_img, x_T, found)
    caption = None if encoded is None else session.caption_of(encoded)
    order = session.order(args, latent, caption=caption, indices=list(range(args.num)))
    shown = [pathlib.Path(name).name for name in names]
    total = sum(picture_weights + text_weights)
    label = " + ".join(
        f"{weight / total:.2f} {name}"
        for name, weight in zip([*shown, *captions], picture_weights + text_weights, strict=True)
    )
    return session.finish(
        args,
        studio,
        studio.draw(order).images,
        labels=[label] * args.num,
        inputs=[] if encoded is None else encoded.origins,
    )


def _weighted(flag: str, given: list[list[str]]) -> tuple[list[str], list[float]]:
    """Things and their weights.

    Raises:
        UserError: a weight that is no number, or more than one.
    """
    names, weights = [], []
    for name, *rest in given:
        try:
            (weight,) = rest or ["1"]
            weights.append(float(weight))
        except ValueError:
            raise UserError(
                f"{flag} {name} {' '.join(rest)}: give one weight, a number such as 0.5."
            ) from None
        in_range(f"weight of {flag} {name}", weights[-1], 0.0, 1e6)
        names.append(name)
    return names, weights
