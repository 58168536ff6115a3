"""Requests that fill a part of an image: by inpainting, or by DALL-E's completion."""

import dataclasses

from unclip_jax.core.checks import UserError
from unclip_jax.engine import image_inputs
from unclip_jax.engine.image_inputs import ImageInput, InputImage
from unclip_jax.engine.request_base import MAX_GUIDANCE, MAX_IMAGES, DecodingRequest, Seeded
from unclip_jax.engine.request_fields import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpaintRequest(DecodingRequest):
    """Inpainting of a masked part; pixels outside the mask do not change (RePaint)."""

    name = "inpaint"
    summary = "Inpaint the white part of a mask, with an optional caption."

    image: ImageInput = option(help="an image", positional=True)
    mask: ImageInput = option(
        help="an image of the same size: white is filled, black is kept", positional=True
    )
    caption: str | None = option(None, help="caption of the whole image; default: none")
    num: int = option(4, help="images", low=1, high=MAX_IMAGES)
    repeats: int = option(5, help="RePaint: runs of each segment of steps", low=1, high=100)
    jump: int = option(10, help="RePaint: steps in a segment", low=1, high=1000)
    eta: float = option(1.0, help="eta of DDIM: 0 is deterministic, 1 ancestral", low=0, high=1)
    steps: str = option("50", help="steps of the decoder: ddim250, 50, ...")
    guidance: float = option(3.0, help="guidance scale, 1 = off", low=0, high=MAX_GUIDANCE)

    @property
    def image_count(self) -> int:
        """`num`."""
        return self.num

    def validate(self) -> None:
        """Checks constraints between fields."""
        super().validate()
        image, mask = self.image, self.mask
        assert isinstance(image, InputImage) and isinstance(mask, InputImage)
        if image.pixels.shape != mask.pixels.shape:
            raise UserError(
                f"{image.path} has {_size(image)} pixels and {mask.path} has {_size(mask)}; give a "
                "mask of the image's size."
            )
        if image_inputs.mask_square(mask, min(mask.pixels.shape[:2])).all():
            raise UserError(f"{mask.path} is dark everywhere; paint white what is to be filled.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompleteRequest(Seeded):
    """Completion of an image: DALL-E samples a rectangle at its lower right corner anew."""

    name = "complete"
    needs = "codes"
    summary = "Complete an image for a caption from its upper rows (DALL-E's chain)."

    image: ImageInput = option(help="an image", positional=True)
    caption: str = option(help="caption of the whole image", positional=True, blank=False)
    rows: float = option(0.5, help="fraction of rows that stay, rounded to codes", low=0, high=1)
    columns: float = option(
        0.0, help="fraction of columns, from the left, that stay too", low=0, high=1
    )
    paste: bool = option(False, help="restore the image's own pixels in the part that stays")
    num: int = option(4, help="images", low=1, high=MAX_IMAGES)
    guidance: float | None = option(None, help="guidance scale, 1 = off", low=0, high=MAX_GUIDANCE)
    temperature: float | None = option(None, help="temperature, 0 = greedy", low=0, high=100)
    top_k: int | None = option(None, help="most probable codes to draw from", low=1)
    top_p: float | None = option(
        None, help="top-p (nucleus) sampling, 1 = all codes", low=0, high=1
    )

    @property
    def image_count(self) -> int:
        """`num`."""
        return self.num


def _size(image: InputImage) -> str:
    height, width = image.pixels.shape[:2]
    return f"{width}x{height}"
