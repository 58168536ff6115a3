"""Degradations of an upsampler's conditioning image in training: downsampling and corruption.

The paper (section 2.1) blurs with a Gaussian of kernel 3 and sigma 0.6 for 64 -> 256, and applies
the BSR degradation for 256 -> 1024. Whether an example is corrupted is drawn from its own random
generator. BSR processes 270 crops of 256 pixels per second and core.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32

from unclip_jax.core.checks import UserError, in_range, one_of, positive
from unclip_jax.data.bsr import bsr_light

Picture = Float32[np.ndarray, "_ _ c"]  # [-1, 1]

BLUR_KERNEL, BLUR_SIGMA = 3, 0.6


@dataclasses.dataclass(frozen=True)
class DegradeConfig:
    """Settings of the degradation from `image` to `low_res`.

    Attributes:
        factor: how many times smaller the sides are.
        factor: ratio of the sides.
        name: "none" (downsampling only), "blur" or "bsr"; a key of `CORRUPTIONS`.
        probability: share of the examples that are corrupted; the others are only downsampled.
    """

    factor: int
    name: str = "none"
    probability: float = 0.5

    def __post_init__(self):
        one_of("degradation", self.name, CORRUPTIONS)
        in_range("degradation probability", self.probability, 0.0, 1.0)
        positive("degradation factor", self.factor)


def degrade(image: Picture, *, config: DegradeConfig, rng: np.random.Generator) -> Picture:
    """Returns the conditioning image of one example, with sides `config.factor` times smaller.

    The result is a function of image, config and generator; the first draw from `rng` decides
    whether the image is corrupted.

    Raises:
        UserError: the sides are not multiples of the factor.
    """
    _check_sides(image, config.factor)
    hit = rng.random() < config.probability
    corrupt = CORRUPTIONS[config.name] if hit else CORRUPTIONS["none"]
    return corrupt(image, config.factor, rng)


def area_downsample(image: Picture, factor: int) -> Picture:
    """Returns the means of all `factor` x `factor` blocks.

    Raises:
        UserError: the sides are not multiples of the factor.
    """
    _check_sides(image, factor)
    height, width, _ = image.shape
    small = cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
    return small.reshape(height // factor, width // factor, -1)


def gaussian_blur(image: Picture, *, size: int, sigma: float) -> Picture:
    """Convolves with a normalised Gaussian of `size` x `size` taps; borders are mirrored."""
    blurred = cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)
    return blurred.reshape(image.shape)


def _shrink(image: Picture, factor: int, rng: np.random.Generator) -> Picture:
    del rng
    return area_downsample(image, factor)


def _shrink_and_blur(image: Picture, factor: int, rng: np.random.Generator) -> Picture:
    """Degrades as for the paper's first upsampler: downsamples, then blurs."""
    del rng
    return gaussian_blur(area_downsample(image, factor), size=BLUR_KERNEL, sigma=BLUR_SIGMA)


def _bsr(image: Picture, factor: int, rng: np.random.Generator) -> Picture:
    """Degrades as for the paper's second upsampler, with BSR."""
    return bsr_light(image, factor=factor, rng=rng)


def _check_sides(image: Picture, factor: int) -> None:
    height, width, _ = image.shape
    if height % factor or width % factor:
        raise UserError(
            f"a {height}x{width} image cannot be shrunk {factor} times exactly; choose an image "
            f"size that {factor} divides."
        )


# Each receives the full-size image, because stronger corruptions precede the downsampling.
CORRUPTIONS: dict[str, Callable[[Picture, int, np.random.Generator], Picture]] = {
    "none": _shrink,
    "blur": _shrink_and_blur,
    "bsr": _bsr,
}
