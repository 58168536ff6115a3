"""Noise on the low-res image of an upsampler, in training and in sampling."""

from typing import Any

from studies import statistics
from studies.imagen.harness import Harness
from studies.scoring import table_row

TITLE = "Noise conditioning augmentation"
SOURCE = "section 2.4, appendix D.2, figure A.11"
CLAIM = (
    "An upsampler that was trained with noise on its low-res images makes better images of "
    "generated ones, and follows the caption more; without noise in sampling the distance is least."
)
ABOUT = (
    "Upsamplers from 16 to 64 px trained for equally many steps, which enlarge the same images: "
    "those of one base model, and, for *dB* (PSNR against the original), true ones. *level*: of "
    "the noise in sampling, as a share of the chain."
)
CHART = ("bars", "frechet", "followed", "dB")
LEVELS = {"no_noise": (0.0,), "noise": (0.0, 0.1, 0.2), "all_noise": (0.0, 0.1, 0.2, 0.3)}
NAMES = {
    "no_noise": "trained without noise",
    "noise": "trained with noise up to 0.2",
    "all_noise": "trained with noise up to 1",
}
SCALES = (1.0, 3.0)


def measure(harness: Harness) -> dict[str, Any]:
    """Enlarges the same images by every upsampler, at every level of noise and guidance."""
    examples, rows, z, followed = harness.examples, [], {}, {}
    for run, levels in LEVELS.items():
        for level in levels:
            for scale in SCALES:
                options = {"level": level, "guidance": scale}
                scored = harness.score(harness.enlarge(run, harness.base, **options))
                true = harness.enlarge(run, harness.true, **options)
                system = (run, level, scale)
                z[system], followed[system] = scored.z, scored.followed
                name = f"{NAMES[run]}, level {level:g}, guidance {scale:g}"
                decibels = examples.mean(harness.decibels(true))._asdict()
                rows.append({"name": name, **table_row(examples, scored), "dB": decibels})

    def less(better: tuple, worse: tuple) -> Any:
        return examples.distances(lambda d: d(z[worse]) - d(z[better]))

    plain, low, high = ("no_noise", 0.0, 3.0), ("noise", 0.0, 3.0), ("noise", 0.2, 3.0)
    count = examples.count
    tests = [
        statistics.inequality(
            "Fréchet distance, trained without - with noise", less(low, plain), captions=count
        ),
        statistics.inequality(
            "captions followed, trained with - without noise",
            examples.difference(followed[low], followed[plain]),
            captions=count,
        ),
        statistics.inequality(
            "Fréchet distance, level 0.2 - level 0", less(low, high), captions=count
        ),
    ]
    return {"rows": rows, "tests": tests}
