"""Text diffs of portraits: red hair becomes blue by the default settings, everything else stays.

    python -m studies.manipulations.portraits --data=runs/portraits/data --out=text_diffs.json

Every image is a held-out portrait with red hair. The checker of the portraits world reads the last
frame: *changed* if the hair is blue, *kept* if all attributes that captions name besides the colour
of hair are those of the portrait. Some are lost by the upsampler and the decoder alone, so the same
is measured for reconstructions.
"""

import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from studies import provenance
from studies.manipulations.measurements import Images, read_examples
from unclip_jax.cli import data_flags, entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.files import check_output
from unclip_jax.data import sources
from unclip_jax.data.sources import Source
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.request_base import MAX_IMAGES
from unclip_jax.engine.requests import ReconstructRequest, TextDiffRequest
from unclip_jax.handoff import shipped
from unclip_jax.metrics import intervals, portraits_detector
from unclip_jax.portraits import scene
from unclip_jax.portraits.scene import Portrait, hidden

FROM, TO = "red", "blue"
CAPTIONS = tuple(f"a person with {colour} hair" for colour in (FROM, TO))
OTHERS = tuple(name for name in scene.PortraitSpec.__annotations__ if name != "hair_colour")


def select(source: Source, num: int) -> list[int]:
    """Returns the first `num` portraits with red hair on the head.

    Raises:
        UserError: these are no portraits, or none of them has red hair.
    """
    selected = list(itertools.islice((i for i in range(len(source)) if _suits(source[i])), num))
    if not selected:
        raise UserError("no portrait of this split has red hair; give a larger split.")
    return selected


def measure(engine: InferenceEngine, images: list[InputImage], scenes: list[str]) -> dict[str, Any]:
    """Computes the shares of edits and reconstructions that change and keep what they should."""
    portraits = [scene.from_json(text) for text in scenes]
    edited = [_last_frame(engine, image) for image in tqdm(images, desc="text diffs", unit="image")]
    reconstructed = engine.run(ReconstructRequest(images=tuple(images))).images
    return {
        "text diff": rates(np.stack(edited), portraits),
        "reconstruction": rates(reconstructed, portraits),
    }


def _last_frame(engine: InferenceEngine, image: InputImage) -> UInt8[np.ndarray, "h w 3"]:
    before, after = CAPTIONS
    request = TextDiffRequest(image=image, target=after, source=before, frames=2)
    return engine.run(request).images[-1]


def rates(images: Images, portraits: Sequence[Portrait]) -> dict[str, Any]:
    """Computes the rates of one kind of images of `portraits`, JSON-ready."""
    results = [detection.portrait for detection in portraits_detector.detect(images)]
    pairs = list(zip(results, portraits, strict=True))
    total = len(pairs)
    same = {name: sum(_value(a, name) == _value(b, name) for a, b in pairs) for name in OTHERS}
    intact = sum(all(_value(a, name) == _value(b, name) for name in OTHERS) for a, b in pairs)
    changed = sum(a.hair_colour == TO and "hair_colour" not in hidden(a) for a, _ in pairs)
    counts = {"changed": changed, "kept": intact, **same}
    return {name: intervals.wilson(hits, total)._asdict() for name, hits in counts.items()}


def _suits(record: Any) -> bool:
    if not record["scene"]:
        raise UserError("this data set has no scenes; give a data set of portraits.")
    portrait = scene.from_json(str(record["scene"]))
    return portrait.hair_colour == FROM and portrait.hair != "bald"


def _value(portrait: Portrait, name: str) -> str:
    """Returns the value of an attribute, "" where it is hidden."""
    return "" if name in hidden(portrait) else getattr(portrait, name)


def main(argv: Sequence[str]) -> None:
    """Measures and writes the rates."""
    parser = Parser(
        "portraits",
        prog="python -m studies.manipulations.portraits",
        description="Measure text diffs of portraits.",
    )
    parser.add_argument(
        "--models", type=pathlib.Path, help="run directory; default: the installed models"
    )
    data_flags.add(parser)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--num", type=int, default=64, help="number of portraits")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("text_diffs.json"))
    args = parser.parse_args(argv)
    in_range("--num", args.num, 1, MAX_IMAGES)
    check_output(args.out)
    source = sources.open_source(args.data, split=args.split, keys=data_flags.keys(args))
    examples = read_examples(source, select(source, args.num))
    engine = InferenceEngine.open(args.models or shipped.run_directory())
    result = {
        **provenance.environment(),
        "num": len(examples.images),
        "captions": CAPTIONS,
        **measure(engine, examples.images, examples.scenes),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name in ("text diff", "reconstruction"):
        line = ", ".join(f"{key} {rate['value']:.2f}" for key, rate in result[name].items())
        sys.stdout.write(f"{name}: {line}\n")


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
