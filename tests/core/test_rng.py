import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.core import rng


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel())


def test_an_address_gives_the_same_key_however_it_is_reached():
    key = jax.random.key(0)
    assert bits(rng.fold(key, 3, "noise")) == bits(rng.fold(rng.fold(key, 3), "noise"))
    assert bits(rng.fold(key, 3, "noise")) == bits(rng.fold(key, jnp.int32(3), "noise"))


def test_different_addresses_give_different_keys():
    key = jax.random.key(0)
    keys = {bits(rng.fold(key, step, name)) for step in range(50) for name in ("noise", "drop")}
    assert len(keys) == 100


def test_draws_of_one_example_do_not_depend_on_its_batch():
    key = jax.random.key(7)
    many = rng.normal_each(rng.per_example(key, jnp.arange(5)), (4,))
    alone = rng.normal_each(rng.per_example(key, jnp.array([3])), (4,))
    np.testing.assert_array_equal(many[3], alone[0])


def test_folding_each_equals_folding_one_by_one():
    keys = rng.per_example(jax.random.key(1), jnp.arange(3))
    folded = rng.fold_each(keys, "step", 2)
    assert [bits(k) for k in folded] == [bits(rng.fold(k, "step", 2)) for k in keys]
