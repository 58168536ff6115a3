import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import flatten_paths
from unclip_jax.parallel.place import unbox
from unclip_jax.training.optimizer import (
    OptimConfig,
    decayed,
    make_optimizer,
    muon_labels,
    rate,
)


def box(*shape: int, names: tuple[str | None, ...], seed: int = 0):
    value = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return nn.LogicallyPartitioned(jnp.asarray(value), names)


BOXED = {
    "tokens": {"embedding": box(32, 8, names=("vocab", "embed"))},
    "positions": box(6, 8, names=("position", "embed")),
    "query": box(8, names=("embed",)),
    "blocks": {
        "fc": {
            "kernel": box(3, 8, 20, names=("layers", "embed", "mlp"), seed=1),
            "bias": box(3, 20, names=("layers", "mlp")),
        },
        "norm": {"scale": box(3, 8, names=("layers", "norm"))},
    },
    "conv": {"kernel": box(3, 3, 4, 6, names=(None, None, "conv_in", "conv_out"), seed=2)},
    "logit_scale": box(names=()),
}
KERNELS = {"blocks/fc/kernel", "conv/kernel"}


def first_update(config: OptimConfig, boxed, grads):
    tx = make_optimizer(config, boxed, steps=100).tx
    params = unbox(boxed)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    return updates


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, 0.5),
        ("constant", 1, 1.0),
        ("constant", 500, 1.0),
        ("linear", 2, 1.0),
        ("linear", 6, 1 - 0.9 * 0.4),
        ("linear", 12, 0.1),
        ("linear", 50, 0.1),
        ("cosine", 2, 1.0),
        ("cosine", 7, 0.55),
        ("cosine", 12, 0.1),
    ],
)
def test_rate_in_closed_form(schedule: str, step: int, expected: float):
    config = OptimConfig(schedule=schedule, warmup_steps=2, final_scale=0.1)
    got = rate(config, 3.0, steps=12)(jnp.int32(step))
    np.testing.assert_allclose(got, 3.0 * expected, rtol=1e-6)


def test_a_fall_may_end_before_the_run():
    config = OptimConfig(schedule="cosine", final_scale=0.1, decay_steps=10)
    for step, expected in ((0, 1.0), (5, 0.55), (10, 0.1), (90, 0.1)):
        got = rate(config, 3.0, steps=100)(jnp.int32(step))
        np.testing.assert_allclose(got, 3.0 * expected, rtol=1e-6)


def test_kernels_and_token_tables_decay_and_nothing_else():
    on = {path for path, value in flatten_paths(decayed(BOXED)).items() if value}
    assert on == KERNELS | {"tokens/embedding"}
    on = {path for path, value in flatten_paths(decayed(BOXED, tables=False)).items() if value}
    assert on == KERNELS


def test_token_tables_may_be_left_out():
    grads = jax.tree.map(jnp.zeros_like, unbox(BOXED))
    for name in ("adamw", "muon"):
        config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.3)
        for tables in (True, False):
            each = dataclasses.replace(config, decay_tables=tables)
            update = first_update(each, BOXED, grads)["tokens"]["embedding"]
            assert np.any(np.asarray(update)) == tables


def test_of_clip_neither_gains_nor_biases_nor_positions_nor_the_temperature_decay():
    """Radford et al. 2021, section 2.5: all weights that are not gains or biases."""
    stage = tiny.experiment("clip").build_stage()
    mask = flatten_paths(decayed(jax.eval_shape(stage.init, jax.random.key(0))))
    off = {path.rsplit("/", 1)[-1] for path, value in mask.items() if not value}
    assert off == {"bias", "scale", "log_scale", "positions", "class_token"}
    on = {path for path, value in mask.items() if value}
    assert {path.rsplit("/", 1)[-1] for path in on} == {"kernel", "tokens"}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_without_gradients_only_decay_is_left(name: str):
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.3, muon_weight_decay=0.2)
    config = dataclasses.replace(config, muon_learning_rate=0.05)
    grads = jax.tree.map(jnp.zeros_like, unbox(BOXED))
    updates = flatten_paths(first_update(config, BOXED, grads))
    for path, value in flatten_paths(unbox(BOXED)).items():
        shrink = 0.0
        if path in KERNELS | {"tokens/embedding"}:
            muon = name == "muon" and path in KERNELS
            shrink = 0.05 * 0.2 if muon else 0.1 * 0.3
        np.testing.assert_allclose(updates[path], -shrink * value, rtol=1e-6, err_msg=path)


def test_muon_takes_kernels_and_leaves_exclusions_to_adamw():
    labels = flatten_paths(muon_labels(BOXED))
    assert {path for path, label in labels.items() if label == "muon"} == KERNELS
    labels = flatten_paths(muon_labels(BOXED, exclude=("conv/",)))
    assert {path for path, label in labels.items() if label == "muon"} == {"blocks/fc/kernel"}


def test_muon_updates_are_nearly_orthogonal_per_layer_and_the_rest_is_adam():
    config = OptimConfig(name="muon", learning_rate=0.1, muon_learning_rate=0.5, clip_norm=None)
    grads = jax.tree.map(lambda x: 3.0 * x + 1.0, unbox(BOXED))
    updates = flatten_paths(first_update(config, BOXED, grads))
    conv = np.asarray(updates["conv/kernel"]).reshape(36, 6)
    scale = math.sqrt(20 / 8)
    for matrix, size in [(conv, 1.0), *((layer, scale) for layer in updates["blocks/fc/kernel"])]:
        values = np.linalg.svd(matrix / (0.5 * size), compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.4  # Newton-Schulz, not exact
    for path in ("tokens/embedding", "positions", "query", "blocks/fc/bias", "logit_scale"):
        expected = -0.1 * np.sign(flatten_paths(grads)[path])
        np.testing.assert_allclose(updates[path], expected, rtol=1e-4, err_msg=path)


def test_stacked_layers_are_updated_as_if_they_were_alone():
    config = OptimConfig(name="muon", clip_norm=None)
    stacked = {"kernel": BOXED["blocks"]["fc"]["kernel"]}
    together = first_update(config, stacked, unbox(stacked))["kernel"]
    for index, layer in enumerate(unbox(stacked)["kernel"]):
        alone = {"kernel": nn.LogicallyPartitioned(layer, ("embed", "mlp"))}
        update = first_update(config, alone, {"kernel": layer})["kernel"]
        np.testing.assert_allclose(together[index], update, atol=1e-6)


def test_a_convolution_is_updated_as_the_matrix_of_its_patches():
    config = OptimConfig(name="muon", clip_norm=None)
    kernel = unbox(BOXED["conv"])["kernel"]
    update = first_update(config, {"c": BOXED["conv"]}, {"c": {"kernel": kernel}})["c"]["kernel"]
    flat = {"kernel": nn.LogicallyPartitioned(kernel.reshape(36, 6), ("embed", "mlp"))}
    expected = first_update(config, flat, unbox(flat))["kernel"]
    np.testing.assert_allclose(update.reshape(36, 6), expected, atol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    # With b1 = b2 = 0 and eps = 1 the update is lr * g / (|g| + 1), so it shows g's scale.
    config = OptimConfig(learning_rate=1.0, b1=0.0, b2=0.0, eps=1.0, clip_norm=2.0)
    boxed = {"a": box(names=()), "b": box(names=())}
    grads = {"a": jnp.array(30.0), "b": jnp.array(40.0)}
    updates = first_update(config, boxed, grads)
    np.testing.assert_allclose(updates["a"], -1.2 / 2.2, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -1.6 / 2.6, rtol=1e-6)
    free = first_update(dataclasses.replace(config, clip_norm=None), boxed, grads)
    np.testing.assert_allclose(free["a"], -30 / 31, rtol=1e-6)


def test_the_state_of_boxed_parameters_is_boxed_with_their_names():
    optimizer = make_optimizer(OptimConfig(name="muon"), BOXED, steps=10)
    state = jax.eval_shape(optimizer.tx.init, BOXED)
    boxes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    names = [x.names for x in boxes if isinstance(x, nn.LogicallyPartitioned)]
    assert names.count(("layers", "embed", "mlp")) == 1  # Muon keeps one moment
    assert names.count(("vocab", "embed")) == 2  # Adam keeps two
    plain = jax.eval_shape(optimizer.tx.init, unbox(BOXED))
    assert jax.tree.structure(unbox(state)) == jax.tree.structure(plain)


def test_adamw_is_optax_adamw():
    config = OptimConfig(learning_rate=0.01, b1=0.8, b2=0.95, eps=1e-6, clip_norm=None)
    grads = jax.tree.map(jnp.cos, unbox(BOXED))
    updates = first_update(config, BOXED, grads)
    tx = optax.adam(0.01, b1=0.8, b2=0.95, eps=1e-6)
    expected, _ = jax.jit(tx.update)(grads, tx.init(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adm"}, r"unknown config.optim.name 'adm'. Did you mean 'adamw'"),
        ({"schedule": "cosin"}, r"unknown config.optim.schedule 'cosin'. Did you mean 'cosine'"),
        ({"learning_rate": 0.0}, r"config.optim.learning_rate is 0.0; it must be greater than 0"),
        ({"muon_learning_rate": -1.0}, r"config.optim.muon_learning_rate is -1.0"),
        ({"b2": 1.5}, r"config.optim.b2 is 1.5; it must lie in \[0.0, 1.0\]"),
        ({"weight_decay": -0.1}, r"config.optim.weight_decay is -0.1"),
        ({"clip_norm": 0.0}, r"config.optim.clip_norm is 0.0"),
    ],
)
def test_invalid_settings_are_rejected(change: dict, message: str):
    with pytest.raises(UserError, match=message):
        OptimConfig(**change)


def test_a_warmup_longer_than_the_run_is_rejected():
    with pytest.raises(UserError, match=r"warmup_steps is 20, longer than the run of 10 steps"):
        make_optimizer(OptimConfig(warmup_steps=20), BOXED, steps=10)


def test_an_exclusion_that_matches_nothing_is_rejected():
    config = OptimConfig(name="muon", muon_exclude=("conv_kernel",))
    with pytest.raises(UserError, match=r"has 'conv_kernel', which no kernel's path holds"):
        make_optimizer(config, BOXED, steps=10)


def test_what_is_not_configured_is_as_published():
    """Adam's decays and epsilon (Kingma and Ba 2015, section 2), Muon's momentum (Jordan 2024)."""
    config = OptimConfig()
    assert (config.b1, config.b2, config.eps) == (0.9, 0.999, 1e-8)
    assert config.muon_momentum == 0.95
    assert (config.learning_rate, config.muon_learning_rate, config.clip_norm) == (1e-4, 0.01, 1.0)
    off = ("warmup_steps", "decay_steps", "final_scale", "weight_decay", "muon_weight_decay")
    assert [getattr(config, name) for name in (*off, "sam", "sam_batch")] == [0] * 7
    assert config.adafactor_scale and config.decay_tables and not config.sam_cached


@pytest.mark.parametrize(("clip_norm", "factor"), [(None, 1.0), (2.5, 0.5), (5.0, 1.0), (9.0, 1.0)])
def test_gradients_longer_than_the_limit_are_scaled_to_it(clip_norm, factor):
    """As Adam's first moment shows, which is a tenth of the first gradient."""
    boxed = {"a": box(2, names=("embed",)), "b": box(1, names=("embed",))}
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    tx = make_optimizer(OptimConfig(clip_norm=clip_norm), boxed, steps=10).tx
    _, state = tx.update(grads, tx.init(unbox(boxed)), unbox(boxed))
    ((_, mu),) = optax.tree_utils.tree_get_all_with_path(state, "mu")
    for name, grad in grads.items():
        np.testing.assert_allclose(mu[name], 0.1 * factor * grad, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_warm_up_may_last_the_whole_run_and_no_longer(steps: int):
    boxed = {"a": box(2, names=("embed",))}
    make_optimizer(OptimConfig(warmup_steps=steps), boxed, steps=steps)
    with pytest.raises(UserError, match=f"warmup_steps is {steps + 1}, longer than the run of"):
        make_optimizer(OptimConfig(warmup_steps=steps + 1), boxed, steps=steps)
    value = rate(OptimConfig(warmup_steps=4, schedule="cosine"), 1.0, steps=4)
    np.testing.assert_allclose([value(k) for k in range(4)], [0.25, 0.5, 0.75, 1.0])
