"""The classifier of noised images: ADM's sizes, and its pool by hand."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.backbones.unet_plan import UNetConfig
from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import count
from unclip_jax.models.classifier import AttentionPool, Classifier, ClassifierConfig

ADM = {"in_channels": 3, "out_channels": 1000, "attention_at": (32, 16, 8), "head_channels": 64}


@pytest.mark.parametrize(
    ("size", "channels", "multiples", "depth", "millions"),
    [
        (64, 128, (1, 2, 3, 4), 4, 65),
        (128, 128, (1, 1, 2, 3, 4), 2, 43),
        (256, 128, (1, 1, 2, 2, 4, 4), 2, 54),
        (512, 64, (1, 2, 2, 4, 4, 8, 8), 2, 54),
    ],
)
def test_sizes_are_those_that_adm_prints(size, channels, multiples, depth, millions):
    """Table 12 of arXiv 2105.05233."""
    sizes = {"channels": channels, "multiples": multiples, "depth": depth, "emb_channels": 512}
    module = Classifier(ClassifierConfig(UNetConfig(**ADM, **sizes, image_size=size)))
    inputs = (jnp.zeros((1, size, size, 3)), jnp.zeros(1, jnp.int32))
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    assert round(count(shapes) / 1e6) == millions


def test_the_pool_is_attention_of_the_mean_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 8)).astype(np.float32)
    module = AttentionPool(4, 5, jnp.dtype("float32"))
    params = nn.meta.unbox(module.init(jax.random.key(0), jnp.asarray(x))["params"])
    result = module.apply({"params": params}, jnp.asarray(x))
    params = jax.tree.map(np.asarray, params)
    rows = x.reshape(2, 6, 8)
    rows = np.concatenate([rows.mean(1, keepdims=True), rows], axis=1) + params["positions"]
    q, k, v = (rows @ params[name]["kernel"] + params[name]["bias"] for name in "qkv")
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = np.einsum("bd,bmd->bm", q[:, 0, part], k[..., part]) / 2
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        heads.append(np.einsum("bm,bmd->bd", weights, v[..., part]))
    expected = np.concatenate(heads, axis=1) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_the_efficient_topology_is_rejected():
    unet = dataclasses.replace(tiny.experiment("classifier").model.model.unet, topology="efficient")
    with pytest.raises(UserError, match="topology is 'efficient'; a classifier has the first half"):
        ClassifierConfig(unet)
