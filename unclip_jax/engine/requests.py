"""All requests to trained models: a frozen dataclass per kind.

    request = VariationsRequest(image="one.png", etas=(0.0, 1.0), seed=3)
    result = engine.run(request)

A request is checked when it is built: types, bounds, and constraints between fields. The command
line reads its flags from these classes, the HTTP API its schema. To add one: a class here or in
`fill_requests.py`, its line in `REQUESTS`, and a module of its name in `engine/handlers` with
`run(engine, request)`. Building a request does not import JAX.
"""

import dataclasses

from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import guidance_schedule
from unclip_jax.engine.fill_requests import CompleteRequest, InpaintRequest
from unclip_jax.engine.image_inputs import EncodedImage, ImageInput
from unclip_jax.engine.request_base import (
    ANIMATIONS,
    MAX_GUIDANCE,
    MAX_IMAGES,
    SCHEDULES,
    DecodingRequest,
    EncodingRequest,
    Request,
    UpsamplingRequest,
    check_negative,
)
from unclip_jax.engine.request_fields import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRequest(UpsamplingRequest):
    """Images for captions."""

    name = "text"
    summary = "Generate images for captions."

    captions: tuple[str, ...] = option(help="captions", positional=True)
    num: int = option(1, help="images per caption", low=1, high=MAX_IMAGES)
    guidance: float | None = option(
        None,
        help="guidance scale of the decoder, 1 = off; default: as exported",
        low=0,
        high=MAX_GUIDANCE,
    )
    steps: str | None = option(
        None, help="steps of the decoder: 50, ddim25, fast27, logsnr20, ...; default: as exported"
    )
    sampler: str | None = option(
        None, help="sampler of the decoder: ancestral, ddim, dpmpp_2m, dpmpp_3m, heun, edm"
    )
    threshold: str | None = option(
        None,
        help="bound on x_0 in the decoder; dynamic: Imagen's; default: as exported",
        choices=("none", "static", "dynamic"),
    )
    cap: float | None = option(
        None, help="with threshold dynamic: largest divisor of x_0; default: as exported", low=1
    )
    variance: str | None = option(
        None,
        help="ancestral sampler of the decoder: variance; default: as exported",
        choices=("small", "large", "mix", "learned_range"),
    )
    gamma: float | None = option(
        None,
        help="of variance mix: 0 = small to 1 = large (Imagen, eq. 6); default: as exported",
        low=0,
        high=1,
    )
    prior_guidance: float | None = option(
        None,
        help="guidance scale of the prior, 1 = off; default: as exported",
        low=0,
        high=MAX_GUIDANCE,
    )
    prior_steps: str | None = option(None, help="diffusion prior: steps, as --steps")
    prior_sampler: str | None = option(None, help="diffusion prior: sampler, as --sampler")
    prior_variance: str | None = option(
        None, help="diffusion prior, ancestral sampler: small, large or table"
    )
    prior_temperature: float | None = option(
        None, help="autoregressive prior, DALL-E: temperature, 0 = greedy", low=0, high=100
    )
    prior_top_k: int | None = option(
        None,
        help="autoregressive prior, DALL-E: most probable codes to sample from",
        low=1,
    )
    prior_top_p: float | None = option(
        None,
        help="autoregressive prior, DALL-E: top-p (nucleus) sampling, 1 = all codes",
        low=0,
        high=1,
    )
    prior_dot_percentile: float | None = option(
        None,
        help="autoregressive prior: condition on z_img . z_txt (dot product) above this percentile",
        low=0,
        high=99.9,
    )
    candidates: int | None = option(
        None,
        help="embeddings sampled per caption, of which the nearest to the caption is used",
        low=1,
        high=64,
    )
    best_of: int = option(
        1,
        help="images sampled per caption, of which CLIP selects the nearest to it",
        low=1,
        high=512,
    )
    condition: str = option(
        "prior", help="source of z_img; z_txt skips the prior", choices=("prior", "z_txt")
    )
    clip_scale: float = option(
        0.0, help="scale of a noise-aware CLIP's gradient (--guide), 0 = off", low=0, high=1000
    )
    classifier_scale: float = option(
        0.0, help="scale of a classifier's gradient (--guide), 0 = off", low=0, high=1000
    )
    guidance_schedule: str = option("constant", help=SCHEDULES)
    negative: str | None = option(None, help="a caption that guidance leads away from")
    previews: int = option(
        0, help="number of intermediate predictions of x_0 to return per image", low=0, high=64
    )
    animate: str | None = option(None, help="also write an animation", choices=ANIMATIONS)

    @property
    def image_count(self) -> int:
        """`num` times `best_of` per caption."""
        return len(self.captions) * self.num * self.best_of

    @property
    def guide_scale(self) -> tuple[str, float]:
        """Name and value of the scale of a guide's gradient; 0 = off."""
        if self.classifier_scale:
            return "classifier_scale", self.classifier_scale
        return "clip_scale", self.clip_scale

    @property
    def stepwise(self) -> bool:
        """True if the decoder has to run separately from the other stages."""
        schedule = self.guidance_schedule != "constant"
        return schedule or self.negative is not None or self.previews > 0

    def validate(self) -> None:
        """Checks constraints between fields."""
        schedule = guidance_schedule.parse(self.guidance_schedule, scale=self.guidance or 2.0)
        if self.guidance is not None:
            check_negative(self.negative, schedule)
        if self.clip_scale and self.classifier_scale:
            raise UserError(
                f"clip_scale is {self.clip_scale:g} and classifier_scale is "
                f"{self.classifier_scale:g}, but only one guide can be loaded; leave one out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructRequest(EncodingRequest):
    """Reconstruction of images from their latents."""

    name = "reconstruct"
    summary = "Encode images to their latents, save these, and decode them again."

    images: tuple[ImageInput, ...] = option(
        help="images or .npz latents", positional=True, latent=True
    )

    @property
    def image_count(self) -> int:
        """One per image."""
        return len(self.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationsRequest(EncodingRequest):
    """Variations of an image, which deviate more for a larger eta (unCLIP, section 3.1)."""

    name = "variations"
    summary = "Decode the latent of one image with growing noise: 0 reconstructs it."

    image: ImageInput = option(help="an image or an .npz latent", positional=True, latent=True)
    etas: tuple[float, ...] = option(
        (0.0, 0.25, 0.5, 0.75, 1.0), help="etas of DDIM", low=0, high=1, count=(1, 64)
    )
    num: int = option(3, help="images per eta", low=1, high=MAX_IMAGES)

    @property
    def image_count(self) -> int:
        """`num` per eta."""
        return len(self.etas) * self.num


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterpolateRequest(EncodingRequest):
    """Interpolation along a path of two or more images (unCLIP, section 3.2)."""

    name = "interpolate"
    summary = "Interpolate images: their CLIP embeddings, and their noise x_T if it is inverted."

    images: tuple[ImageInput, ...] = option(
        help="two or more images or .npz latents, in order",
        positional=True,
        latent=True,
        count=(2, 4096),
    )
    frames: int = option(7, help="images per pair, both ends counted", low=2, high=1000)
    noise: str = option(
        "shared",
        help="shared: one random x_T for all frames; inverted: interpolate the inverted x_T, so "
        "that the ends reproduce the images and frames between them are less clean",
        choices=("inverted", "shared"),
    )
    animate: str | None = option(None, help="also write an animation", choices=ANIMATIONS)

    @property
    def image_count(self) -> int:
        """Frames of the path; neighbouring pairs have one in common."""
        return (len(self.images) - 1) * (self.frames - 1) + 1

    @property
    def inverts_details(self) -> bool:
        """False for shared noise: no frame uses inverted details."""
        return self.noise == "inverted" and super().inverts_details


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDiffRequest(EncodingRequest):
    """Edit of an image by the difference of two captions (unCLIP, section 3.3)."""

    name = "text-diff"
    summary = "Turn an image towards a caption; its composition stays."

    image: ImageInput = option(
        help="an image, or an .npz latent (not for ddpm)", positional=True, latent=True
    )
    target: str = option(
        help="caption of the image that it should become", positional=True, blank=False
    )
    source: str | None = option(
        None, help="caption of the image, or a dummy such as 'a photo'; default: none"
    )
    theta: float = option(
        0.5, help="end of the path, as a fraction of the arc, usually 0.25 to 0.5", low=0, high=1
    )
    frames: int = option(7, help="images of the path, both ends counted", low=2, high=1000)
    refine: int = option(0, help="ddim: fixed-point iterations per step", low=0, high=32)
    inversion: str | None = option(
        None,
        help="noise that keeps the composition: that of every step (ddpm), or x_T as in the paper "
        "(ddim); default: ddpm, or ddim for a latent",
        choices=("ddim", "ddpm"),
    )
    strength: float | None = option(
        None, help="ddpm: fraction of the chain that is sampled again; default: 0.7", low=0, high=1
    )
    eta: float | None = option(None, help="ddpm: eta of its steps; default: 0.5", low=0, high=1)
    animate: str | None = option(None, help="also write an animation", choices=ANIMATIONS)

    @property
    def image_count(self) -> int:
        """One per frame."""
        return self.frames

    @property
    def keeps_noise_maps(self) -> bool:
        """True for DDPM inversion, the default for an image (a latent has no noise maps)."""
        default = "ddim" if isinstance(self.image, EncodedImage) else "ddpm"
        return (self.inversion or default) == "ddpm"

    @property
    def inverts_details(self) -> bool:
        """False by default under ddpm, where inverted details leave fringes of the old colour."""
        fresh = self.keeps_noise_maps and self.details is None
        return not fresh and super().inverts_details

    def validate(self) -> None:
        """Checks constraints between fields."""
        super().validate()
        default = "fresh" if self.keeps_noise_maps else "inverted"
        fresh = (self.details or default) == "fresh"
        if fresh and self.upsampler_steps:
            raise UserError(
                f"upsampler_steps is {self.upsampler_steps}, but details are fresh; give "
                "details=inverted too, or leave it out."
            )
        if not self.keeps_noise_maps:
            for name in ("strength", "eta"):
                if getattr(self, name) is not None:
                    raise UserError(f"{name} belongs to inversion=ddpm; give that too.")
            return
        if self.refine and fresh:
            raise UserError(
                f"refine is {self.refine}, but inversion=ddpm has nothing to refine but details; "
                "give details=inverted too, or leave it out."
            )
        if isinstance(self.image, EncodedImage):
            raise UserError(
                f"{self.image.path} holds an x_T; inversion=ddpm needs the image itself."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlendRequest(EncodingRequest):
    """Images from the weighted mean, on the sphere, of the embeddings of images and captions."""

    name = "blend"
    summary = "Generate images from a weighted mean, on the sphere, of images and captions."

    images: tuple[ImageInput, ...] = option(
        (),
        help="an image or .npz latent, and its weight; default: 1",
        count=(0, 64),
        flag="image",
        weights="image_weights",
        latent=True,
    )
    image_weights: tuple[float, ...] = option(
        (), help="one weight per image; default: 1 each", low=0, high=1e6, count=(0, 64)
    )
    texts: tuple[str, ...] = option(
        (),
        help="a caption, and its weight; default: 1",
        count=(0, 64),
        flag="text",
        weights="text_weights",
    )
    text_weights: tuple[float, ...] = option(
        (), help="one weight per caption; default: 1 each", low=0, high=1e6, count=(0, 64)
    )
    noise: str = option(
        "inverted",
        help="x_T of the images, by weight; or fresh noise, different for each image",
        choices=("inverted", "fresh"),
    )
    num: int = option(1, help="images, with fresh noise", low=1, high=MAX_IMAGES)

    @property
    def image_count(self) -> int:
        """`num`."""
        return self.num

    @property
    def weights(self) -> tuple[list[float], list[float]]:
        """The weights of images and of captions."""
        one, other = self.image_weights, self.text_weights
        return list(one or [1.0] * len(self.images)), list(other or [1.0] * len(self.texts))

    @property
    def fresh(self) -> bool:
        """True if x_T is random: as requested, or because no image has weight."""
        return self.noise == "fresh" or not any(self.weights[0])

    @property
    def inverts_details(self) -> bool:
        """False for fresh noise, which does not use inverted details."""
        return not self.fresh and super().inverts_details

    def validate(self) -> None:
        """Checks constraints between fields."""
        super().validate()
        count = len(self.images) + len(self.texts)
        for items, name in (("images", "image_weights"), ("texts", "text_weights")):
            weights, number = getattr(self, name), len(getattr(self, items))
            if weights and len(weights) != number:
                raise UserError(
                    f"{name} has {len(weights)} numbers for {number} {items}; give one each, or "
                    "none at all."
                )
        if count < 2:
            raise UserError(
                f"a blend needs at least two images or texts, not {count}; give images and texts."
            )
        if self.num > 1 and not self.fresh:
            raise UserError(
                f"num is {self.num}, but images differ only with noise=fresh; give that too, or "
                "num=1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PcaProbeRequest(DecodingRequest):
    """Images from the first principal components of embeddings (unCLIP, section 4, figure 7)."""

    name = "probe-pca"
    summary = "Decode images from the first principal components of their z_img."

    images: tuple[ImageInput, ...] = option(help="images", positional=True)
    embeddings: str = option(help="folder of one split that `embed` wrote")
    components: tuple[int, ...] = option(
        (),
        help="numbers of components; default: 20 to 320 (figure 7)",
        low=0,
        high=4096,
        count=(0, 64),
    )

    @property
    def image_count(self) -> int:
        """One per image and number of components, of which there are eight by default."""
        return len(self.images) * (len(self.components) or 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpscaleRequest(UpsamplingRequest):
    """Enlargement of any image by the upsamplers."""

    name = "upscale"
    needs = "low_res"
    summary = "Enlarge images with the upsamplers, from the size that fits them best."

    images: tuple[ImageInput, ...] = option(help="images", positional=True)
    from_size: int | None = option(
        None,
        help="side of the images that the first upsampler reads; default: the largest that is not "
        "above the smallest image",
        low=1,
        high=4096,
    )
    caption: str | None = option(
        None, help="caption of the images, for upsamplers that read one, as Imagen's do"
    )

    @property
    def image_count(self) -> int:
        """One per image."""
        return len(self.images)


REQUESTS: dict[str, type[Request]] = {
    request.name: request
    for request in (
        TextRequest,
        ReconstructRequest,
        VariationsRequest,
        InterpolateRequest,
        TextDiffRequest,
        BlendRequest,
        PcaProbeRequest,
        UpscaleRequest,
        InpaintRequest,
        CompleteRequest,
    )
}
