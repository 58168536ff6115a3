"""Writes the sampler of a trained cascade as one file that runs without the model code.

    python -m unclip_jax.bundle --models=runs/shapes --out=shapes.unclip --batch-sizes=1,4

The file contains StableHLO per batch size, the weights and the tokenizer;
`unclip_jax.inference.exported_sampler` runs it with JAX and NumPy. See docs/page.md.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.cli import entry, flags, request_flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import check_output
from unclip_jax.engine import request_fields
from unclip_jax.engine.requests import TextRequest

# Fields of a text request that the file fixes.
FIXED = ("guidance", "steps", "prior_guidance", "prior_steps", "candidates", "best_of")


def parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser("bundle", description="Write the sampler as one file.")
    flags.add_models(parser, public=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file to write")
    parser.add_argument(
        "--batch-sizes", default="1,4", help="batch sizes, each with a compiled program"
    )
    flags.add_prior(parser)
    request_flags.add_fields(parser, TextRequest, only=FIXED)
    parser.add_argument(
        "--platforms",
        default="",
        help="comma-separated: cpu, cuda, rocm, tpu; default: the one JAX runs on",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Loads the models, traces the sampler, writes the file, and prints a summary."""
    args = parser().parse_args(argv)
    sizes = batch_sizes(args.batch_sizes)
    check_output(args.out)
    models = flags.run_directory(args.models)
    from unclip_jax.convert import importing
    from unclip_jax.engine.handlers import text
    from unclip_jax.inference import load, sampler_export

    loaded = load.load_cascade(importing.run_directory(models), prior_name=args.prior)
    card = sampler_export.write(
        args.out,
        loaded,
        batch_sizes=sizes,
        options=text.sample_options(request_of(args), loaded.cascade),
        platforms=[name for name in args.platforms.split(",") if name],
        name=models.resolve().name,
    )
    size = args.out.stat().st_size / 2**20
    sys.stdout.write(
        f"wrote {args.out}: {size:.1f} MiB, {card.image_size} px, batch sizes "
        f"{', '.join(map(str, card.batch_sizes))}, for {', '.join(card.platforms)}\n"
    )


def request_of(args: argparse.Namespace) -> TextRequest:
    """Returns the request with the settings of the file.

    Raises:
        UserError: a value that is not valid.
    """
    values = {"captions": ("",), **request_flags.values(args, TextRequest)}
    return request_fields.build(TextRequest, values, name="bundle")


def batch_sizes(text: str) -> list[int]:
    """Reads "1,4".

    Raises:
        UserError: the text is not a list of whole numbers.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--batch-sizes is {text!r}; give numbers such as 1,4.") from None


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
