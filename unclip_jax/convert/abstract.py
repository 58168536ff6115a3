"""Shapes of our parameter trees, without allocating them."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import flax.linen as nn
import jax
import jax.numpy as jnp

from unclip_jax.backbones.unet_plan import UNetConfig
from unclip_jax.core.types import Params
from unclip_jax.models.clip import Clip
from unclip_jax.models.clip_config import ClipConfig
from unclip_jax.models.dalle import DalleConfig
from unclip_jax.models.decoder import Decoder, DecoderConfig
from unclip_jax.models.dvae import Dvae, DvaeConfig
from unclip_jax.models.language_encoder import LanguageEncoder, LanguageEncoderConfig
from unclip_jax.models.prior import Prior, PriorConfig
from unclip_jax.models.text_base import TextBase, TextBaseConfig
from unclip_jax.models.text_condition import TextConditionConfig
from unclip_jax.models.upsampler import Upsampler, UpsamplerConfig
from unclip_jax.stages import dalle as dalle_stage
from unclip_jax.stages.dalle import DalleStageConfig

Shaped = jax.ShapeDtypeStruct
STEP = Shaped((1,), jnp.int32)
P = ParamSpec("P")


def _traced_once(shapes: Callable[P, Params]) -> Callable[P, Params]:
    """Caches shapes per config, because tracing takes seconds; every call returns a new tree."""
    cache = functools.lru_cache(maxsize=16)(shapes)

    @functools.wraps(shapes)
    def copied(*args: P.args, **kwargs: P.kwargs) -> Params:
        return jax.tree.map(lambda leaf: leaf, cache(*args, **kwargs))

    return copied


@_traced_once
def clip(cfg: ClipConfig) -> Params:
    """Returns the shapes of a CLIP, or of its only tower."""
    images = _floats(1, cfg.image_size, cfg.image_size, 3) if "image" in cfg.towers else None
    captions = _captions(cfg.context) if "text" in cfg.towers else (None, None)
    return _shapes(Clip(cfg), images, *captions, method=Clip.run)


@_traced_once
def prior(cfg: PriorConfig) -> Params:
    """Returns the shapes of a diffusion prior."""
    z, (tokens, mask) = _floats(1, cfg.embed_dim), _captions(cfg.context)
    seq = {"text_seq": _features(cfg)} if cfg.caption == "clip_sequence" else {}
    conditions = {"tokens": tokens, "token_mask": mask, "z_txt": z, **seq}
    return _shapes(Prior(cfg), z, STEP, **conditions)


@_traced_once
def decoder(cfg: DecoderConfig) -> Params:
    """Returns the shapes of a decoder."""
    z, (tokens, mask) = _floats(1, cfg.z_dim), _captions(cfg.context)
    conditions: dict[str, Any] = {"z_img": z, "tokens": tokens, "token_mask": mask}
    if cfg.caption == "clip_sequence":
        conditions |= {"text_seq": _features(cfg), "z_txt": z}
    return _shapes(Decoder(cfg), _image(cfg.unet, 3), STEP, **conditions)


@_traced_once
def text_base(cfg: TextBaseConfig) -> Params:
    """Returns the shapes of Imagen's base model."""
    return _shapes(TextBase(cfg), _image(cfg.unet, 3), STEP, **_text(cfg.text))


@_traced_once
def upsampler(cfg: UpsamplerConfig, *, noised: bool = False) -> Params:
    """Returns the shapes of one network of an upsampler; `noised` low-res images have a level."""
    side = cfg.unet.image_size // cfg.factor
    inputs: dict[str, Any] = {"low_res": _floats(1, side, side, 3)}
    if noised:
        inputs["low_res_t"] = STEP
    if cfg.text is not None:
        inputs |= _text(cfg.text)
    return _shapes(Upsampler(cfg), _image(cfg.unet, 3), STEP, **inputs)


def _text(cfg: TextConditionConfig) -> dict[str, Shaped]:
    features, mask = _floats(1, cfg.context, cfg.width), Shaped((1, cfg.context), jnp.bool_)
    return {"features": features, "mask": mask}


@_traced_once
def dvae(cfg: DvaeConfig) -> Params:
    """Returns the shapes of a discrete VAE."""
    return _shapes(Dvae(cfg), _floats(1, cfg.image_size, cfg.image_size, 3))


@_traced_once
def dalle(cfg: DalleConfig) -> Params:
    """Returns the shapes of DALL-E's transformer."""
    stage = dalle_stage.make(DalleStageConfig(cfg))
    return nn.meta.unbox(jax.eval_shape(stage.init, jax.random.key(0)))


@_traced_once
def language_encoder(cfg: LanguageEncoderConfig) -> Params:
    """Returns the shapes of the encoder of a language model."""
    return _shapes(LanguageEncoder(cfg), *_captions(cfg.context))


def _image(cfg: UNetConfig, channels: int) -> Shaped:
    return _floats(1, cfg.image_size, cfg.image_size, channels)


def _features(cfg: PriorConfig | DecoderConfig) -> Shaped:
    return _floats(1, cfg.context, cfg.clip_text_width or 0)


def _floats(*shape: int) -> Shaped:
    return Shaped(shape, jnp.float32)


def _captions(context: int) -> tuple[Shaped, Shaped]:
    return Shaped((1, context), jnp.int32), Shaped((1, context), jnp.bool_)


def _shapes(module: nn.Module, *inputs: Any, method: Any = None, **conditions: Any) -> Params:
    def init(inputs: tuple[Any, ...], conditions: dict[str, Any]):
        key = jax.random.key(0)
        return module.init(key, *inputs, method=method, **conditions)["params"]

    return nn.meta.unbox(jax.eval_shape(init, inputs, conditions))
