"""The number of sampling steps: as exported, fewer, and four times as many."""

from typing import Any

from studies import statistics
from studies.findings import baseline_runs
from studies.findings.harness import Harness
from studies.scoring import cosine, table_row
from unclip_jax.diffusion import respace
from unclip_jax.objectives.gaussian import SamplingConfig

TITLE = "Steps of the samplers"
SOURCE = "Table 3"
CLAIM = (
    "A strided part of the 1,000 steps suffices: 64 in the prior, 250 in the decoder. Tested here "
    "as: four times the exported number of steps changes little."
)
ABOUT = (
    "The decoder samples with different numbers of steps from one z_img per image. The rows of the "
    "prior state cosines to the true z_img. Little means at most 0.05 of the attributes that "
    "captions name, and 0.02 of the cosine."
)
CHART = ("curves", "steps", ("followed", "frechet", "cosine"))
LITTLE = {"followed": 0.05, "cosine": 0.02}
SHARES = (0.25, 0.5, 1.0, 4.0)  # of the exported number


def measure(harness: Harness) -> dict[str, Any]:
    """Samples with every number of steps from the decoder and the prior."""
    examples, cascade = harness.examples, harness.main.cascade
    rows, followed, cosines = [], {}, {}
    for share, steps in ladder(cascade.decoder.sampling, cascade.decoder.diffusion.num_timesteps):
        label = f"decoder, {steps} steps"
        images = harness.sample_images(
            baseline_runs.MAIN,
            harness.z_img("x_0"),
            steps=grid(cascade.decoder.sampling, steps),
            label=label,
        )
        scored = harness.score(images)
        followed[share] = scored.followed
        row = {"name": label, "line": "decoder", "steps": steps}
        rows.append({**row, **table_row(examples, scored)})
    prior = harness.engine("x_0").cascade.prior
    for share, steps in ladder(prior.sampling, prior.diffusion.num_timesteps):
        z = harness.sample_prior("x_0", examples, candidates=1, steps=grid(prior.sampling, steps))
        cosines[share] = cosine(z, examples.z_img)
        row = {"name": f"prior, {steps} steps", "line": "prior", "steps": steps}
        rows.append({**row, "cosine": examples.mean(cosines[share])._asdict()})
    measured = {
        "followed": ("captions followed by the decoder", followed),
        "cosine": ("cosine of the prior", cosines),
    }
    tests = [
        statistics.inequality(
            f"{name}, exported steps - four times as many",
            examples.difference(values[1.0], values[SHARES[-1]]),
            captions=examples.count,
            margin=LITTLE[column],
        )
        for column, (name, values) in measured.items()
    ]
    return {"rows": rows, "tests": tests}


def ladder(sampling: SamplingConfig, longest: int) -> list[tuple[float, int]]:
    """Returns (share, number of steps) for all `SHARES`, between two steps and the whole chain."""
    exported = respace.timesteps(sampling.steps, num_timesteps=longest)
    most = longest - int(exported[0])
    return [(share, min(max(round(share * len(exported)), 2), most)) for share in SHARES]


def grid(sampling: SamplingConfig, steps: int) -> str:
    """Returns a grid of `steps` steps from the index at which the exported grid begins."""
    _, at, first = sampling.steps.partition("@")
    return f"{steps}{at}{first}"
