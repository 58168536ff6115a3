"""Images of a cascade whose decoder is guided by the gradient of a noise-aware CLIP.

The CLIP belongs to no cascade: its embeddings are compared with each other alone, so it may have
another tokenizer and another size than the one that the prior and the decoder read.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Embedding, Image, Keys, Params
from unclip_jax.data import text
from unclip_jax.data.text import Tokenizer
from unclip_jax.handoff import load as handoff
from unclip_jax.inference import text_to_image
from unclip_jax.inference.cascade import Captions, Cascade
from unclip_jax.inference.load import load_clip
from unclip_jax.stages import clip, guided_decoder
from unclip_jax.stages.captions import TokenIds
from unclip_jax.stages.clip import ClipStageConfig
from unclip_jax.stages.decoder import Condition
from unclip_jax.stages.gaussian import SamplingConfig
from unclip_jax.stages.guided_decoder import Guide, clip_gradient


class ClipGuide(NamedTuple):
    """A noise-aware CLIP.

    Attributes:
        config: its config.
        params: its parameters.
        tokenizer: of its captions.
    """

    config: ClipStageConfig
    params: Params
    tokenizer: Tokenizer


def load_guide(directory: pathlib.Path) -> ClipGuide:
    """Loads the export of a noise-aware CLIP.

    Raises:
        UserError: there is no export of a CLIP, or it was trained on clean images.
    """
    config, params, _ = load_clip(directory)
    if config.diffusion is None:
        raise UserError(
            f"the CLIP in {directory} was trained on clean images, whose gradients mislead at "
            "every noise level; train one with --config=clip:shapes_noised."
        )
    return ClipGuide(config, params, text.load(handoff.tokenizer_dir(directory)))


def sample(
    cascade: Cascade,
    params: Mapping[str, Params],
    guide_params: Params,
    captions: Captions,
    ids: TokenIds,
    z_img: Embedding | None,
    keys: Keys,
    *,
    guide: ClipStageConfig,
    scale: Float[Array, ""],
    sampling: SamplingConfig,
) -> Image:
    """Samples one image per caption.

    Args:
        cascade: the stages.
        params: parameters by name of the stage.
        guide_params: of the noise-aware CLIP.
        captions: token ids by name of the stage that reads them.
        ids: captions as the noise-aware CLIP reads them.
        z_img: of the prior; None for a decoder that reads captions alone.
        keys: one per image.
        guide: config of the noise-aware CLIP.
        scale: of its gradient; it moves the mean of ancestral sampling, and eps of other samplers.
        sampling: of the decoder.

    Raises:
        UserError: the CLIP does not fit the decoder, or the decoder reads CLIP's token features.
    """
    stage = cascade.stage("decoder")
    if stage.name not in captions:
        raise UserError(
            f"the {stage.name} reads no token ids of its own, which guidance by a noise-aware CLIP "
            "is made for; leave out --clip-scale."
        )
    z_txt = clip.encode_text(guide, guide_params, ids).z_txt
    sizes = {"diffusion": stage.config.diffusion, "image_size": cascade.base_size}
    gradient = clip_gradient(guide, guide_params, z_txt, **sizes)
    form = "mean" if sampling.sampler == "ancestral" else "score"
    base = guided_decoder.sample(
        stage.config,
        params[stage.name],
        Condition(z_img, captions[stage.name]),
        keys=rng.fold_each(keys, "decoder"),
        guide=Guide(gradient, scale, form),
        sampling=sampling,
    )
    return text_to_image.upsample(cascade, params, base, keys)
