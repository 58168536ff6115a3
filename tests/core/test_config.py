import dataclasses

import pytest

from unclip_jax.core import config
from unclip_jax.core.checks import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    name: str = "adamw"


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    sizes: tuple[int, ...] = (1, 2)
    limit: float | None = None
    flag: bool = False


def build(mapping):
    return config.build(Outer, mapping, where="config")


def test_nested_mappings_become_nested_records():
    made = build({"inner": {"rate": 1}, "sizes": [3, 4], "limit": 2})
    assert made == Outer(Inner(1.0), (3, 4), 2.0)
    assert isinstance(made.inner.rate, float)


def test_as_dict_inverts_build():
    made = build({"inner": {"rate": 0.5}, "limit": None})
    assert build(config.as_dict(made)) == made


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"inner": {"rat": 1.0}}, "config.inner has no key 'rat'. Did you mean 'rate'"),
        ({"inner": {}}, "config.inner.rate is missing"),
        ({}, "config.inner is missing"),
        ({"inner": {"rate": "fast"}}, "config.inner.rate is 'fast' .str.; expected float"),
        ({"inner": {"rate": True}}, "config.inner.rate is True .bool.; expected float"),
        ({"inner": {"rate": 1.0}, "flag": 1}, "config.flag is 1 .int.; expected bool"),
        ({"inner": 3}, "config.inner is 3 .int.; expected a group of keys"),
        ({"inner": {"rate": 1.0}, "sizes": 3}, "config.sizes is 3 .int.; expected a list"),
        ({"inner": {"rate": 1.0}, "sizes": [1, "x"]}, r"config.sizes\[1\] is 'x'"),
    ],
)
def test_every_mistake_names_its_place(mapping, message):
    with pytest.raises(UserError, match=message):
        build(mapping)
