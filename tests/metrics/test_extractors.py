"""Features of scores: which outputs of the networks they are, and how images are preprocessed."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.metrics import extractors

RNG = np.random.default_rng(0)


def network(monkeypatch, name: str, output) -> None:
    """Replaces a network class by one whose output is fixed."""

    class Stub:
        encode_image = None

        def __init__(self, cfg):
            del cfg

        def apply(self, variables, images, **_):
            del variables, images
            return output

    monkeypatch.setattr(extractors, name, Stub)


def test_probabilities_are_of_the_logits_without_the_last_bias(monkeypatch):
    """As in ADM's evaluator and the original Inception Score."""
    logits, bias = RNG.normal(size=(3, 5)), np.array([[3.0, -2.0, 0.0, 1.0, 5.0]])
    output = types.SimpleNamespace(
        pool=jnp.ones((3, 2)),
        spatial=jnp.zeros((3, 4)),
        unbiased=jnp.asarray(logits, jnp.float32),
        logits=jnp.asarray(logits + bias, jnp.float32),
    )
    network(monkeypatch, "Inception", output)
    features = extractors.inception({}, weights="none").apply({}, jnp.zeros((3, 299, 299, 3)))
    weights = np.exp(logits)
    expected = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(features["probabilities"], expected, rtol=1e-5)
    np.testing.assert_array_equal(features["pool"], output.pool)
    np.testing.assert_array_equal(features["spatial"], output.spatial)


def test_clip_s_features_have_norm_one(monkeypatch):
    z = RNG.normal(size=(4, 6)).astype(np.float32)
    network(monkeypatch, "Clip", jnp.asarray(z))
    extractor = extractors.clip({}, cfg=tiny.experiment("clip").model.model, weights="none")
    pool = extractor.apply({}, jnp.zeros((4, 32, 32, 3)))["pool"]
    np.testing.assert_allclose(pool, z / np.linalg.norm(z, axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24), (16, 16), (9, 12)])
def test_clip_s_images_are_resized_by_the_shorter_side_and_cropped(height, width):
    """Radford et al. 2021: bicubic, then the centre; the arithmetic of torchvision."""
    images = RNG.integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    cfg = tiny.experiment("clip").model.model
    size = cfg.image_size
    extractor = extractors.clip({}, cfg=cfg, weights="none")
    for image, result in zip(images, extractor.prepare(images), strict=True):
        short, long = sorted((height, width))
        other = int(long * size / short)  # torchvision rounds down
        target = (size, other) if width <= height else (other, size)
        large = np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BICUBIC))
        top, left = (large.shape[0] - size) // 2, (large.shape[1] - size) // 2
        expected = large[top : top + size, left : left + size].astype(np.float64) / 127.5 - 1
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_inception_s_images_are_resized_as_the_protocol_says(monkeypatch):
    network(monkeypatch, "Inception", None)
    images = RNG.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    sizes = {
        name: extractors.inception({}, weights="none", resize_name=name, side=16)
        for name in extractors.resize.RESIZES
    }
    for name, extractor in sizes.items():
        expected = extractors.resize.resize(images, name=name, size=16)
        np.testing.assert_array_equal(extractor.prepare(images), expected)
        assert "16 x 16" in extractor.protocol["resize"]
    with pytest.raises(UserError, match="unknown --resize 'tf3'"):
        extractors.inception({}, weights="none", resize_name="tf3")
