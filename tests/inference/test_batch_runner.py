"""Batches of one shape over the devices, by functions that are compiled once."""

import numpy as np

from unclip_jax.inference.batch_runner import BatchRunner


def scaled(config, params, x):
    return config * params * x


def test_a_function_is_compiled_once_per_config():
    runner = BatchRunner(2.0, batch=4)
    other = 5.0
    own, others = runner.compiled(scaled), runner.compiled(scaled, config=other)
    assert float(own(3.0, np.float32(1.0))) == 6.0
    assert float(others(3.0, np.float32(1.0))) == 15.0
    assert runner.compiled(scaled) is own and runner.compiled(scaled, config=other) is others


def test_rows_do_not_depend_on_the_batches_they_are_in():
    x = np.arange(11, dtype=np.float32)
    for batch in (1, 4, 16):
        runner = BatchRunner(2.0, batch=batch)
        run = runner.compiled(scaled)
        result = runner.run(lambda rows, run=run: run(3.0, rows), x, "test")
        np.testing.assert_array_equal(result, 6.0 * x)
