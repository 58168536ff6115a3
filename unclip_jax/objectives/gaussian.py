"""The parts shared by the diffusion stages: noised batches, the loss, and sampling.

The network's raw output becomes a `Prediction` here, at the border; everything later (guidance,
thresholding, step rules) is written once on predictions.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range, one_of, positive, suggest
from unclip_jax.core.dynamic_fields import dynamic, is_static
from unclip_jax.core.types import Key, Keys, PerExample, Scale, Steps
from unclip_jax.diffusion import (
    analytic,
    distillation,
    guidance,
    objectives,
    process,
    respace,
    samplers,
    solvers,
)
from unclip_jax.diffusion.analytic import ChainSignature, VarianceTable
from unclip_jax.diffusion.float32_schedule import to_float32
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.samplers import Ancestral, Ddim, Solver, StepTable
from unclip_jax.diffusion.schedule import Schedule, make_schedule

THRESHOLDS = ("none", "static", "dynamic")
TABLES = ("float64", "float32", "float32_exact")


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The distillation of a model, which fixes how it is sampled.

    Attributes:
        method: "progressive" or "consistency" (`diffusion.distillation`).
        steps: of the grid that it was trained on; those in which a progressive student samples.
        guidance_scale: of the teacher that it was distilled from, 1 = none.
    """

    method: str = "progressive"
    steps: int = 4
    guidance_scale: float = 1.0

    def __post_init__(self):
        one_of("diffusion.distillation.method", self.method, distillation.METHODS)
        positive("diffusion.distillation.steps", self.steps)


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion that a stage is trained with: chain, prediction target, weighting.

    Attributes:
        schedule: "cosine" or "linear" (unCLIP Table 3).
        num_timesteps: length T of the trained chain.
        target: the quantity that the network predicts: "eps", "x_0" or "v".
        learned_variance: predict the reverse variance too, with the hybrid loss (iDDPM).
        weighting: weight of the error as a function of the signal-to-noise ratio.
        tables: "float64" (ADM's code), or "float32" as the diffusers library has them, with which
            public weights are used (`diffusion.float32_schedule`): its UnCLIPScheduler, or
            "float32_exact", its DDPMScheduler.
        distillation: of a student, how it was distilled; None = trained on data.
    """

    schedule: str = "cosine"
    num_timesteps: int = 1000
    target: str = "eps"
    learned_variance: bool = False
    weighting: objectives.Weighting = dataclasses.field(default_factory=objectives.Weighting)
    tables: str = "float64"
    distillation: Distillation | None = None

    def __post_init__(self):
        one_of("diffusion.tables", self.tables, TABLES)
        one_of("diffusion.target", self.target, [t.value for t in process.Target])

    def chain(self) -> Schedule:
        """Returns the full trained chain."""
        return _chain(self.schedule, self.num_timesteps, self.tables)

    def check_guidance(self, scale: Scale) -> None:
        """Rejects guidance of a distilled model, whose only guidance is its teacher's.

        Raises:
            UserError: the scale is not 1.
        """
        if self.distillation is not None and not guidance.is_off(scale):
            folded = self.distillation.guidance_scale
            state = f"guidance_scale is {scale:g}" if isinstance(scale, float) else "guidance is on"
            raise UserError(
                f"{state}, but this model was distilled with guidance {folded:g} as part of it; "
                "use 1.0, which is that guidance."
            )

    def check_inversion(self) -> None:
        """Rejects the inversion of a distilled model, whose few steps cannot be reversed.

        Raises:
            UserError: the model was distilled.
        """
        if self.distillation is not None:
            raise UserError(
                f"this model was distilled to {self.distillation.steps} steps, which cannot be "
                "inverted; edit images with the model that it was distilled from."
            )

    def check_sampling(self, sampling: "SamplingConfig") -> None:
        """Rejects settings that a model was not distilled for, and its sampler for other models.

        Raises:
            UserError: another sampler, grid or guidance.
        """
        name = sampling.sampler.partition(":")[0]
        if self.distillation is None:
            if SAMPLERS[name].endpoints:
                raise UserError(
                    f"sampler is {name!r}, but this model was not trained by consistency "
                    "distillation; use 'ddim', or distil it (experiments/distill.py)."
                )
            return
        method = distillation.METHODS[self.distillation.method]
        if name != method.sampler:
            raise UserError(
                f"sampler is {sampling.sampler!r}, but this model was distilled for "
                f"{method.sampler!r}; use that."
            )
        if not is_static(sampling.eta, 0.0):
            raise UserError(
                "sampling.eta is not 0, but this model was distilled for steps without noise; "
                "use 0."
            )
        grid = distillation.trailing(self.distillation.steps)
        if sampling.steps != grid and not method.any_steps:
            raise UserError(
                f"sampling.steps is {sampling.steps!r}, but this model was distilled to "
                f"{self.distillation.steps} steps; use {grid!r}."
            )
        self.check_guidance(sampling.guidance_scale)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """The default settings of sampling; every field can be overridden when sampling.

    Attributes:
        steps: strided grid, "64", "ddim27", "fast27", "22@140", "at:120-999", section counts or
            "logsnr20" (`respace.strided`); "trailing4" for a distilled model.
        sampler: one of `SAMPLERS`: "ancestral" or "ddim", as in the paper; "dpmpp_2m",
            "dpmpp_3m", "heun" or "edm"; "consistency" for a model distilled so. Options of the
            sampler that are no fields here follow it: "edm:s_churn=40:s_noise=1.003".
        eta: DDIM's eta, 0 deterministic to 1 ancestral.
        variance: ancestral variance: "small", "large", "mix", "learned_range" or "table".
        guidance_scale: 1.0 = no guidance.
        threshold: applied to x_0 at every step: "none", "static" or "dynamic".
        percentile: percentile of |x_0| for dynamic thresholding (Imagen, section 2.3).
        limit: static thresholding clips x_0 to [-limit, limit]; 1 for pixels, 5 for the
            standardised embeddings of Karlo as diffusers samples them (10 in its own code).
        gamma: of variance "mix", 0 "small" to 1 "large" (Imagen, eq. 6).
        cap: dynamic thresholding divides by no more than this (1.5 in DeepFloyd IF); None = by any
            percentile, as in Imagen.
    """

    steps: str = "64"
    sampler: str = "ancestral"
    eta: float = dataclasses.field(default=0.0, metadata=dynamic(off=0.0))
    variance: str = "small"
    guidance_scale: float = dataclasses.field(default=1.0, metadata=dynamic(off=1.0))
    threshold: str = "none"
    percentile: float = 99.5
    limit: float = 1.0
    gamma: float = 0.0
    cap: float | None = None

    def __post_init__(self):
        if self.cap is not None and self.cap < 1:
            raise UserError(f"sampling.cap is {self.cap}; expected 1 or more.")
        one_of("sampling.variance", self.variance, samplers.VARIANCES)
        one_of("sampling.threshold", self.threshold, THRESHOLDS)
        in_range("sampling.eta", self.eta, 0.0, 1.0)
        positive("sampling.limit", self.limit)
        in_range("sampling.percentile", self.percentile, 0.0, 100.0)
        in_range("sampling.guidance_scale", self.guidance_scale, 0.0, 100.0)
        self.solver()

    @property
    def needs_table(self) -> bool:
        """True if the model's variance table is needed."""
        solver = self.solver()
        return isinstance(solver, Ancestral) and solver.variance == "table"

    def solver(self) -> Solver:
        """Returns the sampler with its options.

        Raises:
            UserError: the sampler or one of its options is unknown, or has a value that is not
                allowed.
        """
        name, _, text = self.sampler.partition(":")
        cls = SAMPLERS[one_of("sampler", name, SAMPLERS)]
        own = {field.name for field in dataclasses.fields(self)}
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(cls) if f.name in own}
        return cls(**shared, **_options(cls, text, name=name, shared=own))


SAMPLERS: dict[str, type[Solver]] = {
    "ancestral": Ancestral,
    "ddim": Ddim,
    "dpmpp_2m": solvers.DpmSolver2M,
    "dpmpp_3m": solvers.DpmSolver3M,
    "heun": solvers.Heun,
    "edm": solvers.Edm,
    "consistency": samplers.Consistency,
}


def _options(cls: type[Solver], text: str, *, name: str, shared: set[str]) -> dict[str, float]:
    """Parses "s_churn=40:s_noise=1.003" as numbers for fields of a solver.

    Raises:
        UserError: a part is no NAME=NUMBER, or the solver has no such field.
    """
    fields = [f.name for f in dataclasses.fields(cls) if f.type is float and f.name not in shared]
    options = {}
    for part in filter(None, text.split(":")):
        option, _, number = part.partition("=")
        if option not in fields:
            hint = suggest(option, fields) if fields else " It has no options of its own."
            raise UserError(f"the sampler {name!r} has no option {option!r}.{hint}")
        try:
            options[option] = float(number)
        except ValueError:
            raise UserError(
                f"the option {option!r} of the sampler {name!r} is {number!r}; give a number, as "
                f"in {name}:{option}=1."
            ) from None
    return options


@functools.cache
def _chain(name: str, num_timesteps: int, tables: str) -> Schedule:
    chain = make_schedule(name, num_timesteps=num_timesteps)
    return chain if tables == "float64" else to_float32(chain, exact=tables == "float32_exact")


class NoisedBatch(NamedTuple):
    """A noised training batch, its timesteps, and the clean samples and noise it consists of."""

    x_t: Float[Array, " b *s"]
    t: Steps
    x_0: Float[Array, " b *s"]
    eps: Float[Array, " b *s"]


def noise_batch(chain: Schedule, x_0: Float[Array, " b *s"], *, key: Key) -> NoisedBatch:
    """Noises `x_0` at timesteps drawn uniformly from the chain (Ho et al. 2020, algorithm 1)."""
    t = jax.random.randint(rng.fold(key, "t"), x_0.shape[:1], 0, chain.num_timesteps)
    return noise_at(chain, x_0, t=t, key=key)


def noise_at(chain: Schedule, x_0: Float[Array, " b *s"], *, t: Steps, key: Key) -> NoisedBatch:
    """Noises `x_0` at timesteps `t`."""
    eps = jax.random.normal(rng.fold(key, "noise"), x_0.shape, x_0.dtype)
    x_t = process.q_sample(x_0, eps, alpha_bar=chain.level(t, ndim=x_0.ndim))
    return NoisedBatch(x_t, t, x_0, eps)


def split_output(
    out: Float[Array, " b *s"], *, learned_variance: bool
) -> tuple[Float[Array, " b *r"], Float[Array, " b *r"] | None]:
    """Splits raw output into the mean half and the variance half (None if there is none)."""
    if not learned_variance:
        return out, None
    mean, var_frac = jnp.split(out, 2, axis=-1)
    return mean, var_frac


def loss(cfg: DiffusionConfig, out: Float[Array, " b *s"], *, noised: NoisedBatch) -> PerExample:
    """Returns the per-example loss of the raw output: plain, or hybrid with a learned variance."""
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
    """Turns raw output at timesteps `t` into a `Prediction`."""
    mean, var_frac = split_output(out, learned_variance=cfg.learned_variance)
    alpha_bar = cfg.chain().level(t, ndim=x_t.ndim)
    return process.to_prediction(
        mean, x_t, target=process.Target(cfg.target), alpha_bar=alpha_bar, var_frac=var_frac
    )


def thresholded(denoise: Denoiser, cfg: DiffusionConfig, sampling: SamplingConfig) -> Denoiser:
    """Wraps a denoiser so that its x_0 stays in range and eps stays consistent with it."""
    if sampling.threshold == "none":
        return denoise
    chain = cfg.chain()

    def wrapped(x_t, t):
        pred = denoise(x_t, t)
        if sampling.threshold == "static":
            x_0 = process.static_threshold(pred.x_0, limit=sampling.limit)
        else:
            options = {"percentile": sampling.percentile, "cap": sampling.cap}
            x_0 = process.dynamic_threshold(pred.x_0, **options)
        alpha_bar = chain.level(t, ndim=x_t.ndim)
        return process.with_x_0(pred, x_0, x_t, alpha_bar=alpha_bar)

    return wrapped


def solver_and_plan(
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
    *,
    table: VarianceTable | None = None,
    origin: ChainSignature | None = None,
) -> tuple[Solver, StepTable]:
    """Returns the solver of `sampling` and its plan on the trained chain.

    Args:
        diffusion: of the trained model.
        sampling: grid, sampler and its options.
        table: the model's variance table, for variance "table".
        origin: the signature that the table must have.

    Raises:
        UserError: the model has no learned variance or no variance table, but `sampling` asks for
            it; the sampler cannot plan these steps; or the model was distilled for others.
    """
    diffusion.check_sampling(sampling)
    chain, solver = diffusion.chain(), sampling.solver()
    if isinstance(solver, Ancestral):
        if solver.variance == "learned_range" and not diffusion.learned_variance:
            raise UserError(
                "sampling.variance is 'learned_range' but the model was trained without a learned "
                "variance; use 'small' or 'large'."
            )
        if solver.variance == "table":
            if table is None or origin is None:
                raise UserError(
                    "sampling.variance is 'table', but there is no variance table with this model; "
                    f"{analytic.REMEDY}."
                )
            short = respace.strided(chain, steps=sampling.steps)
            variances = table.variances(short, origin=origin)
            solver = dataclasses.replace(solver, table=tuple(variances.tolist()))
    return solver, solver.plan(chain, steps=sampling.steps)


def run(
    denoise: Denoiser,
    *,
    shape: tuple[int, ...],
    keys: Keys,
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
    table: VarianceTable | None = None,
    origin: ChainSignature | None = None,
) -> Float[Array, " b *s"]:
    """Samples x_0 of `shape` per key in one scan; example i depends on keys[i] alone.

    `table` and `origin` are those of `planned`.
    """
    solver, rows = solver_and_plan(diffusion, sampling, table=table, origin=origin)
    denoise = thresholded(denoise, diffusion, sampling)
    return samplers.run(denoise, x_T(keys, shape), table=rows, solver=solver, keys=keys).x


def x_T(keys: Keys, shape: tuple[int, ...]) -> Float[Array, " b *s"]:
    """Draws the pure noise with which sampling begins, one array of `shape` per key."""
    return rng.normal_each(rng.fold_each(keys, "x_T"), shape)


def check_guidance(scale: Scale, *, drops: dict[str, float]) -> None:
    """Rejects guidance of a model that never sees its condition dropped.

    Args:
        scale: of the guidance; 1 is off.
        drops: config key -> share of examples without that condition, for every condition that
            the unconditional branch lacks.

    Raises:
        UserError: naming the drop that is 0.
    """
    for name, share in drops.items():
        if not guidance.is_off(scale) and share == 0.0:
            raise UserError(
                f"guidance_scale is {scale}, but {name} is 0: trained without drops, a model knows "
                f"no unconditional prediction. Use 1.0, or train with {name} above 0."
            )
