"""`variations`: pictures like one picture, the freer the larger eta (unCLIP, section 3.1)."""

import argparse
import pathlib

from unclip_jax.cli import flags, session
from unclip_jax.core.checks import in_range
from unclip_jax.inference import edits
from unclip_jax.inference.engine import InferenceEngine

DESCRIPTION = "Decode the latent of one picture with growing noise: 0 reconstructs it."


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = flags.parser("variations", DESCRIPTION)
    parser.add_argument("picture", type=pathlib.Path, help="a picture or an .npz latent")
    parser.add_argument(
        "--etas", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0], help="in [0, 1]"
    )
    parser.add_argument("--num", type=int, default=3, help="pictures per eta")
    flags.add_decoding(parser)
    flags.add_encoding(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace, *, studio: InferenceEngine | None = None) -> str:
    """Write a grid with one row per eta; a column keeps its noise from row to row."""
    flags.check(args)
    for eta in args.etas:
        in_range("--etas", eta, 0.0, 1.0)
    in_range("--num", args.num, 1, flags.MAX_IMAGES)
    flags.check_count(args.num * len(args.etas))
    studio = studio or InferenceEngine.open(args.models, batch=args.batch)
    encoded = session.encode(studio, [args.picture], args)
    varied = edits.variations(encoded.latent, etas=args.etas, copies=args.num)
    order = session.order(
        args,
        varied.latent,
        caption=session.caption_of(encoded),
        eta=varied.eta,
        indices=list(range(args.num)) * len(args.etas),
    )
    return session.finish(
        args,
        studio,
        studio.draw(order).images,
        labels=[f"eta {eta:g}" for eta in args.etas for _ in range(args.num)],
        inputs=encoded.origins,
        columns=args.num,
    )
