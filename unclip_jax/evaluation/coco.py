"""The COCO-30k protocol over a user's copy of MS-COCO: draw 30,000 captions, compare, say it all.

    python -m unclip_jax.evaluate coco --models=RUN --captions=annotations/captions_val2014.json \
        --real=val2014 --features=inception:FILE --out=DIR

GLIDE (arXiv 2112.10741, section 5.2) and unCLIP (Table 2) draw 30,000 captions of the validation
set of 2014 at random and compare at 256 px with the whole set, centre-cropped. What departs from
that is a warning in the result.
"""

import argparse
import json
import pathlib
import sys

import jax
import numpy as np

from unclip_jax.cli import data_flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, positive
from unclip_jax.evaluation import feature_extraction, image_sets, sampled_set, set_comparison
from unclip_jax.inference import load
from unclip_jax.metrics import neighbours, report
from unclip_jax.metrics.report import Collected, Report

NUM = 30_000
REFERENCE = 40_504  # pictures of val2014
SIZE = 256


def parser() -> Parser:
    """Command-line flags."""
    made = Parser("evaluate coco", description="Zero-shot FID on MS-COCO.")
    sampled_set.add_drawing(made)
    path = {"type": pathlib.Path, "required": True}
    made.add_argument("--captions", **path, help="captions_val2014.json, or one of its form")
    made.add_argument(
        "--real", required=True, help="folder val2014, an .npz batch or .npz statistics"
    )
    data_flags.add_keys(made)
    made.add_argument("--features", required=True, help="inception:FILE or clip:EXPORT")
    made.add_argument("--resize", default="tf1", help="to 299: tf1, torch, clean")
    made.add_argument("--num", type=int, default=NUM, help="captions to draw")
    made.add_argument("--size", type=int, default=SIZE, help="side at which pictures are compared")
    return made


def run(args: argparse.Namespace) -> None:
    """Draw what is missing, score, print and write OUT/coco.json.

    Args:
        args: of `parser`.

    Raises:
        UserError: a mistake in the arguments, the captions, the models or the pictures.
    """
    sampled_set.check(args)
    for name in ("num", "size"):
        positive(f"--{name}", getattr(args, name))
    if args.num <= (least := neighbours.K_DENSITY):
        raise UserError(f"--num is {args.num}; scores of neighbours need {least + 1} at least.")
    captions = chosen(read_captions(args.captions), num=args.num, seed=args.seed)
    extractor = feature_extraction.open_extractor(args.features, resize=args.resize)
    loaded = load.load_cascade(args.models, prior_name=args.prior)
    args.split = "validation"  # if `real` is a data set
    args.num, count = None, args.num  # all of the reference
    real = set_comparison.collected(args.real, extractor, args, name="real", statistics=True)
    drawn = sampled_set.sample_all(args, loaded, captions)
    fake = feature_extraction.collect(
        extractor, image_sets.resized(drawn, args.size), batch_size=args.batch, name="fake"
    )
    made = report.compare(real, fake, kind=extractor.kind, options=report.Options(seed=args.seed))
    warned = departures(real, count=count, kind=extractor.kind, size=drawn.size, args=args)
    told = {"captions": f"{count} at random of {args.captions.name}, seed {args.seed}"}
    protocol = {**made.protocol, **told}
    whole = Report(made.scores, protocol, [*warned, *made.warnings])
    if jax.process_index() == 0:
        (args.out / "coco.json").write_text(json.dumps(whole.plain(), indent=2) + "\n")
        sys.stdout.write(str(whole))


def read_captions(path: pathlib.Path) -> list[str]:
    """All captions of a file of COCO's form, in its order.

    Raises:
        UserError: no such file, or it is not of that form.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        captions = [" ".join(each["caption"].split()) for each in found["annotations"]]
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}; give captions_val2014.json of COCO's annotations."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not of the form of COCO's captions ({error!r}); expected "
            '{"annotations": [{"caption": ...}, ...]}.'
        ) from None
    return [caption for caption in captions if caption]


def chosen(captions: list[str], *, num: int, seed: int) -> list[str]:
    """`num` of the captions at random, the same ones for a seed, none twice.

    Raises:
        UserError: there are not so many.
    """
    if num > len(captions):
        raise UserError(
            f"there are {len(captions)} captions, and {num} are asked for; give a smaller --num."
        )
    order = np.random.default_rng(seed).permutation(len(captions))[:num]
    return [captions[int(index)] for index in order]


def departures(
    real: Collected, *, count: int, kind: str, size: tuple[int, int], args: argparse.Namespace
) -> list[str]:
    """What keeps the result from being compared with published COCO-30k figures."""
    there = real.facts.get("count")
    found = [
        (count != NUM, f"{count} captions instead of {NUM:,}"),
        (there != REFERENCE, f"{there} reference pictures instead of {REFERENCE:,}"),
        (kind != "inception", "features of CLIP instead of Inception-v3"),
        (args.size != SIZE, f"compared at {args.size} px instead of {SIZE}"),
        (min(size) < args.size, f"pictures of {min(size)} px, enlarged to {args.size}"),
    ]
    named = [text for departs, text in found if departs]
    return [f"this is not the COCO-30k protocol: {'; '.join(named)}."] if named else []
