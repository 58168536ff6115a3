"""Pictures for many captions, drawn in parts: an interrupted run continues where it stopped.

OUT/pictures/ has one guided-diffusion batch per part, so others can score them too. A part is there
or it is not, and a folder belongs to one protocol: models, captions, settings and seed.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from unclip_jax.core.checks import UserError, positive
from unclip_jax.core.config import as_dict
from unclip_jax.evaluation import image_sets, sweep_points
from unclip_jax.evaluation.image_sets import PictureSet
from unclip_jax.handoff.export import params_id
from unclip_jax.inference import batched, load
from unclip_jax.inference.load import LoadedCascade
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.metrics import npz
from unclip_jax.stages.gaussian import SAMPLERS

FOLDER = "pictures"


def add_drawing(made: argparse.ArgumentParser) -> None:
    """How pictures are drawn."""
    made.add_argument("--models", type=pathlib.Path, required=True, help="run directory")
    made.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    made.add_argument("--prior", default="prior", choices=load.prior_names(), help="which prior")
    made.add_argument("--condition", default="prior", choices=("prior", "z_txt"))
    made.add_argument("--guidance", type=float, help="of the decoder; default: exported")
    made.add_argument("--steps", help="of the decoder: 25, ddim50, ...; default: exported")
    made.add_argument("--sampler", help=f"of the decoder: {', '.join(SAMPLERS)}")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--batch", type=int, default=50, help="pictures at once")
    made.add_argument("--part", type=int, default=500, help="pictures per file")


def check(args: argparse.Namespace) -> None:
    """Refuse sizes of nothing, and an --out that is a file.

    Raises:
        UserError: naming the argument.
    """
    for name in ("batch", "part"):
        positive(f"--{name}", getattr(args, name))
    if args.out.is_file():
        raise UserError(f"--out is {str(args.out)!r}, which is a file; give a folder.")


def options_of(args: argparse.Namespace, loaded: LoadedCascade) -> SampleOptions:
    """The exported settings with what the command line changes.

    Raises:
        UserError: settings that do not go together.
    """
    given = {"guidance_scale": args.guidance, "steps": args.steps, "sampler": args.sampler}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    decoder = dataclasses.replace(loaded.cascade.decoder.sampling, **changes)
    loaded.cascade.decoder.check_guidance(decoder)
    return SampleOptions(decoder=decoder, condition=args.condition)


def sample_all(
    args: argparse.Namespace, loaded: LoadedCascade, captions: Sequence[str]
) -> PictureSet:
    """One picture per caption, drawing the parts that are missing.

    Args:
        args: of `add_drawing`.
        loaded: the cascade.
        captions: in order; picture i depends on (seed, i) and its caption alone.

    Raises:
        UserError: the folder holds pictures of another protocol.
    """
    options = options_of(args, loaded)
    first = jax.process_index() == 0
    sweep_points.claim(
        args.out, protocol_of(args, loaded, captions, options), first=first, what=FOLDER
    )
    starts = range(0, len(captions), args.part)
    places = [args.out / FOLDER / f"{start:06d}.npz" for start in starts]
    for number, (start, where) in enumerate(zip(starts, places, strict=True), 1):
        if where.is_file():
            continue
        images = batched.sample_images(
            loaded,
            list(captions[start : start + args.part]),
            seed=args.seed,
            options=options,
            batch_size=args.batch,
            name=f"part {number} of {len(places)}",
            first_index=start,
        )
        if first:
            npz.write(where, [images], count=len(images))
    if first:
        sys.stderr.write(f"{len(captions)} pictures in {args.out / FOLDER}\n")
    return image_sets.from_parts(places)


def protocol_of(
    args: argparse.Namespace, loaded: LoadedCascade, captions: Sequence[str], options: SampleOptions
) -> dict[str, Any]:
    """What must be equal for parts to belong together; JSON-ready."""
    told = json.dumps(list(captions), ensure_ascii=False)
    params = loaded.params
    used = {name: params[name] for name in ("clip", "prior", "decoder")}
    return {
        **{name: params_id(tree)[:16] for name, tree in used.items()},
        "upsamplers": [params_id(tree)[:16] for tree in params["upsamplers"]],
        "decoding": json.loads(json.dumps(as_dict(options.decoder))),
        "condition": args.condition,
        "captions": hashlib.sha256(told.encode()).hexdigest()[:16],
        "count": len(captions),
        "seed": args.seed,
        "part": args.part,
    }
