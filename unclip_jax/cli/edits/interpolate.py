"""`interpolate`: a path through two pictures or more (unCLIP, section 3.2)."""

import argparse
import pathlib

from unclip_jax.cli import flags, session
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.inference import edits
from unclip_jax.inference.engine import InferenceEngine

DESCRIPTION = "Blend pictures step by step, in what CLIP sees and in everything else."


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = flags.parser("interpolate", DESCRIPTION)
    parser.add_argument("pictures", type=pathlib.Path, nargs="+", help="two or more, in order")
    parser.add_argument("--frames", type=int, default=7, help="per pair, both ends counted")
    parser.add_argument(
        "--noise",
        choices=("inverted", "shared"),
        default="inverted",
        help="x_T between the pictures' own, so that the ends are the pictures; or one random x_T "
        "for the whole path, another for every --seed",
    )
    flags.add_decoding(parser)
    flags.add_encoding(parser)
    flags.add_animation(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace, *, studio: InferenceEngine | None = None) -> str:
    """Write the path in one row per pair of pictures."""
    flags.check(args)
    if len(args.pictures) < 2:
        raise UserError(f"interpolation needs at least two pictures, not {len(args.pictures)}.")
    in_range("--frames", args.frames, 2, 1000)
    flags.check_count((len(args.pictures) - 1) * (args.frames - 1) + 1)
    studio = studio or InferenceEngine.open(args.models, batch=args.batch)
    shared = args.noise == "shared"
    args.details = "fresh" if shared else args.details  # what no frame will use need not be found
    encoded = session.encode(studio, args.pictures, args)
    noise = studio.fresh_noise(seed=args.seed, indices=[0]) if shared else None
    path = edits.interpolate(encoded.latent, frames=args.frames, x_T=noise)
    order = session.order(args, path.latent, caption=session.caption_of(encoded))
    return session.finish(
        args,
        studio,
        studio.draw(order).images,
        labels=[f"{theta:.2f}" for theta in path.theta],
        inputs=encoded.origins,
        columns=args.frames if len(args.pictures) == 2 else args.frames - 1,
    )
