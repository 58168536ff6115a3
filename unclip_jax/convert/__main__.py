r"""Turn public weights into exports of this package, and back.

    python -m unclip_jax.convert SRC [SRC2 ...] --out=RUN [--dtype=bfloat16]
    python -m unclip_jax.convert RUN --out=DIR --to=diffusers

SRC is a pipeline directory of diffusers (Karlo; Kandinsky's prior), a CLIP directory of
transformers, or a file of OpenAI's or open_clip's CLIP; docs/weights.md has the table. It becomes a
run directory, RUN/STAGE/export, which `sample`, `embed` and `train --config.init_from` take.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.cli import entry
from unclip_jax.convert import diffusers, importing, karlo
from unclip_jax.core.checks import UserError, one_of

DTYPES = ("float32", "bfloat16")
BACK = {"diffusers": diffusers.write, "safetensors": diffusers.write_plain}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m unclip_jax.convert", description="Public weights in, our weights out."
    )
    parser.add_argument("source", nargs="+", type=pathlib.Path, help="folder or file of weights")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument(
        "--to", choices=("unclip_jax", *BACK), default="unclip_jax", help="layout to write"
    )
    parser.add_argument("--stages", help="comma-separated; default: all that the source has")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="folder, where the source has none")
    parser.add_argument("--clip", type=pathlib.Path, help="export of the CLIP of a source without")
    parser.add_argument("--licence", default=karlo.LICENCE, help="terms, for the manifests")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Convert one way or the other."""
    args = parse(argv)
    one_of("--dtype", args.dtype, DTYPES)
    if args.to in BACK:
        if len(args.source) > 1:
            raise UserError("--to takes one run directory; give one source.")
        names = BACK[args.to](args.source[0], args.out, dtype=args.dtype)
    else:
        names = importing.convert(
            args.source, args.out, options=_options(args), begin=importing.tell
        )
    sys.stdout.write(f"wrote {args.out}: {', '.join(names)}\n")


def _options(args: argparse.Namespace) -> importing.ImportOptions:
    stages = tuple(args.stages.split(",")) if args.stages else karlo.STAGES
    for stage in stages:
        one_of("stage in --stages", stage, karlo.STAGES)
    return importing.ImportOptions(stages, args.dtype, args.tokenizer, args.clip, args.licence)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
