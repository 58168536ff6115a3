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
    case = build({"inner": {"rate": 1}, "sizes": [3, 4], "limit": 2})
    assert case == Outer(Inner(1.0), (3, 4), 2.0)
    assert isinstance(case.inner.rate, float)


def test_as_dict_inverts_build():
    case = build({"inner": {"rate": 0.5}, "limit": None})
    assert build(config.as_dict(case)) == case


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


@dataclasses.dataclass(frozen=True)
class Network:
    width: int = 8
    text_depth: int = 2
    image_size: int = 64
    rate: float = 0.5
    multiples: tuple[int, ...] = (1, 2)
    means: tuple[float, ...] = (0.0,) * 2048
    name: str = "x"
    flag: bool = True


@dataclasses.dataclass(frozen=True)
class Stage:
    model: Network = Network()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 2**24 + 1}, r"here.model.width is 16777217; it must lie in \[0, 16777216\]"),
        ({"width": -1}, "here.model.width is -1"),
        ({"text_depth": 257}, r"here.model.text_depth is 257; it must lie in \[0, 256\]"),
        ({"image_size": 2**14 + 1}, "here.model.image_size is 16385"),
        ({"multiples": (1, 2**25)}, "here.model.multiples is 33554432"),
        ({"multiples": (1,) * 65}, "here.model.multiples has 65 numbers; expected at most 64"),
        ({"rate": float("inf")}, "here.model.rate is inf .float.; expected a finite number"),
        ({"means": (0.0, float("nan"))}, "here.model.means is nan"),
    ],
)
def test_numbers_that_no_network_has_are_rejected(change, message):
    config.check_limits(Stage(), where="here")
    with pytest.raises(UserError, match=message):
        config.check_limits(Stage(dataclasses.replace(Network(), **change)), where="here")


def test_an_integer_that_no_float_holds_is_rejected():
    with pytest.raises(UserError, match=r"config.limit is 1000.*expected a number of at most"):
        build({"inner": {"rate": 1.0}, "limit": 10**400})


@dataclasses.dataclass(frozen=True)
class Free:
    settings: dict[str, int]


def test_a_group_of_free_keys_is_a_mapping():
    assert config.build(Free, {"settings": {"a": 1}}, where="m").settings == {"a": 1}
    with pytest.raises(UserError, match="m.settings is 5 .int.; expected a group of keys"):
        config.build(Free, {"settings": 5}, where="m")
