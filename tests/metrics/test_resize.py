import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import extractors, resize


def test_tf1_takes_its_sources_from_the_corner():
    # 2 -> 4: sources 0, 0.5, 1, 1.5; the last has no neighbour and stays.
    expected = [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]
    np.testing.assert_array_equal(resize.matrix(2, 4, centred=False), expected)


def test_torch_takes_its_sources_between_centres():
    # 2 -> 4: sources -0.25 (clipped), 0.25, 0.75, 1.25 (no neighbour).
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_array_equal(resize.matrix(2, 4, centred=True), expected)


def test_shrinking_by_two_picks_pixels_in_tf1_and_averages_pairs_in_torch():
    line = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(resize.matrix(8, 4, centred=False) @ line, [0, 2, 4, 6])
    np.testing.assert_array_equal(resize.matrix(8, 4, centred=True) @ line, [0.5, 2.5, 4.5, 6.5])


@pytest.mark.parametrize("name", resize.RESIZES)
@pytest.mark.parametrize("shape", [(5, 9), (40, 20)])
def test_a_constant_stays_what_its_protocol_says(name, shape):
    images = np.full((2, *shape, 3), 200, np.uint8)
    expected = 200 / 127.5 - 1 if name == "torch" else (200 - 128) / 128
    got = resize.resize(images, name=name, size=13)
    assert got.shape == (2, 13, 13, 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("name", resize.RESIZES)
def test_axes_and_channels_are_not_mixed_up(name):
    image = np.zeros((1, 6, 6, 3), np.uint8)
    image[0, :3, :, 0], image[0, :, :3, 1] = 255, 255
    got = resize.resize(image, name=name, size=12)[0]
    assert got[1, 6, 0] > 0.9 > -0.9 > got[10, 6, 0]
    assert got[6, 1, 1] > 0.9 > -0.9 > got[6, 10, 1]
    np.testing.assert_allclose(got[:, :, 2], -1.0)


def test_clean_is_antialiased_and_the_others_are_not():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    spread = {n: np.std(resize.resize(stripes, name=n, size=16)) for n in resize.RESIZES}
    assert spread["clean"] < 0.1
    assert np.allclose(resize.resize(stripes, name="tf1", size=16), 127 / 128)  # pure aliasing


def test_clean_clips_what_the_filter_overshoots():
    """clean-fid clips to 0..255 after the bicubic, whose kernel is negative from 1 to 2."""
    edge = np.zeros((1, 8, 8, 3), np.uint8)
    edge[:, :, 4:] = 255
    got = resize.resize(edge, name="clean", size=29)[0]
    assert got.min() == -1.0 and got.max() == np.float32(127 / 128)


def test_an_unknown_protocol_is_rejected():
    with pytest.raises(UserError, match="unknown --resize 'tf2'. Did you mean 'tf1'"):
        resize.resize(np.zeros((1, 4, 4, 3), np.uint8), name="tf2", size=4)


@pytest.mark.parametrize(
    ("height", "width", "long"),
    [(480, 640, 298), (640, 480, 298), (100, 333, 745), (224, 300, 300), (77, 100, 290)],
)
def test_clips_preprocessing_rounds_the_longer_side_down(monkeypatch, height, width, long):
    """int(224 * long / short), as torchvision's `Resize` and transformers compute it."""
    sizes = []

    real = extractors.PILImage.fromarray

    def spy(array):
        image = real(array)
        resize_image = image.resize
        image.resize = lambda size, *rest: (sizes.append(size), resize_image(size, *rest))[1]
        return image

    monkeypatch.setattr(extractors.PILImage, "fromarray", spy)
    images = np.zeros((1, height, width, 3), np.uint8)
    assert extractors._preprocess(images, 224).shape == (1, 224, 224, 3)
    assert sizes == [(long, 224) if width > height else (224, long)]
