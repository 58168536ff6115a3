"""Adafactor: optax's steps, and a state that is placed like the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from unclip_jax.core.checks import UserError
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.training.adafactor import adafactor
from unclip_jax.training.optimizer import OptimConfig, make_optimizer

NAMES = (None, None, "conv_in", "conv_out")


def boxed_params():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 128, 256))
    box = nn.LogicallyPartitioned(kernel, NAMES)
    return {"conv": {"kernel": box, "bias": nn.LogicallyPartitioned(jnp.zeros(256), ("conv_out",))}}


@pytest.mark.parametrize("rules", ["fsdp", "fsdp_tp"])
def test_moments_are_split_like_the_axes_that_they_keep(rules):
    state = adafactor(1e-4, scale=True).init(boxed_params())
    factored = next(
        part
        for part in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.FactoredState))
        if isinstance(part, optax.FactoredState)
    )
    assert factored.v_row["conv"]["kernel"].names == NAMES[:3]
    assert factored.v_col["conv"]["kernel"].names == (None, None, "conv_out")
    assert factored.v["conv"]["bias"].names == ("conv_out",)
    mesh = make_mesh(
        MeshConfig(data=2, fsdp=2, tensor=2 if rules == "fsdp_tp" else 1),
        devices=jax.devices()[: 8 if rules == "fsdp_tp" else 4],
    )
    placed = place.shardings(state, mesh, rules=rules)
    whole = place.shardings(boxed_params(), mesh, rules=rules)["conv"]["kernel"].spec
    specs = {str(x.spec) for x in jax.tree.leaves(placed)}
    assert any(axis in " ".join(specs) for axis in whole if axis)


def test_a_step_is_optaxs():
    params = place.unbox(boxed_params())
    grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
    ours, theirs = adafactor(1e-2, scale=True), optax.adafactor(1e-2)
    updates = [tx.update(grads, tx.init(params), params)[0] for tx in (ours, theirs)]
    jax.tree.map(np.testing.assert_array_equal, *updates)


def test_layers_of_zeros_learn_only_without_the_scale():
    params = {"kernel": jnp.zeros((128, 128))}
    grads = {"kernel": jnp.ones((128, 128))}
    sizes = []
    for scale in (True, False):
        config = OptimConfig("adafactor", learning_rate=1e-2, adafactor_scale=scale, clip_norm=None)
        tx = make_optimizer(config, params, steps=1).tx
        sizes.append(float(jnp.abs(tx.update(grads, tx.init(params), params)[0]["kernel"]).max()))
    np.testing.assert_allclose(sizes, [1e-5, 1e-2], rtol=1e-3)


def test_weight_decay_is_rejected():
    with pytest.raises(UserError, match="weight_decay is 0.1; Adafactor has none here"):
        make_optimizer(OptimConfig("adafactor", weight_decay=0.1), {}, steps=1)
