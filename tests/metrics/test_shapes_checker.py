"""Exact on renders; and every kind of mistake is charged to the attribute that it concerns."""

import dataclasses
import json

import numpy as np
import pytest

from tests.shapes import scenes
from unclip_jax.core.checks import UserError
from unclip_jax.metrics import worlds
from unclip_jax.metrics.shapes_checker import ATTRIBUTES, check, report, table
from unclip_jax.shapes import grammar, render, scene, world
from unclip_jax.shapes.scene import ObjectSpec, Scene, SceneSpec
from unclip_jax.shapes.vocabulary import BACKGROUNDS, INVERSE, SHAPES, SIZES

ATTRIBUTE_NAMES = ("background", "count", "colour", "shape", "size", "relation")
AGREE = 0.99


def _scenes(count, *, keep=lambda case: True, seed=31):
    case = (world.example("validation", seed=seed, index=i).scene for i in range(100 * count))
    return [each for each, _ in zip(filter(keep, case), range(count), strict=False)]


def _is_pair(case):
    return case.relation is not None


def _unlike_pair(case):
    a, b = case.items[0], case.items[-1]
    return _is_pair(case) and a.colour != b.colour and a.shape != b.shape


def _change_first(case, **changes):
    """The scene with fields of its first object changed."""
    return dataclasses.replace(
        case, items=(dataclasses.replace(case.items[0], **changes), *case.items[1:])
    )


def _rates(actual, targets, *, size=64):
    return report(check(render.render(actual, size=size), targets))


def _only_wrong(rates, *wrong):
    """`wrong` attributes fail, every other one of the targets holds."""
    for name in ATTRIBUTE_NAMES:
        if rates[name].total:
            value = 1 - rates[name].value if name in wrong else rates[name].value
            assert value >= AGREE, (name, rates[name])
    assert rates["joint"].value <= 1 - AGREE


@pytest.mark.parametrize("split", ["validation", "compositional"])
@pytest.mark.parametrize("size", [64, 32])
def test_exact_on_fresh_renders(split, size):
    case = [world.example(split, seed=77, index=i) for i in range(150)]
    pictures = render.render([each.scene for each in case], size=size)
    for targets in ([each.scene for each in case], [each.captions[0] for each in case]):
        rates = report(check(pictures, targets))
        assert all(rates[name].value >= AGREE for name in ATTRIBUTES)


def test_swapped_colours_are_a_matter_of_colour_and_binding():
    targets = _scenes(40, keep=_unlike_pair)
    actual = []
    for case in targets:
        a, b = case.items
        items = (
            dataclasses.replace(a, colour=b.colour),
            dataclasses.replace(b, colour=a.colour),
        )
        actual.append(dataclasses.replace(case, items=items))
    rates = _rates(actual, targets)
    _only_wrong(rates, "colour")
    assert rates["binding"].total == 40 and rates["binding"].value == 0
    assert rates["objects"].value == 0


def test_swapped_places_are_a_matter_of_relation():
    targets = _scenes(40, keep=_is_pair)
    actual = [
        scenes.arrange(
            dataclasses.replace(scene.to_spec(case), relation=INVERSE[str(case.relation)]),
            seed=index,
        )
        for index, case in enumerate(targets)
    ]
    rates = _rates(actual, targets)
    _only_wrong(rates, "relation")
    assert rates["objects"].value >= AGREE


@pytest.mark.parametrize("other", ["left of", "right of"])
def test_beside_is_not_above(other):
    targets = _scenes(30, keep=lambda case: case.relation == "above")
    actual = [
        scenes.arrange(dataclasses.replace(scene.to_spec(case), relation=other), seed=0)
        for case in targets
    ]
    _only_wrong(_rates(actual, targets), "relation")


def test_a_missing_copy_is_a_matter_of_count():
    targets = _scenes(40, keep=lambda case: len(case.items) > 1 and not _is_pair(case))
    actual = [dataclasses.replace(case, items=case.items[1:]) for case in targets]
    _only_wrong(_rates(actual, targets), "count")


def test_an_extra_object_is_a_matter_of_count():
    more = grammar.parse("three green stars on a mint background")
    fewer = grammar.parse("two green stars on a mint background")
    actual = [scenes.arrange(more, seed=seed) for seed in range(20)]
    _only_wrong(_rates(actual, [fewer] * 20), "count")


def test_a_missing_kind_fails_colour_shape_and_count():
    targets = _scenes(40, keep=_unlike_pair)
    actual = [Scene(case.background, case.items[1:]) for case in targets]
    rates = _rates(actual, targets)
    for name in ("count", "colour", "shape", "relation", "joint"):
        assert rates[name].value == 0
    assert rates["background"].value == 1


def test_another_background_is_a_matter_of_background():
    targets = _scenes(60)
    names = list(BACKGROUNDS)
    actual = [
        dataclasses.replace(
            case, background=names[(names.index(case.background) + 1 + k % 5) % len(names)]
        )
        for k, case in enumerate(targets)
    ]
    _only_wrong(_rates(actual, targets), "background")


def test_another_shape_is_a_matter_of_shape():
    targets = _scenes(60)
    actual = [
        _change_first(
            case, shape=SHAPES[(SHAPES.index(case.items[0].shape) + 1 + k % 7) % len(SHAPES)]
        )
        for k, case in enumerate(targets)
    ]
    _only_wrong(_rates(actual, targets), "shape")


def test_another_size_is_a_matter_of_size():
    targets = _scenes(40, keep=lambda case: case.items[0].size == "large")
    low = SIZES["small"].low
    actual = [_change_first(case, size="small", radius=low) for case in targets]
    _only_wrong(_rates(actual, targets), "size")


def test_an_empty_image_has_only_its_background():
    targets = _scenes(30)
    rates = _rates([Scene(case.background, ()) for case in targets], targets)
    for name in ATTRIBUTES:
        if name == "background":
            assert rates[name].value == 1
        elif name != "binding":  # applies only where the parts are present
            assert rates[name].value == 0 or not rates[name].total


def test_only_what_the_caption_names_is_judged():
    actual = [
        scenes.arrange(grammar.parse(f"a small red star on a {ground} background"), seed=0)
        for ground in BACKGROUNDS
    ]
    for verdict in check(render.render(actual, size=64), ["a red star"] * len(actual)):
        assert verdict.joint
        assert (verdict.background, verdict.size, verdict.relation) == (None, None, None)


def test_like_objects_in_a_relation():
    spec = grammar.parse("a red star above a red star")
    up = scenes.arrange(spec, seed=0)
    beside = scenes.arrange(dataclasses.replace(spec, relation="left of"), seed=0)
    above, left = check(render.render([up, beside], size=64), [spec, spec])
    assert above.joint and above.binding is None
    assert left.relation is False and left.objects


def test_several_unlike_objects_without_relation():
    kinds = (("red", "star"), ("blue", "ring"), ("green", "heart"))
    items = tuple(
        scene.SceneObject(colour, shape, "small", 0.2 + 0.3 * k, 0.5, 0.12)
        for k, (colour, shape) in enumerate(kinds)
    )
    spec = SceneSpec(tuple(ObjectSpec(*kind) for kind in reversed(kinds)))
    (verdict,) = check(render.render([Scene("white", items)], size=64), [spec])
    assert verdict.joint and verdict.detection.background == "white"


def test_json_caption_scene_and_spec_agree():
    case = world.example("validation", seed=8, index=3)
    picture = render.render([case.scene], size=64)
    text = scene.to_json(case.scene, case.captions)
    targets = (case.scene, text, scene.to_spec(case.scene))
    verdicts = [check(picture, [entry])[0] for entry in targets]
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_report_counts_only_applicable_attributes():
    actual = [scenes.arrange(grammar.parse("a red star on a navy background"), seed=0)] * 4
    targets = ["a red star", "a red star on a navy background", "a red star on a mint background"]
    rates = report(check(render.render(actual, size=32), [*targets, "a blue star"]))
    assert rates["background"][:2] == (1, 2)
    assert rates["colour"][:2] == (3, 4)
    assert rates["relation"].total == 0
    assert rates["joint"][:2] == (2, 4)
    lines = table(rates).splitlines()
    assert len(lines) == len(ATTRIBUTES)
    assert lines[0].startswith("background  0.500 [")
    assert "relation    not applicable" in lines


def test_rates_are_json_ready_without_what_no_caption_names():
    actual = [scenes.arrange(grammar.parse("a red star"), seed=0)] * 3
    rates = report(
        check(render.render(actual, size=32), ["a red star", "a blue star", "a red star"])
    )
    result = json.loads(json.dumps(worlds.as_json(rates)))
    assert {name for name, rate in rates.items() if not rate.total} >= {"background", "relation"}
    assert result.keys() == {name for name, rate in rates.items() if rate.total}
    assert (result["colour"]["hits"], result["colour"]["total"]) == (2, 3)
    assert result["colour"]["value"] == 2 / 3 and 0 < result["colour"]["low"] < 0.5


def test_invalid_captions_are_rejected():
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="1 images but 2 captions"):
        check(picture, ["a red star", "a red star"])
    with pytest.raises(UserError, match="not in the grammar of the shapes world"):
        check(picture, ["an emoji of a cat"])
    with pytest.raises(UserError, match="is not JSON"):
        check(picture, ["{"])
