r"""Embeds a data set with a frozen CLIP or text encoder, or arrays with a prior between spaces.

    python -m unclip_jax.embed --clip=runs/shapes/clip/export --data=runs/shapes/data \
        --out=runs/shapes/embeddings
    python -m unclip_jax.embed prior runs/mine --x=a.npy --out=z.safetensors
    python -m unclip_jax.embed join FOLDER --clip=EXPORT --data=DATA --out=DIR
    python -m unclip_jax.embed text --encoder=runs/imagen/text_encoder/export --data=DATA --out=DIR
    python -m unclip_jax.embed codes --dvae=runs/shapes/dvae/export --data=DATA --out=DIR

Writes OUT/SPLIT/{img_emb,text_emb,metadata} in the layout of clip-retrieval and img2dataset, with
their statistics. An interrupted run continues when the same command runs again. Several processes,
and jobs with --shard=I/N, each embed and write whole shards; the last one adds the statistics. Rows
are bitwise equal for any number of processes.

The second form samples targets for new conditions; `inference/embedding_files.py` has the formats.
`join` reorders embeddings of clip-retrieval or LAION to match a data set by key. `text`
writes the features of all captions, for `config.data.text_features`, and `codes` the codes of all
images, for `config.data.codes`.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from unclip_jax.cli import compilation_cache, data_flags, entry, flags, process_flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.files import check_output
from unclip_jax.core.folder import Folder
from unclip_jax.core.storage import location


def parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        "embed",
        description="Embed a data set with a frozen CLIP.",
        epilog=f"subcommands (each has its own --help): {', '.join(SUBCOMMANDS)}",
    )
    parser.add_argument("--clip", type=location, required=True, help="export of a CLIP, or its URL")
    data_flags.add(parser)
    parser.add_argument("--out", type=location, required=True, help="folder or URL to write")
    parser.add_argument("--splits", nargs="*", help="names of splits; default: all")
    parser.add_argument("--batch", type=int, default=256, help="examples per batch")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="store embeddings as CLIP computes them, not normalised (Karlo)",
    )
    parser.add_argument(
        "--all-captions",
        action="store_true",
        help="embed every caption of an image, not only the first",
    )
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="precision on disk"
    )
    parser.add_argument("--workers", type=int, default=8, help="threads that read records")
    parser.add_argument(
        "--shard", default="0/1", metavar="I/N", help="embed every N-th shard from number I"
    )
    flags.add_skip_digests(parser)
    process_flags.add(parser)
    return parser


def subparsers() -> dict[str, Parser]:
    """Returns the parsers of the subcommands."""
    return {name: make() for name, (make, _) in SUBCOMMANDS.items()}


def run_dataset(args: argparse.Namespace) -> None:
    """Embeds every split of a data set."""
    positive("--batch", args.batch)
    positive("--workers", args.workers)
    share = flags.parse_share(args.shard)
    Folder(args.out).check()
    process_flags.start_alike(args)
    compilation_cache.use()
    from unclip_jax.handoff.remote import local_export
    from unclip_jax.inference.dataset_embedding import embed_dataset

    embed_dataset(
        args.data,
        clip=local_export(args.clip),
        out=args.out,
        splits=args.splits or (),
        keys=data_flags.keys(args),
        batch_size=args.batch,
        raw=args.raw,
        all_captions=args.all_captions,
        dtype=args.dtype,
        workers=args.workers,
        share=share,
    )


def prior_parser() -> Parser:
    """Returns the parser of `prior`."""
    parser = Parser("embed prior", description="Sample targets with a prior for embeddings.")
    add = parser.add_argument
    add("run", type=pathlib.Path, help="workdir or export of embedding_prior")
    add("--x", required=True, help="arrays of conditions, named as in config.data.x")
    add("--out", type=pathlib.Path, required=True, help=".npy, .safetensors, .parquet or folder")
    add("--subjects", help="labels of the rows, for a prior with layers per subject")
    add("--bad-rows", default="reject", help="for rows with NaN or inf: reject or skip")
    add("--num", type=int, default=1, help="samples per row")
    add("--guidance", type=float, help="guidance scale, 1 = off; default: as exported")
    add("--steps", help="sampling steps, such as 25; default: as exported")
    add("--sampler", help="sampler of the diffusion prior; default: as exported")
    add("--temperature", type=float, help="autoregressive prior: temperature; default: as exported")
    add(
        "--top-p",
        type=float,
        help="autoregressive prior: top-p (nucleus) sampling; default: as exported",
    )
    add("--seed", type=int, default=0, help="random seed")
    add("--batch", type=int, default=256, help="samples per batch")
    return parser


def run_prior(args: argparse.Namespace) -> None:
    """Samples targets for arrays and writes them."""
    positive("--batch", args.batch)
    check_output(args.out, folder=not args.out.suffix)
    compilation_cache.use()
    from unclip_jax.inference.embedding_files import write_embeddings
    from unclip_jax.inference.embedding_prior import EmbeddingPriorModel
    from unclip_jax.pairs import column_files
    from unclip_jax.pairs.conditions import read_conditions
    from unclip_jax.pairs.config import BAD_ROWS, SUBJECT

    one_of("--bad-rows", args.bad_rows, BAD_ROWS)
    prior = EmbeddingPriorModel.open(args.run)
    conditions = read_conditions(args.x, bad_rows=args.bad_rows)
    rows: dict[str, Any] = dict(conditions.rows)
    if args.subjects:
        labels = column_files.labels(args.subjects)
        if len(labels) != conditions.total:
            raise UserError(
                f"--subjects has {len(labels)} labels for {conditions.total} rows of --x; give one "
                "label per row."
            )
        rows[SUBJECT] = labels[conditions.numbers]
    names = ("num", "guidance", "steps", "sampler", "temperature", "top_p", "seed", "batch")
    samples = prior.sample(rows, **{name: getattr(args, name) for name in names})
    write_embeddings(samples, args.out, keys=conditions.keys, numbers=conditions.numbers)
    skipped = conditions.total - len(samples)
    note = f"; {skipped} of {conditions.total} rows left out" if skipped else ""
    sys.stdout.write(f"wrote {args.out}: {len(samples)} rows, {args.num} samples each{note}\n")


def text_parser() -> Parser:
    """Returns the parser of `text`."""
    parser = Parser(
        "embed text", description="Write the features of a text encoder for all captions."
    )
    add = parser.add_argument
    add("--encoder", type=location, required=True, help="export of a text_encoder, or its URL")
    data_flags.add(parser)
    add("--out", type=pathlib.Path, required=True, help="folder to write, or to continue")
    add("--splits", nargs="*", help="names of splits; default: all")
    add("--batch", type=int, default=64, help="captions per batch")
    add("--workers", type=int, default=8, help="threads that read records")
    add("--shard", default="0/1", metavar="I/N", help="write every N-th shard from number I")
    process_flags.add(parser)
    return parser


def run_text(args: argparse.Namespace) -> None:
    """Writes the features of the captions of a data set."""
    positive("--batch", args.batch)
    positive("--workers", args.workers)
    share = flags.parse_share(args.shard)
    check_output(args.out, folder=True)
    process_flags.start_alike(args)
    compilation_cache.use()
    from unclip_jax.handoff.remote import local_export
    from unclip_jax.inference.caption_features import embed_captions

    count = embed_captions(
        args.data,
        encoder=local_export(args.encoder),
        out=args.out,
        splits=args.splits or (),
        keys=data_flags.keys(args),
        batch_size=args.batch,
        workers=args.workers,
        share=share,
    )
    sys.stdout.write(f"wrote {args.out}: features of {count} captions\n")


def join_parser() -> Parser:
    """Returns the parser of `join`."""
    parser = Parser(
        "embed join", description="Reorder embeddings of another tool to match a data set."
    )
    add = parser.add_argument
    add("embeddings", type=pathlib.Path, help="folder in the layout of clip-retrieval")
    add("--clip", type=location, required=True, help="export of the CLIP that computed them")
    data_flags.add(parser)
    add("--out", type=location, required=True, help="folder or URL to write")
    add("--splits", nargs="*", help="names of splits; default: all")
    add("--key-parts", type=int, default=1, help="last parts of a key, between slashes, to compare")
    add("--raw", action="store_true", help="embeddings are as CLIP computes them, not normalised")
    add("--workers", type=int, default=8, help="threads that read records")
    flags.add_skip_digests(parser)
    return parser


def run_join(args: argparse.Namespace) -> None:
    """Writes embeddings of another tool in the order of a data set."""
    positive("--key-parts", args.key_parts)
    positive("--workers", args.workers)
    Folder(args.out).check()
    compilation_cache.use()
    from unclip_jax.handoff.remote import local_export
    from unclip_jax.inference.embedding_join import join_embeddings

    reports = join_embeddings(
        args.data,
        embeddings=args.embeddings,
        clip=local_export(args.clip),
        out=args.out,
        splits=args.splits or (),
        keys=data_flags.keys(args),
        key_parts=args.key_parts,
        raw=args.raw,
        workers=args.workers,
    )
    sys.stdout.write("".join(f"{report}\n" for report in reports))


def codes_parser() -> Parser:
    """Returns the parser of `codes`."""
    parser = Parser("embed codes", description="Write the codes of a discrete VAE for all images.")
    add = parser.add_argument
    add("--dvae", type=pathlib.Path, required=True, help="export of a dvae")
    data_flags.add(parser)
    add("--out", type=pathlib.Path, required=True, help="folder to write, or to continue")
    add("--splits", nargs="*", help="names of splits; default: all")
    add("--batch", type=int, default=64, help="images per batch")
    add("--workers", type=int, default=8, help="threads that read records")
    return parser


def run_codes(args: argparse.Namespace) -> None:
    """Writes the codes of the images of a data set."""
    positive("--batch", args.batch)
    positive("--workers", args.workers)
    check_output(args.out, folder=True)
    compilation_cache.use()
    from unclip_jax.inference.image_codes import encode_dataset

    options = {"splits": args.splits or (), "keys": data_flags.keys(args), "batch_size": args.batch}
    counts = encode_dataset(
        args.data, export=args.dvae, out=args.out, workers=args.workers, **options
    )
    named = ", ".join(f"{count} of {split}" for split, count in counts.items())
    sys.stdout.write(f"wrote {args.out}: codes of images, {named}\n")


def main(argv: Sequence[str]) -> None:
    """Embeds every split of the data set, or runs a subcommand."""
    if argv and not argv[0].startswith("-"):
        make_parser, run = SUBCOMMANDS[one_of("subcommand", argv[0], SUBCOMMANDS)]
        run(make_parser().parse_args(argv[1:]))
    else:
        run_dataset(parser().parse_args(argv))


SUBCOMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], None]]] = {
    "prior": (prior_parser, run_prior),
    "text": (text_parser, run_text),
    "join": (join_parser, run_join),
    "codes": (codes_parser, run_codes),
}


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
