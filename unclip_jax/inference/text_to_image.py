"""Caption -> z_img -> base image -> upsampled image, as one pure function (unCLIP, section 2).

    P(x | y) = P(x | z_img, y) P(z_img | y): the prior draws z_img, the decoder draws the image.

Image i depends on (seed, i) alone: every draw comes from the key of its image, so neither the batch
it is in nor the number of devices changes it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from unclip_jax.core import rng
from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.types import Embedding, Image, Keys, LowRes, Params
from unclip_jax.diffusion.analytic import VarianceTable
from unclip_jax.models.clip import Clip, TextOutput
from unclip_jax.stages import decoder, prior, prior_ar, upsampler
from unclip_jax.stages.base import apply
from unclip_jax.stages.captions import ClipText, TokenIds, empty_caption
from unclip_jax.stages.categorical import CodeSamplingConfig
from unclip_jax.stages.clip import ClipStageConfig
from unclip_jax.stages.decoder import NULL, Condition, DecoderStageConfig
from unclip_jax.stages.gaussian import SamplingConfig
from unclip_jax.stages.prior import PriorStageConfig
from unclip_jax.stages.prior_ar import PriorArStageConfig
from unclip_jax.stages.upsampler import UpsamplerStageConfig

CONDITIONS = ("prior", "z_txt", "z_img")
MAX_BEST_OF = 64  # pictures per caption to choose from


@dataclasses.dataclass(frozen=True)
class Cascade:
    """The typed configs of one fitting set of stages, from CLIP to the last upsampler.

    Either prior will do; nothing after it knows which one drew z_img.

    Attributes:
        clip: text and image towers.
        prior: caption to z_img.
        decoder: z_img to the base image.
        upsamplers: in order.
        variance_table: the prior's, where its export has one.
    """

    clip: ClipStageConfig
    prior: PriorStageConfig | PriorArStageConfig
    decoder: DecoderStageConfig
    upsamplers: tuple[UpsamplerStageConfig, ...] = ()
    variance_table: VarianceTable | None = None

    @property
    def reads_clip(self) -> bool:
        """True if the prior or the decoder reads CLIP's token features."""
        own = isinstance(self.prior, PriorArStageConfig) or self.prior.model.caption == "tokens"
        return not own or self.decoder_reads_clip

    @property
    def decoder_reads_clip(self) -> bool:
        """True if the decoder reads CLIP's token features."""
        return self.decoder.model.caption == "clip_sequence"

    def embedding(self, z: Embedding) -> Embedding:
        """Returns a raw CLIP embedding as the prior and the decoder exchange it."""
        return z if self.decoder.embedding == "raw" else unit(z)

    @property
    def image_size(self) -> int:
        """Side of the final image in pixels."""
        last = self.upsamplers[-1].model.unet if self.upsamplers else self.decoder.model.unet
        return last.image_size


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """What a caller may change without retraining; None = as the stage was exported.

    Attributes:
        prior: sampling of the prior, of its own kind.
        decoder: sampling of the decoder.
        upsamplers: sampling of the upsamplers, in order; () = as exported.
        num_candidates: embeddings drawn per caption.
        condition: where z_img comes from: "prior", "z_txt" (the caption embedding used as if it
            were an image embedding, unCLIP section 5.1), or "z_img" (given).
        best_of: pictures drawn per caption, of which the one nearest to the caption in CLIP's space
            is kept (the reranking of DALL-E, arXiv 2102.12092, section 2.6); 1 = no choice.
    """

    prior: SamplingConfig | CodeSamplingConfig | None = None
    decoder: SamplingConfig | None = None
    upsamplers: tuple[SamplingConfig, ...] = ()
    num_candidates: int | None = None
    condition: str = "prior"
    best_of: int = 1

    def __post_init__(self):
        one_of("condition", self.condition, CONDITIONS)
        in_range("best_of", self.best_of, 1, MAX_BEST_OF)


class Captions(NamedTuple):
    """One batch of captions, tokenised at the context length of each text model."""

    clip: tuple[Int[Array, " b l"], Array]
    prior: tuple[Int[Array, " b l"], Array]
    decoder: tuple[Int[Array, " b l"], Array]


class CascadeOutput(NamedTuple):
    """What one run made."""

    z_img: Embedding
    base: Image
    images: Image


def keys_for(seed: int | Integer[Array, ""], indices: Int[Array, " b"]) -> Keys:
    """The keys of images `indices` under `seed`: image i depends on (seed, i) alone."""
    return rng.per_example(jax.random.key(seed), indices)


class Read(NamedTuple):
    """CLIP's features of the captions and of the empty one; None if no stage reads them."""

    text: ClipText | None
    empty: ClipText | None


def read_captions(
    cascade: Cascade, params: Params, captions: Captions, *, options: SampleOptions
) -> Read:
    """Runs CLIP's text tower as often as this cascade and these options need it."""
    text = empty = None
    if cascade.reads_clip or options.condition != "z_img":
        text = clip_text(cascade, params, captions=captions.clip)
    if cascade.reads_clip:
        empty = clip_text(cascade, params, captions=empty_caption(*captions.clip))
    return Read(text, empty)


def text_embedding(cascade: Cascade, params: Params, *, captions: Captions) -> Embedding:
    """Returns CLIP embeddings z_txt, L2-normalised or raw as the decoder takes z_img."""
    return cascade.embedding(clip_text(cascade, params, captions=captions.clip).z_txt)


def clip_text(
    cascade: Cascade, params: Params, *, captions: tuple[Int[Array, " b l"], Array]
) -> ClipText:
    """Returns the frozen CLIP's raw embeddings and token features of captions (ids and mask)."""
    tokens, mask = captions
    out: TextOutput = apply(
        Clip(cascade.clip.model), params["clip"], tokens, mask, method=Clip.encode_text
    )
    return ClipText(out.pooled, out.sequence, mask)


def image_embedding(cascade: Cascade, params: Params, *, images: Image) -> Embedding:
    """Returns CLIP embeddings of images in [-1, 1] at CLIP's input size, as the decoder takes them.

    That is L2-normalised, or raw where the decoder's `embedding` says so.
    """
    out = apply(Clip(cascade.clip.model), params["clip"], images, method=Clip.encode_image)
    return cascade.embedding(out)


def sample(
    cascade: Cascade,
    params: dict[str, Any],
    captions: Captions,
    keys: Keys,
    *,
    options: SampleOptions = SampleOptions(),
    z_img: Embedding | None = None,
) -> CascadeOutput:
    """Draw one image per caption; pure, so `jax.jit` compiles it as a whole.

    Args:
        cascade: configs of the stages.
        params: {"clip", "prior", "decoder", "upsamplers": [...]} parameter trees.
        captions: tokenised captions.
        keys: one key per image (`keys_for`).
        options: overrides of the exported sampling settings.
        z_img: the image embeddings when `options.condition` is "z_img".

    Raises:
        UserError: condition "z_img" without `z_img`.
    """
    if options.best_of == 1:
        return _sample(cascade, params, captions, keys, options=options, z_img=z_img)
    z_txt = unit(clip_text(cascade, params, captions=captions.clip).z_txt)

    def candidate(number: Int[Array, ""]) -> tuple[CascadeOutput, Float[Array, " b"]]:
        own = jnp.where(number == 0, keys, rng.fold_each(keys, "candidate", number))
        output = _sample(cascade, params, captions, own, options=options, z_img=z_img)
        return output, clip_score(cascade, params, images=output.images, z_txt=z_txt)

    def keep_better(best: tuple[CascadeOutput, Float[Array, " b"]], number: Int[Array, ""]):
        output, score = candidate(number)
        better = ~(score <= best[1])  # the first of equal ones stays

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, (output, score), best), None

    output, score = jax.eval_shape(candidate, jnp.int32(0))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), output)
    numbers = jnp.arange(options.best_of)
    return jax.lax.scan(keep_better, (start, jnp.full(score.shape, -jnp.inf)), numbers)[0][0]


def clip_score(
    cascade: Cascade, params: Params, *, images: Image, z_txt: Embedding
) -> Float[Array, " b"]:
    """Cosine between images in [-1, 1], of any size, and unit-norm caption embeddings."""
    side = cascade.clip.model.image_size
    shape = (images.shape[0], side, side, images.shape[3])
    seen = jnp.clip(jax.image.resize(images, shape, "bicubic"), -1.0, 1.0)
    z_img = apply(Clip(cascade.clip.model), params["clip"], seen, method=Clip.encode_image)
    return jnp.sum(unit(z_img) * z_txt, axis=-1)


def _sample(
    cascade: Cascade,
    params: dict[str, Any],
    captions: Captions,
    keys: Keys,
    *,
    options: SampleOptions,
    z_img: Embedding | None,
) -> CascadeOutput:
    """One image per caption, whatever it has become."""
    read = read_captions(cascade, params, captions, options=options)
    z_img = sample_z_img(cascade, params, captions, keys, options=options, z_img=z_img, read=read)
    base = sample_base(
        cascade, params["decoder"], captions, keys, options=options, z_img=z_img, read=read
    )
    images = upsample(cascade, params, base, keys, options=options)
    return CascadeOutput(z_img, base, images)


def sample_base(
    cascade: Cascade,
    params: Params,
    captions: Captions,
    keys: Keys,
    *,
    options: SampleOptions,
    z_img: Embedding,
    read: Read,
) -> Image:
    """Samples the decoder's images for z_img; `params` are the decoder's alone."""
    text = read.text if cascade.decoder_reads_clip else TokenIds(*captions.decoder)
    return decoder.sample(
        cascade.decoder,
        params,
        Condition(z_img, text),
        keys=rng.fold_each(keys, "decoder"),
        sampling=options.decoder,
        negative=Condition(None, read.empty) if cascade.decoder_reads_clip else NULL,
    )


def upsample(
    cascade: Cascade,
    params: dict[str, Any],
    images: LowRes,
    keys: Keys,
    *,
    options: SampleOptions = SampleOptions(),
    start: int = 0,
) -> Image:
    """Run the upsamplers from number `start` on in order on images in [-1, 1]."""
    for index in range(len(cascade.upsamplers))[start:]:
        images = upsample_once(
            cascade, params["upsamplers"][index], images, keys, options=options, at=index
        )
    return images


def upsample_once(
    cascade: Cascade, params: Params, images: LowRes, keys: Keys, *, options: SampleOptions, at: int
) -> Image:
    """Run upsampler number `at` on images in [-1, 1]; `params` are its alone."""
    stage = cascade.upsamplers[at]
    return upsampler.sample(
        stage,
        params,
        low_res=quantise(images) if stage.quantise else images,
        keys=rng.fold_each(keys, "upsampler", at),
        sampling=options.upsamplers[at] if options.upsamplers else None,
    )


def quantise(images: Image) -> Image:
    """Round to the 8-bit levels that upsamplers were trained on (GLIDE's released sampler)."""
    return jnp.round((images + 1.0) * 127.5) / 127.5 - 1.0


def sample_z_img(
    cascade: Cascade,
    params: dict[str, Any],
    captions: Captions,
    keys: Keys,
    *,
    options: SampleOptions = SampleOptions(),
    z_img: Embedding | None = None,
    read: Read | None = None,
) -> Embedding:
    """The z_img that the decoder will see (norm 1, or raw); arguments as for `sample`.

    `read` is what `read_captions` says of the captions, where the caller has it already.

    Raises:
        UserError: condition "z_img" without `z_img`.
    """
    if options.condition == "z_img":
        if z_img is None:
            raise UserError("condition 'z_img' needs z_img; give image embeddings.")
        return cascade.embedding(z_img)
    text, empty = read or read_captions(cascade, params, captions, options=options)
    assert text is not None
    z_txt = cascade.embedding(text.z_txt)
    if options.condition == "z_txt":
        return z_txt
    tokens, mask = captions.prior
    if isinstance(cascade.prior, PriorArStageConfig):
        assert not isinstance(options.prior, SamplingConfig)
        return prior_ar.sample(
            cascade.prior,
            params["prior"],
            tokens=tokens,
            token_mask=mask,
            z_txt=z_txt,
            keys=rng.fold_each(keys, "prior"),
            sampling=options.prior,
            num_candidates=options.num_candidates,
        )
    assert not isinstance(options.prior, CodeSamplingConfig)
    return prior.sample(
        cascade.prior,
        params["prior"],
        tokens=tokens,
        token_mask=mask,
        z_txt=z_txt,
        keys=rng.fold_each(keys, "prior"),
        sampling=options.prior,
        num_candidates=options.num_candidates,
        table=cascade.variance_table,
        text=text,
        empty=empty,
    )
