"""The PyTorch peers of experiments: tasks for `diffusers_side` and `dalle2_side`.

The sizes `karlo` have the options of Karlo, for which diffusers has classes: both sides then
compute the same function with the same number of parameters. Otherwise the peer has the same
widths, depths, sides and numbers of tokens, but lacks parts for which its classes have no options
(`LACKING`).
"""

import dataclasses
import importlib.util
from typing import Any

from unclip_jax.backbones.unet import UNetConfig
from unclip_jax.convert import prior_tensors, unet_tensors
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.diffusion import respace
from unclip_jax.experiment.config import Experiment

PEERS = {"diffusers": ("torch", "diffusers"), "dalle2": ("torch", "dalle2_pytorch")}
INSTALL = {"diffusers": "'unclip_jax[parity]'", "dalle2": "dalle2-pytorch"}
# Parts that the peer of a stage without Karlo's options lacks, by peer and stage.
LACKING = {
    "diffusers": {
        "prior": "the table of tokens",
        "decoder": "the caption's transformer, the map of z_img, patches, the embedding's width",
        "upsampler": "patches, the embedding's width, the network of the last step",
    },
    "dalle2": {
        "prior": "the table of tokens",
        "decoder": "the caption's transformer and the map of z_img; its blocks are its own",
        "embedding_prior": "the paths past the transformer; its blocks are its own",
    },
}


def check(name: str, experiment: Experiment, *, what: str) -> None:
    """Checks that an experiment can be compared, before anything is built.

    Raises:
        UserError: the peer is unknown, lacks the stage or optimiser, or PyTorch is missing.
    """
    for module in PEERS[one_of("--peer", name, tuple(PEERS))]:
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"--peer={name} needs {module}, which is not installed; run `pip install "
                f"{INSTALL[name]}`."
            )
    if experiment.stage not in LACKING[name]:
        raise UserError(
            f"{name} has no network like stage {experiment.stage!r}; leave out --peer, or compare "
            f"one of: {', '.join(LACKING[name])}."
        )
    if name == "dalle2":
        _check_dalle2(experiment, what)
    optim = experiment.optim
    if optim.name != "adamw" or optim.sam:
        raise UserError(
            f"the peer trains with AdamW, this experiment with {optim.name!r}; add "
            "--config.optim.name=adamw, so that both do the same."
        )


def _check_dalle2(experiment: Experiment, what: str) -> None:
    if what != "train":
        raise UserError("dalle2 is compared only in training; for sampling give --peer=diffusers.")
    net = experiment.model.model
    if experiment.stage == "prior" and net.width != net.embed_dim:
        raise UserError(
            f"dalle2's prior is as wide as its embeddings, this one {net.width} with embeddings of "
            f"{net.embed_dim}; add --config.model.model.width={net.embed_dim}."
        )
    if experiment.stage == "embedding_prior":
        shapes = {(net.width,), net.target, *(one.shape for one in net.conditions)}
        if len(shapes) > 1 or len(net.conditions) > 1 or net.ridge or net.vector_tokens > 1:
            raise UserError(
                "dalle2's prior reads one vector as one token, as wide as the target and the "
                "network, and no linear prediction; set config.model.model.width and target to the "
                "width of the condition, vector_tokens to 1 and ridge to False."
            )


def task(name: str, experiment: Experiment, *, what: str, batch: int) -> dict[str, Any]:
    """Returns the task for the peer's process.

    Args:
        name: name of the peer.
        experiment: the stage, of any size.
        what: "train" or "sample".
        batch: examples per call.
    """
    optim, model = experiment.optim, experiment.model
    sampling = model.sampling
    return {
        "what": what,
        "batch": batch * (getattr(model, "num_candidates", 1) if what == "sample" else 1),
        "steps": respace.strided(model.diffusion.chain(), steps=sampling.steps).num_timesteps,
        "dtype": getattr(model.model, "dtype", None) or model.model.unet.dtype,
        "guided": sampling.guidance_scale != 1.0,
        "optim": {"lr": optim.learning_rate, "betas": (optim.b1, optim.b2), "eps": optim.eps}
        | {"weight_decay": optim.weight_decay},
        "clip_norm": optim.clip_norm,
        "ema_decay": experiment.train.ema_decay,
        **NETWORKS[name][experiment.stage](model),
    }


def _prior(model: Any) -> dict[str, Any]:
    return {"settings": prior_tensors.settings(model.model)}


def _decoder(model: Any) -> dict[str, Any]:
    net = model.model
    conditioned = dataclasses.replace(plain(net.unet), context_width=net.text_width)
    return {
        "settings": unet_tensors.settings(conditioned),
        "side": net.unet.image_size,
        "z_dim": net.z_dim,
        "text_dim": net.clip_text_width or net.text_width,
        "z_tokens": net.num_z_tokens,
        "context": net.context,
    }


def _upsampler(model: Any) -> dict[str, Any]:
    net = model.model
    return {
        "settings": unet_tensors.settings(plain(net.unet)),
        "side": model.crop or net.unet.image_size,
        "whole_side": net.unet.image_size,
    }


def _dalle2_prior(model: Any) -> dict[str, Any]:
    net = model.model
    sizes = {"dim": net.embed_dim, "depth": net.depth, "heads": net.heads}
    sizes |= {"dim_head": net.width // net.heads, "max_text_len": net.context}
    return {"network": "prior", "settings": sizes, "timesteps": net.num_timesteps}


def _dalle2_embedding_prior(model: Any) -> dict[str, Any]:
    net = model.model
    sizes = {"dim": net.width, "depth": net.depth, "heads": net.heads}
    sizes |= {"dim_head": net.width // net.heads, "max_text_len": 0}  # else 256 padding tokens
    return {"network": "prior", "settings": sizes, "timesteps": net.num_timesteps}


def _dalle2_decoder(model: Any) -> dict[str, Any]:
    net, unet = model.model, model.model.unet
    sides = [unet.image_size // unet.patch // 2**level for level in range(len(unet.multiples))]
    settings = {
        "dim": unet.channels,
        "dim_mults": unet.multiples,
        "num_resnet_blocks": unet.depth,
        "resnet_groups": unet.norm_groups,
        "self_attn": [side in unet.attention_at for side in sides],
        "attn_dim_head": unet.head_channels,
        "attn_heads": max(1, unet.channels * unet.multiples[-1] // unet.head_channels),
        "image_embed_dim": net.z_dim,
        "text_embed_dim": net.text_width,
        "cond_dim": net.text_width,
        "num_image_tokens": net.num_z_tokens,
        "max_text_len": net.context,
        "cond_on_text_encodings": True,
        "cond_on_image_embeds": True,
        "channels": unet.in_channels * unet.patch**2,
    }
    side, timesteps = unet.image_size // unet.patch, net.num_timesteps
    learned = {"learned_variance": model.diffusion.learned_variance}
    sizes = {"side": side, "timesteps": timesteps, **learned}
    return {"network": "decoder", "settings": settings, **sizes}


NETWORKS = {
    "diffusers": {"prior": _prior, "decoder": _decoder, "upsampler": _upsampler},
    "dalle2": {
        "prior": _dalle2_prior,
        "embedding_prior": _dalle2_embedding_prior,
        "decoder": _dalle2_decoder,
    },
}


def plain(cfg: UNetConfig) -> UNetConfig:
    """Returns a U-Net without patches, with the same levels and channels after a wider stem."""
    if cfg.patch == 1:
        return cfg
    channels = {"in_channels": cfg.in_channels * cfg.patch**2}
    channels["out_channels"] = cfg.out_channels * cfg.patch**2
    return dataclasses.replace(cfg, patch=1, image_size=cfg.image_size // cfg.patch, **channels)
