import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import toy
from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import flatten_paths
from unclip_jax.parallel.place import unbox
from unclip_jax.training.optimizer import OptimConfig, make_optimizer
from unclip_jax.training.state import create
from unclip_jax.training.step import make_train_step, split

KEY = jax.random.key(1)


def setup(*, name: str = "adamw", loss=toy.loss, **changes):
    boxed = toy.init(jax.random.key(0))
    tx = make_optimizer(OptimConfig(name=name, learning_rate=0.03), boxed, steps=100).tx
    step = make_train_step(loss, tx, **{"ema_decay": 0.9, **changes})
    return create(unbox(boxed), tx), jax.jit(step)


def bits(tree) -> dict[str, bytes]:
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten_paths(tree).items()}


def test_the_average_in_closed_form():
    state, step = setup()
    weights = [np.asarray(state.params["map"]["kernel"], np.float64)]
    for index in range(12):
        state, _ = step(state, toy.batch_at(index), KEY)
        weights.append(np.asarray(state.params["map"]["kernel"], np.float64))
    expected = weights[0]
    for index, new in enumerate(weights[1:]):
        decay = min(0.9, (1 + index) / (10 + index))
        expected = decay * expected + (1 - decay) * new
    np.testing.assert_allclose(state.ema_params["map"]["kernel"], expected, atol=1e-6)
    assert not np.allclose(expected, weights[-1], atol=1e-3)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_accumulation_equals_the_full_batch(name: str):
    whole, step = setup(name=name, loss=toy.quiet_loss)
    parts, step_4 = setup(name=name, loss=toy.quiet_loss, accumulate=4)
    for index in range(3):
        whole, metrics = step(whole, toy.batch_at(index), KEY)
        parts, metrics_4 = step_4(parts, toy.batch_at(index), KEY)
        for key, value in metrics.items():
            np.testing.assert_allclose(metrics_4[key], value, rtol=1e-5, err_msg=key)
    chex.assert_trees_all_close(parts, whole, atol=2e-5)


def test_gradients_are_the_closed_form_of_least_squares():
    boxed = toy.init(jax.random.key(0))
    step = make_train_step(toy.quiet_loss, optax.sgd(1.0), ema_decay=0.9, accumulate=2)
    state = create(unbox(boxed), optax.sgd(1.0))
    batch = toy.batch_at(0)
    new, metrics = jax.jit(step)(state, batch, KEY)
    kernel = np.asarray(state.params["map"]["kernel"], np.float64)
    error = batch["x"] @ kernel - batch["y"]
    grad = 2 * batch["x"].T @ error / error.size
    bias = 2 * error.sum(axis=0) / error.size
    np.testing.assert_allclose(new.params["map"]["kernel"], kernel - grad, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(error**2), rtol=1e-5)
    norm = np.sqrt((grad**2).sum() + (bias**2).sum())
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_annealed_fields_reach_every_example_with_the_value_of_the_step(accumulate: int):
    def loss(params, batch, key):
        value, metrics = toy.quiet_loss(params, {name: batch[name] for name in toy.SPEC}, key)
        return value, {
            **metrics,
            "weight": jnp.mean(batch["weight"]),
            "count": len(batch["weight"]),
        }

    state, step = setup(
        loss=loss, accumulate=accumulate, annealed=lambda step: {"weight": 2.0 * step}
    )
    for index in range(3):
        batch = toy.batch_at(index)
        state, metrics = step(state, batch, KEY)
        assert float(metrics["weight"]) == 2.0 * index
        assert int(metrics["count"]) == len(batch["x"]) // accumulate


def test_microbatches_take_every_nth_example():
    parts = split({"x": jnp.arange(12).reshape(12, 1)}, 3)
    np.testing.assert_array_equal(parts["x"][..., 0], [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])


def test_microbatches_that_do_not_divide_the_batch_are_rejected():
    with pytest.raises(UserError, match=r"batch size is 10, which 4 does not divide; .*accumulate"):
        split({"x": jnp.zeros((10, 1))}, 4)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_non_finite_step_touches_nothing_but_the_counters(accumulate: int):
    state, step = setup(accumulate=accumulate, name="muon")
    state, _ = step(state, toy.batch_at(0), KEY)
    poison = toy.batch_at(1)
    poison["y"][3, 2] = np.inf
    bad, metrics = step(state, poison, KEY)
    bad, metrics_2 = step(bad, poison, KEY)
    assert (metrics["bad_steps"], metrics_2["bad_steps"]) == (1, 2)
    assert not np.isfinite(metrics["loss"])
    assert (bad.step, bad.bad_steps) == (3, 2)
    for part in ("params", "ema_params", "opt_state"):
        assert bits(getattr(bad, part)) == bits(getattr(state, part))
    good, metrics = step(bad, toy.batch_at(2), KEY)
    assert (good.step, good.bad_steps, metrics["bad_steps"]) == (4, 0, 0)
    assert bits(good.params) != bits(state.params)


def test_a_finite_loss_with_non_finite_gradients_is_bad_too():
    def loss(params, batch, key):
        value, metrics = toy.quiet_loss(params, batch, key)
        return value + jnp.sqrt(jnp.sum(0.0 * params["map"]["bias"])), metrics

    state, step = setup(loss=loss)
    new, metrics = step(state, toy.batch_at(0), KEY)
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    assert bits(new.params) == bits(state.params) and new.bad_steps == 1


def test_the_key_of_a_step_depends_on_its_number_alone():
    state, step = setup()
    batch = toy.batch_at(0)
    _, first = step(state, batch, KEY)
    _, again = step(state, batch, KEY)
    _, later = step(dataclasses.replace(state, step=jnp.int32(1)), batch, KEY)
    assert first["noise"] == again["noise"] != later["noise"]


def test_microbatches_draw_different_noise():
    noises = []

    def loss(params, batch, key):
        value, metrics = toy.loss(params, batch, key)
        jax.debug.callback(lambda x: noises.append(float(x)), metrics["noise"], ordered=True)
        return value, metrics

    state, step = setup(loss=loss, accumulate=4)
    jax.block_until_ready(step(state, toy.batch_at(0), KEY))
    jax.effects_barrier()
    assert len(noises) == len(set(noises)) == 4


def test_parameters_stay_float32_when_gradients_pass_through_bfloat16():
    def loss(params, batch, key):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        return toy.quiet_loss(half, batch, key)

    state, step = setup(loss=loss)
    new, _ = step(state, toy.batch_at(0), KEY)
    chex.assert_trees_all_equal_dtypes(new, state)
