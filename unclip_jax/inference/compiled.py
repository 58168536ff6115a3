"""The compiled functions of one cascade, each made at its first use and kept.

Seeds, captions, pictures, eta and the points of a path are data to them; chains and options are
not, and compile a program of their own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax.core.types import Embedding, Image
from unclip_jax.diffusion.ddpm_inversion import NoiseMaps
from unclip_jax.diffusion.samplers import Sampled
from unclip_jax.inference import ddpm_latents, decoding, latents, text_to_image, upsampler_latents
from unclip_jax.inference.latents import Latent
from unclip_jax.inference.text_to_image import Cascade
from unclip_jax.inference.upsampler_latents import UpsamplerLatents
from unclip_jax.stages.captions import ClipText


class CompiledFunctions:
    """What a studio runs; the parameters are the first argument of each."""

    def __init__(self, cascade: Cascade):
        """`cascade`: configs of the stages."""
        self.cascade = cascade

    @functools.cached_property
    def text_embedding(self) -> Callable[..., Embedding]:
        """z_txt of captions."""

        def run(params, captions):
            return text_to_image.text_embedding(self.cascade, params, captions=captions)

        return jax.jit(run)

    @functools.cached_property
    def clip_text(self) -> Callable[..., ClipText]:
        """`text_to_image.clip_text`."""

        def run(params, captions):
            return text_to_image.clip_text(self.cascade, params, captions=captions)

        return jax.jit(run)

    @functools.cached_property
    def image_embedding(self) -> Callable[..., Embedding]:
        """z_img of pictures at CLIP's size."""

        def run(params, images):
            return text_to_image.image_embedding(self.cascade, params, images=images)

        return jax.jit(run)

    @functools.cached_property
    def imagine(self) -> Callable[..., Embedding]:
        """z_img from the prior."""

        def run(params, captions, keys, options):
            return text_to_image.sample_z_img(self.cascade, params, captions, keys, options=options)

        return jax.jit(run, static_argnames="options")

    @functools.cached_property
    def encode(self) -> Callable[..., Latent]:
        """`latents.encode`."""

        def run(params, images, clip_images, caption, *, steps, refinements):
            return latents.encode(
                self.cascade,
                params,
                images=images,
                clip_images=clip_images,
                caption=caption,
                steps=steps,
                refinements=refinements,
            )

        return jax.jit(run, static_argnames=("steps", "refinements"))

    @functools.cached_property
    def decode(self) -> Callable[..., Any]:
        """`decoding.decode`, with previews beside each image."""

        def run(params, x_T, *, options, **inputs):
            decoded = decoding.decode(self.cascade.decoder, params, x_T, options=options, **inputs)
            previews = None if decoded.previews is None else jnp.swapaxes(decoded.previews, 0, 1)
            return decoded.images, previews

        return jax.jit(run, static_argnames="options")

    @functools.cached_property
    def decode_part(self) -> Callable[..., Sampled]:
        """`decoding.decode_part`."""

        def run(params, x_t, *, options, **inputs):
            cfg = self.cascade.decoder
            return decoding.decode_part(cfg, params, x_t, options=options, **inputs)

        return jax.jit(run, static_argnames="options")

    @functools.cached_property
    def encode_maps(self) -> Callable[..., NoiseMaps]:
        """`ddpm_latents.encode`."""

        def run(params, images, *, guidance, **inputs):
            inputs["guidance"] = guidance
            return ddpm_latents.encode(self.cascade.decoder, params, images, **inputs)

        return jax.jit(run, static_argnames="guidance")

    @functools.cached_property
    def decode_maps(self) -> Callable[..., Sampled]:
        """`ddpm_latents.decode_part`."""

        def run(params, maps, *, guidance, **inputs):
            inputs["guidance"] = guidance
            return ddpm_latents.decode_part(self.cascade.decoder, params, maps, **inputs)

        return jax.jit(run, static_argnames="guidance")

    @functools.cached_property
    def upsample(self) -> Callable[..., Image]:
        """`text_to_image.upsample`."""

        def run(params, images, keys, *, start):
            return text_to_image.upsample(self.cascade, params, images, keys, start=start)

        return jax.jit(run, static_argnames="start")

    @functools.cached_property
    def encode_details(self) -> Callable[..., UpsamplerLatents]:
        """`details.encode`."""

        def run(params, base, targets, *, steps, refinements):
            chain = {"steps": steps, "refinements": refinements}
            return upsampler_latents.encode(self.cascade, params, base, targets=targets, **chain)

        return jax.jit(run, static_argnames=("steps", "refinements"))

    @functools.cached_property
    def enlarge(self) -> Callable[..., Image]:
        """`details.decode`."""

        def run(params, images, keys, given, eta, *, steps):
            how = {"details": given, "keys": keys, "steps": steps, "eta": eta}
            return upsampler_latents.decode(self.cascade, params, images, **how)

        return jax.jit(run, static_argnames="steps")
