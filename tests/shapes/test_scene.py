import dataclasses
import json

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.shapes import scene, world
from unclip_jax.shapes.scene import ObjectSpec, Scene, SceneObject, SceneSpec

STAR = SceneObject("red", "star", "small", 0.3, 0.4, 0.12)


def test_json_round_trip():
    for index in range(50):
        case = world.example("compositional", seed=2, index=index)
        text = scene.to_json(case.scene, case.captions)
        assert scene.from_json(text) == case.scene
        assert tuple(json.loads(text)["captions"]) == case.captions
        assert "\n" not in text


def test_json_is_readable_without_this_package():
    record = json.loads(scene.to_json(Scene("navy", (STAR,)), ["a small red star"]))
    assert record == {
        "background": "navy",
        "items": [
            {"colour": "red", "shape": "star", "size": "small", "x": 0.3, "y": 0.4, "radius": 0.12}
        ],
        "relation": None,
        "captions": ["a small red star"],
    }


def test_spec_of_a_scene_leaves_out_medium_sizes():
    medium = dataclasses.replace(STAR, size="medium", radius=0.17)
    spec = scene.to_spec(Scene("mint", (STAR, medium), "above"))
    expected = (ObjectSpec("red", "star", "small"), ObjectSpec("red", "star"))
    assert spec == SceneSpec(expected, "above", "mint")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"background":"white"}', "lacks or misnames a field"),
        ('{"background":"white","items":[{"color":1}],"relation":null}', "lacks or misnames"),
        ('{"background":"wihte","items":[],"relation":null}', "Did you mean 'white'"),
    ],
)
def test_bad_json(text, message):
    with pytest.raises(UserError, match=message):
        scene.from_json(text)


def test_words_outside_the_vocabulary():
    with pytest.raises(UserError, match="unknown colour 'rde'"):
        SceneObject("rde", "star", "small", 0.5, 0.5, 0.1)
    with pytest.raises(UserError, match="unknown shape"):
        ObjectSpec("red", "stra")
    with pytest.raises(UserError, match="unknown size"):
        ObjectSpec("red", "star", "tiny")
    with pytest.raises(UserError, match="unknown relation"):
        Scene("white", (STAR, STAR), "near")
    with pytest.raises(UserError, match="unknown background"):
        SceneSpec((ObjectSpec("red", "star"),), None, "red")


def test_relation_needs_two():
    with pytest.raises(UserError, match="relation 'above' needs exactly 2 objects"):
        Scene("white", (STAR,), "above")


def test_empty_spec_is_rejected():
    with pytest.raises(UserError, match="names no object"):
        SceneSpec(())
