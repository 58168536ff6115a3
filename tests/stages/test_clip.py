import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.stages import tiny
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core import batch as batches
from unclip_jax.models.clip import Clip
from unclip_jax.stages import clip
from unclip_jax.stages.clip import contrastive, contrastive_share


def unit_rows(seed, shape):
    z = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_the_loss_is_the_mean_of_two_cross_entropies_by_brute_force():
    z_img, z_txt = unit_rows(0, (5, 8)), unit_rows(1, (5, 8))
    expected = 0.0
    for i in range(5):
        by_image = [np.exp(7.0 * z_img[i] @ z_txt[j]) for j in range(5)]
        by_text = [np.exp(7.0 * z_img[j] @ z_txt[i]) for j in range(5)]
        expected -= np.log(by_image[i] / sum(by_image)) + np.log(by_text[i] / sum(by_text))
    loss, _, _ = contrastive(jnp.array(z_img), jnp.array(z_txt), scale=jnp.float32(7.0))
    np.testing.assert_allclose(loss, expected / 10, rtol=1e-5)


def test_embeddings_are_those_of_the_towers_not_normalised():
    cfg = tiny.experiment("clip").model
    stage = clip.make(cfg)
    params, batch = tiny.random_params(stage), tiny.random_batch(stage, 2)
    image, tokens, mask = (jnp.asarray(batch[name]) for name in ("image", "tokens", "token_mask"))
    towers = jax.jit(lambda p: Clip(cfg.model).apply({"params": p}, image, tokens, mask))(params)
    z_img = jax.jit(lambda p: clip.encode_image(cfg, p, image))(params)
    text = jax.jit(lambda p: clip.encode_text(cfg, p, TokenIds(tokens, mask)))(params)
    for ours, theirs in ((z_img, towers.z_img), (text.z_txt, towers.z_txt)):
        norms = np.linalg.norm(ours, axis=-1, keepdims=True)
        assert np.abs(norms - 1).min() > 1e-2
        np.testing.assert_allclose(ours / norms, theirs, atol=1e-5)
    assert text.sequence.shape[:2] == tokens.shape
    np.testing.assert_array_equal(text.mask, mask)


def test_perfect_alignment_retrieves_everything_and_swapped_pairs_nothing():
    z = jnp.array(unit_rows(0, (6, 32)))
    loss, image, text = contrastive(z, z, scale=jnp.float32(100.0))
    assert loss < 1e-3 and image == 1.0 and text == 1.0
    _, image, text = contrastive(z, jnp.roll(z, 1, axis=0), scale=jnp.float32(100.0))
    assert image == 0.0 and text == 0.0


def test_constant_embeddings_cost_log_of_the_batch():
    z = jnp.ones((4, 3)) / jnp.sqrt(3.0)
    loss, _, _ = contrastive(z, z, scale=jnp.float32(10.0))
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)


def test_a_sharded_batch_has_the_loss_of_the_whole_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    z_img, z_txt = jnp.array(unit_rows(0, (16, 8))), jnp.array(unit_rows(1, (16, 8)))
    scale = jnp.float32(5.0)
    whole = jax.jit(contrastive)(z_img, z_txt, scale=scale)
    shared = jax.jit(contrastive)(
        jax.device_put(z_img, rows), jax.device_put(z_txt, rows), scale=scale
    )
    np.testing.assert_allclose(shared, whole, rtol=1e-6)


def test_a_replica_that_is_alone_has_the_loss_of_the_whole():
    z_img, z_txt = jnp.array(unit_rows(0, (16, 8))), jnp.array(unit_rows(1, (16, 8)))
    scale = jnp.float32(5.0)
    alone = contrastive_share(z_img, z_txt, scale=scale, axes=())
    np.testing.assert_allclose(alone, contrastive(z_img, z_txt, scale=scale), rtol=1e-6)


def test_replicas_report_what_the_whole_reports_and_evaluation_adds_the_rank():
    stage = tiny.experiment("clip").build_stage()
    params = jax.eval_shape(lambda key: nn.meta.unbox(stage.init(key)), jax.random.key(0))
    batch = batches.abstract(stage.batch_spec, 4)
    losses = (stage.loss, stage.pairwise.replica_loss(()))
    whole, replica = (jax.eval_shape(loss, params, batch, jax.random.key(0)) for loss in losses)
    assert whole == replica
    extra = (
        jax.eval_shape(stage.evaluate, params, batch, jax.random.key(0)).keys() - whole[1].keys()
    )
    assert extra == {"z_img_effective_rank", "z_img_rank", "z_img_components"}
