import unclip_jax.data
from tests.values import changeable


def test_configs_and_records_are_values():
    assert changeable(unclip_jax.data) == []
