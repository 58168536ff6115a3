r"""How pictures change with guidance, steps and sampler of the decoder.

    python -m unclip_jax.evaluate sweep --models=runs/shapes --data=runs/shapes/data \
        --guidance=1,2,4 --steps=10,25 --sampler=ddim --out=sweeps/shapes

Every point draws the same captions from the same z_img and the same noise, as in figures 9 and 11
of unCLIP: what differs is the decoder's sampling alone. OUT/points/ has one JSON per point; points
that are there are not drawn again, and a folder of another protocol is refused. OUT/sweep.json and
sweep.csv hold all points, OUT/sweep.png the curves.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from unclip_jax.cli import data_flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, positive
from unclip_jax.evaluation import feature_extraction, image_sets, sweep_points
from unclip_jax.handoff.export import params_id
from unclip_jax.inference import batched, load
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.image_files import InputImage
from unclip_jax.inference.load import LoadedCascade
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.metrics import npz, report, scores, shapes_checker
from unclip_jax.metrics.extractors import Extractor, clip
from unclip_jax.stages.gaussian import SAMPLERS

CONDITIONS = ("prior", "z_txt", "z_img")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all points share.

    Attributes:
        captions: one per picture, repeated for several pictures of one.
        z_img: [b z] of every picture.
        z_txt: [b z] of every caption.
        real: features of the reference.
        judge: the extractor that made them.
        clip: the cascade's own CLIP, for CLIP score and diversity.
        requests: what the checker asks of every picture; () outside the shapes world.
    """

    captions: tuple[str, ...]
    z_img: np.ndarray
    z_txt: np.ndarray
    real: report.Collected
    judge: Extractor
    clip: Extractor
    requests: tuple[str, ...]


def parser() -> Parser:
    """Command-line flags."""
    made = Parser(
        "evaluate sweep",
        description="Score a cascade over guidance, steps and samplers of its decoder.",
    )
    made.add_argument("--models", type=pathlib.Path, required=True, help="run directory")
    data_flags.add(made)
    made.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    made.add_argument("--guidance", default="1", help="comma-separated scales, 1 = off")
    made.add_argument("--steps", help="comma-separated, such as 10,25,ddim50; default: exported")
    made.add_argument("--sampler", help=f"comma-separated: {', '.join(SAMPLERS)}")
    made.add_argument("--features", help="inception:FILE or clip:EXPORT; default: the models' CLIP")
    made.add_argument("--resize", default="tf1", help="of inception: tf1, torch, clean")
    made.add_argument("--prior", default="prior", choices=load.prior_names(), help="which prior")
    made.add_argument("--condition", default="prior", choices=CONDITIONS, help="origin of z_img")
    made.add_argument("--split", default="validation")
    made.add_argument("--num", type=int, default=200, help="captions")
    made.add_argument("--images", type=int, default=2, help="pictures per caption")
    made.add_argument("--reference", type=int, help="real pictures; default: all of the split")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--batch", type=int, default=50, help="pictures at once")
    made.add_argument("--keep", action="store_true", help="keep pictures, as .npz batches")
    return made


def run(args: argparse.Namespace) -> None:
    """Draw and score what is missing, then write the tables and plots.

    Args:
        args: of `parser`.

    Raises:
        UserError: a mistake in the arguments, models or data, or a folder of another protocol.
    """
    wanted = sweep_points.of(args)
    for name in ("num", "images", "batch"):
        positive(f"--{name}", getattr(args, name))
    loaded = load.load_cascade(args.models, prior_name=args.prior)
    options = {point: options_of(point, loaded) for point in wanted}
    prepared = prepare(args, loaded)
    protocol = protocol_of(args, loaded, prepared)
    first = jax.process_index() == 0
    sweep_points.claim(args.out, protocol, first=first)
    for number, point in enumerate(wanted, 1):
        where = args.out / "points" / f"{point.name}.json"
        if where.is_file():
            sys.stderr.write(f"{point.name}: there already\n" if first else "")
            continue
        images = batched.sample_images(
            loaded,
            list(prepared.captions),
            seed=args.seed,
            options=options[point],
            z_img=prepared.z_img,
            batch_size=args.batch,
            name=f"{point.name} ({number} of {len(wanted)})",
        )
        made = score(images, prepared, args)
        if first:
            if args.keep:
                npz.write(where.with_suffix(".npz"), [images], count=len(images))
            sweep_points.write(
                where, json.dumps({"point": point._asdict(), **made}, indent=2) + "\n"
            )
    if first:
        sweep_points.finish(args.out)
        sys.stdout.write(sweep_points.table(json.loads((args.out / "sweep.json").read_text())))


def options_of(point: sweep_points.Point, loaded: LoadedCascade) -> SampleOptions:
    """The exported settings with the point's changes.

    Raises:
        UserError: settings that do not go together.
    """
    given = {"guidance_scale": point.guidance, "steps": point.steps, "sampler": point.sampler}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    decoder = dataclasses.replace(loaded.cascade.decoder.sampling, **changes)
    loaded.cascade.decoder.check_guidance(decoder)
    return SampleOptions(decoder=decoder, condition="z_img")


def prepare(args: argparse.Namespace, loaded: LoadedCascade) -> Setting:
    """Captions, their embeddings, and the reference's features."""
    size = loaded.cascade.image_size
    asked = _examples(args, size=size)
    if asked.captions is None:
        raise UserError(f"{args.data} has no captions; give a set that `prepare` made.")
    for name in ("num", "reference"):
        if (getattr(args, name) or 0) > asked.count:
            raise UserError(
                f"{asked.where} has {asked.count} examples; --{name}={getattr(args, name)} asks "
                "for more."
            )
    there = _examples(args, size=size, num=args.reference)
    captions = tuple(c for c in asked.captions[: args.num] for _ in range(args.images))
    studio = InferenceEngine(loaded, batch=args.batch)
    own = clip(loaded.params["clip"], cfg=loaded.cascade.clip.model, weights=studio.clip_id[:16])
    judge = (
        feature_extraction.open_extractor(args.features, resize=args.resize)
        if args.features
        else own
    )
    indices = list(range(len(captions)))
    if args.condition == "z_img":
        z_img = _true(studio, args)
    else:
        options = SampleOptions(condition=args.condition)
        z_img = np.asarray(
            studio.imagine(captions, seed=args.seed, indices=indices, options=options)
        )
    return Setting(
        captions,
        z_img,
        np.asarray(studio.text_embeddings(captions)),
        feature_extraction.collect(judge, there, batch_size=args.batch, name="real"),
        judge,
        own,
        captions if shapes_checker.all_parse(captions) else (),
    )


def score(images: np.ndarray, prepared: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """Scores and warnings of one point's pictures."""
    drawn = image_sets.in_memory(images, where="drawn")
    fake = feature_extraction.collect(prepared.judge, drawn, batch_size=args.batch, name="score")
    options = report.Options(seed=args.seed)
    made = report.compare(prepared.real, fake, kind=prepared.judge.kind, options=options)
    found = dict(made.scores)
    z = fake.pool
    if prepared.judge is not prepared.clip:
        z = feature_extraction.collect(
            prepared.clip, drawn, batch_size=args.batch, name="CLIP"
        ).pool
    assert z is not None
    alike = scores.clip_score(z, prepared.z_txt)
    found |= {"clip_score": alike.value, "clip_score_error": alike.error}
    if args.images > 1:
        spread = scores.diversity(z, prepared.captions)
        found |= {"diversity": spread.value, "diversity_error": spread.error}
    if prepared.requests:
        rates = shapes_checker.report(shapes_checker.check(images, prepared.requests))
        found |= {f"checker_{n}": rates[n].value for n in shapes_checker.SUMMARY if rates[n].total}
    plain = dataclasses.replace(made, scores=found).plain()
    return {"scores": plain["scores"], "warnings": plain["warnings"]}


def protocol_of(
    args: argparse.Namespace, loaded: LoadedCascade, prepared: Setting
) -> dict[str, Any]:
    """What must be equal for points to lie on one curve."""
    cards = loaded.manifests
    return {
        **prepared.judge.protocol,
        "real": dict(prepared.real.facts),
        "clip": prepared.clip.protocol["weights"],
        "prior": params_id(loaded.params["prior"])[:16] if args.condition == "prior" else None,
        "decoder": params_id(loaded.params["decoder"])[:16],
        "upsamplers": [params_id(p)[:16] for p in loaded.params["upsamplers"]],
        "decoder_step": cards["decoder"].step,
        "condition": args.condition,
        "captions": f"the first {args.num} of {args.data} ({args.split})",
        "images": args.images,
        "count": len(prepared.captions),
        "seed": args.seed,
        "clip_score": f"{scores.CLIP_SCALE:g} x cosine, mean",
        "diversity": "1 - cosine of pairs of one caption, mean over pairs, then captions",
    }


def _examples(
    args: argparse.Namespace, *, size: int, num: int | None = None
) -> image_sets.PictureSet:
    keys = data_flags.keys(args)
    return image_sets.open_set(args.data, split=args.split, keys=keys, size=size, num=num)


def _true(studio: InferenceEngine, args: argparse.Namespace) -> np.ndarray:
    """CLIP's embedding of the true picture of every caption, repeated."""
    size = studio.cascade.clip.model.image_size
    found = _examples(args, size=size, num=args.num)
    images = np.concatenate(list(found.batches(args.batch, slice(None))))
    z = studio.image_embeddings([InputImage(image, "", "") for image in images])
    return np.repeat(np.asarray(z), args.images, axis=0)
