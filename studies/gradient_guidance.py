"""Compares guidance by gradients with classifier-free guidance, on one decoder of captions.

    python -m studies.gradient_guidance --models=RUN --scoring-clip=EXPORT --data=DATA \
        --clip=EXPORT --classifier=EXPORT --out=gradient_guidance.md

RUN contains GLIDE's decoder; the scoring CLIP is trained on clean images and used by no arm. All
arms sample the same captions from the same noise. GLIDE (arXiv 2112.10741, figure 6) found that the
score of a noise-aware CLIP rises fastest under its own guidance, while people preferred
classifier-free guidance; ADM (arXiv 2105.05233, table 4) guides an unconditional decoder by a
classifier.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import markdown_page
from benchmarks.markdown_page import cell, table
from studies import evaluation_set, provenance, scoring, statistics
from studies.evaluation_set import BATCH, EvaluationSet
from unclip_jax.cli import compilation_cache, entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import in_range, positive
from unclip_jax.data import image_codec
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import TextRequest
from unclip_jax.inference import guided_sampling, load
from unclip_jax.inference.guided_sampling import GuideModel
from unclip_jax.models.clip import Clip
from unclip_jax.stages import clip

TITLE = "# Guidance by gradients in miniature\n\n"
COLUMNS = ("followed", "joint", "shape", "guide", "clip", "diversity")
HEADS = ("caption followed", "all at once", "shape", "score of the guide", "of a clean CLIP")
HEADS += ("diversity", "Fréchet distance")


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method of guidance.

    Attributes:
        name: name of its row.
        guidance: scale of classifier-free guidance; 1 = off, 0 = no caption.
        clip: scale of the noise-aware CLIP's gradient.
        classifier: scale of the classifier's gradient.
    """

    name: str
    guidance: float = 1.0
    clip: float = 0.0
    classifier: float = 0.0


ARMS = (
    Arm("no guidance"),
    *(Arm(f"classifier-free, {scale:g}", guidance=scale) for scale in (2.0, 4.0, 8.0)),
    *(Arm(f"noise-aware CLIP, {scale:g}", clip=scale) for scale in (0.5, 1.0, 2.0, 4.0, 8.0)),
    Arm("no caption", guidance=0.0),
    *(
        Arm(f"no caption, classifier, {scale:g}", guidance=0.0, classifier=scale)
        for scale in (1.0, 4.0, 10.0)
    ),
)


def main(argv: Sequence[str]) -> None:
    """Samples and scores every arm, and writes the page after each."""
    args = parser().parse_args(argv)
    positive("--num", args.num)
    in_range("--images", args.images, 2, 64)
    markdown_page.check_path(args.out)
    markdown_page.split(args.out, title=TITLE)
    compilation_cache.use()
    guides = {
        "clip": guided_sampling.load_guide(args.clip),
        "classifier": guided_sampling.load_guide(args.classifier),
    }
    engine = InferenceEngine.open(args.models, batch=BATCH)
    scoring_clip = InferenceEngine(load.clip_cascade(args.scoring_clip), batch=BATCH)
    settings = {"split": args.split, "num": args.num, "images": args.images}
    examples, _ = evaluation_set.select(scoring_clip, args.data, **settings)
    rows: list[dict[str, Any]] = []
    for arm in ARMS:
        images = sample(engine, arm, examples, guides, seed=args.seed)
        row = score(images, examples, scoring_clip=scoring_clip, guide=guides["clip"])
        rows.append(statistics.as_json({"name": arm.name, **row}))
        facts = {**provenance.environment(), **settings, "seed": args.seed}
        write(args.out, {**facts, "rows": rows})
    sys.stdout.write(f"wrote {args.out}\n")


def parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        "gradient_guidance",
        prog="python -m studies.gradient_guidance",
        description="Compare guidance by a CLIP, by a classifier and without one.",
    )
    add = parser.add_argument
    add("--models", type=pathlib.Path, required=True, help="run with a decoder of captions")
    add("--scoring-clip", type=pathlib.Path, required=True, help="export of a clean CLIP")
    add("--data", required=True, help="prepared shapes")
    add("--clip", type=pathlib.Path, required=True, help="export of a noise-aware CLIP")
    add("--classifier", type=pathlib.Path, required=True, help="export of a classifier")
    add("--out", type=pathlib.Path, required=True, help="page to write")
    add("--split", default="validation", help="split of the data set")
    add("--num", type=int, default=100, help="number of captions")
    add("--images", type=int, default=2, help="images per caption")
    add("--seed", type=int, default=0, help="random seed")
    return parser


def sample(
    engine: InferenceEngine,
    arm: Arm,
    examples: EvaluationSet,
    guides: dict[str, GuideModel],
    *,
    seed: int,
) -> np.ndarray:
    """Samples one uint8 image per caption and repetition."""
    guide = guides["classifier"] if arm.classifier else guides["clip"]
    engine.loaded = engine.loaded._replace(guide=guide)
    request = TextRequest(
        captions=examples.captions,
        guidance=arm.guidance,
        clip_scale=arm.clip,
        classifier_scale=arm.classifier,
        seed=seed,
    )
    return engine.run(request).images


def score(
    images: np.ndarray, examples: EvaluationSet, *, scoring_clip: InferenceEngine, guide: GuideModel
) -> dict[str, Any]:
    """Scores images by the checker, by the CLIP that guides and by one that does not."""
    scored = scoring.score_images(scoring_clip, images, examples.captions)
    spread = examples.diversity(scored.z)
    cells = {
        "followed": examples.mean(scored.followed),
        "joint": examples.mean(scored.correct["joint"]),
        "shape": examples.mean(scored.correct["shape"]),
        "guide": examples.mean(guide_scores(guide, images, examples.captions)),
        "clip": examples.mean(scoring.cosine(scored.z, examples.z_txt)),
        "diversity": statistics.interval(
            lambda rows: statistics.nan_mean(spread[rows]), examples.count
        ),
    }
    row: dict[str, Any] = {name: cell._asdict() for name, cell in cells.items()}
    return {**row, "frechet": examples.distance(scored.z)}


def guide_scores(guide: GuideModel, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Computes the cosine of images and captions in the space of a noise-aware CLIP, at step 0."""
    cfg, targets = guide.config, guide.targets(captions)
    side = cfg.model.image_size

    @jax.jit
    def run(params: Any, pixels: jax.Array, targets: Any) -> jax.Array:
        shape = (len(pixels), side, side, 3)
        pixels = jnp.clip(jax.image.resize(pixels, shape, "bicubic"), -1.0, 1.0)
        inputs = (pixels, jnp.zeros(len(pixels), jnp.int32))
        z_img = Clip(cfg.model).apply({"params": params}, *inputs, method=Clip.encode_image)
        z_txt = clip.encode_text(cfg, params, targets).z_txt
        return jnp.sum(unit(z_img) * unit(z_txt), axis=-1)

    pixels = jnp.asarray(image_codec.to_float(images))
    return np.asarray(run(guide.params, pixels, targets), np.float64)


def write(out: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes the table between the marks of the page."""
    text = (
        f"{result['date']}, {result['device']}: {result['num']} captions of `{result['split']}`, "
        f"{result['images']} images of each, seed {result['seed']}; 95 % intervals.\n\n"
    )
    rows = [
        [row["name"], *(cell(row[name]) for name in (*COLUMNS, "frechet"))]
        for row in result["rows"]
    ]
    markdown_page.write(out, text + table(("guidance", *HEADS), rows), result, title=TITLE)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
