"""A loaded cascade that runs requests: captions and images in, images out.

    engine = InferenceEngine.open("runs/shapes")
    result = engine.sample("a red circle", num=4, seed=0)
    latent = engine.encode("one.png")

Images are processed in batches of one shape over all devices, of one process or of several. Every
step is compiled once and kept: seeds, captions, images, guidance scales, eta and the points of a
path are arguments of the program; chains and other options are static.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unclip_jax.conditioning.captions import Caption, TokenIds
from unclip_jax.convert import importing
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.core.types import Embedding, Image, Keys, LowRes
from unclip_jax.data import image_codec
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.ddpm_inversion import NoiseMaps
from unclip_jax.editing import ddpm_latents, latents, upsampler_latents
from unclip_jax.editing.ddpm_latents import MapOptions
from unclip_jax.editing.latents import Latent
from unclip_jax.editing.upsampler_latents import UpsamplerLatents
from unclip_jax.engine import request_fields
from unclip_jax.engine.decode_batch import Conditioning, DecodeBatch, DecodedImages
from unclip_jax.engine.image_inputs import (
    EncodedImage,
    ImageInput,
    InputImage,
    mask_square,
    squares,
)
from unclip_jax.engine.request_base import DecodingRequest, Request
from unclip_jax.engine.requests import TextRequest
from unclip_jax.engine.result import Result
from unclip_jax.handoff import export, shipped
from unclip_jax.inference import decoding, load, progress, text_to_image
from unclip_jax.inference.batch_runner import BatchRunner
from unclip_jax.inference.cascade import Captions, tokenise
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.load import LoadedCascade
from unclip_jax.inference.progress import ProgressCallback
from unclip_jax.inference.text_to_image import EXPORTED, CascadeOutput, SampleOptions
from unclip_jax.stages.decoder import Condition, InpaintTarget


class InferenceEngine:
    """A cascade with its tokenizer and its compiled functions."""

    def __init__(self, loaded: LoadedCascade, *, batch: int = 16, name: str = ""):
        """Places the parameters on the devices.

        Args:
            loaded: the models.
            batch: images per batch.
            name: name of the models, for the provenance of results.
        """
        self.loaded, self.name = loaded, name
        self.cascade = loaded.cascade
        self.runner = BatchRunner(loaded.cascade, batch=batch)
        self.params = self.runner.place(loaded.params)
        self.tokenizers = load.load_tokenizers(loaded.tokenizer_dirs)

    @classmethod
    def open(
        cls,
        path: str | pathlib.Path,
        *,
        prior: str = "prior",
        batch: int = 16,
        enlarges: bool = False,
    ) -> "InferenceEngine":
        """Loads a run directory, or Karlo's folder, which is converted beside itself once.

        Args:
            path: the folder, or the URL of a run directory.
            prior: "prior" or "prior_ar"; or the chain, such as "dalle".
            batch: images per batch.
            enlarges: True for `UpscaleRequest` alone, which needs no decoder.

        Raises:
            UserError: a stage is missing, damaged, or does not fit the others.
        """
        run = importing.run_directory(shipped.run_directory(path))
        loaded = load.load_cascade(run, prior_name=prior, enlarges=enlarges)
        return cls(loaded, batch=batch, name=str(path))

    def run(self, request: Request, *, progress: ProgressCallback | None = None) -> Result:
        """Runs a request.

        Args:
            request: one of `requests.REQUESTS`.
            progress: called with the state of the work several times per batch; it may stop the
                work by raising an exception. The decoder then runs in parts, with an image after
                each.

        Raises:
            UserError: these models cannot run this request, or not with these inputs.
        """
        if isinstance(request, DecodingRequest) and self.cascade.decoder_sampling is None:
            raise UserError(
                f"{request.name} edits the latent of a diffusion decoder, but this chain decodes "
                "codes; use complete, or --chain=unclip."
            )
        self.runner.progress = progress
        try:
            return request.run(self)
        finally:
            self.runner.progress = None

    def sample(self, captions: str | Sequence[str], **options: Any) -> Result:
        """Generates images for one caption or several; `options` are fields of `TextRequest`."""
        captions = (captions,) if isinstance(captions, str) else tuple(captions)
        values = {"captions": captions, **options}
        return self.run(request_fields.build(TextRequest, values, name=TextRequest.name))

    def encode(self, image: ImageInput, **options: Any) -> EncodedImage:
        """Encodes an image to its bipartite latent; `options`: see `handlers.encoding.encode`."""
        from unclip_jax.engine.handlers import encoding  # which imports this module

        return encoding.encode(self, [image], **options)[0]

    @property
    def watched(self) -> bool:
        """True if there is a progress callback; the decoder then runs in parts."""
        return self.runner.progress is not None

    # The models.

    @property
    def base_size(self) -> int:
        """Side of the decoder's images."""
        return self.cascade.base_size

    @property
    def clip_id(self) -> str:
        """Identity of the CLIP."""
        return self.loaded.clip_id or ""

    @functools.cached_property
    def decoder_id(self) -> str:
        """Identity of the decoder's parameters."""
        return export.params_id(self.loaded.params[self.cascade.stage("decoder").name])

    @functools.cached_property
    def upsampler_ids(self) -> tuple[str, ...]:
        """Identities of the upsamplers' parameters."""
        return tuple(map(export.params_id, self.cascade.upsampler_params(self.loaded.params)))

    def describe(self) -> dict[str, Any]:
        """Identities and sizes of the models, JSON-ready, for the provenance of results."""
        names = ("size", "step", "parameters", "image_size", "created", "code_version")
        stages = {
            stage: {name: getattr(manifest, name) for name in names}
            for stage, manifest in self.loaded.manifests.items()
        }
        decoder_id = self.decoder_id if self.cascade.has("decoder") else None
        return {"clip_id": self.clip_id, "decoder_id": decoder_id, "stages": stages}

    # Captions, embeddings, whole cascades.

    def tokens(self, captions: Sequence[str]) -> Captions:
        """Tokenises captions at the context length of each text model."""
        return tokenise(self.cascade, self.tokenizers, captions)

    def text_embeddings(self, captions: Sequence[str]) -> Embedding:
        """Computes z_txt, one per caption."""
        embed = self.runner.compiled(text_to_image.text_embedding)
        run = lambda tokens: embed(self.params, captions=tokens)  # noqa: E731
        return self.runner.run(run, self.tokens(captions), "embed captions")

    def image_embeddings(self, images: Sequence[InputImage]) -> Embedding:
        """Computes z_img, one per image."""
        embed = self.runner.compiled(text_to_image.image_embedding)
        run = lambda batch: embed(self.params, images=batch)  # noqa: E731
        return self.runner.run(run, jnp.asarray(squares(images, self._clip_size)), "embed images")

    def caption_scores(
        self, images: UInt8[np.ndarray, " b h w 3"], captions: Sequence[str]
    ) -> Float[Array, " b"]:
        """Computes CLIP's cosine of every image and its caption."""
        score = self.runner.compiled(text_to_image.caption_score)
        run = lambda batch: score(self.params, images=batch[0], captions=batch[1])  # noqa: E731
        batch = (jnp.asarray(image_codec.to_float(images)), self.tokens(captions))
        return self.runner.run(run, batch, "score")

    def sample_prior(
        self,
        captions: Sequence[str],
        *,
        seed: int,
        indices: Sequence[int],
        options: SampleOptions | None = None,
        candidate: int = 0,
    ) -> Embedding:
        """Samples a z_img per caption from the prior."""
        options = (options or SampleOptions()).embedding(self.cascade.prior.sampling)
        sample = self.runner.compiled(text_to_image.sample_z_img, "options")
        run = lambda batch: sample(self.params, *batch, options=options)  # noqa: E731
        keys = _keys(seed, indices, candidate)
        return self.runner.run(run, (self.tokens(captions), keys), "prior")

    def sample_cascade(
        self, captions: Sequence[str], *, seed: int, options: SampleOptions
    ) -> CascadeOutput:
        """Samples an image per caption with all stages, compiled as one program."""
        sample = self.runner.compiled(text_to_image.sample, "options")
        run = lambda batch: sample(self.params, *batch, options=options)  # noqa: E731
        keys = _keys(seed, range(len(captions)))
        return self.runner.run(run, (self.tokens(captions), keys), "sample")

    # Latents.

    def invert(
        self,
        images: Sequence[InputImage],
        *,
        captions: Sequence[str | None],
        steps: str,
        refinements: int,
    ) -> Latent:
        """Computes the bipartite latents of images, without details."""
        inputs = {
            "images": jnp.asarray(squares(images, self.base_size)),
            "clip_images": jnp.asarray(squares(images, self._clip_size)),
            "caption": self._captions(captions),
        }
        encode = self.runner.compiled(latents.encode, "steps", "refinements")
        encode = functools.partial(encode, self.params, steps=steps, refinements=refinements)
        return self.runner.run(lambda batch: encode(**batch), inputs, "invert")

    def invert_upsamplers(
        self,
        base: Image,
        images: Sequence[InputImage],
        *,
        steps: str | None = None,
        refinements: int = 0,
    ) -> UpsamplerLatents:
        """Computes the upsamplers' noise for images whose latents decode to `base`."""
        sizes = [cfg.model.unet.image_size for cfg in upsampler_latents.leading(self.cascade)]
        if not sizes:
            return ()
        targets = tuple(jnp.asarray(squares(images, size)) for size in sizes)
        encode = self.runner.compiled(upsampler_latents.encode, "steps", "refinements")
        static = {"steps": steps, "refinements": refinements}
        run = lambda batch: encode(self.params, batch[0], targets=batch[1], **static)  # noqa: E731
        return self.runner.run(run, (base, targets), "invert upsamplers")

    def initial_noise(self, *, seed: int, indices: Sequence[int], candidate: int = 0) -> Image:
        """Returns the x_T from which sampling image i of this seed starts."""
        return decoding.fresh_noise(self.cascade.decoder, _keys(seed, indices, candidate))

    # Decoding.

    def decode(self, batch: DecodeBatch) -> DecodedImages:
        """Decodes and enlarges."""
        images, previews, keys = self._decode(batch)
        if batch.upsample:
            images = self.upsample(
                images,
                keys,
                details=batch.latent.details,
                steps=batch.upsampler_steps,
                eta=batch.eta,
                captions=batch.captions,
                options=batch.upsampling,
            )
        previews = None if previews is None else to_uint8(np.asarray(previews))
        return DecodedImages(to_uint8(np.asarray(images)), previews)

    def decode_base(self, latent: Latent, *, captions: Sequence[str | None], steps: str) -> Image:
        """Decodes to images in [-1, 1] at the decoder's size: DDIM with eta 0, without clipping."""
        options = DecodeOptions(decoding.faithful(steps))
        indices = [0] * len(captions)  # nothing is random
        return self._decode(DecodeBatch(latent, captions, indices, 0, options))[0]

    def upsample(
        self,
        images: LowRes,
        keys: Keys,
        *,
        start: int = 0,
        details: UpsamplerLatents = (),
        steps: str | None = None,
        eta: Float[Array, " b"] | None = None,
        captions: Sequence[str | None] | None = None,
        options: SampleOptions = EXPORTED,
    ) -> Image:
        """Runs the upsamplers from number `start` on, if there are any.

        With `details` they run from the first on, starting from these, with `steps` and `eta`.
        `captions`, one per image, are for upsamplers that read captions; None = the empty caption.
        Without `details` they run with the settings of upsamplers in `options`.
        """
        stages, tokens = self.cascade.upsamplers[start:], None
        if not stages:
            return images
        if captions is not None and any(cfg.model.text is not None for cfg in stages):
            tokens = self.tokens([caption or "" for caption in captions])
        inputs = {"images": images, "keys": keys, "captions": tokens}
        static: dict[str, Any] = {"start": start, "options": options}
        function: Callable[..., Image] = text_to_image.upsample
        if details:
            function, static = upsampler_latents.decode, {"steps": steps}
            inputs |= {"details": details, "eta": eta}
        enlarge = self.runner.compiled(function, *static)
        run = lambda batch: enlarge(self.params, **batch, **static)  # noqa: E731
        return self.runner.run(run, inputs, "upsample")

    def invert_ddpm(
        self, images: Sequence[InputImage], conditioning: Conditioning, *, options: MapOptions
    ) -> NoiseMaps:
        """Computes the noise maps of images; `conditioning` describes the images themselves."""
        inputs = {
            "images": jnp.asarray(squares(images, self.base_size)),
            "keys": _keys(conditioning.seed, conditioning.indices),
            **self._conditions(conditioning, guided=not options.guidance.off),
        }
        static = {
            "table": ddpm_latents.plan(self.cascade.decoder, options),
            **options.arguments(),
        }
        encode = self.runner.compiled(ddpm_latents.encode, "guidance", config=self.cascade.decoder)
        encode = functools.partial(encode, self.params["decoder"], **static)
        return self.runner.run(lambda batch: encode(**batch), inputs, "invert")

    def decode_ddpm(
        self,
        maps: NoiseMaps,
        conditioning: Conditioning,
        *,
        of: Sequence[int],
        options: MapOptions,
    ) -> Image:
        """Decodes to images in [-1, 1] at the decoder's size; image i uses the noise maps of[i]."""
        table = ddpm_latents.plan(self.cascade.decoder, options)
        parts = progress.preview_count(len(table.t)) if self.watched else 1
        decode = self.runner.compiled(
            ddpm_latents.decode_part, "guidance", config=self.cascade.decoder
        )
        decode = functools.partial(decode, self.params["decoder"])

        def run(batch: dict[str, Any]) -> Image:
            x_t, noises, step = batch["maps"].x_t, batch["maps"].maps, 0
            for part in samplers.parts(table, parts):
                left = NoiseMaps(x_t, noises[:, step : step + len(part.t)])
                state = decode(left, table=part, **options.arguments(), **batch["conditions"])
                x_t, step = state.x, step + len(part.t)
                self.runner.preview(state.previews[-1], step, len(table.t))
            return jnp.clip(x_t, -1.0, 1.0)

        rows = jnp.asarray(of)
        inputs = {
            "maps": jax.tree.map(lambda x: x[rows], maps),
            "conditions": self._conditions(conditioning, guided=not options.guidance.off),
        }
        return self.runner.run(run, inputs, "decode")

    # Batches of the decoder.

    def _decode(self, batch: DecodeBatch) -> tuple[Image, Float[Array, " b p h w 3"] | None, Keys]:
        """Returns the decoder's images, their previews if requested, and the key of every image."""
        keys = _keys(batch.seed, batch.indices, batch.candidate)
        inputs = {
            "x_T": batch.latent.x_T,
            "keys": keys,
            **self._conditions(batch.conditioning, guided=not batch.options.guidance.off),
        }
        if batch.eta is not None:
            inputs["eta"] = batch.eta
        if batch.inpaint is not None:
            inputs["inpaint"] = self._inpaint_target(batch.inpaint, len(batch.captions))
        in_parts = self.watched and not batch.options.previews
        run = self._decode_in_parts if in_parts else self._decode_whole
        decode = functools.partial(run, options=batch.options)
        images, previews = self.runner.run(lambda rows: decode(**rows), inputs, "decode")
        return images, previews, keys

    def _decode_whole(self, **inputs: Any) -> tuple[Image, Float[Array, " b p h w 3"] | None]:
        decode = self.runner.compiled(decoding.decode_rows, "options", config=self.cascade.decoder)
        return decode(self.params["decoder"], **inputs)

    def _decode_in_parts(
        self, x_T: Image, *, options: DecodeOptions, **inputs: Any
    ) -> tuple[Image, None]:
        """Decodes as `_decode_whole`, and reports the predicted x_0 between parts of the chain."""
        cfg, inpaint, eta = self.cascade.decoder, inputs.get("inpaint"), inputs.get("eta")
        decode = self.runner.compiled(decoding.decode_part, "options", config=cfg)
        table = decoding.plan(cfg, options, eta=eta, inpaints=inpaint is not None)
        memory, x_t, step = decoding.initial_memory(cfg, options, x_T, eta=eta), x_T, 0
        for part in samplers.parts(table, progress.preview_count(len(table.t))):
            state = decode(
                self.params["decoder"], x_t, table=part, options=options, memory=memory, **inputs
            )
            x_t, memory, step = state.x, state.memory, step + len(part.t)
            self.runner.preview(state.previews[-1], step, len(table.t))
        return decoding.finish(x_t, inpaint), None

    @property
    def _clip_size(self) -> int:
        return self.cascade.clip.model.image_size

    def _conditions(self, conditioning: Conditioning, *, guided: bool) -> dict[str, Condition]:
        """Returns the condition of every image, and the negative one."""
        captions, negative = conditioning.captions, conditioning.negative
        conditions = {"condition": Condition(conditioning.z_img, self._captions(captions))}
        if negative is not None:
            z = self.sample_prior(negative, seed=conditioning.seed, indices=conditioning.indices)
            conditions["negative"] = Condition(z, self._captions(negative))
        elif guided and self.cascade.decoder_reads_clip:  # it has no null caption but the empty one
            conditions["negative"] = Condition(None, self._captions([""] * len(captions)))
        return conditions

    def _captions(self, captions: Sequence[str | None]) -> Caption:
        """Returns captions as the decoder reads them.

        None means no caption: all padding for a decoder that reads token ids, as in half of its
        training, and the empty caption for one that reads CLIP's features.
        """
        tokens = self.tokens([caption or "" for caption in captions])
        if self.cascade.decoder_reads_clip:
            encode = self.runner.compiled(text_to_image.clip_text)
            run = lambda batch: encode(self.params, captions=batch)  # noqa: E731
            return self.runner.run(run, tokens["clip"], "embed captions")
        present = jnp.array([caption is not None for caption in captions])
        ids = tokens["decoder"]
        return TokenIds(ids.tokens, ids.mask & present[:, None])

    def _inpaint_target(self, inpaint: tuple[InputImage, InputImage], count: int) -> InpaintTarget:
        image = jnp.asarray(squares([inpaint[0]], self.base_size))
        mask = jnp.asarray(mask_square(inpaint[1], self.base_size))[None, :, :, None]
        return InpaintTarget(jnp.repeat(image, count, axis=0), jnp.repeat(mask, count, axis=0))


def _keys(seed: int, indices: Sequence[int], candidate: int = 0) -> Keys:
    keys = text_to_image.keys_for(seed, jnp.asarray(indices))
    return text_to_image.candidate_keys(keys, candidate) if candidate else keys
