import dataclasses
import json

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.portraits import render, scene, world
from unclip_jax.portraits.scene import PortraitSpec
from unclip_jax.portraits.vocabulary import ATTRIBUTES


def _portraits(count, split="validation"):
    return [world.example(split, seed=8, index=index).portrait for index in range(count)]


def test_json_round_trip():
    for portrait in _portraits(50):
        text = scene.to_json(portrait, ["a person"])
        assert scene.from_json(text) == portrait
        assert json.loads(text)["captions"] == ["a person"]


def test_bad_json():
    text = scene.to_json(_portraits(1)[0])
    with pytest.raises(UserError, match="is not JSON .* Use a portraits data set"):
        scene.from_json("a person")
    with pytest.raises(UserError, match="is not a portrait; expected a JSON object with hair,"):
        scene.from_json('{"background": "white"}')
    with pytest.raises(UserError, match="unknown mouth 'grinning'"):
        scene.from_json(text.replace('"mouth":"', '"mouth":"grinning","was":"'))


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_words_outside_the_vocabulary_are_rejected(name):
    with pytest.raises(UserError, match=f"unknown {name.replace('_', ' ')} 'plaid'"):
        dataclasses.replace(_portraits(1)[0], **{name: "plaid"})
    if name != "skin":
        with pytest.raises(UserError, match="'plaid'"):
            PortraitSpec(**{name: "plaid"})


def test_no_hair_has_no_colour():
    with pytest.raises(UserError, match="red is the colour of no hair at all; name a beard"):
        PortraitSpec(hair="bald", hair_colour="red")
    PortraitSpec(hair="bald", hair_colour="red", facial_hair="goatee")


def test_specs_hold_what_is_visible_but_the_skin():
    portrait = dataclasses.replace(
        _portraits(1)[0], hair="bald", facial_hair="none", glasses="sunglasses"
    )
    attributes = scene.to_spec(portrait).named()
    assert attributes.keys() == ATTRIBUTES.keys() - {"skin", "eyes", "hair_colour"}
    assert all(getattr(portrait, name) == value for name, value in attributes.items())


def test_hidden_attributes_change_no_pixel_and_all_others_do():
    for portrait in _portraits(24):
        hidden = scene.hidden(portrait)
        for name, values in ATTRIBUTES.items():
            others = [v for v in values if v != getattr(portrait, name)]
            variants = [dataclasses.replace(portrait, **{name: value}) for value in others]
            original, *images = render.render([portrait, *variants], size=64).astype(float)
            for value, image in zip(others, images, strict=True):
                change = np.abs(image - original).max(axis=-1)
                if name in hidden:
                    assert not change.any()
                else:
                    assert (change > 24).sum() >= 4, (name, value, portrait)
