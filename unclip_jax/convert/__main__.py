r"""Converts public weights to exports of this package, and back.

    python -m unclip_jax.convert SRC [SRC2 ...] --out=RUN [--dtype=bfloat16]
    python -m unclip_jax.convert RUN --out=DIR --to=diffusers
    python -m unclip_jax.convert RUN --out=DIR --to=compact --dtype=bfloat16

SRC is a pipeline directory of diffusers (Karlo; Kandinsky's prior; DeepFloyd IF's stages I and II),
a CLIP, T5 or BERT directory of transformers, or a file of OpenAI's or open_clip's CLIP;
docs/weights.md lists all layouts. It is converted to a run directory, RUN/STAGE/export, which
`sample`, `embed` and `train --config.init_from` read.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.cli import entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, one_of

DTYPES = ("float32", "bfloat16")
LAYOUTS = ("unclip_jax", "compact", "diffusers", "safetensors")


def parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser("convert", description="Convert public weights to exports, or exports back.")
    add = parser.add_argument
    add("source", nargs="+", type=pathlib.Path, help="folder or file of weights")
    add("--out", type=pathlib.Path, required=True, help="folder to write")
    add("--to", choices=LAYOUTS, default="unclip_jax", help="layout to write")
    add("--stages", help="stages of a pipeline to convert, comma-separated; default: all")
    add("--dtype", default="float32", help="float32 or bfloat16")
    add("--tokenizer", type=pathlib.Path, help="folder of a tokenizer, for a source without one")
    add("--clip", type=pathlib.Path, help="export of the CLIP, for a source without one")
    add(
        "--context",
        type=int,
        help="caption length of a text encoder; default: 128, or as many as it can read",
    )
    add("--pixels", choices=("signed", "unit"), help="pixel range of a VQGAN: [-1, 1] or [0, 1]")
    add("--licence", help="licence of the weights; default: that of their authors")
    add(
        "--sampling",
        action="append",
        metavar="STAGE.FIELD=VALUE",
        help="sampling default of a stage with --to=compact, such as decoder.steps=trailing8; "
        "repeat it for others",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Converts in one direction or the other."""
    args = parser().parse_args(argv)
    one_of("--dtype", args.dtype, DTYPES)
    from unclip_jax.convert import compact, diffusers, importing

    writers = {
        "compact": functools.partial(
            compact.write, licence=args.licence or "", sampling=args.sampling or ()
        ),
        "diffusers": diffusers.write,
        "safetensors": diffusers.write_plain,
    }
    if args.to in writers:
        if len(args.source) > 1:
            raise UserError("--to takes one run directory; give one source.")
        _check_import_flags(args)
        names = writers[args.to](args.source[0], args.out, dtype=args.dtype)
    else:
        if args.sampling:
            raise UserError(
                f"--sampling={args.sampling[0]} has an effect only with --to=compact; leave it "
                "out, or write the converted run again with it."
            )
        names = importing.convert(
            args.source, args.out, options=_options(args), begin=importing.report_stage
        )
    sys.stdout.write(f"wrote {args.out}: {', '.join(names)}\n")


def _check_import_flags(args: argparse.Namespace) -> None:
    """Rejects flags of imports when a run is written in another layout.

    Raises:
        UserError: such a flag is set; names the first.
    """
    flags = ("stages", "tokenizer", "clip", "context", "pixels")
    for name in flags if args.to == "compact" else (*flags, "licence", "sampling"):
        if (value := getattr(args, name)) is not None:
            first = value[0] if isinstance(value, list) else value
            raise UserError(
                f"--{name}={first} has no effect with --to={args.to}, which writes a run as it is; "
                "leave it out."
            )


def _options(args: argparse.Namespace):
    from unclip_jax.convert import importing

    stages = tuple(args.stages.split(",")) if args.stages else importing.STAGES
    paths, licence = (args.tokenizer, args.clip), args.licence or ""
    return importing.ImportOptions(
        stages, args.dtype, *paths, licence, args.context, pixels=args.pixels
    )


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
