"""The COCO-30k protocol over a user's copy of MS-COCO: zero-shot FID of 30,000 captions.

GLIDE (arXiv 2112.10741, section 5.2) and unCLIP (Table 2) sample 30,000 captions of the validation
set of 2014 at random and compare at 256 px with the whole set, centre-cropped. Every departure from
that is a warning in the result.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np

from unclip_jax.core.checks import UserError, positive
from unclip_jax.data.dataset import FeatureKeys
from unclip_jax.evaluation import feature_extraction, image_sets, sampled_set, set_comparison
from unclip_jax.evaluation.image_sets import ImageSetOptions
from unclip_jax.evaluation.sampled_set import SampledSetConfig
from unclip_jax.metrics import report, score_options
from unclip_jax.metrics.report import Report, SetFeatures
from unclip_jax.metrics.score_options import ScoreOptions

NUM = 30_000
REFERENCE = 40_504  # images of val2014
SIZE = 256


@dataclasses.dataclass(frozen=True)
class CocoConfig:
    """An evaluation on MS-COCO.

    Attributes:
        sampling: how the images are sampled.
        captions: captions_val2014.json, or a file of that format.
        real: folder val2014, an .npz batch or .npz statistics.
        features: "inception:FILE" or "clip:EXPORT".
        resize: how Inception's input is resized.
        num: captions to sample.
        size: side at which images are compared.
        keys: names of image and caption if `real` is a data set of another format.
    """

    sampling: SampledSetConfig
    captions: pathlib.Path
    real: str
    features: str
    resize: str = "tf1"
    num: int = NUM
    size: int = SIZE
    keys: FeatureKeys = dataclasses.field(default_factory=FeatureKeys)

    def __post_init__(self):
        """Checks the sizes."""
        positive("--num", self.num)
        positive("--size", self.size)
        if self.num <= (least := score_options.K_DENSITY):
            raise UserError(f"--num is {self.num}; scores of neighbours need {least + 1} at least.")


def evaluate_coco(config: CocoConfig) -> Report:
    """Samples the missing images, scores the set and writes OUT/coco.json.

    Raises:
        UserError: the captions, the models or the images cannot be used.
    """
    seed, batch = config.sampling.seed, config.sampling.batch
    captions = choose(read_captions(config.captions), num=config.num, seed=seed)
    extractor = feature_extraction.open_extractor(config.features, resize=config.resize)
    loaded = config.sampling.load()
    options = ImageSetOptions(size=config.size, keys=config.keys)
    real = set_comparison.collect(
        config.real, extractor, options, batch=batch, name="real", statistics=True
    )
    images = sampled_set.sample_all(config.sampling, loaded, captions)
    fake = feature_extraction.collect(
        extractor, image_sets.resized(images, config.size), batch_size=batch, name="fake"
    )
    scored = report.compare(real, fake, kind=extractor.kind, options=ScoreOptions(seed=seed))
    source = {"captions": f"{config.num} at random of {config.captions.name}, seed {seed}"}
    warnings = departures(config, real, kind=extractor.kind, size=images.size)
    result = Report(scored.scores, {**scored.protocol, **source}, [*warnings, *scored.warnings])
    if jax.process_index() == 0:
        (config.sampling.out / "coco.json").write_text(json.dumps(result.plain(), indent=2) + "\n")
    return result


def read_captions(path: pathlib.Path) -> list[str]:
    """Reads all captions of a file of COCO's format, in its order.

    Raises:
        UserError: there is no such file, or it has another format.
    """
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        captions = [" ".join(entry["caption"].split()) for entry in annotations]
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}; give captions_val2014.json of COCO's annotations."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a file of COCO's captions ({error!r}); expected "
            '{"annotations": [{"caption": ...}, ...]}.'
        ) from None
    return [caption for caption in captions if caption]


def choose(captions: list[str], *, num: int, seed: int) -> list[str]:
    """Returns `num` distinct entries of `captions` at random, the same for equal seeds.

    Raises:
        UserError: there are fewer captions.
    """
    if num > len(captions):
        raise UserError(
            f"there are {len(captions)} captions, fewer than --num={num}; give a smaller --num."
        )
    order = np.random.default_rng(seed).permutation(len(captions))[:num]
    return [captions[int(index)] for index in order]


def departures(
    config: CocoConfig, real: SetFeatures, *, kind: str, size: tuple[int, int]
) -> list[str]:
    """Returns a warning that lists all deviations from the protocol of published figures."""
    count = real.facts.get("count")
    reasons = [
        (config.num != NUM, f"{config.num} captions instead of {NUM:,}"),
        (count != REFERENCE, f"{count} reference images instead of {REFERENCE:,}"),
        (kind != "inception", "features of CLIP instead of Inception-v3"),
        (config.size != SIZE, f"compared at {config.size} px instead of {SIZE}"),
        (min(size) < config.size, f"images of {min(size)} px, enlarged to {config.size}"),
    ]
    texts = [text for applies, text in reasons if applies]
    return [f"this is not the COCO-30k protocol: {'; '.join(texts)}."] if texts else []
