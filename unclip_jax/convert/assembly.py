"""Assembly of stages like Karlo's from configs, and tensors with the names of diffusers.

All readers of layouts use it, so the options in which Karlo differs from the paper are set in one
place: CLIP's token features as captions, the empty caption as null, raw and standardised
embeddings, and a separate network for the last step of super-resolution.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.backbones.unet import UNetConfig
from unclip_jax.convert import abstract, prior_tensors, schedulers, unet_tensors
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.core.checks import UserError
from unclip_jax.models.clip_config import ClipConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.weight_files import configs, tensor_table
from unclip_jax.weight_files.tensor_source import TensorSource
from unclip_jax.weight_files.tensor_table import Entry, linear, norm

TEXT_PROJ = "UnCLIPTextProjModel"
TEXT_PROJ_SIZES = (
    "clip_extra_context_tokens",
    "clip_embeddings_dim",
    "time_embed_dim",
    "cross_attention_dim",
)


def clip_stage(cfg: ClipConfig, source: TensorSource, entries: Sequence[Entry]) -> ConvertedStage:
    """Returns a CLIP as a stage."""
    return ConvertedStage(
        name="clip",
        stage="clip",
        config={"model": cfg},
        facts={"embed_dim": cfg.embed_dim},
        source=source,
        entries=entries,
        abstract=configs.described(lambda: abstract.clip(cfg), where=source.where),
    )


def prior_stage(
    cfg: PriorConfig,
    source: TensorSource,
    *,
    statistics: tuple[np.ndarray, np.ndarray],
    scheduler: Mapping[str, Any],
    where: str = "the prior's scheduler",
) -> ConvertedStage:
    """Returns a prior like Karlo's as a stage; `statistics` are clip_mean and clip_std."""
    mean, std = (np.asarray(v, np.float32).reshape(-1) for v in statistics)
    if not mean.shape == std.shape == (cfg.embed_dim,) or not np.all(std > 0):
        raise UserError(
            f"the CLIP statistics have shapes {mean.shape} and {std.shape}; expected "
            f"{(cfg.embed_dim,)} both, with positive deviations."
        )
    diffusion, sampling = schedulers.config(scheduler, role="prior", where=where)
    return ConvertedStage(
        name="prior",
        stage="prior",
        config={
            "model": cfg,
            "diffusion": diffusion,
            "sampling": sampling,
            "drop_text": 0.0,
            "num_candidates": 1,
            "z_mean": mean.tolist(),
            "z_std": std.tolist(),
        },
        facts={"embed_dim": cfg.embed_dim, "z_scale": 1.0, "embedding": "raw"},
        source=source,
        entries=prior_tensors.entries(cfg),
        abstract=configs.described(lambda: abstract.prior(cfg), where=source.where),
    )


def decoder_stage(
    cfg: DecoderConfig, source: TensorSource, *, scheduler: Mapping[str, Any]
) -> ConvertedStage:
    """Returns a decoder like Karlo's as a stage; `source` combines "text_proj" and "decoder"."""
    where = "the decoder's scheduler"
    diffusion, sampling = schedulers.config(scheduler, role="decoder", where=where)
    return ConvertedStage(
        name="decoder",
        stage="decoder",
        config={
            "model": cfg,
            "diffusion": diffusion,
            "sampling": sampling,
            "drop_text": 0.0,
            "embedding": "raw",
        },
        facts={
            "embed_dim": cfg.z_dim,
            "image_size": cfg.unet.image_size,
            "embedding": "raw",
        },
        source=source,
        entries=decoder_entries(cfg),
        abstract=configs.described(lambda: abstract.decoder(cfg), where=source.where),
    )


def upsampler_stage(
    cfg: UpsamplerConfig, source: TensorSource, *, scheduler: Mapping[str, Any]
) -> ConvertedStage:
    """Returns super-resolution as a stage; `source` combines its first and its last network."""
    where = "the super-resolution's scheduler"
    diffusion, sampling = schedulers.config(scheduler, role="super_res", where=where)
    size, table = cfg.unet.image_size, unet_tensors.entries(cfg.unet)
    one = configs.described(lambda: abstract.upsampler(cfg), where=source.where)
    return ConvertedStage(
        name="upsampler_256",
        stage="upsampler",
        config={
            "model": cfg,
            "crop": size,
            "diffusion": diffusion,
            "sampling": sampling,
            "last_step": True,
            "quantise": False,
        },
        facts={"image_size": size, "low_res_size": size // cfg.factor},
        source=source,
        entries=[
            entry
            for name in ("first", "last")
            for entry in tensor_table.under(table, leaf=f"{name}/", name=f"super_res_{name}/")
        ],
        abstract={"first": one, "last": one},
    )


def decoder_config(
    network: UNetConfig, projection: Mapping[str, Any], text: ClipConfig
) -> DecoderConfig:
    """Returns the config of a decoder from those of its U-Net, its projection and its CLIP."""
    tokens, z_dim, _, width = (projection[name] for name in TEXT_PROJ_SIZES)
    return DecoderConfig(
        unet=network,
        z_dim=z_dim,
        text_width=width,
        text_depth=0,
        text_heads=0,
        context=text.context,
        vocab_size=text.vocab_size,
        num_z_tokens=tokens,
        padding="mask",
        caption="clip_sequence",
        clip_text_width=text.text_width,
    )


def upsampler_config(network: UNetConfig, decoder: UNetConfig) -> UpsamplerConfig:
    """Returns the config of super-resolution for the decoder's images."""
    factor = network.image_size // decoder.image_size
    return UpsamplerConfig(network, factor=factor, interpolation="cubic")


def decoder_entries(cfg: DecoderConfig) -> list[Entry]:
    """Returns the table of the text projection and the U-Net."""
    projection = [
        Entry("null_z", "learned_classifier_free_guidance_embeddings"),
        *linear("text_to_emb", "embedding_proj"),
        *linear("z_to_emb", "clip_image_embeddings_project_to_time_embeddings"),
        *linear("z_to_tokens", "clip_extra_context_tokens_proj"),
        *linear("text_in", "encoder_hidden_states_proj"),
        *norm("text_norm", "text_encoder_hidden_states_norm"),
    ]
    return tensor_table.under(projection, name="text_proj/") + tensor_table.under(
        unet_tensors.entries(cfg.unet), name="decoder/"
    )
