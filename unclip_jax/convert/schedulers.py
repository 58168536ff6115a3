"""Conversion of diffusers' scheduler settings to our diffusion and sampling configs."""

from collections.abc import Mapping
from typing import Any

from unclip_jax.core.checks import UserError, in_range, one_of, short
from unclip_jax.weight_files import configs

CLASS = "UnCLIPScheduler"
MAX_TIMESTEPS = 100_000
TARGETS = {"sample": "x_0", "epsilon": "eps"}
VARIANCES = {"fixed_small_log": "small", "learned_range": "learned_range"}
# Defaults of the class, for values that a file leaves out.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "variance_type": "fixed_small_log",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "beta_schedule": "squaredcos_cap_v2",
}
# Values of Karlo's pipeline, for components without their scheduler.
KARLO = {
    "prior": {"prediction_type": "sample", "clip_sample_range": 5.0},
    "decoder": {"variance_type": "learned_range"},
    "super_res": {},
}
# Steps and guidance that Karlo's pipeline uses by default.
USUAL = {"prior": ("25", 4.0), "decoder": ("25", 8.0), "super_res": ("7", 1.0)}


def config(
    settings: Mapping[str, Any], *, role: str, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (diffusion, sampling) in the form of this package's stages.

    The arithmetic is that of the scheduler, float32.

    Args:
        settings: content of a scheduler_config.json.
        role: "prior", "decoder" or "super_res", for the usual steps and guidance.
        where: name of the file in messages.

    Raises:
        UserError: the scheduler or its variant is not supported.
    """
    configs.check_class(settings, CLASS, where=where)
    configs.check_known(settings, list(DEFAULTS), where=where)
    configs.check_fixed(settings, {"beta_schedule": DEFAULTS["beta_schedule"]}, where=where)
    values = {**DEFAULTS, **settings}
    if not values["clip_sample"]:
        raise UserError(f"{where} has clip_sample off; expected on, as Karlo's scheduler clips.")
    steps = configs.integer(values["num_train_timesteps"], f"num_train_timesteps in {where}")
    in_range(f"num_train_timesteps in {where}", steps, 2, MAX_TIMESTEPS)
    limit = values["clip_sample_range"]
    if not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 < limit < 1e6:
        raise UserError(
            f"{where} has clip_sample_range {short(limit)}; expected a positive number."
        )
    variance = one_of(f"variance_type in {where}", values["variance_type"], VARIANCES)
    target = one_of(f"prediction_type in {where}", values["prediction_type"], TARGETS)
    usual, guidance = USUAL[role]
    diffusion = {
        "schedule": "cosine",
        "num_timesteps": steps,
        "target": TARGETS[target],
        "learned_variance": variance == "learned_range",
        "tables": "float32",
    }
    sampling = {
        "steps": usual,
        "sampler": "ancestral",
        "variance": VARIANCES[variance],
        "guidance_scale": guidance,
        "threshold": "static",
        "limit": float(limit),
    }
    return diffusion, sampling


def settings(diffusion: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `config`, for stages that such a scheduler can sample.

    Raises:
        UserError: the scheduler cannot express a setting; names the first.
    """
    fixed = {
        "diffusion.schedule": (diffusion["schedule"], "cosine"),
        "sampling.sampler": (sampling["sampler"], "ancestral"),
        "sampling.threshold": (sampling["threshold"], "static"),
    }
    for name, (value, expected) in fixed.items():
        if value != expected:
            raise UserError(
                f"{name} is {value!r}; {CLASS} supports only {expected!r}, so this stage cannot be "
                "written in its layout. Use --to=safetensors."
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
