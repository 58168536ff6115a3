import numpy as np

from unclip_jax.metrics.psnr import psnr


def test_psnr_of_a_constant_error_is_its_closed_form():
    reference = np.full((2, 4, 4, 3), 100, np.uint8)
    images = np.stack([reference[0] + 51, reference[1] - 5]).astype(np.uint8)
    np.testing.assert_allclose(psnr(images, reference), 20 * np.log10([5, 51]))


def test_psnr_takes_the_error_over_each_image_alone():
    reference = np.zeros((2, 2, 2, 1), np.uint8)
    images = reference.copy()
    images[0, 0, 0, 0] = 255  # a quarter of the pixels is off by the peak
    values = psnr(images, reference)
    np.testing.assert_allclose(values[0], 10 * np.log10(4))
    assert 100 < values[1] < np.inf  # equal images
