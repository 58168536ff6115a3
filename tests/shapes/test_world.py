"""Properties of every scene of the world, over thousands of them."""

import math
import random
import subprocess
import sys
from collections import Counter

import pytest

from tests.shapes import scenes
from unclip_jax.core.checks import UserError
from unclip_jax.shapes import grammar, layout, scene, world
from unclip_jax.shapes.vocabulary import (
    BOUND,
    COLOURS,
    GAP,
    MARGIN,
    SHAPES,
    SIZES,
    held_out,
    size_of,
    training_pairs,
)

MANY = 1600


def _pairs(case):
    return {(item.colour, item.shape) for item in case.items}


@pytest.fixture(scope="module")
def train():
    return [world.example("train", seed=0, index=index) for index in range(MANY)]


@pytest.fixture(scope="module")
def compositional():
    return [world.example("compositional", seed=0, index=index) for index in range(800)]


def test_held_out_pairs_are_about_a_tenth_and_leave_every_word_known():
    assert len(held_out()) == 6 and len(training_pairs()) == 50
    assert not held_out() & set(training_pairs())
    assert {c for c, _ in training_pairs()} == set(COLOURS) and {
        s for _, s in training_pairs()
    } == set(SHAPES)


def test_training_never_shows_a_held_out_pair(train):
    pairs = set().union(*(_pairs(case.scene) for case in train))
    assert pairs == set(training_pairs())  # every training pair occurs, no held-out pair does
    validation = [world.example("validation", seed=0, index=i).scene for i in range(400)]
    assert not held_out() & set().union(*map(_pairs, validation))


def test_every_compositional_scene_shows_one(compositional):
    assert all(_pairs(case.scene) & held_out() for case in compositional)
    assert set().union(*(_pairs(case.scene) for case in compositional)) >= held_out()


def test_shares_of_single_pair_and_count_scenes(train):
    kinds = Counter(
        "pair" if case.scene.relation else "single" if len(case.scene.items) == 1 else "count"
        for case in train[:: world.SIBLINGS]  # siblings are of one kind
    )
    families = MANY / world.SIBLINGS
    for kind, share in (("single", 0.3), ("pair", 0.5), ("count", 0.2)):
        spread = math.sqrt(families * share * (1 - share))
        assert abs(kinds[kind] - families * share) < 4 * spread


def test_siblings_share_what_is_easy_and_differ_in_what_is_hard(train):
    for start in range(0, MANY, world.SIBLINGS):
        family = [case.scene for case in train[start : start + world.SIBLINGS]]
        assert len({each.background for each in family}) == 1
        assert len({frozenset((i.colour, i.size) for i in each.items) for each in family}) == 1
        specs = {scene.to_spec(sibling) for sibling in family}
        assert len({(spec.objects, spec.relation) for spec in specs}) == world.SIBLINGS


def test_objects_are_apart_and_inside(train, compositional):
    for case in [*train, *compositional]:
        items = case.scene.items
        assert scenes.separation(case.scene) >= GAP - 1e-4
        for item in items:
            edge = MARGIN + BOUND * item.radius - 1e-4
            assert edge <= item.x <= 1 - edge and edge <= item.y <= 1 - edge


def test_relations_are_true_and_clear(train):
    for case in train:
        if case.scene.relation is None:
            continue
        first, second = case.scene.items
        right, down = second.x - first.x, second.y - first.y
        along, across = {
            "above": (down, right),
            "below": (-down, right),
            "left of": (right, down),
            "right of": (-right, down),
        }[case.scene.relation]
        assert along > 0 and abs(across) <= 0.4 * along + 1e-4
        assert (first.colour, first.shape) != (second.colour, second.shape)


def test_size_words_are_the_radii(train):
    for case in train:
        for item in case.scene.items:
            assert SIZES[item.size].low <= item.radius <= SIZES[item.size].high
            assert size_of(item.radius) == item.size


def test_captions_are_different_and_true(train):
    for case in train[:400]:
        full = scene.to_spec(case.scene)
        assert 2 <= len(set(case.captions)) == len(case.captions) <= 6
        for caption in case.captions:
            assert set(grammar.parse(caption).objects) == set(full.objects)
            assert caption in (
                *grammar.captions(case.scene, background=True),
                *grammar.captions(case.scene, background=False),
            )
    share = sum("background" in case.captions[0] for case in train) / MANY
    assert abs(share - 1 / 2) < 0.04


def test_scene_depends_on_split_seed_and_index_alone():
    first = world.example("train", seed=4, index=9)
    assert world.example("train", seed=4, index=9) == first
    others = [("train", 4, 10), ("train", 5, 9), ("validation", 4, 9)]
    for split, seed, index in others:
        assert world.example(split, seed=seed, index=index) != first


def test_same_world_in_another_process():
    """No dependence on hash randomisation or on what ran before."""
    code = (
        "from unclip_jax.shapes import world\n"
        "for s in ('train', 'compositional'):\n"
        "    print([world.example(s, seed=1, index=i) for i in range(40)])"
    )
    here = "".join(
        f"{[world.example(s, seed=1, index=i) for i in range(40)]}\n"
        for s in ("train", "compositional")
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout == here


def test_arranged_scenes_fulfil_their_spec():
    for text in (
        "a large red circle above a large blue square",
        "a large red circle above a small blue square on a navy background",
        "four green stars",
        "a pink ring",
    ):
        spec = grammar.parse(text)
        if text.count("large") == 2:
            with pytest.raises(UserError, match="do not fit side by side"):
                scenes.arrange(spec, seed=0)
            continue
        for seed in range(30):
            full = scene.to_spec(scenes.arrange(spec, seed=seed))
            assert (full.objects, full.relation) == (spec.objects, spec.relation)
            assert spec.background in (None, full.background)


def test_large_beside_medium_still_fits():
    spec = grammar.parse("a large red circle right of a blue square")
    for seed in range(50):
        assert scenes.separation(scenes.arrange(spec, seed=seed)) > 0.05


def test_objects_too_large_to_scatter_are_rejected():
    with pytest.raises(UserError, match="2 objects of radius .* do not fit"):
        scenes.arrange(grammar.parse("two large red circles"), seed=0)


def test_crowded_scatter_falls_back_to_quarters():
    radius = 0.19  # random positions for four of these seldom fit
    for seed in range(40):
        places = layout.scattered(random.Random(seed), count=4, radius=radius)
        assert scenes.least_gap(places, [radius] * 4) >= GAP - 1e-9


def test_unknown_split_and_negative_index_are_rejected():
    with pytest.raises(UserError, match="unknown split 'test'"):
        world.example("test", seed=0, index=0)
    with pytest.raises(UserError, match="scene index is -1"):
        world.example("train", seed=0, index=-1)
