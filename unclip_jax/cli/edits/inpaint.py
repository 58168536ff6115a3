"""`inpaint`: a part of a picture drawn anew, the rest kept bit for bit (RePaint)."""

import argparse
import pathlib

import jax.numpy as jnp

from unclip_jax.cli import flags, session
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.diffusion.inpainting import MAX_REPEATS
from unclip_jax.inference import edits, image_files
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.latents import Latent
from unclip_jax.stages.gaussian import SamplingConfig

DESCRIPTION = "Draw the light part of a mask anew, for a caption or in the manner of the picture."


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = flags.parser("inpaint", DESCRIPTION)
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("mask", type=pathlib.Path, help="a picture: white is drawn anew")
    parser.add_argument("--caption", help="what the whole picture should show; default: as it is")
    parser.add_argument("--num", type=int, default=4, help="pictures to draw")
    parser.add_argument("--repeats", type=int, default=5, help="walks over each stretch of steps")
    parser.add_argument("--jump", type=int, default=10, help="steps in a stretch")
    parser.add_argument("--eta", type=float, default=1.0, help="noise share of DDIM in [0, 1]")
    flags.add_decoding(parser)
    parser.set_defaults(steps="50")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, *, studio: InferenceEngine | None = None) -> str:
    """Write the pictures; outside the mask every pixel is the original's, upsampled or not."""
    flags.check(args)
    flags.check_count(args.num)
    in_range("--repeats", args.repeats, 1, MAX_REPEATS)
    how = options(args)
    picture, mask = (image_files.read(path) for path in (args.picture, args.mask))
    if picture.pixels.shape != mask.pixels.shape:
        raise UserError(
            f"{args.picture} has {_size(picture)} pixels and {args.mask} has {_size(mask)}; give a "
            "mask of the picture's size."
        )
    if image_files.mask_square(mask, min(mask.pixels.shape[:2])).all():
        raise UserError(f"{args.mask} is dark everywhere; paint white what is to be drawn anew.")
    studio = studio or InferenceEngine.open(args.models, batch=args.batch)
    indices = list(range(args.num))
    if args.caption:
        captions = [args.caption] * args.num
        z_img = studio.imagine(captions, seed=args.seed, indices=indices)
    else:
        z_img = jnp.repeat(studio.image_embeddings([picture]), args.num, axis=0)
    order = session.order(
        args,
        Latent(z_img, studio.fresh_noise(seed=args.seed, indices=indices)),
        caption=args.caption or None,
        indices=indices,
        hole=(picture, mask),
        options=how,
    )
    drawn = studio.draw(order).images
    size = drawn.shape[1]
    whole = edits.composite(
        drawn, image_files.square(picture, size), mask=image_files.mask_square(mask, size)
    )
    return session.finish(
        args,
        studio,
        whole,
        labels=[args.caption or f"{picture.name}, drawn anew"] * args.num,
        inputs=[picture, mask],
    )


def options(args: argparse.Namespace) -> DecodeOptions:
    """RePaint's walk with a stochastic rule and x_0 held in range."""
    plain = flags.options(args)
    sampling = SamplingConfig(steps=args.steps, sampler="ddim", eta=args.eta, threshold="static")
    return DecodeOptions(sampling, plain.guidance, repeats=args.repeats, jump=args.jump)


def _size(picture: image_files.InputImage) -> str:
    height, width = picture.pixels.shape[:2]
    return f"{width}x{height}"
