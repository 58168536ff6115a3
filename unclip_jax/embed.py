r"""Embeds a data set with a frozen CLIP, once, for the stages that train on embeddings.

    python -m unclip_jax.embed --clip=runs/shapes/clip/export --data=runs/shapes/data \
        --out=runs/shapes/embeddings

Writes OUT/SPLIT/{img_emb,text_emb,metadata} in the layout of clip-retrieval and img2dataset, with
their statistics. An interrupted run continues when the same command runs again. Of several
processes each embeds a part of every batch, and the first writes.
"""

import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.cli import data_flags, entry, process_flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import positive
from unclip_jax.core.files import check_writable


def parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser("embed", description="Embed a data set with a frozen CLIP.")
    parser.add_argument("--clip", type=pathlib.Path, required=True, help="export of a CLIP")
    data_flags.add(parser)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--splits", nargs="*", help="names of splits; default: all")
    parser.add_argument("--batch", type=int, default=256, help="examples at once")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="as CLIP computes them, not of norm 1: for stages of Karlo's kind",
    )
    parser.add_argument(
        "--all-captions",
        action="store_true",
        help="of several captions of an image embed all, not the first alone",
    )
    process_flags.add(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Embeds every split of the data set."""
    args = parser().parse_args(argv)
    positive("--batch", args.batch)
    check_writable(args.out)
    process_flags.start_alike(args)
    from unclip_jax.inference.dataset_embedding import embed_dataset

    embed_dataset(
        args.data,
        clip=args.clip,
        out=args.out,
        splits=args.splits or (),
        keys=data_flags.keys(args),
        batch_size=args.batch,
        raw=args.raw,
        all_captions=args.all_captions,
    )


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
