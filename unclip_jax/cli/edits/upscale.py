"""`upscale`: any picture through the upsamplers."""

import argparse
import pathlib

import jax.numpy as jnp
import numpy as np

from unclip_jax.cli import flags, session
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import image_codec
from unclip_jax.inference import image_files, text_to_image
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.text_to_image import Cascade

DESCRIPTION = "Enlarge pictures with the upsamplers, from the size that fits them best."


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = flags.parser("upscale", DESCRIPTION)
    parser.add_argument("pictures", type=pathlib.Path, nargs="+")
    parser.add_argument(
        "--from-size",
        type=int,
        help="side to start from, one that an upsampler takes; default: the largest that no "
        "picture is smaller than",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace, *, studio: InferenceEngine | None = None) -> str:
    """Write each picture as it went in, enlarged without a model, and as it came out."""
    flags.check(args)
    flags.check_count(len(args.pictures))
    if args.no_upsample:
        raise UserError("upscale --no-upsample would do nothing; leave one of the two out.")
    read = [image_files.read(path) for path in args.pictures]
    studio = studio or InferenceEngine.open(args.models, batch=args.batch)
    need_upsamplers(studio.cascade, why="upscale")
    start, size = choose(studio, read, args.from_size)
    low = np.stack([image_files.square(picture, size) for picture in read])
    keys = text_to_image.keys_for(args.seed, jnp.arange(len(read)))
    drawn = studio.enlarge(jnp.asarray(image_codec.to_float(low)), keys, start=start)
    images = to_uint8(np.asarray(drawn))
    factor = images.shape[1] // size
    before = low.repeat(factor, axis=1).repeat(factor, axis=2)
    shown = np.stack([before, images], axis=1).reshape(-1, *images.shape[1:])
    names = [(f"{p.name} at {size} px", f"at {images.shape[1]} px") for p in read]
    return session.finish(
        args,
        studio,
        shown,
        labels=[label for pair in names for label in pair],
        inputs=read,
        columns=2,
        facts={"from_size": size, "first_upsampler": start},
    )


def choose(
    studio: InferenceEngine, read: list[image_files.InputImage], from_size: int | None
) -> tuple[int, int]:
    """The upsampler to begin with and the side that it takes.

    Raises:
        UserError: no upsampler takes `from_size`.
    """
    sizes = [stage.low_res_size for stage in studio.cascade.upsamplers]
    if from_size is not None:
        if from_size not in sizes:
            raise UserError(
                f"--from-size is {from_size}, but these upsamplers take "
                f"{' and '.join(map(str, sizes))} px; give one of them."
            )
        return sizes.index(from_size), from_size
    short = min(min(picture.pixels.shape[:2]) for picture in read)
    fitting = [size for size in sizes if size <= short] or sizes[:1]
    return sizes.index(fitting[-1]), fitting[-1]


def need_upsamplers(cascade: Cascade, *, why: str) -> None:
    """Refuse a cascade without upsamplers.

    Raises:
        UserError: there are none.
    """
    if not cascade.upsamplers:
        raise UserError(
            f"these models have no upsampler, which {why} needs; train one with `python -m "
            "unclip_jax.train --config=experiments/upsampler_256.py` into the run directory."
        )
