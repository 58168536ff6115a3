"""Which network of diffusers is the peer of an experiment: a task for `benchmarks.diffusers_side`.

Sizes `karlo` have the options of Karlo, whose classes diffusers has: there both sides compute the
same function with the same parameters. Of other sizes the peer has the same widths, depths, sides
and numbers of tokens, and lacks what its classes have no words for; `NOT_THERE` says what.
"""

import dataclasses
import importlib.util
from typing import Any

from unclip_jax.convert import prior, unet
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.experiment import Experiment
from unclip_jax.models.unet import UNetConfig

PEERS = ("diffusers",)
NOT_THERE = {
    "prior": "the table of tokens",
    "decoder": "the caption's transformer, the map of z_img, patches, the width of the embedding",
    "upsampler": "patches, the width of the embedding",
}


def check(name: str, experiment: Experiment) -> None:
    """Refuse what cannot be compared before anything is built.

    Raises:
        UserError: an unknown peer, PyTorch missing, a stage or an optimiser that it has not.
    """
    one_of("--peer", name, PEERS)
    for module in ("torch", "diffusers"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"--peer={name} needs {module}, which is not installed; "
                "pip install 'unclip_jax[parity]' brings it."
            )
    if experiment.stage not in NOT_THERE:
        raise UserError(
            f"{name} has no network like stage {experiment.stage!r}; leave out --peer, or compare "
            f"one of: {', '.join(NOT_THERE)}."
        )
    optim = experiment.optim
    if optim.name != "adamw" or optim.sam:
        raise UserError(
            f"the peer takes steps of AdamW, this experiment of {optim.name!r}; add "
            "--config.optim.name=adamw, so that both do the same."
        )


def task(experiment: Experiment, *, what: str, batch: int) -> dict[str, Any]:
    """What the peer's process builds and does.

    Args:
        experiment: the stage, of any size.
        what: "train" or "sample".
        batch: examples per call.
    """
    optim, model = experiment.optim, experiment.model
    sampling = model.sampling
    return {
        "what": what,
        "batch": batch * (getattr(model, "num_candidates", 1) if what == "sample" else 1),
        "steps": int("".join(filter(str.isdigit, sampling.steps))),
        "guided": sampling.guidance_scale != 1.0,
        "optim": {"lr": optim.learning_rate, "betas": (optim.b1, optim.b2), "eps": optim.eps}
        | {"weight_decay": optim.weight_decay},
        "clip_norm": optim.clip_norm,
        "ema_decay": experiment.train.ema_decay,
        **NETWORKS[experiment.stage](model),
    }


def _prior(model: Any) -> dict[str, Any]:
    return {"settings": prior.settings(model.model)}


def _decoder(model: Any) -> dict[str, Any]:
    net = model.model
    conditioned = dataclasses.replace(plain(net.unet), context_width=net.text_width)
    return {
        "settings": unet.settings(conditioned),
        "side": net.unet.image_size,
        "z_dim": net.z_dim,
        "text_dim": net.clip_text_width or net.text_width,
        "z_tokens": net.num_z_tokens,
        "context": net.context,
    }


def _upsampler(model: Any) -> dict[str, Any]:
    net = model.model
    return {
        "settings": unet.settings(plain(net.unet)),
        "side": model.crop or net.unet.image_size,
        "whole_side": net.unet.image_size,
    }


NETWORKS = {"prior": _prior, "decoder": _decoder, "upsampler": _upsampler}


def plain(cfg: UNetConfig) -> UNetConfig:
    """Without patches: levels of the same sides and channels behind a wider stem."""
    if cfg.patch == 1:
        return cfg
    channels = {"in_channels": cfg.in_channels * cfg.patch**2}
    channels["out_channels"] = cfg.out_channels * cfg.patch**2
    return dataclasses.replace(cfg, patch=1, image_size=cfg.image_size // cfg.patch, **channels)
