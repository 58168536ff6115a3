"""Peak signal-to-noise ratio of 8-bit images."""

import numpy as np
from jaxtyping import Float64, UInt8

PEAK = 255.0
FLOOR = 1e-10  # lower bound of the mean squared error, so that equal images have a finite ratio

Images = UInt8[np.ndarray, " n h w c"]


def psnr(images: Images, reference: Images) -> Float64[np.ndarray, " n"]:
    """Computes 10 log10(255^2 / mean squared error) in dB, one value per image."""
    error = np.mean((images.astype(np.float64) - reference) ** 2, axis=(1, 2, 3))
    return 10 * np.log10(PEAK**2 / np.maximum(error, FLOOR))
