import unclip_jax.metrics
from tests.values import changeable


def test_configs_and_records_are_values():
    assert changeable(unclip_jax.metrics) == []
