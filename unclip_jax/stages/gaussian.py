"""What the three diffusion stages share: one noised training draw, one loss, one sampling run.

The network's raw output becomes a `Prediction` here, at the border; everything later (guidance,
thresholding, step rules) is written once on predictions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range, one_of, positive
from unclip_jax.core.types import Key, Keys, PerExample, Steps
from unclip_jax.diffusion import analytic, objectives, process, respace, samplers, single, solvers
from unclip_jax.diffusion.analytic import Origin, VarianceTable
from unclip_jax.diffusion.samplers import Solver, StepRule
from unclip_jax.diffusion.schedule import Schedule, make_schedule

THRESHOLDS = ("none", "static", "dynamic")
TABLES = ("float64", "float32")


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """How a stage is trained: its chain, what the network predicts, how errors are weighted.

    Attributes:
        schedule: "cosine" or "linear" (unCLIP Table 3).
        num_timesteps: length T of the trained chain.
        target: what the network predicts: "eps", "x_0" or "v".
        learned_variance: predict the reverse variance too, with the hybrid loss (iDDPM).
        weighting: weight of the error as a function of the signal-to-noise ratio.
        tables: "float64" (ADM's code), or "float32" as the diffusers library has them, with which
            public weights are used (`diffusion.single`).
    """

    schedule: str = "cosine"
    num_timesteps: int = 1000
    target: str = "eps"
    learned_variance: bool = False
    weighting: objectives.Weighting = dataclasses.field(default_factory=objectives.Weighting)
    tables: str = "float64"

    def __post_init__(self):
        one_of("diffusion.tables", self.tables, TABLES)
        one_of("diffusion.target", self.target, [t.value for t in process.Target])

    def chain(self) -> Schedule:
        """The full trained chain."""
        return _chain(self.schedule, self.num_timesteps, self.tables)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a stage is sampled by default; every field can be overridden when sampling.

    Attributes:
        steps: strided grid, "64", "ddim27", "fast27", "22@140", section counts or "logsnr20"
            (`respace.strided`).
        sampler: "ancestral" or "ddim", as in the paper; "dpmpp_2m" or "heun" (`solvers`).
        eta: DDIM's noise share, 0 deterministic to 1 ancestral.
        variance: ancestral variance: "small", "large", "learned_range" or "table".
        guidance_scale: 1.0 = no guidance.
        threshold: what happens to x_0 at every step: "none", "static" or "dynamic".
        percentile: percentile of |x_0| for dynamic thresholding (Imagen, section 2.3).
        limit: static thresholding clips x_0 to [-limit, limit]; 1 for pixels, 5 for the
            standardised embeddings of Karlo as diffusers samples them (10 in its own code).
    """

    steps: str = "64"
    sampler: str = "ancestral"
    eta: float = 0.0
    variance: str = "small"
    guidance_scale: float = 1.0
    threshold: str = "none"
    percentile: float = 99.5
    limit: float = 1.0

    def __post_init__(self):
        one_of("sampling.sampler", self.sampler, SAMPLERS)
        one_of("sampling.variance", self.variance, samplers.VARIANCES)
        one_of("sampling.threshold", self.threshold, THRESHOLDS)
        in_range("sampling.eta", self.eta, 0.0, 1.0)
        positive("sampling.limit", self.limit)
        in_range("sampling.guidance_scale", self.guidance_scale, 0.0, 100.0)

    @property
    def needs_table(self) -> bool:
        """Whether a variance table of the model has to be there."""
        return self.sampler == "ancestral" and self.variance == "table"

    def rule(self) -> StepRule | Solver:
        """How one step is taken."""
        return SAMPLERS[self.sampler](self)


SAMPLERS: dict[str, Callable[[SamplingConfig], StepRule | Solver]] = {
    "ancestral": lambda sampling: samplers.ancestral(sampling.variance),
    "ddim": lambda sampling: samplers.ddim(sampling.eta),
    "dpmpp_2m": lambda sampling: solvers.DpmSolver2M(),
    "heun": lambda sampling: solvers.Heun(),
}


@functools.cache
def _chain(name: str, num_timesteps: int, tables: str) -> Schedule:
    chain = make_schedule(name, num_timesteps=num_timesteps)
    return single.in_single(chain) if tables == "float32" else chain


class Noised(NamedTuple):
    """One training draw: the noised input and what made it."""

    x_t: Float[Array, " b *s"]
    t: Steps
    x_0: Float[Array, " b *s"]
    eps: Float[Array, " b *s"]


def draw(chain: Schedule, x_0: Float[Array, " b *s"], *, key: Key) -> Noised:
    """Noise `x_0` at timesteps drawn uniformly from the chain (Ho et al. 2020, algorithm 1)."""
    t = jax.random.randint(rng.fold(key, "t"), x_0.shape[:1], 0, chain.num_timesteps)
    return noise_at(chain, x_0, t=t, key=key)


def noise_at(chain: Schedule, x_0: Float[Array, " b *s"], *, t: Steps, key: Key) -> Noised:
    """Noise `x_0` at given timesteps."""
    eps = jax.random.normal(rng.fold(key, "noise"), x_0.shape, x_0.dtype)
    x_t = process.q_sample(x_0, eps, alpha_bar=chain.level(t, ndim=x_0.ndim))
    return Noised(x_t, t, x_0, eps)


def split_output(
    out: Float[Array, " b *s"], *, learned_variance: bool
) -> tuple[Float[Array, " b *r"], Float[Array, " b *r"] | None]:
    """Split raw output into the mean half and the variance half (None if there is none)."""
    if not learned_variance:
        return out, None
    mean, var_frac = jnp.split(out, 2, axis=-1)
    return mean, var_frac


def loss(cfg: DiffusionConfig, out: Float[Array, " b *s"], *, noised: Noised) -> PerExample:
    """Per-example training loss of the raw output: plain, or hybrid with a learned variance."""
    chain = cfg.chain()
    mean, var_frac = split_output(out, learned_variance=cfg.learned_variance)
    target = process.Target(cfg.target)
    alpha_bar = chain.level(noised.t, ndim=mean.ndim)
    if var_frac is None:
        return objectives.prediction_loss(
            mean,
            target=target,
            x_0=noised.x_0,
            eps=noised.eps,
            alpha_bar=alpha_bar,
            weighting=cfg.weighting,
        )
    return objectives.hybrid_loss(
        mean,
        var_frac,
        target=target,
        x_0=noised.x_0,
        eps=noised.eps,
        t=noised.t,
        schedule=chain,
        weighting=cfg.weighting,
    ).total


def predict(
    cfg: DiffusionConfig, out: Float[Array, " b *s"], *, x_t: Float[Array, " b *r"], t: Steps
) -> process.Prediction:
    """Turn raw output at original timesteps `t` into a `Prediction`."""
    mean, var_frac = split_output(out, learned_variance=cfg.learned_variance)
    alpha_bar = cfg.chain().level(t, ndim=x_t.ndim)
    return process.to_prediction(
        mean, x_t, target=process.Target(cfg.target), alpha_bar=alpha_bar, var_frac=var_frac
    )


def thresholded(
    denoise: Callable, cfg: DiffusionConfig, sampling: SamplingConfig
) -> Callable[[Array, Steps], process.Prediction]:
    """Wrap a denoiser so that its x_0 stays in range and eps stays consistent with it."""
    if sampling.threshold == "none":
        return denoise
    chain = cfg.chain()

    def wrapped(x_t, t):
        pred = denoise(x_t, t)
        if sampling.threshold == "static":
            x_0 = process.static_threshold(pred.x_0, limit=sampling.limit)
        else:
            x_0 = process.dynamic_threshold(pred.x_0, percentile=sampling.percentile)
        alpha_bar = chain.level(t, ndim=x_t.ndim)
        return process.with_x_0(pred, x_0, x_t, alpha_bar=alpha_bar)

    return wrapped


def run(
    denoise: Callable,
    *,
    shape: tuple[int, ...],
    keys: Keys,
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
    table: VarianceTable | None = None,
    origin: Origin | None = None,
) -> Float[Array, " b *s"]:
    """Sample x_0 of `shape` per key with one scan; example i depends on keys[i] alone.

    `table` is the one that came with the model, `origin` what it must belong to; only variance
    "table" looks at them.
    """
    learned = sampling.sampler == "ancestral" and sampling.variance == "learned_range"
    if learned and not diffusion.learned_variance:
        raise UserError(
            "sampling.variance is 'learned_range' but the model was trained without a learned "
            "variance; use 'small' or 'large'."
        )
    chain = respace.strided(diffusion.chain(), steps=sampling.steps)
    variances = None
    if sampling.needs_table:
        if table is None or origin is None:
            raise UserError(
                "sampling.variance is 'table', but there is no variance table with this model; "
                f"{analytic.AGAIN}."
            )
        variances = table.variances(chain, origin=origin)
    x_T = rng.normal_each(rng.fold_each(keys, "x_T"), shape)
    denoise = thresholded(denoise, diffusion, sampling)
    step = sampling.rule()
    return samplers.sample(
        denoise, x_T, schedule=chain, step=step, keys=keys, variance_table=variances
    )


def check_guidance(scale: float, *, drops: dict[str, float]) -> None:
    """Refuse guidance of a model that never sees its condition dropped: it has no null to lean on.

    Args:
        scale: of the guidance; 1 is off.
        drops: config key -> share of examples without that condition, for every condition that
            the unconditional branch leaves out.

    Raises:
        UserError: naming the drop that is 0.
    """
    for name, share in drops.items():
        if scale != 1.0 and share == 0.0:
            raise UserError(
                f"guidance_scale is {scale}, but {name} is 0: trained without drops, a model knows "
                f"no unconditional prediction. Use 1.0, or train with {name} above 0."
            )
