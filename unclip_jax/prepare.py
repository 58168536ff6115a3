"""Turns captioned images into the sharded data set that training reads.

    python -m unclip_jax.prepare 'train=emoji/train-*.tar' 'validation=emoji/val*.tar' --out=DIR
    python -m unclip_jax.prepare photos/ --split=train --max-side=512 --out=DIR
    python -m unclip_jax.prepare shapes:train=30000,validation=1000 --out=DIR
    python -m unclip_jax.prepare train=tfds:coco_captions --caption-field=captions/text --out=DIR

An input is a folder of images with captions beside them or in tables, a WebDataset tar, Parquet
with images, a table of captions, an image, a quoted glob or {range} of these, or a data set such as
tfds:NAME (docs/data.md); SPLIT= before an input names its split. `shapes` and `portraits`
are procedural worlds. An interrupted run continues when the same command runs again. Without an
input, a missing tokenizer is added to the data set in DIR. --shard=I/N writes a part of the shards,
for parallel jobs; `prepare merge --out=DIR` merges the parts to a data set (docs/data.md).
"""

import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.cli import entry, flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError
from unclip_jax.core.folder import Folder
from unclip_jax.core.storage import location
from unclip_jax.data import dataset_manifest
from unclip_jax.data.image_codec import ImageLimits
from unclip_jax.preparation import duplicates, engines, pipeline
from unclip_jax.preparation.checking import CheckConfig
from unclip_jax.preparation.pipeline import TokenizerConfig
from unclip_jax.preparation.plan_specs import make_specs
from unclip_jax.preparation.shard_writer import ImportConfig


def parser() -> Parser:
    """Returns the parser of the command line."""
    _, _, epilog = (__doc__ or "").partition("\n\n")
    description = "Turn captioned images into the sharded data set that training reads."
    parser = Parser("prepare", description=description, epilog=epilog)
    add = parser.add_argument
    add(
        "inputs",
        nargs="*",
        metavar="[SPLIT=]INPUT",
        help="folder, tar, glob, tfds:NAME, shapes[:...] or portraits[:...]",
    )
    add("--out", required=True, type=location, help="folder or URL of the data set")
    add("--split", default="train", help="split of inputs without SPLIT=")
    add("--shards", type=int, default=0, help="files per split; default: one per 8,192 records")
    add("--tokenizer", default="train", help="'train', 'none', or folder of a tokenizer")
    add("--vocab-size", type=int, default=8192, help="tokens of a trained tokenizer, at most")
    add("--tokenizer-sample", type=int, default=1_000_000, help="records to train it on")
    add("--caption-field", default="", help="JSON field or feature with the caption")
    add("--where", default="", help='condition on metadata, such as "similarity > 0.28"')
    add("--uids", type=pathlib.Path, help="file with the uids or keys to keep")
    add("--prefix-keys", action="store_true", help="put the name of its tar before each key")
    add("--image-size", type=int, help="store square images of this side; default: 64 for a world")
    add("--max-side", type=int, help="reduce images to this shorter side; default: never")
    add(
        "--min-side",
        type=int,
        default=ImageLimits.min_side,
        help="skip images with a side below this",
    )
    add(
        "--max-aspect",
        type=float,
        default=ImageLimits.max_aspect,
        help="skip images with a greater ratio of sides",
    )
    add("--max-pixels", type=int, default=ImageLimits.max_pixels, help="skip images of more pixels")
    add("--max-bad", type=float, default=0.05, help="stop if a larger fraction is unusable")
    add("--dedup", default="none", choices=duplicates.KINDS, help="duplicate images to skip")
    add("--index", action="store_true", help="index the images in tars instead of copying them")
    add(
        "--engine",
        default="local",
        help="engine that runs the shards: local, ray, ray:ADDRESS or beam",
    )
    add("--beam-option", action="append", default=[], metavar="OPTION", help="option for Beam")
    add("--shard", default="", metavar="I/N", help="write only every N-th shard, from number I")
    add("--shard-mb", type=float, default=512.0, help="approximate MB of tars or Parquet per shard")
    add("--workers", type=int, help="processes or checking threads; default: one per core")
    add("--seed", type=int, default=0, help="seed of a procedural world")
    return parser


def main(argv: Sequence[str]) -> None:
    """Writes the data set."""
    args = parser().parse_args(argv)
    limits = ImageLimits(args.max_pixels, args.min_side, args.max_aspect)
    check = CheckConfig(limits, max_side=args.max_side, image_size=args.image_size)
    workers = engines.cores() if args.workers is None else args.workers
    config = ImportConfig(
        check,
        args.shards,
        args.max_bad,
        workers,
        dedup=args.dedup,
        index=args.index,
        shard_mb=args.shard_mb,
    )
    engine = engines.parse(args.engine, options=args.beam_option, processes=workers)
    tokenizer = TokenizerConfig(args.tokenizer, args.vocab_size, args.tokenizer_sample)
    share = flags.parse_share(args.shard) if args.shard else None
    merging = args.inputs == ["merge"]
    if not args.inputs:
        dataset_manifest.read(args.out)  # before the folder is created for its lock
    elif merging and isinstance(args.out, pathlib.Path) and not args.out.is_dir():
        raise UserError(f"--out={args.out} is not a folder; give the one that the parts wrote to.")
    Folder(args.out).check()
    if merging:
        pipeline.merge(args.out, config=config, engine=engine, tokenizer=tokenizer)
        return
    specs = make_specs(
        args.inputs,
        split=args.split,
        caption_field=args.caption_field,
        prefix=args.prefix_keys,
        where=args.where,
        uids=str(args.uids or ""),
        image_size=args.image_size or 64,
        seed=args.seed,
    )
    pipeline.prepare(
        specs, out=args.out, config=config, engine=engine, share=share, tokenizer=tokenizer
    )


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
