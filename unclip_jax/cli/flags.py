"""Arguments that several commands share, and what they become."""

import argparse
import pathlib
from collections.abc import Sequence

from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.diffusion import guidance_schedule
from unclip_jax.diffusion.ddim_inversion import MAX_REFINEMENTS
from unclip_jax.handoff import load
from unclip_jax.handoff.export import MANIFEST
from unclip_jax.inference import decoding
from unclip_jax.inference.decoding import DecodeOptions

DEFAULT_MODELS = pathlib.Path("runs/shapes")  # what `make demo` builds
MAX_IMAGES = 4096  # bounded work per request
MAX_CAPTION = 10_000  # characters; longer ones are refused rather than silently cut


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with what every command takes."""
    made = Parser(f"sample {name}", description=description)
    add_models(made)
    made.add_argument("--out", type=pathlib.Path, default=pathlib.Path(f"{name}.png"))
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--batch", type=int, default=16, help="images at once")
    made.add_argument("--no-upsample", action="store_true", help="stop at the decoder's size")
    return made


def add_models(made: argparse.ArgumentParser, *, public: bool = False) -> None:
    """Which models, for `run_directory`; `public`: the directory of Karlo will do too."""
    what = "run directory, or Karlo's" if public else "run directory"
    made.add_argument("--models", type=pathlib.Path, help=f"{what}; default: {DEFAULT_MODELS}")


def run_directory(given: pathlib.Path | None) -> pathlib.Path:
    """The models asked for, or those of `make demo`.

    Raises:
        UserError: none were asked for and there are none.
    """
    if given is not None:
        return given
    if not (load.locate(DEFAULT_MODELS / "decoder" / "export") / MANIFEST).is_file():
        raise UserError(
            f"--models was not given and there are no finished models in {DEFAULT_MODELS}; "
            "`make demo` builds them."
        )
    return DEFAULT_MODELS


def add_decoding(made: argparse.ArgumentParser) -> None:
    """How to decode."""
    made.add_argument("--steps", default="ddim250", help="grid of the decoder: ddim250, 50, ...")
    made.add_argument("--guidance", type=float, default=1.0, help="guidance scale, 1 = off")
    add_guidance(made)


def add_guidance(made: argparse.ArgumentParser) -> None:
    """How guidance acts."""
    made.add_argument(
        "--guidance-schedule",
        default="constant",
        help="constant, rising, falling, or interval:LOW:HIGH of the way from noise to picture",
    )
    made.add_argument("--negative", help="a caption that guidance leads away from")


def add_encoding(made: argparse.ArgumentParser) -> None:
    """How to invert."""
    made.add_argument(
        "--refine", type=int, default=0, help="fixed-point iterations per step of the inversion"
    )
    made.add_argument("--caption", help="caption of the pictures for the decoder; default: none")
    made.add_argument(
        "--details",
        choices=("inverted", "fresh"),
        default="inverted",
        help="what upsamplers draw from: noise found by inverting them too, or any noise",
    )
    made.add_argument(
        "--upsampler-steps", help="grid of their inversion; default: as each was exported"
    )


def add_animation(made: argparse.ArgumentParser) -> None:
    """Whether to animate a path."""
    made.add_argument("--animate", choices=("gif", "webp"), help="also write a moving picture")


def check(args: argparse.Namespace) -> None:
    """Refuse what no command can do, before anything is loaded, and settle on the models.

    Raises:
        UserError: naming the argument.
    """
    positive("--batch", args.batch)
    in_range("--refine", getattr(args, "refine", 0), 0, MAX_REFINEMENTS)
    for name in ("caption", "negative", "target", "source"):
        check_captions([getattr(args, name, None) or ""])
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out is {str(args.out)!r}; give a name that ends in .png.")
    if getattr(args, "guidance", None) is not None:
        options(args)
    args.models = run_directory(args.models)


def check_captions(captions: Sequence[str]) -> None:
    """Refuse captions longer than anybody means.

    Raises:
        UserError: naming the length.
    """
    for caption in captions:
        if len(caption) > MAX_CAPTION:
            raise UserError(f"a caption has {len(caption)} characters; give at most {MAX_CAPTION}.")


def check_count(count: int) -> None:
    """Refuse more pictures than one request may ask for.

    Raises:
        UserError: naming the number.
    """
    in_range("number of images", count, 1, MAX_IMAGES)


def options(args: argparse.Namespace) -> DecodeOptions:
    """Deterministic decoding with the guidance asked for.

    Raises:
        UserError: a guidance that has no meaning, or a negative caption without guidance.
    """
    guidance = guidance_schedule.parse(args.guidance_schedule, scale=args.guidance)
    if args.negative is not None and guidance.off:
        raise UserError(
            "--negative has no effect while --guidance is 1.0; give a larger scale such as 3."
        )
    return DecodeOptions(decoding.faithful(args.steps), guidance)
