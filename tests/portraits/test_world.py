"""Properties of every portrait of the world, over thousands of them."""

import math
import subprocess
import sys
from collections import Counter

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.portraits import grammar, world
from unclip_jax.portraits.scene import hidden, to_spec
from unclip_jax.portraits.vocabulary import (
    ATTRIBUTES,
    CLOTHES_COLOURS,
    HAIR_COLOURS,
    NUM_HELD_OUT,
    held_out,
    too_close,
)

MANY = 800


@pytest.fixture(scope="module")
def train():
    return [world.example("train", seed=0, index=index) for index in range(MANY)]


@pytest.fixture(scope="module")
def compositional():
    return [world.example("compositional", seed=0, index=index) for index in range(250)]


def _pair(portrait):
    return portrait.hair_colour, portrait.clothes_colour


def test_held_out_pairs_are_about_a_tenth_and_leave_every_colour_common():
    possible = [
        (a, b)
        for a, hair in HAIR_COLOURS.items()
        for b, cloth in CLOTHES_COLOURS.items()
        if not too_close(hair, cloth)
    ]
    assert len(held_out()) == NUM_HELD_OUT and held_out() < set(possible)
    for position in (0, 1):
        total = Counter(pair[position] for pair in possible)
        omitted = Counter(pair[position] for pair in held_out())
        assert all(omitted[colour] <= total[colour] / 2 for colour in total)


def test_training_never_shows_a_held_out_pair(train):
    validation = [world.example("validation", seed=0, index=i) for i in range(250)]
    for example in (*train, *validation):
        visible = "hair_colour" not in hidden(example.portrait)
        assert not visible or _pair(example.portrait) not in held_out()


def test_every_compositional_portrait_shows_one(compositional):
    assert all("hair_colour" not in hidden(example.portrait) for example in compositional)
    assert {_pair(example.portrait) for example in compositional} == held_out()


def test_every_value_occurs(train):
    for name, values in ATTRIBUTES.items():
        counts = Counter(getattr(example.portrait, name) for example in train)
        assert counts.keys() == set(values)
        assert min(counts.values()) > MANY / len(values) / 3


@pytest.mark.parametrize("place", range(world.SIBLINGS))
def test_independent_attributes_have_their_shares(train, place):
    """Mouths and clothes touch no rule of the sampler; every place in a family has its own test."""
    examples = train[place :: world.SIBLINGS]
    count = len(examples)
    for name in ("mouth", "clothes"):
        counts = Counter(getattr(example.portrait, name) for example in examples)
        share = 1 / len(ATTRIBUTES[name])
        spread = math.sqrt(count * share * (1 - share))
        assert all(abs(number - count * share) < 4 * spread for number in counts.values())


def test_siblings_differ_in_one_attribute_that_captions_name_or_in_the_order_of_colours(train):
    exchanges, changes = 0, Counter()
    for start in range(0, MANY, world.SIBLINGS):
        family = [example.portrait for example in train[start : start + world.SIBLINGS]]
        assert len({to_spec(portrait) for portrait in family}) == world.SIBLINGS
        first, *siblings = family
        for sibling in siblings:
            names = [n for n in ATTRIBUTES if getattr(sibling, n) != getattr(first, n)]
            if "hair_colour" in names and _pair(sibling) == _pair(first)[::-1]:
                assert set(names) == {"hair_colour", "clothes_colour"}
                exchanges += 1
            else:  # sunglasses hide the eyes, and a bald head the colour of hair
                assert len({*names} - {"eyes", "hair_colour"}) <= 1
                changes += Counter(names)
    siblings = MANY * (1 - 1 / world.SIBLINGS)
    assert exchanges > siblings / 50
    assert 1 <= changes.total() / (siblings - exchanges) < 1.5
    assert changes["skin"] == 0
    assert min(changes[name] for name in ATTRIBUTES if name != "skin") > siblings / 25


def test_portraits_are_legible_and_hide_first_values(train, compositional):
    for example in (*train, *compositional):
        assert world.legible(example.portrait)
        for name in hidden(example.portrait):
            assert getattr(example.portrait, name) == ATTRIBUTES[name][0]


def test_captions_are_different_and_true(train):
    for example in train:
        full = to_spec(example.portrait).named()
        assert 2 <= len(set(example.captions)) == len(example.captions) <= world.PARAPHRASES
        for caption in example.captions:
            assert grammar.parse(caption).named().items() <= full.items()


def test_captions_name_some_attributes_and_leave_others_out(train):
    specs = [grammar.parse(example.captions[0]).named() for example in train]
    for name, share in (("mouth", 0.75), ("background", 0.85)):
        spread = math.sqrt(MANY * share * (1 - share))
        assert abs(sum(name in spec for spec in specs) - MANY * share) < 4 * spread
    glasses = [s for s, e in zip(specs, train, strict=True) if e.portrait.glasses != "none"]
    assert 0.92 < sum("glasses" in spec for spec in glasses) / len(glasses) < 0.98
    three = [s for s in specs if {"hair_colour", "clothes_colour", "background"} <= s.keys()]
    assert len(three) > MANY / 2  # most captions bind three colours


def test_address_decides_everything():
    first = world.example("train", seed=4, index=9)
    assert world.example("train", seed=4, index=9) == first
    for split, seed, index in (("train", 4, 10), ("train", 5, 9), ("validation", 4, 9)):
        assert world.example(split, seed=seed, index=index) != first


def test_same_world_in_another_process():
    """No dependence on hash randomisation or on what ran before."""
    code = (
        "from unclip_jax.portraits import world\n"
        "for s in ('train', 'compositional'):\n"
        "    print([world.example(s, seed=1, index=i) for i in range(30)])"
    )
    here = "".join(
        f"{[world.example(s, seed=1, index=i) for i in range(30)]}\n"
        for s in ("train", "compositional")
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "123", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == here


def test_bad_addresses():
    with pytest.raises(UserError, match="unknown split 'test'"):
        world.example("test", seed=0, index=0)
    with pytest.raises(UserError, match="portrait index is -1"):
        world.example("train", seed=0, index=-1)
