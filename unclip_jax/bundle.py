"""Write the sampler of a trained cascade as one file that runs without the model code.

    python -m unclip_jax.bundle --models=runs/shapes --out=shapes.unclip --batch-sizes=1,4

The file holds StableHLO per batch size, the weights and the tokenizer;
`unclip_jax.inference.exported` runs it with JAX and NumPy. docs/page.md has more.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.cli import entry, flags
from unclip_jax.cli.parser import Parser
from unclip_jax.convert import importing
from unclip_jax.core.checks import UserError
from unclip_jax.inference import batched, export, load
from unclip_jax.inference.text_to_image import Cascade, SampleOptions


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = Parser("bundle", description="Write the sampler as one file.")
    flags.add_models(parser, public=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the file to write")
    parser.add_argument("--batch-sizes", default="1,4", help="one program each")
    parser.add_argument("--prior", default="prior", choices=load.prior_names(), help="which prior")
    parser.add_argument("--guidance", type=float, help="decoder guidance scale, 1 = off")
    parser.add_argument("--prior-guidance", type=float, help="prior guidance scale, 1 = off")
    parser.add_argument("--steps", help="decoder steps: 50, ddim25, fast27, logsnr20, 22@140, ...")
    parser.add_argument("--prior-steps", help="diffusion prior: steps")
    parser.add_argument("--candidates", type=int, help="embeddings drawn per caption, best kept")
    parser.add_argument(
        "--best-of", type=int, default=1, help="pictures drawn per image, CLIP keeps the nearest"
    )
    parser.add_argument(
        "--platforms",
        default="",
        help=f"{', '.join(export.PLATFORMS)}, any of them; default: the one JAX runs on",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Load, trace, write, and say what was written."""
    args = parse(argv)
    sizes = batch_sizes(args.batch_sizes)
    models = flags.run_directory(args.models)
    loaded = load.load_cascade(importing.run_directory(models), prior_name=args.prior)
    card = export.write(
        args.out,
        loaded,
        batch_sizes=sizes,
        options=options_from(args, loaded.cascade),
        platforms=[name for name in args.platforms.split(",") if name],
        name=models.resolve().name,
    )
    size = args.out.stat().st_size / 2**20
    sys.stdout.write(
        f"wrote {args.out}: {size:.1f} MiB, {card.image_size} px, batch sizes "
        f"{', '.join(map(str, card.batch_sizes))}, for {', '.join(card.platforms)}\n"
    )


def batch_sizes(stated: str) -> list[int]:
    """Read "1,4".

    Raises:
        UserError: it is no list of whole numbers.
    """
    try:
        return [int(part) for part in stated.split(",")]
    except ValueError:
        raise UserError(f"--batch-sizes is {stated!r}; give numbers such as 1,4.") from None


def options_from(args: argparse.Namespace, cascade: Cascade) -> SampleOptions:
    """The exported sampling settings with what the command line changes.

    Raises:
        UserError: a setting that this prior has not, or a value without a meaning.
    """
    prior = {"guidance_scale": args.prior_guidance, "steps": args.prior_steps}
    decoder = {"guidance_scale": args.guidance, "steps": args.steps}
    return SampleOptions(
        prior=batched.override(cascade.prior.sampling, prior),
        decoder=batched.override(cascade.decoder.sampling, decoder),
        num_candidates=args.candidates,
        best_of=args.best_of,
    )


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
