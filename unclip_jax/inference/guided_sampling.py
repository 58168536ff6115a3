"""Samples a cascade whose decoder is guided by the gradient of a CLIP or a classifier.

Both are trained on noised images and are not stages of the cascade. The embeddings of this CLIP are
compared only with each other, so its tokenizer and size may differ from those of the CLIP that the
prior and the decoder read.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Embedding, Image, Keys, Params
from unclip_jax.handoff import load as handoff
from unclip_jax.inference import text_to_image
from unclip_jax.inference.cascade import Captions, Cascade
from unclip_jax.inference.load import load_classifier, load_clip
from unclip_jax.inference.text_to_image import EXPORTED, SampleOptions
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages import clip, guided_decoder
from unclip_jax.stages.classifier import ClassifierStageConfig
from unclip_jax.stages.clip import ClipStageConfig
from unclip_jax.stages.decoder import Condition
from unclip_jax.stages.guided_decoder import Guide, class_gradient, clip_gradient
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.tokenization.caption_tokenizer import Tokenizer

GuideConfig = ClipStageConfig | ClassifierStageConfig
Target = TokenIds | Int[Array, " b"]  # captions as a CLIP reads them, or numbers of classes


class GuideModel(NamedTuple):
    """A noise-aware CLIP, or a classifier.

    Attributes:
        config: its config.
        params: its parameters.
        tokenizer: tokenizer of a CLIP; None for a classifier.
    """

    config: GuideConfig
    params: Params
    tokenizer: Tokenizer | None = None

    @property
    def scale(self) -> str:
        """Name of the request's field that scales its gradient."""
        return "classifier_scale" if self.tokenizer is None else "clip_scale"

    def targets(self, captions: Sequence[str]) -> Target:
        """Returns the token ids of captions for a CLIP, their classes for a classifier.

        Raises:
            UserError: a caption without a class.
        """
        if isinstance(self.config, ClassifierStageConfig):
            return jnp.asarray(self.config.labels(captions))
        assert self.tokenizer is not None
        ids, mask = self.tokenizer.encode(captions, length=self.config.model.context)
        return TokenIds(jnp.asarray(ids), jnp.asarray(mask))


def load_guide(directory: pathlib.Path) -> GuideModel:
    """Loads the export of a noise-aware CLIP or of a classifier.

    Raises:
        UserError: there is no export of either, or it is a CLIP that was trained on clean images.
    """
    if handoff.read_manifest(directory).stage == "classifier":
        config, params, _ = load_classifier(directory)
        return GuideModel(config, params)
    config, params, _ = load_clip(directory)
    if config.diffusion is None:
        raise UserError(
            f"the CLIP in {directory} was trained on clean images, whose gradients mislead at "
            "every noise level; train one with --config=clip:shapes_noised."
        )
    return GuideModel(config, params, caption_tokenizer.load(handoff.tokenizer_dir(directory)))


def sample(
    cascade: Cascade,
    params: Mapping[str, Params],
    guide_params: Params,
    captions: Captions,
    targets: Target,
    z_img: Embedding | None,
    keys: Keys,
    *,
    guide: GuideConfig,
    scale: Float[Array, ""],
    sampling: SamplingConfig,
    upsampling: SampleOptions = EXPORTED,
) -> Image:
    """Samples one image per caption.

    Args:
        cascade: the stages.
        params: parameters by name of the stage.
        guide_params: parameters of the CLIP or classifier.
        captions: token ids by name of the stage that reads them.
        targets: captions as the CLIP or classifier reads them.
        z_img: embeddings from the prior; None for a decoder that reads captions alone.
        keys: one per image.
        guide: config of the CLIP or classifier.
        scale: factor on its gradient, which shifts the mean of ancestral sampling, and eps of other
            samplers.
        sampling: sampling settings of the decoder.
        upsampling: settings of the upsamplers.

    Raises:
        UserError: the guide does not fit the decoder, or the decoder reads CLIP's token features.
    """
    stage = cascade.stage("decoder")
    if stage.name not in captions:
        raise UserError(
            f"the {stage.name} reads no token ids of its own, as guidance by a noise-aware CLIP or "
            "a classifier requires; leave out its scale."
        )
    sizes = {"diffusion": stage.config.diffusion, "image_size": cascade.base_size}
    if isinstance(guide, ClassifierStageConfig):
        assert not isinstance(targets, TokenIds)
        gradient = class_gradient(guide, guide_params, targets, **sizes)
    else:
        assert isinstance(targets, TokenIds)
        z_txt = clip.encode_text(guide, guide_params, targets).z_txt
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
    return text_to_image.upsample(
        cascade, params, base, keys, captions=captions, options=upsampling
    )
