"""What `text` can do beyond drawing: negative captions, guidance along the chain, looking on.

Without any of it the command compiles the whole chain as one function (`text_to_image.sample`);
with it the same noise goes through `decoding.decode`, and gives the same pictures where the
options change nothing.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as PILImage

from unclip_jax.cli import flags, output
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.diffusion import guidance_schedule
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.latents import Latent
from unclip_jax.inference.requests import DecodeRequest, DecodeResult
from unclip_jax.inference.text_to_image import SampleOptions

MAX_PREVIEWS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this module."""
    flags.add_guidance(parser)
    parser.add_argument("--previews", type=int, default=0, help="also show so many stages of each")
    flags.add_animation(parser)


def wanted(args: argparse.Namespace) -> bool:
    """Whether any of them is used."""
    changed = args.guidance_schedule != "constant"
    moving = args.animate is not None
    return changed or moving or args.negative is not None or args.previews != 0


def draw(
    studio: InferenceEngine,
    captions: Sequence[str],
    *,
    seed: int,
    options: SampleOptions,
    schedule: str = "constant",
    negative: str | None = None,
    previews: int = 0,
) -> DecodeResult:
    """Draw one picture per caption.

    Raises:
        UserError: a schedule without a meaning, or a negative caption without guidance.
    """
    sampling = options.decoder or studio.cascade.decoder.sampling
    guidance = guidance_schedule.parse(schedule, scale=sampling.guidance_scale)
    if negative is not None and guidance.off:
        raise UserError(
            "--negative has no effect while --guidance is 1.0; give a larger scale such as 3."
        )
    in_range("--previews", previews, 0, MAX_PREVIEWS)
    indices = list(range(len(captions)))
    z_img = studio.imagine(captions, seed=seed, indices=indices, options=options)
    order = DecodeRequest(
        latent=Latent(z_img, studio.fresh_noise(seed=seed, indices=indices)),
        captions=captions,
        indices=indices,
        seed=seed,
        options=DecodeOptions(
            dataclasses.replace(sampling, guidance_scale=1.0), guidance, previews=previews
        ),
        negative=None if negative is None else [negative] * len(captions),
    )
    return studio.draw(order)


def run(
    args: argparse.Namespace,
    studio: InferenceEngine,
    captions: Sequence[str],
    *,
    options: SampleOptions,
    record: dict[str, Any],
) -> str:
    """Draw, write everything, and say what was written."""
    flags.check_captions([args.negative or ""])
    drawn = draw(
        studio,
        captions,
        seed=args.seed,
        options=options,
        schedule=args.guidance_schedule,
        negative=args.negative,
        previews=args.previews,
    )
    facts = {
        **record,
        "guidance_schedule": args.guidance_schedule,
        "negative": args.negative,
        "previews": args.previews,
    }
    labels, shown = list(captions), drawn.images
    if drawn.previews is not None:
        shown, labels = _with_previews(drawn, captions)
    output.write(
        args.out,
        shown,
        captions=labels,
        record=facts,
        columns=args.previews + 1 if args.previews else None,
    )
    if args.animate:
        output.animate(args.out.with_suffix(f".{args.animate}"), shown)
    return f"wrote {args.out}: {len(captions)} images of {drawn.images.shape[1]} px\n"


def _with_previews(drawn: DecodeResult, captions: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Every picture after its previews, all at one size, and their labels."""
    assert drawn.previews is not None
    size, count = drawn.images.shape[1], drawn.previews.shape[1]
    shown, labels = [], []
    for image, stages, caption in zip(drawn.images, drawn.previews, captions, strict=True):
        for number, stage in enumerate(stages, start=1):
            large = PILImage.fromarray(stage).resize((size, size), PILImage.Resampling.NEAREST)
            shown.append(np.asarray(large))
            labels.append(f"after {100 * number // count} % of the steps")
        shown.append(image)
        labels.append(caption)
    return np.stack(shown), labels
