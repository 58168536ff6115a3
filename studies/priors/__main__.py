"""Compares the sources of z_img and writes the page; see the package."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks import markdown_page
from studies import evaluation_set, provenance
from studies.evaluation_set import BATCH, EvaluationSet
from studies.priors import prior_tables
from studies.priors.comparison import PriorComparison, sources_of
from unclip_jax.cli import entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.data import sources
from unclip_jax.data.sources import Source
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.evaluation.cascade import RETRIEVAL
from unclip_jax.inference import chain_selection, load
from unclip_jax.metrics import frechet

PRIORS = ("prior", "prior_ar")  # unCLIP, section 2.2
NUM, EMBEDDINGS = 200, 500  # defaults, unless the split is smaller


def main(argv: Sequence[str]) -> None:
    """Measures every source, prints the tables and writes the page."""
    args = parse(argv)
    check(args)
    held_out, training = open_data(args)
    chains = {"prior": "unclip", "prior_ar": "prior_ar"}
    engines = {
        name: InferenceEngine(load.load_cascade(args.models, prior_name=chains[name]), batch=BATCH)
        for name in PRIORS
    }
    examples = embed(engines["prior"], held_out, training, count=args.embeddings)
    comparison = PriorComparison(engines, examples, num=args.num, seed=args.seed)
    rows = []
    with tqdm(sources_of(engines["prior"].cascade), unit="row", desc="priors") as progress_bar:
        for source in progress_bar:
            progress_bar.set_postfix_str(source.name)
            rows.append(comparison.measure(source))
    result = {
        "models": str(args.models),
        "data": str(args.data),
        **{name: getattr(args, name) for name in ("split", "num", "embeddings", "seed")},
        "group": min(RETRIEVAL, args.embeddings),
        "batch": BATCH,
        "stages": {name: engine.describe() for name, engine in engines.items()},
        **provenance.environment(),
        "rows": rows,
    }
    tables = prior_tables.tables(result)
    sys.stdout.write(tables)
    markdown_page.write(args.out, tables, result, title=prior_tables.TITLE)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        "priors", prog="python -m studies.priors", description="Compare the priors of one cascade."
    )
    parser.add_argument("--models", type=pathlib.Path, required=True, help="run directory")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="prepared data set")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--num", type=int, help=f"captions sampled as images [{NUM}, or all]")
    parser.add_argument(
        "--embeddings", type=int, help=f"captions in all, at least NUM [{EMBEDDINGS}, or all]"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="page to write [MODELS/priors.md]")
    args = parser.parse_args(argv)
    args.out = args.out or args.models / "priors.md"
    return args


def check(args: argparse.Namespace) -> None:
    """Checks the arguments before anything is loaded.

    Raises:
        UserError: a number or the path of the page is invalid, or a stage is not trained.
    """
    for name in ("num", "embeddings"):
        if (value := getattr(args, name)) is not None:
            positive(f"--{name}", value)
    markdown_page.check_path(args.out)
    chain_selection.find_stages(args.models, required=("clip", *PRIORS, "decoder"))
    markdown_page.split(args.out, title=prior_tables.TITLE)


def open_data(args: argparse.Namespace) -> tuple[Source, Source]:
    """Opens the held-out and the training split; sets the numbers that `args` leaves open.

    Raises:
        UserError: the data do not exist, or have fewer examples than needed.
    """
    held_out = sources.open_source(args.data, split=args.split)
    training = sources.open_source(args.data, split="train")
    for name, source in ((args.split, held_out), ("train", training)):
        if len(source) < 2:
            raise UserError(
                f"split {name!r} of {args.data} has {len(source)} examples; a distribution needs "
                "at least 2. Give another split."
            )
    for name in ("num", "embeddings"):
        count = getattr(args, name) or 0
        if count > len(held_out):
            raise UserError(
                f"--{name} is {count}, but split {args.split!r} of {args.data} has {len(held_out)} "
                "examples; give at most that."
            )
    args.embeddings = args.embeddings or min(max(EMBEDDINGS, args.num or 0), len(held_out))
    args.num = args.num or min(NUM, args.embeddings)
    in_range("--embeddings", args.embeddings, max(args.num, 2), len(held_out))
    return held_out, training


def embed(
    engine: InferenceEngine, held_out: Source, training: Source, *, count: int
) -> EvaluationSet:
    """Embeds the first `count` held-out examples and the reference with CLIP.

    Raises:
        UserError: an image cannot be read.
    """
    reference = frechet.moments(evaluation_set.embed_training_images(engine, training))
    records = [held_out[i] for i in range(count)]
    return evaluation_set.build(engine, records, reference=reference)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
