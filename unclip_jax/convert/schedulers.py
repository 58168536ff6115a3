"""Scheduler settings of diffusers as our diffusion and sampling configs, in plain data."""

from collections.abc import Mapping
from typing import Any

from unclip_jax.convert import configs
from unclip_jax.core.checks import UserError, one_of

CLASS = "UnCLIPScheduler"
TARGETS = {"sample": "x_0", "epsilon": "eps"}
VARIANCES = {"fixed_small_log": "small", "learned_range": "learned_range"}
# The class's own defaults, which a file may leave out.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "variance_type": "fixed_small_log",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "beta_schedule": "squaredcos_cap_v2",
}
# What Karlo's pipeline ships, for components that come without their scheduler.
KARLO = {
    "prior": {"prediction_type": "sample", "clip_sample_range": 5.0},
    "decoder": {"variance_type": "learned_range"},
    "super_res": {},
}
# Steps and guidance that Karlo's pipeline uses unless told otherwise.
USUAL = {"prior": ("25", 4.0), "decoder": ("25", 8.0), "super_res": ("7", 1.0)}


def config(
    settings: Mapping[str, Any], *, role: str, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(diffusion, sampling), as the stages of this package have them.

    The arithmetic is the scheduler's own, float32.

    Args:
        settings: a scheduler_config.json.
        role: "prior", "decoder" or "super_res", for the usual steps and guidance.
        where: names the file in messages.

    Raises:
        UserError: another scheduler or an unsupported variant.
    """
    configs.kind(settings, CLASS, where=where)
    configs.known(settings, list(DEFAULTS), where=where)
    configs.only(settings, {"beta_schedule": DEFAULTS["beta_schedule"]}, where=where)
    given = {**DEFAULTS, **settings}
    if not given["clip_sample"]:
        raise UserError(f"{where} does not clip samples, which Karlo's scheduler always does.")
    variance = one_of(f"variance_type in {where}", given["variance_type"], VARIANCES)
    target = one_of(f"prediction_type in {where}", given["prediction_type"], TARGETS)
    steps, guidance = USUAL[role]
    diffusion = {
        "schedule": "cosine",
        "num_timesteps": given["num_train_timesteps"],
        "target": TARGETS[target],
        "learned_variance": variance == "learned_range",
        "tables": "float32",
    }
    sampling = {
        "steps": steps,
        "sampler": "ancestral",
        "variance": VARIANCES[variance],
        "guidance_scale": guidance,
        "threshold": "static",
        "limit": float(given["clip_sample_range"]),
    }
    return diffusion, sampling


def settings(diffusion: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`, for stages that such a scheduler can run.

    Raises:
        UserError: naming the first setting that it has no word for.
    """
    wanted = {
        "diffusion.schedule": (diffusion["schedule"], "cosine"),
        "sampling.sampler": (sampling["sampler"], "ancestral"),
        "sampling.threshold": (sampling["threshold"], "static"),
    }
    for name, (value, expected) in wanted.items():
        if value != expected:
            raise UserError(
                f"{name} is {value!r}; {CLASS} knows {expected!r} alone, so this stage cannot be "
                "written in its layout."
            )
    ours = {ours: theirs for theirs, ours in VARIANCES.items()}
    targets = {ours: theirs for theirs, ours in TARGETS.items()}
    return {
        "_class_name": CLASS,
        "num_train_timesteps": diffusion["num_timesteps"],
        "variance_type": ours[one_of("sampling.variance", sampling["variance"], ours)],
        "clip_sample": True,
        "clip_sample_range": sampling["limit"],
        "prediction_type": targets[one_of("diffusion.target", diffusion["target"], targets)],
        "beta_schedule": DEFAULTS["beta_schedule"],
    }
