"""Measure what the latent makes possible: reconstruction, variations, paths and text diffs.

    python -m studies.manipulations --models=runs/shapes --data=runs/shapes/data \
        --out=docs/manipulations.md

Every picture is encoded to (z_img, x_T) and the upsamplers' details, changed, and decoded again;
the exact checker of the shapes world says what became of it. Writes the tables between the marks in
OUT.md, or a new file without them, all figures to OUT.json and some pictures to OUT_PART.png.
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import markdown_page as pages
from studies.manipulations import manipulation_tables
from studies.manipulations import measurements as measure
from studies.manipulations import red_to_blue as text_diff
from studies.manipulations.measurements import Chain
from unclip_jax.cli import entry, flags
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.data import sources
from unclip_jax.diffusion.ddim_inversion import MAX_REFINEMENTS
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.version import __version__

PARTS = ("reconstruction", "variations", "interpolation", "text_diff")


def main(argv: Sequence[str]) -> None:
    """Measure part by part; write and print each as soon as it is known."""
    args = parse(argv)
    check(args)
    source = sources.open_source(args.data, split=args.split)
    known = measure.take(source, range(min(args.num, len(source))))
    reds = measure.take(source, text_diff.choose(source, args.num))
    studio = InferenceEngine.open(args.models, batch=args.batch)
    chain = Chain(args.steps, args.refine, args.upsampler_steps)
    encoded = functools.cache(lambda: measure.encode(studio, known.pictures, chain))
    told = facts(args, studio, chain)
    result = {**told, **before(args.out, told)}
    with tqdm(args.parts, unit="part", desc="manipulations") as bar:
        for part in bar:
            bar.set_postfix_str(part)
            shown = None
            if part == "reconstruction":
                result[part] = measure.reconstruction(
                    studio, known, encoded(), chain, seed=args.seed, paper=args.paper
                )
            elif part == "variations":
                result[part], shown = measure.variations(
                    studio, known, encoded().latent, chain, seed=args.seed
                )
            elif part == "interpolation":
                result[part] = measure.interpolation(studio, encoded(), chain)
            else:
                result[part], shown = text_diff.measure(studio, reds, chain)
            page = manipulation_tables.tables(result, PARTS)
            pages.write(args.out, page, result, title=manipulation_tables.TITLE)
            if shown:
                picture = args.out.with_name(f"{args.out.stem}_{part}.png")
                manipulation_tables.draw(picture, shown)
    sys.stdout.write(manipulation_tables.tables(result, PARTS))


def before(out: pathlib.Path, told: dict[str, Any]) -> dict[str, Any]:
    """Parts that were measured already on the same models, pictures and chain."""
    path = out.with_suffix(".json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = all(known.get(name) == told[name] for name in told if name not in ("date", "device"))
    return {part: known[part] for part in PARTS if same and part in known}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.manipulations",
        description="Measure manipulations of pictures.",
    )
    parser.add_argument("--models", type=pathlib.Path, required=True, help="run directory")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="prepared shapes data")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--num", type=int, default=64, help="pictures, and pictures with red")
    parser.add_argument("--steps", default="25", help="grid of the decoder")
    parser.add_argument("--refine", type=int, default=3, help="refinements of the inversion")
    parser.add_argument("--upsampler-steps", help="grid of the upsamplers; default: as exported")
    parser.add_argument(
        "--paper", action="store_true", help="reconstruct by the paper's recipe too, which is slow"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32, help="pictures at once")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="the others stay as they were",
    )
    parser.add_argument("--out", type=pathlib.Path, help="page to write [MODELS/manipulations.md]")
    args = parser.parse_args(argv)
    args.out = args.out or args.models / "manipulations.md"
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is loaded.

    Raises:
        UserError: naming the argument.
    """
    in_range("--num", args.num, 2, flags.MAX_IMAGES)
    in_range("--batch", args.batch, 1, flags.MAX_IMAGES)
    in_range("--refine", args.refine, 0, MAX_REFINEMENTS)
    if args.out.suffix != ".md":
        raise UserError(f"--out is {str(args.out)!r}; give a name that ends in .md.")
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"--out is {str(args.out)!r}, but there is no such folder; make it first.")
    pages.around(args.out, title=manipulation_tables.TITLE)


def facts(args: argparse.Namespace, studio: InferenceEngine, chain: Chain) -> dict[str, Any]:
    """What was measured, and on what."""
    return {
        "models": str(args.models),
        "data": str(args.data),
        **{name: getattr(args, name) for name in ("split", "num", "seed", "batch")},
        **chain._asdict(),
        "studio": studio.facts(),
        "judged": list(text_diff.JUDGED),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "code_version": __version__,
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
