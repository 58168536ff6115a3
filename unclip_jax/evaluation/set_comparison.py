r"""Compare two sets of pictures, or keep what a set says of itself.

    python -m unclip_jax.evaluate images --real=DIR --fake=batch.npz --features=inception:FILE
    python -m unclip_jax.evaluate statistics --images=DIR --features=clip:EXPORT --out=real.npz
    python -m unclip_jax.evaluate pack --images=DIR --out=batch.npz

docs/evaluation.md has the protocols.
"""

import argparse
import json
import pathlib
import sys

import jax

from unclip_jax.cli import data_flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.evaluation import feature_extraction, image_sets
from unclip_jax.metrics import kernels, neighbours, npz, resize
from unclip_jax.metrics.extractors import Extractor
from unclip_jax.metrics.report import Collected, Options, compare

COMMANDS = ("images", "statistics", "pack")


def parser(name: str) -> Parser:
    """Command-line arguments of one of `COMMANDS`."""
    made = Parser(f"evaluate {name}")
    if name == "images":
        made.description = "Compare two sets of pictures."
        made.add_argument("--real", required=True, help=_KINDS)
        made.add_argument("--fake", required=True, help="likewise")
        made.add_argument("--out", type=pathlib.Path, help="JSON to write")
        made.add_argument("--kid-subsets", type=int, default=kernels.SUBSETS)
        made.add_argument("--kid-size", type=int, default=kernels.SUBSET_SIZE)
        made.add_argument("--k", type=int, default=neighbours.K_PRECISION)
        made.add_argument("--k-density", type=int, default=neighbours.K_DENSITY)
        made.add_argument("--seed", type=int, default=0, help="of KID's subsets")
    else:
        made.add_argument("--images", required=True, help="a set of pictures")
        made.add_argument("--out", type=pathlib.Path, required=True, help=".npz to write")
    if name != "pack":
        made.add_argument("--features", required=True, help="inception:FILE or clip:EXPORT")
        made.add_argument("--resize", default="tf1", help=f"to 299: {', '.join(resize.RESIZES)}")
    made.add_argument("--size", type=int, help="resize and centre-crop pictures to this first")
    made.add_argument("--num", type=int, help="the first so many of each set; default: all")
    made.add_argument("--split", default="validation", help="of data sets")
    data_flags.add_keys(made)
    made.add_argument("--batch", type=int, default=64, help="pictures at once")
    return made


_KINDS = "folder of pictures, .npz batch, .npz statistics, or data set"


def run(args: argparse.Namespace, *, command: str) -> None:
    """Do what one of `COMMANDS` says.

    Raises:
        UserError: a mistake in the arguments or the sets.
    """
    one_of("subcommand", command, COMMANDS)
    positive("--batch", args.batch)
    if command == "pack":
        found = _open(args.images, args)
        if jax.process_index() == 0:
            image_sets.pack(found, _npz(args.out))
            sys.stdout.write(f"wrote {args.out}: {found.count} pictures\n")
        return
    one_of("--resize", args.resize, resize.RESIZES)
    extractor = feature_extraction.open_extractor(args.features, resize=args.resize)
    if command == "statistics":
        made = collected(args.images, extractor, args, name="features")
        if jax.process_index() == 0:
            npz.write_statistics(_npz(args.out), feature_extraction.statistics(made))
            sys.stdout.write(f"wrote {args.out}: {made.facts['count']} pictures\n")
        return
    real = collected(args.real, extractor, args, name="real", statistics=True)
    fake = collected(args.fake, extractor, args, name="fake")
    options = Options(args.kid_subsets, args.kid_size, args.k, args.k_density, args.seed)
    report = compare(real, fake, kind=extractor.kind, options=options)
    if jax.process_index() == 0:
        if args.out is not None:
            args.out.write_text(json.dumps(report.plain(), indent=2) + "\n")
        sys.stdout.write(str(report))


def collected(
    path: str,
    extractor: Extractor,
    args: argparse.Namespace,
    *,
    name: str,
    statistics: bool = False,
) -> Collected:
    """Features of the pictures at `path`; or, where allowed, the statistics that lie there.

    A reference batch that holds both is taken for its statistics in Frechet distances and for its
    pictures in everything else, as guided-diffusion's evaluator does.

    Raises:
        UserError: neither is there.
    """
    there = npz.array_names(pathlib.Path(path)) if statistics and path.endswith(".npz") else set()
    if "mu" not in there:
        return feature_extraction.collect(
            extractor, _open(path, args), batch_size=args.batch, name=name
        )
    known = feature_extraction.from_statistics(pathlib.Path(path))
    if npz.IMAGES not in there:
        return known
    seen = feature_extraction.collect(
        extractor, _open(path, args), batch_size=args.batch, name=name
    )
    fields = {**vars(known), "pool": seen.pool}
    return Collected(**fields)


def _open(path: str, args: argparse.Namespace) -> image_sets.PictureSet:
    keys = data_flags.keys(args)
    return image_sets.open_set(path, split=args.split, keys=keys, size=args.size, num=args.num)


def _npz(path: pathlib.Path) -> pathlib.Path:
    if path.suffix != ".npz":
        raise UserError(f"--out is {str(path)!r}; give a name that ends in .npz.")
    return path
