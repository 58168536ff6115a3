"""`text-diff`: one picture changed as one caption differs from another (unCLIP, section 3.3)."""

import argparse
import pathlib

import numpy as np

from unclip_jax.commands import arguments, session
from unclip_jax.commands.studio import Studio
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.pipeline import edits

DESCRIPTION = "Turn a picture towards a caption; its composition stays."


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = arguments.parser("text-diff", DESCRIPTION)
    parser.add_argument("picture", type=pathlib.Path, help="a picture or an .npz latent")
    parser.add_argument("target", help="caption of what is wanted")
    parser.add_argument(
        "--source", help="caption of the picture, or a dummy such as 'a photo'; default: none"
    )
    parser.add_argument(
        "--theta", type=float, default=edits.THETA_MAX, help="end of the path, usually 0.25 to 0.5"
    )
    parser.add_argument("--frames", type=int, default=7, help="both ends counted")
    arguments.add_decoding(parser)
    arguments.add_encoding(parser)
    arguments.add_animation(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace, *, studio: Studio | None = None) -> str:
    """Write the path in one row; its first picture is the reconstruction."""
    arguments.check(args)
    in_range("--theta", args.theta, 0.0, 1.0)
    in_range("--frames", args.frames, 2, 1000)
    if not args.target.strip():
        raise UserError("the target caption is empty; say what the picture should become.")
    studio = studio or Studio.open(args.models, batch=args.batch)
    encoded = session.encode(studio, [args.picture], args)
    captions = [args.target] if args.source is None else [args.target, args.source]
    z_txt = studio.text_embeddings(captions)
    path = edits.text_diff(
        encoded.latent,
        z_target=z_txt[:1],
        z_source=None if args.source is None else z_txt[1:],
        thetas=np.linspace(0.0, args.theta, args.frames, dtype=np.float32),
    )
    order = session.order(args, path.latent, caption=session.caption_of(encoded))
    return session.finish(
        args,
        studio,
        studio.draw(order).images,
        labels=[f"theta {theta:.2f}" for theta in path.theta],
        inputs=encoded.origins,
        columns=args.frames,
    )
