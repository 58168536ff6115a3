"""The BSR degradation in the milder form of latent diffusion ("BSR-light").

unCLIP's second upsampler is trained with it (section 2.1: "a more diverse BSR degradation", citing
Rombach et al. 2022, arXiv 2112.10752, a milder form of BSRGAN, Zhang et al. 2021, arXiv
2103.14006). The constants are those of latent diffusion's released configuration for a factor of 4:

    halve some images -> in random order: blur | shrink ... resize | noise | JPEG -> JPEG, 8 bits

Shrinking precedes resizing, which yields the final size. Two mistakes of the released code are
corrected: a Gaussian narrower than a pixel is the limit of Gaussians instead of all zeros, and the
covariance of coloured noise is a valid covariance (the released code takes absolute values of its
entries).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

Pixels = Float32[np.ndarray, "_ _ 3"]  # values in [0, 1]

HALVE_SHARE = 0.25  # of images, if the factor is 4
ANISOTROPIC_SHARE = 0.5  # of blurs
RESIZE_SHARE = 0.8  # of shrinks; the others filter and take every n-th pixel
JPEG_SHARE = 0.9  # in the random order; the last step is always JPEG
JPEG_QUALITY = (80, 95)
NOISE_LEVEL = (1, 2)  # standard deviation in units of 1/255
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA)
TAPS = 25  # of the filter before subsampling


class Task(NamedTuple):
    """State of one image between two operations.

    Attributes:
        scale: factor by which the image still has to shrink; other strengths grow with it.
        size: final height and width.
        rng: random generator of this example.
    """

    scale: int
    size: tuple[int, int]
    rng: np.random.Generator


Operation = Callable[[Pixels, Task], Pixels]


def bsr_light(
    image: Float32[np.ndarray, "_ _ 3"], *, factor: int, rng: np.random.Generator
) -> Float32[np.ndarray, "_ _ 3"]:
    """Degrades an image in [-1, 1] and shrinks it by `factor`; values lie on 8-bit levels.

    Args:
        image: sides must be multiples of `factor`.
        factor: the strengths were chosen for 4.
        rng: generator of this example, the only source of randomness.
    """
    height, width, _ = image.shape
    image = (image + np.float32(1)) / np.float32(2)
    scale = factor
    if factor == 4 and rng.random() < HALVE_SHARE:
        image, scale = _halved(image, rng), 2
    task = Task(scale, (height // factor, width // factor), rng)
    for operation in order(rng):
        image = operation(image, task)
    return _jpeg(image, rng) * np.float32(2) - np.float32(1)


def order(rng: np.random.Generator) -> list[Operation]:
    """Returns the five operations shuffled, with shrinking before resizing."""
    shuffled = [OPERATIONS[int(index)] for index in rng.permutation(len(OPERATIONS))]
    first, second = shuffled.index(shrink), shuffled.index(resize)
    if first > second:
        shuffled[first], shuffled[second] = resize, shrink
    return shuffled


def blur(image: Pixels, task: Task) -> Pixels:
    """Convolves with a random Gaussian, isotropic half of the time.

    Kernels of even size shift the image by half a pixel, as in the released code.
    """
    rng = task.rng
    if rng.random() < ANISOTROPIC_SHARE:
        variances = rng.uniform(0, (4 + task.scale) / 4, 2)
        size, angle = int(rng.integers(5, 15)), rng.uniform(0, np.pi)
        return convolve(image, anisotropic_gaussian(size, variances=variances, angle=angle))
    size, sigma = int(rng.integers(5, 8)), rng.uniform(0, (2 + 0.2 * task.scale) / 4)
    taps = gaussian_taps(centred(size), sigma=sigma)
    return convolve(image, np.outer(taps, taps))


def shrink(image: Pixels, task: Task) -> Pixels:
    """Shrinks by a random factor, or filters and subsamples by the whole scale."""
    height, width, _ = image.shape
    rng = task.rng
    if rng.random() < RESIZE_SHARE:
        times = rng.uniform(1, 2 * task.scale)
        size = (max(1, int(height / times)), max(1, int(width / times)))
        return _resized(image, size, rng)
    sigma = rng.uniform(0.1, 0.6 * task.scale)
    return filtered_stride(image, task.scale, sigma=sigma)


def resize(image: Pixels, task: Task) -> Pixels:
    """Resizes from any size to the final size."""
    return _resized(image, task.size, task.rng)


def noise(image: Pixels, task: Task) -> Pixels:
    """Adds Gaussian noise: per channel (40 %), grey (40 %) or of a random colour (20 %)."""
    rng = task.rng
    level = int(rng.integers(NOISE_LEVEL[0], NOISE_LEVEL[1] + 1)) / 255
    kind = rng.random()
    shape = image.shape[:2]
    if kind > 0.6:
        sample = level * rng.standard_normal((*shape, 3), np.float32)
    elif kind < 0.4:
        sample = level * rng.standard_normal((*shape, 1), np.float32)
    else:
        root = NOISE_LEVEL[1] / 255 * _colour_root(rng)
        sample = rng.standard_normal((*shape, 3), np.float32) @ root.astype(np.float32)
    return _clipped(image + sample)


def jpeg(image: Pixels, task: Task) -> Pixels:
    """Compresses as JPEG with probability `JPEG_SHARE`."""
    return _jpeg(image, task.rng) if task.rng.random() < JPEG_SHARE else image


OPERATIONS: tuple[Operation, ...] = (blur, shrink, resize, noise, jpeg)


def centred(size: int) -> Float[np.ndarray, " k"]:
    """Returns the positions of `size` taps about their middle, half-integers if `size` is even."""
    return np.arange(size) - (size - 1) / 2


def gaussian_taps(positions: Float[np.ndarray, " k"], *, sigma: float) -> Float[np.ndarray, " k"]:
    """Returns the weights of a Gaussian at `positions`, which sum to 1.

    The largest exponent is subtracted before `exp`, which would underflow at all positions for
    small sigma. As sigma goes to 0, the nearest positions share all the weight.
    """
    exponent = -0.5 * (positions / max(sigma, 1e-6)) ** 2
    weights = np.exp(exponent - exponent.max())
    return weights / weights.sum()


def anisotropic_gaussian(
    size: int, *, variances: Float[np.ndarray, " 2"], angle: float
) -> Float[np.ndarray, "k k"]:
    """Returns a Gaussian kernel of sum 1, with `variances` along axes rotated by `angle`."""
    y, x = np.meshgrid(centred(size), centred(size), indexing="ij")
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    first, second = np.maximum(variances, 1e-12)
    exponent = -0.5 * (along**2 / first + across**2 / second)
    weights = np.exp(exponent - exponent.max())
    return weights / weights.sum()


def convolve(image: Pixels, kernel: Float[np.ndarray, "k m"]) -> Pixels:
    """Convolves every channel as `scipy.ndimage.convolve(mode="mirror")` does."""
    anchor = tuple((side - 1) // 2 for side in kernel.shape[::-1])
    flipped = np.ascontiguousarray(kernel[::-1, ::-1], np.float32)
    return cv2.filter2D(image, -1, flipped, anchor=anchor, borderType=cv2.BORDER_REFLECT_101)


def filtered_stride(image: Pixels, scale: int, *, sigma: float) -> Pixels:
    """Returns every `scale`-th pixel of a Gaussian blur, centred on blocks and not on corners.

    The released code shifts the kernel by (scale - 1) / 2 pixels by interpolating it; here the
    Gaussian is evaluated at the shifted positions.
    """
    positions = np.arange(TAPS) - TAPS // 2 - (scale - 1) / 2
    taps = gaussian_taps(positions, sigma=sigma).astype(np.float32)
    blurred = cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    return _clipped(blurred[::scale, ::scale])


def cubic_half(image: Pixels) -> Pixels:
    """Halves the sides with the antialiased cubic kernel (Keys 1981, a = -1/2), as MATLAB does."""
    x = np.abs(np.arange(-3, 5) - 0.5) / 2
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    taps = np.where(x <= 1, near, far).astype(np.float32) / 2
    anchor, border = (3, 3), cv2.BORDER_REFLECT
    return cv2.sepFilter2D(image, -1, taps, taps, anchor=anchor, borderType=border)[::2, ::2]


def _halved(image: Pixels, rng: np.random.Generator) -> Pixels:
    height, width, _ = image.shape
    if rng.random() < 0.5:
        return _resized(image, (height // 2, width // 2), rng)
    return _clipped(cubic_half(image))


def _resized(image: Pixels, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Resizes with a random interpolation of OpenCV; only area interpolation antialiases."""
    chosen = INTERPOLATIONS[int(rng.integers(len(INTERPOLATIONS)))]
    return _clipped(cv2.resize(image, size[::-1], interpolation=chosen))


def _colour_root(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Samples a root R of a random covariance R.T @ R: eigenvalues U(0, 1), random axes."""
    axes, _ = np.linalg.qr(rng.random((3, 3)))
    return np.sqrt(rng.random(3))[:, None] * axes.T


def _jpeg(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Encodes and decodes with a random quality and chroma at half the resolution."""
    quality = int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))
    levels: UInt8[np.ndarray, "_ _ 3"] = np.rint(image * 255).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, coded = cv2.imencode(".jpg", np.ascontiguousarray(levels[..., ::-1]), options)
    decoded: Any = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return decoded[..., ::-1].astype(np.float32) / np.float32(255)


def _clipped(image: Float32[np.ndarray, "_ _ 3"]) -> Pixels:
    return np.clip(image, 0, 1)
