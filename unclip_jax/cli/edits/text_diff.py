"""`text-diff`: one picture changed as one caption differs from another (unCLIP, section 3.3)."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from unclip_jax.cli import flags, session
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.inference import ddpm_images, edits, image_files
from unclip_jax.inference.ddpm_latents import MapOptions
from unclip_jax.inference.edits import Path
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.image_files import InputImage
from unclip_jax.inference.latents import Latent, LatentOrigin
from unclip_jax.inference.requests import Conditioning

MAPS = MapOptions()
DESCRIPTION = "Turn a picture towards a caption; its composition stays."


class Edited(NamedTuple):
    """A path drawn, and what it was drawn of."""

    path: Path
    images: UInt8[np.ndarray, " f h w 3"]
    inputs: Sequence[LatentOrigin | InputImage]


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = flags.parser("text-diff", DESCRIPTION)
    parser.add_argument(
        "picture", type=pathlib.Path, help="a picture, or an .npz latent (not for ddpm)"
    )
    parser.add_argument("target", help="caption of what is wanted")
    parser.add_argument(
        "--source", help="caption of the picture, or a dummy such as 'a photo'; default: none"
    )
    parser.add_argument(
        "--theta", type=float, default=edits.THETA_MAX, help="end of the path, usually 0.25 to 0.5"
    )
    parser.add_argument("--frames", type=int, default=7, help="both ends counted")
    parser.add_argument(
        "--inversion",
        choices=("ddim", "ddpm"),
        default="ddim",
        help="what holds the composition: x_T, or the noise of every step (more) [ddim]",
    )
    parser.add_argument(
        "--strength",
        type=float,
        help=f"ddpm: share drawn anew, one step at least [{MAPS.strength}]",
    )
    parser.add_argument("--eta", type=float, help=f"ddpm: noise share of its steps [{MAPS.eta}]")
    flags.add_decoding(parser)
    flags.add_encoding(parser)
    parser.set_defaults(details=None)  # by the inversion
    flags.add_animation(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace, *, studio: InferenceEngine | None = None) -> str:
    """Write the path in one row; its first picture is the reconstruction, or the original."""
    flags.check(args)
    in_range("--theta", args.theta, 0.0, 1.0)
    in_range("--frames", args.frames, 2, 1000)
    if not args.target.strip():
        raise UserError("the target caption is empty; say what the picture should become.")
    _check_inversion(args)
    studio = studio or InferenceEngine.open(args.models, batch=args.batch)
    captions = [args.target] if args.source is None else [args.target, args.source]
    z_txt = studio.text_embeddings(captions)
    turned = {
        "z_target": z_txt[:1],
        "z_source": None if args.source is None else z_txt[1:],
        "thetas": np.linspace(0.0, args.theta, args.frames, dtype=np.float32),
    }
    path, images, inputs = (_by_maps if args.inversion == "ddpm" else _by_x_T)(args, studio, turned)
    return session.finish(
        args,
        studio,
        images,
        labels=[f"theta {theta:.2f}" for theta in path.theta],
        inputs=inputs,
        columns=args.frames,
    )


def _check_inversion(args: argparse.Namespace) -> None:
    """Refuse what one inversion knows and the other does not.

    Raises:
        UserError: naming the argument.
    """
    if args.details is None:  # details that were inverted leave rims where form has stayed
        args.details = "inverted" if args.inversion == "ddim" else "fresh"
    if args.details == "fresh" and args.upsampler_steps:
        raise UserError(
            f"--upsampler-steps is {args.upsampler_steps}, but details are fresh; give "
            "--details=inverted too, or leave it out."
        )
    if args.inversion == "ddim":
        for name in ("strength", "eta"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} belongs to --inversion=ddpm; give that too.")
        return
    if args.refine and args.details == "fresh":
        raise UserError(
            f"--refine is {args.refine}, but --inversion=ddpm has nothing to refine but details; "
            "give --details=inverted too, or leave it out."
        )
    if args.picture.suffix.lower() == ".npz":
        raise UserError(f"{args.picture} holds an x_T; --inversion=ddpm needs the picture itself.")
    args.strength = MAPS.strength if args.strength is None else args.strength
    args.eta = MAPS.eta if args.eta is None else args.eta
    in_range("--strength", args.strength, 0.0, 1.0)
    in_range("--eta", args.eta, 0.0, 1.0)


def _by_x_T(args: argparse.Namespace, studio: InferenceEngine, turned: dict[str, Any]) -> Edited:
    """The paper's way: x_T stays."""
    encoded = session.encode(studio, [args.picture], args)
    path = edits.text_diff(encoded.latent, **turned)
    order = session.order(args, path.latent, caption=session.caption_of(encoded))
    return Edited(path, studio.draw(order).images, encoded.origins)


def _by_maps(args: argparse.Namespace, studio: InferenceEngine, turned: dict[str, Any]) -> Edited:
    """By DDPM inversion: the noise of every step stays."""
    picture = image_files.read(args.picture)
    options = MapOptions(args.steps, args.eta, args.strength, flags.options(args).guidance)
    told = Conditioning(
        studio.image_embeddings([picture]),
        [args.caption or None],
        [0],
        args.seed,
        session.negatives(args, 1),
    )
    found = ddpm_images.encode(
        studio,
        [picture],
        told,
        options=options,
        details=session.details_wanted(studio, args),
        upsampler_steps=args.upsampler_steps,
        refinements=args.refine,
    )
    path, count = edits.text_diff(Latent(told.z_img, found.maps.x_t), **turned), args.frames
    told = told._replace(
        z_img=path.latent.z_img,
        captions=[*told.captions] * count,
        indices=[0] * count,
        negative=session.negatives(args, count),
    )
    images = ddpm_images.draw(
        studio,
        found,
        told,
        of=[0] * count,
        options=options,
        upsampler_steps=args.upsampler_steps,
        upsample=not args.no_upsample,
    )
    return Edited(path, images, [picture])
