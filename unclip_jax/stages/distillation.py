"""Distillation of any diffusion stage: the teacher's stage with another loss.

The student has the network of its teacher and starts from its parameters; the teacher's are a fixed
argument of the loss (`core.stage.Stage.teacher`). Guidance, thresholding and conditions are those
of sampling. Mathematics and sources: `diffusion.distillation`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from unclip_jax.conditioning import captions
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Key, Metrics, Params, Scalar
from unclip_jax.diffusion import distillation, guidance
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.process import Target
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import Distillation, SamplingConfig
from unclip_jax.stages.entry import StageEntry

FEW = 4  # default steps of a student that supports any number
COMPARED = 16  # examples of a held-out batch that student and teacher sample from the same noise


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """The distillation of a trained stage into a student of few steps.

    Attributes:
        method: "progressive" (Salimans & Ho 2022) or "consistency" (Song et al. 2023).
        steps: intervals of the chain: the steps of a progressive student; for consistency the
            training grid (25 or more), sampled in any number of steps.
        substeps: DDIM steps of the teacher in each interval.
        guidance_scale: guidance of the teacher, which becomes part of the student; None = the
            teacher's default.
        target: prediction target of the student; "" = the teacher's, but "v" instead of "eps",
            which does not determine x_0 at pure noise.
    """

    method: str = "progressive"
    steps: int = 4
    substeps: int = 4
    guidance_scale: float | None = None
    target: str = ""

    def __post_init__(self):
        one_of("config.distill.method", self.method, distillation.METHODS)
        positive("config.distill.steps", self.steps)
        positive("config.distill.substeps", self.substeps)
        if self.target:
            one_of("config.distill.target", self.target, [target.value for target in Target])


def student_config(teacher: Any, distill: DistillConfig) -> Any:
    """Returns the config of the student of a stage with config `teacher`.

    Raises:
        UserError: the teacher was itself distilled, to other steps or for consistency; or it cannot
            be guided.
    """
    scale = _scale(teacher, distill)
    before = teacher.diffusion.distillation
    if before is not None:
        _check_chained(before, distill)
    target = distill.target or teacher.diffusion.target
    diffusion = dataclasses.replace(
        teacher.diffusion,
        target="v" if target == "eps" and not distill.target else target,
        distillation=Distillation(
            method=distill.method,
            steps=distill.steps,
            guidance_scale=scale if before is None else before.guidance_scale,
        ),
    )
    method = distillation.METHODS[distill.method]
    steps = min(distill.steps, FEW) if method.any_steps else distill.steps
    sampling = dataclasses.replace(
        teacher.sampling,
        steps=distillation.trailing(steps),
        sampler=method.sampler,
        eta=0.0,
        variance="small",
        guidance_scale=1.0,
    )
    return dataclasses.replace(teacher, diffusion=diffusion, sampling=sampling)


def make(entry: StageEntry, teacher: Any, distill: DistillConfig) -> Stage:
    """Builds the `Stage` of the student of a stage with config `teacher`.

    Raises:
        UserError: the stage does not diffuse, or as `student_config`.
    """
    if entry.denoiser is None or entry.latent is None:
        raise UserError(
            f"config.distill is set, but stage {entry.name!r} does not diffuse; leave it out."
        )
    student = student_config(teacher, distill)
    pair, stage = _Pair(entry, teacher, student, distill), entry.make(student)
    advice = "distil with config.distill.guidance_scale=1"
    check_null(stage, teacher, pair.scale, advice=advice)

    def loss(params: Params, batch: Batch, key: Key, teacher_params: Params):
        value = pair.loss(params, batch, key, jax.lax.stop_gradient(teacher_params))
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key, teacher_params: Params) -> Metrics:
        few = {name: x[:COMPARED] for name, x in batch.items()}
        value = pair.loss(params, batch, key, teacher_params)
        return {"loss": value, **pair.compare(params, few, key, teacher_params)}

    changes = {"loss": loss, "evaluate": evaluate, "teacher": stage.init}
    return dataclasses.replace(stage, **changes, splittable=True, pairwise=None, fit=None)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Teacher and student of a stage.

    Attributes:
        entry: the stage.
        teacher: config of the teacher.
        student: config of the student.
        distill: settings.
    """

    entry: StageEntry
    teacher: Any
    student: Any
    distill: DistillConfig

    @property
    def scale(self) -> float:
        """Guidance that is applied to the teacher."""
        return _scale(self.teacher, self.distill)

    def loss(self, params: Params, batch: Batch, key: Key, teacher_params: Params) -> Scalar:
        """Returns the mean loss of a batch."""
        steps, substeps = self.distill.steps, self.distill.substeps
        grid = distillation.Grid(self.student.diffusion.chain(), steps, substeps)
        noised = distillation.noise_intervals(
            grid, self._x_0(teacher_params, batch), key=rng.fold(key, "draw")
        )
        losses = distillation.METHODS[self.distill.method].loss(
            self._denoiser(self.student, params, batch, key, scale=1.0),
            self._teach(teacher_params, batch, key),
            noised,
            grid=grid,
        )
        return jnp.mean(losses)

    def compare(self, params: Params, batch: Batch, key: Key, teacher_params: Params) -> Metrics:
        """Returns the distance of samples from the teacher's for the same noise.

        sample_error: mean squared difference of the student's samples; plain_error: that of the
        teacher's samples in as many DDIM steps as the student takes.
        """
        shape = self._x_0(teacher_params, batch).shape
        keys = rng.per_example(rng.fold(key, "compare"), jnp.arange(shape[0]))
        options = {"shape": shape[1:], "keys": keys}
        guided = self._teach(teacher_params, batch, key)
        diffusion = dataclasses.replace(self.teacher.diffusion, distillation=None)

        def of_teacher(steps: int) -> Array:
            sampling = SamplingConfig(steps=distillation.trailing(steps), sampler="ddim")
            return gaussian.run(guided, diffusion=diffusion, sampling=sampling, **options)

        cfg = self.student
        student = self._denoiser(cfg, params, batch, key, scale=1.0)
        samples = gaussian.run(student, diffusion=cfg.diffusion, sampling=cfg.sampling, **options)
        reference = of_teacher(self.distill.steps * self.distill.substeps)
        few = int(cfg.sampling.steps.removeprefix("trailing"))
        return {
            "sample_error": jnp.mean((samples - reference) ** 2),
            "plain_error": jnp.mean((of_teacher(few) - reference) ** 2),
        }

    def _x_0(self, teacher_params: Params, batch: Batch) -> Array:
        assert self.entry.latent is not None
        return self.entry.latent(self.teacher, teacher_params, batch)

    def _teach(self, params: Params, batch: Batch, key: Key) -> Denoiser:
        """Returns the teacher as it samples: guided and thresholded."""
        plain = self._denoiser(self.teacher, params, batch, key, scale=self.scale)
        return gaussian.thresholded(plain, self.teacher.diffusion, self.teacher.sampling)

    def _denoiser(
        self, cfg: Any, params: Params, batch: Batch, key: Key, *, scale: float
    ) -> Denoiser:
        assert self.entry.denoiser is not None
        conditions, size = captions.conditions(batch), len(next(iter(batch.values())))
        keys = rng.per_example(rng.fold(key, "conditions"), jnp.arange(size))
        return self.entry.denoiser(cfg, params, conditions, keys=keys, scale=scale)


def _scale(teacher: Any, distill: DistillConfig) -> float:
    """Returns the guidance that is applied to the teacher; 1 if it was distilled with guidance."""
    before, choice = teacher.diffusion.distillation, distill.guidance_scale
    if before is not None and choice in (None, before.guidance_scale):
        return 1.0
    scale = teacher.sampling.guidance_scale if choice is None else choice
    teacher.check_guidance(dataclasses.replace(teacher.sampling, guidance_scale=scale))
    return scale


def _check_chained(before: Distillation, distill: DistillConfig) -> None:
    """Rejects a teacher that was distilled to a different number of steps than this needs."""
    if distillation.METHODS[before.method].any_steps:
        raise UserError(
            "the teacher is a consistency model, which does not follow the path of a sampler; "
            "distil the model that it was distilled from (config.init_from)."
        )
    if before.steps != distill.steps * distill.substeps:
        raise UserError(
            f"the teacher was distilled to {before.steps} steps, but config.distill.steps is "
            f"{distill.steps} and config.distill.substeps {distill.substeps}; their product must "
            f"be {before.steps}."
        )


def check_null(stage: Stage, cfg: Any, scale: float, *, advice: str) -> None:
    """Rejects guidance away from the empty caption, which training batches do not contain.

    Args:
        stage: of the config `cfg`.
        cfg: of the model.
        scale: of the guidance.
        advice: end of the message.

    Raises:
        UserError: the model has no null caption of its own, and the guidance is on.
    """
    of_text = getattr(getattr(cfg.model, "text", None), "null", "")
    null = getattr(cfg.model, "null", "empty" if "text_seq" in stage.batch_spec else "")
    if "empty" in (null, of_text) and not guidance.is_off(scale):
        raise UserError(
            f"the guidance is {scale:g}, away from the empty caption, whose features training "
            f"batches do not contain; {advice}."
        )
