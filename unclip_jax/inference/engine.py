"""A loaded cascade at work: pictures and captions in, pictures out, in batches of one shape.

Each kind of work is one compiled function of programs.py; seeds, captions, pictures, eta and the
points of a path are data to it.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from unclip_jax.core.picture import to_uint8
from unclip_jax.core.types import Embedding, Image, Keys, LowRes, Params
from unclip_jax.data import image_codec, text
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.ddpm_inversion import NoiseMaps
from unclip_jax.handoff.export import params_id
from unclip_jax.inference import (
    batched,
    ddpm_latents,
    decoding,
    load,
    progress,
    text_to_image,
    upsampler_latents,
)
from unclip_jax.inference.compiled import CompiledFunctions
from unclip_jax.inference.ddpm_latents import MapOptions
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.image_files import InputImage, mask_square, square
from unclip_jax.inference.latents import Latent, LatentOrigin, UpsamplerLatentOrigin
from unclip_jax.inference.load import LoadedCascade
from unclip_jax.inference.progress import Progress, ProgressCallback
from unclip_jax.inference.requests import Conditioning, DecodeRequest, DecodeResult
from unclip_jax.inference.text_to_image import Captions, SampleOptions
from unclip_jax.inference.upsampler_latents import UpsamplerLatents
from unclip_jax.stages.captions import Caption, TokenIds
from unclip_jax.stages.decoder import Condition, InpaintTarget

T = TypeVar("T")


class InferenceEngine:
    """A cascade with its tokenizer and its compiled functions."""

    def __init__(self, loaded: LoadedCascade, *, batch: int = 16):
        """`batch`: images at once."""
        self.loaded, self.batch = loaded, batch
        self.cascade, self.params = loaded.cascade, loaded.params
        self.programs = CompiledFunctions(loaded.cascade)
        self.tokenizer = text.load(loaded.tokenizer_dir)
        self.watch: ProgressCallback | None = (
            None  # told of progress; pictures are then decoded in parts
        )

    @classmethod
    def open(cls, models: pathlib.Path, *, batch: int = 16) -> "InferenceEngine":
        """Load a run directory.

        Raises:
            UserError: a stage is missing, damaged, or does not fit the others.
        """
        return cls(load.load_cascade(models), batch=batch)

    @property
    def base_size(self) -> int:
        """Side of the decoder's images."""
        return self.cascade.decoder.model.unet.image_size

    @functools.cached_property
    def decoder_id(self) -> str:
        """Identity of the decoder's parameters."""
        return params_id(self.params["decoder"])

    @functools.cached_property
    def _upsampler_ids(self) -> tuple[str, ...]:
        return tuple(params_id(params) for params in self.params["upsamplers"])

    @property
    def clip_id(self) -> str:
        """Identity of the CLIP."""
        return str(self.loaded.manifests["clip"].clip_id)

    def facts(self) -> dict[str, Any]:
        """Which models these are, for the record beside every result."""
        shown = ("size", "step", "parameters", "image_size", "created", "code_version")
        stages = {
            name: {field: getattr(card, field) for field in shown}
            for name, card in self.loaded.manifests.items()
        }
        return {"clip_id": self.clip_id, "decoder_id": self.decoder_id, "stages": stages}

    def tokens(self, captions: Sequence[str]) -> Captions:
        """Captions at the context length of each text model."""
        return batched.tokenise(self.cascade, self.tokenizer, captions)

    def text_embeddings(self, captions: Sequence[str]) -> Embedding:
        """Unit-norm z_txt, one per caption."""
        run = lambda tokens: self.programs.text_embedding(self.params, tokens)  # noqa: E731
        return self._in_batches(run, self.tokens(captions), "embed captions")

    def image_embeddings(self, pictures: Sequence[InputImage]) -> Embedding:
        """Unit-norm z_img, one per picture."""
        run = lambda images: self.programs.image_embedding(self.params, images)  # noqa: E731
        return self._in_batches(run, self._squares(pictures, self._clip_size), "embed pictures")

    def imagine(
        self,
        captions: Sequence[str],
        *,
        seed: int,
        indices: Sequence[int],
        options: SampleOptions | None = None,
    ) -> Embedding:
        """Unit-norm z_img that the prior draws for captions."""
        asked = options or SampleOptions()
        options = SampleOptions(  # what concerns the prior; anything else would compile it again
            prior=asked.prior or self.cascade.prior.sampling,
            num_candidates=asked.num_candidates,
            condition=asked.condition,
        )
        keys = text_to_image.keys_for(seed, jnp.asarray(indices))
        run = lambda batch: self.programs.imagine(self.params, *batch, options=options)  # noqa: E731
        return self._in_batches(run, (self.tokens(captions), keys), "prior")

    def encode(
        self,
        pictures: Sequence[InputImage],
        *,
        captions: Sequence[str | None],
        steps: str,
        refinements: int,
    ) -> Latent:
        """The bipartite latents of pictures, without details."""
        images = [self._squares(pictures, size) for size in (self.base_size, self._clip_size)]
        static = {"steps": steps, "refinements": refinements}
        run = lambda batch: self.programs.encode(self.params, *batch, **static)  # noqa: E731
        return self._in_batches(run, (*images, self._captions(captions)), "invert")

    def encode_details(
        self,
        base: Image,
        pictures: Sequence[InputImage],
        *,
        steps: str | None = None,
        refinements: int = 0,
    ) -> UpsamplerLatents:
        """The upsamplers' noise for pictures of which `decode` makes `base`."""
        sizes = [cfg.model.unet.image_size for cfg in upsampler_latents.leading(self.cascade)]
        if not sizes:
            return ()
        targets = tuple(self._squares(pictures, size) for size in sizes)
        static = {"steps": steps, "refinements": refinements}
        run = lambda batch: self.programs.encode_details(self.params, *batch, **static)  # noqa: E731
        return self._in_batches(run, (base, targets), "invert upsamplers")

    def detail_origins(self, steps: str | None) -> tuple[UpsamplerLatentOrigin, ...]:
        """The note that goes with details: one line per upsampler that has them."""
        return tuple(
            UpsamplerLatentOrigin(
                upsampler_id=name,
                image_size=cfg.model.unet.image_size,
                steps=upsampler_latents.grid(cfg, steps),
            )
            for name, cfg in zip(
                self._upsampler_ids, upsampler_latents.leading(self.cascade), strict=False
            )
        )

    def origin(
        self, picture: InputImage, *, caption: str | None, steps: str, refinements: int
    ) -> LatentOrigin:
        """The note that goes with the latent of a picture, without details."""
        return LatentOrigin(
            clip_id=self.clip_id,
            decoder_id=self.decoder_id,
            image_size=self.base_size,
            steps=steps,
            refinements=refinements,
            caption=caption or "",
            source=picture.sha256,
            name=picture.name,
        )

    def fresh_noise(self, *, seed: int, indices: Sequence[int]) -> Image:
        """The x_T with which the text command begins image i of this seed."""
        keys = text_to_image.keys_for(seed, jnp.asarray(indices))
        return decoding.fresh_noise(self.cascade.decoder, keys)

    def draw(self, order: DecodeRequest) -> DecodeResult:
        """Decode and enlarge."""
        images, previews, keys = self._decoded(order)
        if order.upsample:
            held, steps = order.latent.details, order.upsampler_steps
            images = self.enlarge(images, keys, held=held, steps=steps, eta=order.eta)
        shown = None if previews is None else to_uint8(np.asarray(previews))
        return DecodeResult(to_uint8(np.asarray(images)), shown)

    def decode(self, latent: Latent, *, captions: Sequence[str | None], steps: str) -> Image:
        """Images in [-1, 1] at the decoder's size, as faithful as their latents."""
        options = DecodeOptions(decoding.faithful(steps))
        indices = [0] * len(captions)  # nothing is random
        return self._decoded(DecodeRequest(latent, captions, indices, 0, options))[0]

    def _decoded(
        self, order: DecodeRequest
    ) -> tuple[Image, Float[Array, " b p h w 3"] | None, Keys]:
        """Images of the decoder, previews of them if asked for, and the key of every image."""
        inputs, keys = self.decoding_inputs(order)
        watched = self.watch is not None and not order.options.previews
        run = self._decode_watched if watched else self.programs.decode
        decode = functools.partial(run, self.params["decoder"], options=order.options)
        base, previews = self._in_batches(lambda batch: decode(**batch), inputs, "decode")
        return base, previews, keys

    def decoding_inputs(self, order: DecodeRequest) -> tuple[dict[str, Any], Keys]:
        """The arrays that `decoding.decode` takes for an order, and the key of every image."""
        keys = text_to_image.keys_for(order.seed, jnp.asarray(order.indices))
        guided = not order.options.guidance.off
        conditions = self._conditions(order.told, guided=guided)
        inputs = {"x_T": order.latent.x_T, "keys": keys, **conditions}
        if order.eta is not None:
            inputs["eta"] = order.eta
        if order.hole is not None:
            inputs["inpaint"] = self._inpaint_target(order.hole, len(order.captions))
        return inputs, keys

    def encode_maps(
        self, pictures: Sequence[InputImage], told: Conditioning, *, options: MapOptions
    ) -> NoiseMaps:
        """The noise of every step of pictures; `told` holds their own z_img and captions."""
        inputs = {
            "images": self._squares(pictures, self.base_size),
            "keys": text_to_image.keys_for(told.seed, jnp.asarray(told.indices)),
            **self._conditions(told, guided=not options.guidance.off),
        }
        how = {"table": ddpm_latents.plan(self.cascade.decoder, options), **options.arguments()}
        encode = functools.partial(self.programs.encode_maps, self.params["decoder"], **how)
        return self._in_batches(lambda batch: encode(**batch), inputs, "invert")

    def decode_maps(
        self, maps: NoiseMaps, told: Conditioning, *, of: Sequence[int], options: MapOptions
    ) -> Image:
        """Images in [-1, 1] at the decoder's size; the i-th walks the maps of picture of[i]."""
        table = ddpm_latents.plan(self.cascade.decoder, options)
        looks = 1 if self.watch is None else progress.looks(len(table.t))
        decode = functools.partial(self.programs.decode_maps, self.params["decoder"])

        def run(batch: dict[str, Any]) -> Image:
            noise = jax.tree.map(lambda x: x[batch["of"]], maps)
            x_t, step = noise.x_t, 0
            for part in samplers.parts(table, looks):
                left = NoiseMaps(x_t, noise.maps[:, step : step + len(part.t)])
                state = decode(left, table=part, **options.arguments(), **batch["conditions"])
                x_t, step = state.x, step + len(part.t)
                self._look(state.previews[-1], step, len(table.t))
            return jnp.clip(x_t, -1.0, 1.0)

        guided = not options.guidance.off
        inputs = {"of": jnp.asarray(of), "conditions": self._conditions(told, guided=guided)}
        return self._in_batches(run, inputs, "decode")

    def enlarge(
        self,
        images: LowRes,
        keys: Keys,
        *,
        start: int = 0,
        held: UpsamplerLatents = (),
        steps: str | None = None,
        eta: Float[Array, " b"] | None = None,
    ) -> Image:
        """Run the upsamplers from number `start` on; nothing happens without any.

        With details `held`, from the first on: they draw from these, on `steps` and with `eta`.
        """
        if not self.cascade.upsamplers[start:]:
            return images
        if held:
            enlarge = functools.partial(self.programs.enlarge, self.params, steps=steps)
            given = (images, keys, held, eta)
            return self._in_batches(lambda batch: enlarge(*batch), given, "upsample")
        run = lambda batch: self.programs.upsample(self.params, *batch, start=start)  # noqa: E731
        return self._in_batches(run, (images, keys), "upsample")

    @property
    def _clip_size(self) -> int:
        return self.cascade.clip.model.image_size

    def _squares(self, pictures: Sequence[InputImage], size: int) -> Image:
        return jnp.asarray(image_codec.to_float(np.stack([square(p, size) for p in pictures])))

    def _conditions(self, told: Conditioning, *, guided: bool) -> dict[str, Condition]:
        """Returns the condition of every image, and the one that guidance leads away from."""
        conditions = {"condition": Condition(told.z_img, self._captions(told.captions))}
        if told.negative is not None:
            z = self.imagine(told.negative, seed=told.seed, indices=told.indices)
            conditions["negative"] = Condition(z, self._captions(told.negative))
        elif guided and self.cascade.decoder_reads_clip:  # it has no null caption but the empty one
            empty = self._captions([""] * len(told.captions))
            conditions["negative"] = Condition(None, empty)
        return conditions

    def _captions(self, captions: Sequence[str | None]) -> Caption:
        """Returns captions as the decoder reads them.

        None is no caption: all padding for a decoder that reads token ids, as in half of its
        training, and the empty caption for one that reads CLIP's features.
        """
        tokens = self.tokens([caption or "" for caption in captions])
        if self.cascade.decoder_reads_clip:
            run = functools.partial(self.programs.clip_text, self.params)
            return self._in_batches(run, tokens.clip, "embed captions")
        present = jnp.array([caption is not None for caption in captions])
        return TokenIds(tokens.decoder[0], tokens.decoder[1] & present[:, None])

    def _inpaint_target(self, hole: tuple[InputImage, InputImage], count: int) -> InpaintTarget:
        image = self._squares([hole[0]], self.base_size)
        mask = jnp.asarray(mask_square(hole[1], self.base_size))[None, :, :, None]
        return InpaintTarget(jnp.repeat(image, count, axis=0), jnp.repeat(mask, count, axis=0))

    def _in_batches(self, run: Callable[[Any], T], inputs: Any, name: str) -> T:
        """Run a function of one batch over many, all of one shape, and join what it returns."""
        count = jax.tree.leaves(inputs)[0].shape[0]
        size = min(self.batch, count)
        parts = []
        quiet = self.watch is not None
        with tqdm(total=count, unit="image", desc=name, leave=False, disable=quiet) as bar:
            for start in range(0, count, size):
                self._tell(Progress(name, start, count))
                kept = jnp.minimum(jnp.arange(start, start + size), count - 1)
                made = jax.block_until_ready(run(jax.tree.map(lambda x, i=kept: x[i], inputs)))
                parts.append(made)
                bar.update(min(size, count - start))
        self._tell(Progress(name, count, count))
        return jax.tree.map(lambda *each: jnp.concatenate(each)[:count], *parts)

    def _tell(self, now: Progress) -> None:
        if self.watch is not None:
            self._now = now
            self.watch(now)

    def _decode_watched(self, params: Params, x_T: Image, *, options: DecodeOptions, **inputs):
        """Decodes like `CompiledFunctions.decode`, with a preview after each part of the chain."""
        cfg, inpaint = self.cascade.decoder, inputs.get("inpaint")
        table = decoding.plan(cfg, options, eta=inputs.get("eta"), inpaints=inpaint is not None)
        x_t, step = x_T, 0
        memory = decoding.initial_memory(cfg, options, x_T, eta=inputs.get("eta"))
        for part in samplers.parts(table, progress.looks(len(table.t))):
            state = self.programs.decode_part(
                params, x_t, table=part, options=options, memory=memory, **inputs
            )
            x_t, memory, step = state.x, state.memory, step + len(part.t)
            self._look(state.previews[-1], step, len(table.t))
        return decoding.finish(x_t, inpaint), None

    def _look(self, x_0: Image, step: int, steps: int) -> None:
        """Show the watcher, if there is one, what the batch in work looks like."""
        if self.watch is not None:
            shown = to_uint8(np.asarray(x_0))[: self._now.total - self._now.done]
            self._tell(self._now._replace(step=step, steps=steps, images=shown))
