"""Measures manipulations part by part and writes the page; see the package.

Every image is encoded to (z_img, x_T) and the upsamplers' latents, edited, and decoded; the exact
checker of the shapes world judges the result. Writes the tables between the marks of OUT.md (or a
new page), all figures to OUT.json and example images to OUT_PART.png.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from benchmarks import markdown_page
from studies import provenance
from studies.manipulations import manipulation_tables, measurements, red_to_blue
from studies.manipulations.measurements import InversionChain
from unclip_jax.cli import entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import in_range
from unclip_jax.data import sources
from unclip_jax.diffusion.ddim_inversion import MAX_REFINEMENTS
from unclip_jax.engine.inference_engine import InferenceEngine

PARTS = ("reconstruction", "variations", "interpolation", "text_diff")
MAX_IMAGES = 4096


def main(argv: Sequence[str]) -> None:
    """Measures part by part, and writes the page after each."""
    args = parse(argv)
    check(args)
    source = sources.open_source(args.data, split=args.split)
    examples = measurements.read_examples(source, range(min(args.num, len(source))))
    reds = measurements.read_examples(source, red_to_blue.select(source, args.num))
    engine = InferenceEngine.open(args.models, batch=args.batch)
    chain = InversionChain(args.steps, args.refine, args.upsampler_steps)
    encoded = functools.cache(lambda: measurements.encode(engine, examples.images, chain))
    protocol = protocol_of(args, engine, chain)
    result = {**protocol, **earlier_parts(args.out, protocol)}
    with tqdm(args.parts, unit="part", desc="manipulations") as progress_bar:
        for part in progress_bar:
            progress_bar.set_postfix_str(part)
            labelled = None
            if part == "reconstruction":
                result[part] = measurements.reconstruction(
                    engine, examples, encoded(), chain, seed=args.seed, paper=args.paper
                )
            elif part == "variations":
                result[part], labelled = measurements.variations(
                    engine, examples, encoded().latent, chain, seed=args.seed
                )
            elif part == "interpolation":
                result[part] = measurements.interpolation(engine, encoded(), chain)
            else:
                result[part], labelled = red_to_blue.measure(engine, reds, chain)
            tables = manipulation_tables.tables(result, PARTS)
            markdown_page.write(args.out, tables, result, title=manipulation_tables.TITLE)
            if labelled:
                path = args.out.with_name(f"{args.out.stem}_{part}.png")
                manipulation_tables.write_grid(path, labelled)
    sys.stdout.write(manipulation_tables.tables(result, PARTS))


def earlier_parts(out: pathlib.Path, protocol: dict[str, Any]) -> dict[str, Any]:
    """Returns the parts that were measured before with the same protocol."""
    stored = markdown_page.read_json(out.with_suffix(".json"))
    names = [name for name in protocol if name not in ("date", "device")]
    same = all(stored.get(name) == protocol[name] for name in names)
    return {part: stored[part] for part in PARTS if same and part in stored}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        "manipulations",
        prog="python -m studies.manipulations",
        description="Measure manipulations of images.",
    )
    parser.add_argument("--models", type=pathlib.Path, required=True, help="run directory")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="prepared shapes data")
    parser.add_argument("--split", default="validation")
    parser.add_argument(
        "--num", type=int, default=64, help="number of images, and of images with red"
    )
    parser.add_argument("--steps", default="25", help="sampling steps of the decoder")
    parser.add_argument(
        "--refine", type=int, default=3, help="fixed-point iterations per step of the inversion"
    )
    parser.add_argument("--upsampler-steps", help="upsampler steps; default: as exported")
    parser.add_argument(
        "--paper", action="store_true", help="also reconstruct by the paper's recipe, which is slow"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32, help="images per batch")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="parts to measure; the others keep their results",
    )
    parser.add_argument("--out", type=pathlib.Path, help="page to write [MODELS/manipulations.md]")
    args = parser.parse_args(argv)
    args.out = args.out or args.models / "manipulations.md"
    return args


def check(args: argparse.Namespace) -> None:
    """Checks the arguments before anything is loaded.

    Raises:
        UserError: a number or the path of the page is invalid.
    """
    in_range("--num", args.num, 2, MAX_IMAGES)
    in_range("--batch", args.batch, 1, MAX_IMAGES)
    in_range("--refine", args.refine, 0, MAX_REFINEMENTS)
    markdown_page.check_path(args.out)
    markdown_page.split(args.out, title=manipulation_tables.TITLE)


def protocol_of(
    args: argparse.Namespace, engine: InferenceEngine, chain: InversionChain
) -> dict[str, Any]:
    """Returns the settings of the measurements; JSON-ready."""
    return {
        "models": str(args.models),
        "data": str(args.data),
        **{name: getattr(args, name) for name in ("split", "num", "seed", "batch")},
        **chain._asdict(),
        "engine": engine.describe(),
        "criteria": list(red_to_blue.CRITERIA),
        **provenance.environment(),
    }


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
