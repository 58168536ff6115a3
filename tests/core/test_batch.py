import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core import batch
from unclip_jax.core.checks import UserError

SPEC = {"image": batch.image_field(4), **batch.text_fields(3, 10)}


def test_zeros_satisfy_their_spec():
    batch.check(SPEC, batch.zeros(SPEC, 2))


def test_abstract_has_the_shapes_of_zeros():
    zeros, leaves = batch.zeros(SPEC, 2), batch.abstract(SPEC, 2)
    assert {k: (v.shape, v.dtype) for k, v in zeros.items()} == {
        k: (v.shape, v.dtype) for k, v in leaves.items()
    }


def test_images_may_be_bytes_until_they_are_on_a_device():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    host = batch_with(image=pixels)
    batch.check(SPEC, host)
    transferred = batch.abstract(SPEC, 2, transferred=True)
    assert {k: v.dtype for k, v in transferred.items()} == {k: v.dtype for k, v in host.items()}
    floats = batch.with_float_images(jax.tree.map(jnp.asarray, host))
    assert {k: v.dtype for k, v in floats.items()} == {
        k: v.dtype for k, v in batch.abstract(SPEC, 2).items()
    }
    np.testing.assert_array_equal(floats["image"], pixels / np.float32(127.5) - np.float32(1))


def batch_with(**fields):
    return {**batch.zeros(SPEC, 2), **fields}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"image": np.zeros((2, 4, 4, 3), np.float32)}, r"batch lacks \['token_mask', 'tokens'\]"),
        (batch_with(image=np.zeros((2, 5, 5, 3), np.float32)), "'image' is float32.5, 5, 3."),
        (batch_with(image=np.zeros((2, 4, 4, 3), np.int8)), "expects float32"),
        (batch_with(image=np.zeros((2, 5, 5, 3), np.uint8)), "'image' is uint8.5, 5, 3."),
        (batch_with(tokens=np.zeros((2, 3), np.uint8)), "'tokens' is uint8.3.*expects int32"),
        (
            batch_with(tokens=np.full((2, 3), 10, np.int32)),
            "'tokens' holds 10, above its greatest 9",
        ),
        (batch_with(image=np.full((2, 4, 4, 3), -2, np.float32)), "holds -2.0, below its least -1"),
    ],
)
def test_first_field_that_differs_is_named(broken, message):
    with pytest.raises(UserError, match=message):
        batch.check(SPEC, broken)
