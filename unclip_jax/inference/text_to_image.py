"""Caption -> z_img -> base image -> upsampled image, as one pure function (unCLIP, section 2).

    P(x | y) = P(x | z_img, y) P(z_img | y): the prior samples z_img, the decoder samples the image.

The stages of the cascade run in order, each on the conditions that it reads. Image i depends on
(seed, i) alone: all randomness comes from the key of its image, so neither the batch it is in nor
the number of devices changes it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from unclip_jax.conditioning.captions import ClipText, EncodedCaptions, TokenFeatures, TokenIds
from unclip_jax.core import rng
from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.types import Embedding, Image, Keys, LowRes, Params
from unclip_jax.discrete.categorical import CodeSamplingConfig
from unclip_jax.inference.cascade import Captions, Cascade, PlannedStage, plan
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages import clip

CONDITIONS = ("prior", "z_txt", "z_img")
MAX_BEST_OF = 512  # images per caption to choose from


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Sampling settings that need no retraining; None = as the stage was exported.

    Attributes:
        prior: sampling settings of the prior.
        decoder: sampling settings of the decoder.
        upsamplers: sampling settings of the upsamplers, in order; () = as exported.
        upsampler_level: noise on the low-res images of all upsamplers, as a fraction of the chain.
        num_candidates: embeddings sampled per caption.
        condition: origin of z_img: "prior", "z_txt" (the caption embedding used as if it were an
            image embedding, unCLIP section 5.1), or "z_img" (an argument).
        best_of: images sampled per caption, of which the one nearest to the caption in CLIP's space
            is returned (the reranking of DALL-E, arXiv 2102.12092, section 2.6); 1 = no reranking.
    """

    prior: SamplingConfig | CodeSamplingConfig | None = None
    decoder: SamplingConfig | None = None
    upsamplers: tuple[SamplingConfig, ...] = ()
    upsampler_level: float | None = None
    num_candidates: int | None = None
    condition: str = "prior"
    best_of: int = 1

    def __post_init__(self):
        one_of("condition", self.condition, CONDITIONS)
        in_range("best_of", self.best_of, 1, MAX_BEST_OF)

    def embedding(self, exported: Any) -> "SampleOptions":
        """Returns the settings of z_img alone, so that other settings compile no other program."""
        return SampleOptions(
            prior=self.prior or exported,
            num_candidates=self.num_candidates,
            condition=self.condition,
        )

    @property
    def upsampling(self) -> "SampleOptions":
        """The settings of the upsamplers alone."""
        return SampleOptions(upsamplers=self.upsamplers, upsampler_level=self.upsampler_level)

    def of(self, step: PlannedStage) -> Any:
        """Returns the sampling settings of one stage; None = as exported."""
        match step.address:
            case ("prior",):
                return self.prior
            case ("decoder",):
                return self.decoder
            case ("upsampler", int(number)) if self.upsamplers:
                return self.upsamplers[number]
        return None


EXPORTED = SampleOptions()  # all settings as exported


class CascadeOutput(NamedTuple):
    """The samples of one batch.

    Attributes:
        z_img: image embeddings; None if no stage of the cascade reads them.
        base: images of the decoder.
        images: images of the last stage.
    """

    z_img: Embedding | None
    base: Image
    images: Image


def keys_for(seed: int | Integer[Array, ""], indices: Int[Array, " b"]) -> Keys:
    """Returns the keys of images `indices` under `seed`: image i depends on (seed, i) alone."""
    return rng.per_example(jax.random.key(seed), indices)


def sample(
    cascade: Cascade,
    params: Mapping[str, Params],
    captions: Captions,
    keys: Keys,
    *,
    options: SampleOptions = SampleOptions(),
    z_img: Embedding | None = None,
) -> CascadeOutput:
    """Samples one image per caption; pure, so `jax.jit` compiles it as a whole.

    Args:
        cascade: the stages.
        params: parameters by name of the stage.
        captions: token ids by name of the stage that reads them.
        keys: one key per image (`keys_for`).
        options: overrides of the exported sampling settings.
        z_img: the image embeddings when `options.condition` is "z_img".

    Raises:
        UserError: condition "z_img" without `z_img`, or `best_of` without a CLIP.
    """
    if options.best_of == 1:
        return _sample(cascade, params, captions, keys, options=options, z_img=z_img)
    z_txt = unit(clip_text(cascade, params, captions=captions).z_txt)

    def candidate(number: Int[Array, ""]) -> tuple[CascadeOutput, Float[Array, " b"]]:
        own = candidate_keys(keys, number)
        output = _sample(cascade, params, captions, own, options=options, z_img=z_img)
        score = clip_score(cascade, params, images=output.images, z_txt=z_txt)
        return output, jnp.where(jnp.isnan(score), -jnp.inf, score)

    def choose(best: tuple, number: Int[Array, ""]) -> tuple[tuple, None]:
        """Keeps the better of two candidates per row, so that memory holds one."""
        new = candidate(number)
        better = (new[1] > best[1]) | (number == 0)
        rows = lambda x: better.reshape(-1, *(1,) * (x.ndim - 1))  # noqa: E731
        return jax.tree.map(lambda x, old: jnp.where(rows(x), x, old), new, best), None

    shapes, _ = jax.eval_shape(candidate, jnp.zeros((), jnp.int32))
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    start = (empty, jnp.full(keys.shape[0], -jnp.inf))
    return jax.lax.scan(choose, start, jnp.arange(options.best_of))[0][0]


def _sample(
    cascade: Cascade,
    params: Mapping[str, Params],
    captions: Captions,
    keys: Keys,
    *,
    options: SampleOptions,
    z_img: Embedding | None,
) -> CascadeOutput:
    """Samples one image per caption, without reranking."""
    values = first_values(cascade, options, z_img=z_img)
    base = None
    for step in plan(cascade, condition=options.condition):
        values |= run(
            cascade, params[step.stage.name], step, values, captions, keys, options=options
        )
        base = values["image"] if step.address == ("decoder",) else base
    assert base is not None
    embedding = values.get("z_txt" if options.condition == "z_txt" else "z_img")
    return CascadeOutput(embedding, base, values["image"])


def first_values(
    cascade: Cascade, options: SampleOptions, *, z_img: Embedding | None
) -> dict[str, Any]:
    """Returns the values of a chain before its first stage runs.

    Raises:
        UserError: condition "z_img" without `z_img`.
    """
    if options.condition != "z_img":
        return {}
    if z_img is None:
        raise UserError("condition 'z_img' needs z_img; pass image embeddings.")
    return {"z_img": cascade.embedding(z_img)}


def run(
    cascade: Cascade,
    params: Params,
    step: PlannedStage,
    values: Mapping[str, Any],
    captions: Captions,
    keys: Keys,
    *,
    options: SampleOptions,
) -> dict[str, Any]:
    """Runs one stage of a chain and returns the values that it adds.

    Args:
        cascade: the stages.
        params: parameters of this stage alone.
        step: the stage, from `plan`.
        values: values of the chain so far.
        captions: token ids by name of the stage that reads them.
        keys: one key per image.
        options: overrides of the exported sampling settings.
    """
    stage, cfg = step.stage, step.stage.config
    conditions = {name: values[value] for name, value in step.inputs.items()}
    if "caption" in stage.reads:
        conditions["caption"] = captions[stage.name]
    if stage.entry.role == "prior" and options.num_candidates is not None:
        if not hasattr(cfg, "num_candidates"):
            raise UserError(
                f"--candidates is {options.num_candidates}, but the {stage.name} samples no "
                "embeddings to choose from; use --best-of."
            )
        cfg = dataclasses.replace(cfg, num_candidates=options.num_candidates)
    if stage.entry.role == "upsampler" and options.upsampler_level is not None:
        augment = dataclasses.replace(cfg.augment, level=options.upsampler_level)
        cfg = dataclasses.replace(cfg, augment=augment)
    outputs = stage.entry.sample(
        cfg,
        params,
        {**conditions, **dict(stage.measurements)},
        keys=rng.fold_each(keys, *step.address),
        sampling=options.of(step),
    )
    if "z_txt" in outputs:
        outputs["z_txt"] = cascade.embedding(outputs["z_txt"])
    return {name: outputs[name] for name in step.outputs}


def sample_z_img(
    cascade: Cascade,
    params: Mapping[str, Params],
    captions: Captions,
    keys: Keys,
    *,
    options: SampleOptions = SampleOptions(),
    z_img: Embedding | None = None,
) -> Embedding:
    """Samples the z_img that the decoder reads (norm 1, or raw); arguments as for `sample`.

    Raises:
        UserError: condition "z_img" without `z_img`, or a cascade without a prior.
    """
    values = first_values(cascade, options, z_img=z_img)
    goal = "z_txt" if options.condition == "z_txt" else "z_img"
    if options.condition == "prior":
        cascade.stage("prior")
    for step in plan(cascade, condition=options.condition, goal=goal):
        values |= run(
            cascade, params[step.stage.name], step, values, captions, keys, options=options
        )
    return values[goal]


def text_features(
    cascade: Cascade, params: Mapping[str, Params], captions: Captions, keys: Keys
) -> EncodedCaptions[TokenFeatures]:
    """Returns the features of captions that a language model of the cascade computes."""
    values: dict[str, Any] = {}
    for step in plan(cascade, goal="text_features"):
        own = params[step.stage.name]
        values |= run(cascade, own, step, values, captions, keys, options=SampleOptions())
    return values["text_features"]


def text_embedding(
    cascade: Cascade, params: Mapping[str, Params], *, captions: Captions
) -> Embedding:
    """Returns CLIP embeddings z_txt, L2-normalised or raw as the decoder takes z_img."""
    return cascade.embedding(clip_text(cascade, params, captions=captions).z_txt)


def clip_text(
    cascade: Cascade, params: Mapping[str, Params], *, captions: Captions | TokenIds
) -> ClipText:
    """Returns the frozen CLIP's raw embeddings and token features of captions."""
    cfg = cascade.clip
    ids = captions if isinstance(captions, TokenIds) else captions["clip"]
    return clip.encode_text(cfg, params["clip"], ids)


def image_embedding(cascade: Cascade, params: Mapping[str, Params], *, images: Image) -> Embedding:
    """Returns CLIP embeddings of images in [-1, 1] at CLIP's input size, as the decoder takes them.

    That is L2-normalised, or raw if the decoder's `embedding` says so.
    """
    return cascade.embedding(clip.encode_image(cascade.clip, params["clip"], images))


def clip_score(
    cascade: Cascade, params: Mapping[str, Params], *, images: Image, z_txt: Embedding
) -> Float[Array, " b"]:
    """Returns the cosine between images in [-1, 1], of any size, and unit-norm z_txt."""
    side = cascade.clip.model.image_size
    shape = (images.shape[0], side, side, images.shape[3])
    resized = jnp.clip(jax.image.resize(images, shape, "bicubic"), -1.0, 1.0)
    z_img = clip.encode_image(cascade.clip, params["clip"], resized)
    return jnp.sum(unit(z_img) * z_txt, axis=-1)


def caption_score(
    cascade: Cascade, params: Mapping[str, Params], *, images: Image, captions: Captions
) -> Float[Array, " b"]:
    """Returns the cosine between images in [-1, 1], of any size, and their captions."""
    z_txt = unit(clip_text(cascade, params, captions=captions).z_txt)
    return clip_score(cascade, params, images=images, z_txt=z_txt)


def candidate_keys(keys: Keys, number: int | Int[Array, ""]) -> Keys:
    """Returns the keys of candidate `number` of every image.

    Without reranking an image is candidate 0, so the selected candidate is never further from its
    caption than the image of the same seed.
    """
    return jnp.where(jnp.asarray(number) == 0, keys, rng.fold_each(keys, "candidate", number))


def upsample(
    cascade: Cascade,
    params: Mapping[str, Params],
    images: LowRes,
    keys: Keys,
    *,
    options: SampleOptions = SampleOptions(),
    start: int = 0,
    captions: Captions | None = None,
) -> Image:
    """Runs the upsamplers from number `start` on in order on images in [-1, 1].

    Args:
        cascade: the stages.
        params: parameters by name of the stage.
        images: at the size that the first of these upsamplers reads.
        keys: one key per image.
        options: overrides of the exported sampling settings.
        start: number of the first upsampler to run.
        captions: captions of the images, for upsamplers that read them.

    Raises:
        UserError: an upsampler that reads captions, without `captions`.
    """
    steps = [step for step in plan(cascade) if step.address[0] == "upsampler"][start:]
    values: dict[str, Any] = {"image": images}
    for step in steps:
        if "text_features" in step.inputs and "text_features" not in values:
            if captions is None:
                raise UserError(
                    f"the {step.stage.name} reads captions; give a caption of the images."
                )
            values["text_features"] = text_features(cascade, params, captions, keys)
        own = params[step.stage.name]
        values |= run(cascade, own, step, values, {}, keys, options=options)
    return values["image"]
