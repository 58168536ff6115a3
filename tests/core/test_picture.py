import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.picture import to_uint8


@pytest.mark.parametrize("convert", [to_uint8, jax.jit(to_uint8)])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_floats_are_rounded_and_clipped_to_bytes(convert, array):
    x = array(np.float32([-2.0, -1.0, 0.0, 1.0 / 127.5, 1.0, 3.0]).reshape(1, 1, 2, 3))
    images = convert(x)
    np.testing.assert_array_equal(images.reshape(-1), [0, 0, 128, 128, 255, 255])
    assert images.dtype == np.uint8


def test_numpy_stays_on_the_host():
    assert type(to_uint8(np.zeros((1, 2, 2, 3), np.float32))) is np.ndarray
