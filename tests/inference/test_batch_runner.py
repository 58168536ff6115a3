"""Batches of one shape over the devices, by functions that are compiled once."""

import numpy as np
import pytest

from unclip_jax.inference.batch_runner import BatchRunner, padded


def scale(config, params, x):
    return config * params * x


def test_a_function_is_compiled_once_per_config():
    runner = BatchRunner(2.0, batch=4)
    other = 5.0
    own, others = runner.compiled(scale), runner.compiled(scale, config=other)
    assert float(own(3.0, np.float32(1.0))) == 6.0
    assert float(others(3.0, np.float32(1.0))) == 15.0
    assert runner.compiled(scale) is own and runner.compiled(scale, config=other) is others


def test_rows_do_not_depend_on_the_batches_they_are_in():
    x = np.arange(11, dtype=np.float32)
    for batch in (1, 4, 16):
        runner = BatchRunner(2.0, batch=batch)
        run = runner.compiled(scale)
        result = runner.run(lambda rows, run=run: run(3.0, rows), x, "test")
        np.testing.assert_array_equal(result, 6.0 * x)


def test_batches_are_padded_to_powers_of_two_and_cut_to_their_rows():
    sizes = []

    def size_of(rows):
        sizes.append(len(rows))
        return 2 * rows

    for count in (1, 2, 3, 4, 5, 7, 12, 13):
        x = np.arange(count, dtype=np.float32)
        result = BatchRunner(2.0, batch=12).run(size_of, x, "test")
        np.testing.assert_array_equal(result, 2 * x)
    assert sizes == [1, 2, 4, 4, 8, 8, 12, 12, 12]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (9, 16)])
def test_the_padded_size_is_the_next_power_of_two(count, size):
    assert padded(count) == size
