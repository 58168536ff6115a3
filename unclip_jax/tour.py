"""Shows the abilities of trained models in a few images, with the commands that generate them.

    python -m unclip_jax.tour --out=tour

Generates images for captions, a text diff, an interpolation and an inpainting, one after the other
in one process, and prints each command before it runs. The images to edit are rendered in the
world that the models were trained on, and written to OUT/inputs.
"""

import argparse
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from unclip_jax.cli import compilation_cache, entry, flags, request_command
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.core.files import check_output
from unclip_jax.engine import example_captions

RADIUS = 0.245  # of a large object


class TourCaptions(NamedTuple):
    """The captions of a tour.

    Attributes:
        captions: captions of the first command.
        one: caption of the image that is edited.
        other: caption of the other end of the interpolation.
        target: target caption of the text diff of the first image.
        filled: caption of the image after inpainting.
        masked: left, top, right and bottom of the filled part, as fractions of the side.
    """

    captions: tuple[str, ...]
    one: str
    other: str
    target: str
    filled: str
    masked: tuple[float, float, float, float]


WORLDS = {
    "portraits": TourCaptions(
        captions=example_captions.CAPTIONS["portraits"],
        one="a person with short red hair, smiling, in a white t-shirt, on a green background",
        other="a person with a black afro and round glasses, shouting, in a yellow hoodie, on a "
        "navy background",
        target="a person with short blue hair, smiling, in a white t-shirt, on a green background",
        filled="a person with short red hair, smiling, in a purple hoodie, on a green background",
        masked=(0.0, 0.72, 1.0, 1.0),
    ),
    "shapes": TourCaptions(
        captions=example_captions.CAPTIONS["shapes"],
        one="a large red circle on a white background",
        other="a large blue square on a navy background",
        target="a large blue circle on a white background",
        filled="a large green star on a white background",
        masked=(0.2, 0.2, 0.8, 0.8),
    ),
}


def parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser("tour", description="Show the abilities of trained models in a few images.")
    flags.add_models(parser)
    add = parser.add_argument
    add("--out", type=pathlib.Path, default=pathlib.Path("tour"), help="folder to write")
    add("--world", help="portraits or shapes; default: that of the models")
    add("--num", type=int, default=2, help="images per caption")
    add("--seed", type=int, default=0, help="random seed")
    return parser


def main(argv: Sequence[str]) -> None:
    """Runs the commands of the tour on one engine."""
    args = parser().parse_args(argv)
    check_output(args.out, folder=True)
    args.models = flags.run_directory(args.models)
    if args.world is not None:
        one_of("--world", args.world, WORLDS)
    from unclip_jax.engine.inference_engine import InferenceEngine

    compilation_cache.use()
    began = time.monotonic()
    engine = InferenceEngine.open(args.models)
    size = next(iter(engine.loaded.manifests.values())).size
    name = args.world or example_captions.world_of(size)
    if name not in WORLDS:
        raise UserError(
            f"these models are of the size {name!r}, and a tour has captions for "
            f"{' and '.join(WORLDS)} alone; use `unclip sample`, or give --world."
        )
    world = WORLDS[name]
    sys.stdout.write(f"opened {args.models} in {time.monotonic() - began:.0f} s\n")
    inputs = write_inputs(args.out / "inputs", name, size=engine.cascade.image_size)
    for arguments in commands(world, inputs, args):
        sys.stdout.write(f"\n$ unclip sample {shlex.join(arguments)}\n")
        sys.stdout.flush()
        began = time.monotonic()
        _run(engine, arguments)
        sys.stdout.write(f"{time.monotonic() - began:.0f} s\n")


def commands(
    world: TourCaptions, inputs: dict[str, pathlib.Path], args: argparse.Namespace
) -> list[list[str]]:
    """Returns the arguments of `sample` for every command of the tour."""
    one, other, mask = (str(inputs[name]) for name in ("one", "other", "mask"))
    calls = {
        "captions": ["text", *world.captions, f"--num={args.num}"],
        "text_diff": ["text-diff", one, world.target, f"--source={world.one}", "--animate=gif"],
        "interpolation": ["interpolate", one, other, "--animate=gif"],
        "inpainting": ["inpaint", one, mask, f"--caption={world.filled}"],
    }
    common = [f"--models={args.models}", f"--seed={args.seed}"]
    return [[*call, *common, f"--out={args.out / name}.png"] for name, call in calls.items()]


def write_inputs(folder: pathlib.Path, name: str, *, size: int) -> dict[str, pathlib.Path]:
    """Renders the images of a world that are edited, and the mask; returns their files."""
    import numpy as np
    from PIL import Image

    world = WORLDS[name]
    one, other = _render(name, [world.one, world.other], size)
    mask = np.zeros((size, size), np.uint8)
    left, top, right, bottom = (round(share * size) for share in world.masked)
    mask[top:bottom, left:right] = 255
    folder.mkdir(parents=True, exist_ok=True)
    files = {key: folder / f"{key}.png" for key in ("one", "other", "mask")}
    for file, image in zip(files.values(), (one, other, mask), strict=True):
        Image.fromarray(image).save(file)
    return files


def _render(name: str, captions: Sequence[str], size: int) -> Any:
    """Renders captions as uint8 [b size size 3]; attributes that they omit have defaults."""
    if name == "shapes":
        return _render_shapes(captions, size)
    from unclip_jax.portraits import grammar, render
    from unclip_jax.portraits.scene import Portrait
    from unclip_jax.portraits.vocabulary import ATTRIBUTES

    plain = {attribute: values[0] for attribute, values in ATTRIBUTES.items()}
    specs = [grammar.parse(caption).named() for caption in captions]
    return render.render([Portrait(**{**plain, **spec}) for spec in specs], size=size)


def _render_shapes(captions: Sequence[str], size: int) -> Any:
    from unclip_jax.shapes import grammar, render
    from unclip_jax.shapes.scene import Scene, SceneObject

    scenes = []
    for caption in captions:
        spec = grammar.parse(caption)
        (thing,) = spec.objects
        large = SceneObject(thing.colour, thing.shape, "large", 0.5, 0.5, RADIUS)
        scenes.append(Scene(spec.background or "white", (large,)))
    return render.render(scenes, size=size)


def _run(engine: Any, arguments: Sequence[str]) -> None:
    command, rest = request_command.choose(arguments)
    args = request_command.parser(command).parse_args(rest)
    request_command.run(*request_command.parse(command, args), engine=engine)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
