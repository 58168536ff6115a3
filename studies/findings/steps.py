"""How many steps sampling takes: as exported, fewer, and four times as many."""

from typing import Any

from studies import statistics
from studies.findings import baseline_runs
from studies.findings.harness import Workshop
from studies.scoring import cosine
from unclip_jax.diffusion import respace
from unclip_jax.stages.gaussian import SamplingConfig

TITLE = "Steps of the samplers"
SOURCE = "Table 3"
CLAIM = (
    "A strided part of the 1,000 steps suffices: 64 in the prior, 250 in the decoder. Read here "
    "as: four times the exported number of steps changes little."
)
ABOUT = (
    "The decoder draws from one z_img per picture with few to many steps; the prior's rows give "
    "cosines to the true z_img. Little: at most 0.05 of what captions ask for, 0.02 of the cosine."
)
CHART = ("curves", "steps", ("followed", "frechet", "cosine"))
LITTLE = {"followed": 0.05, "cosine": 0.02}
SHARES = (0.25, 0.5, 1.0, 4.0)  # of the exported number


def measure(shop: Workshop) -> dict[str, Any]:
    """Draw with every number of steps, from the decoder and from the prior."""
    truth, cascade = shop.truth, shop.main.cascade
    rows, followed, near = [], {}, {}
    for share, steps in ladder(cascade.decoder.sampling, cascade.decoder.diffusion.num_timesteps):
        label = f"decoder, {steps} steps"
        found = shop.judge(
            shop.draw(
                baseline_runs.MAIN,
                shop.z_img("x_0"),
                steps=grid(cascade.decoder.sampling, steps),
                label=label,
            )
        )
        followed[share] = found.followed
        rows.append({"name": label, "line": "decoder", "steps": steps, **truth.row(found)})
    prior = shop.studio("x_0").cascade.prior
    for share, steps in ladder(prior.sampling, prior.diffusion.num_timesteps):
        z = shop.imagine("x_0", truth, candidates=1, steps=grid(prior.sampling, steps))
        near[share] = cosine(z, truth.z_img)
        row = {"name": f"prior, {steps} steps", "line": "prior", "steps": steps}
        rows.append({**row, "cosine": truth.mean(near[share])._asdict()})
    measured = {
        "followed": ("captions followed by the decoder", followed),
        "cosine": ("cosine of the prior", near),
    }
    tests = [
        statistics.inequality(
            f"{name}, exported steps - four times as many",
            truth.difference(found[1.0], found[SHARES[-1]]),
            captions=truth.count,
            margin=LITTLE[what],
        )
        for what, (name, found) in measured.items()
    ]
    return {"rows": rows, "tests": tests}


def ladder(sampling: SamplingConfig, longest: int) -> list[tuple[float, int]]:
    """(share, number of steps) of every rung; at least two, at most the chain."""
    kept = respace.timesteps(sampling.steps, num_timesteps=longest)
    most = longest - int(kept[0])
    return [(share, min(max(round(share * len(kept)), 2), most)) for share in SHARES]


def grid(sampling: SamplingConfig, steps: int) -> str:
    """That many steps, beginning at the index where the exported grid begins."""
    _, at, first = sampling.steps.partition("@")
    return f"{steps}{at}{first}"
