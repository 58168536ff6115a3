"""Exact on renders; every kind of mistake is charged to the attribute that it concerns."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.portraits_checker import ATTRIBUTES, CRITERIA, check, report
from unclip_jax.metrics.portraits_detector import detect
from unclip_jax.portraits import render, scene, world
from unclip_jax.portraits.scene import Portrait, PortraitSpec, hidden, to_spec
from unclip_jax.portraits.vocabulary import ATTRIBUTES as VALUES

AGREE = 0.99


def _portraits(count, *, split="validation", seed=31, keep=lambda portrait: True):
    examples = (world.example(split, seed=seed, index=i).portrait for i in range(100 * count))
    return [portrait for portrait, _ in zip(filter(keep, examples), range(count), strict=False)]


@pytest.mark.parametrize(
    ("split", "size", "count"),
    [("validation", 64, 30), ("compositional", 64, 12), ("validation", 32, 16), ("train", 128, 6)],
)
def test_exact_on_fresh_renders(split, size, count):
    portraits = _portraits(count, split=split, seed=77)
    detections = detect(render.render(portraits, size=size))
    for name in VALUES:
        pairs = zip(portraits, detections, strict=True)
        right = [getattr(p, name) == getattr(d.portrait, name) for p, d in pairs]
        assert np.mean(right) >= AGREE, name
    for portrait, detection in zip(portraits, detections, strict=True):
        assert detection.confidence.keys() == VALUES.keys() - hidden(portrait)


def test_captions_specs_and_json_ask_the_same():
    examples = [world.example("validation", seed=5, index=i) for i in range(6)]
    images = render.render([example.portrait for example in examples])
    for captions in (
        [example.captions[0] for example in examples],
        [example.portrait for example in examples],
        [scene.to_json(example.portrait) for example in examples],
    ):
        verdicts = check(images, captions)
        assert all(verdict.joint for verdict in verdicts)
        assert min(verdict.confidence for verdict in verdicts) > 0.6
    only = check(images[:1], ["a person"])[0]
    assert only.joint and only.confidence == 1.0 and only.binding is None
    assert all(getattr(only, name) is None for name in CRITERIA)


@pytest.mark.parametrize("name", [name for name in VALUES if name != "skin"])
def test_planted_mistakes_are_charged_to_their_attribute(name):
    """The caption asks for the original; one attribute of the image is another value."""
    portraits = _portraits(4, keep=lambda p: p.hair != "bald" and p.glasses != "sunglasses")
    variants = []
    for index, portrait in enumerate(portraits):
        others = [v for v in VALUES[name] if v not in (getattr(portrait, name), "bald")]
        others = [value for value in others if value != "sunglasses"]
        variants.append(dataclasses.replace(portrait, **{name: others[index % len(others)]}))
    for verdict in check(render.render(variants), portraits):
        wrong = {criterion for criterion in CRITERIA if getattr(verdict, criterion) is False}
        assert wrong == {name} and not verdict.joint


def test_swapped_colours_are_a_matter_of_binding():
    base = {"hair": "bob", "facial_hair": "none", "glasses": "none", "eyes": "open"}
    base |= {"mouth": "sad", "clothes": "hoodie", "background": "white", "skin": "tan"}
    variant = Portrait(**base, hair_colour="blue", clothes_colour="red")
    spec = PortraitSpec(hair_colour="red", clothes_colour="blue")
    (verdict,) = check(render.render([variant]), [spec])
    assert verdict.hair_colour is False and verdict.clothes_colour is False
    assert verdict.binding is False and verdict.background is None
    (verdict,) = check(render.render([variant]), ["a person with blue hair in red clothes"])
    assert verdict.binding is True and verdict.joint
    (verdict,) = check(render.render([variant]), ["a person with blue hair in blue clothes"])
    assert verdict.binding is None and not verdict.joint  # one colour cannot be confused


def test_hidden_attributes_are_not_there():
    portrait = dataclasses.replace(_portraits(1)[0], hair="bald", facial_hair="none")
    first = {name: VALUES[name][0] for name in ("hair_colour", "eyes")}  # as detected portraits
    portrait = dataclasses.replace(portrait, glasses="sunglasses", **first)
    spec = PortraitSpec(**first)
    (verdict,) = check(render.render([portrait]), [spec])
    assert verdict.hair_colour is False and verdict.eyes is False
    assert not verdict.detection.confidence.keys() & {"hair_colour", "eyes"}


def test_noise_and_blur_are_withstood():
    portraits = _portraits(12, seed=4)
    clean = render.render(portraits).astype(np.float32)
    noisy = clean + np.random.default_rng(0).normal(0, 12, clean.shape)
    blurred = ndimage.gaussian_filter(clean, (0, 0.8, 0.8, 0))
    for images in (noisy, blurred):
        floats = np.clip(images / 127.5 - 1, -1, 1).astype(np.float32)
        rates = report(check(floats, portraits))
        assert min(rates[name].value for name in CRITERIA) >= 0.95


def test_confidence_is_the_place_between_two_renderings():
    portrait = _portraits(1, keep=lambda p: p.glasses == "none")[0]
    other = dataclasses.replace(portrait, glasses="square")
    none, square = render.render([portrait, other]).astype(np.float32)
    for share in (0.0, 0.25, 0.4):
        image = (none + share * (square - none) + 0.5).astype(np.uint8)
        (detection,) = detect(image[None])
        assert detection.portrait.glasses == "none"
        assert detection.confidence["glasses"] == pytest.approx(1 - 2 * share, abs=0.05)
    image = (none + 0.7 * (square - none) + 0.5).astype(np.uint8)
    (detection,) = detect(image[None])
    assert detection.portrait.glasses == "square"


def test_without_hair_any_colour_of_a_moustache_is_an_alternative():
    portrait = dataclasses.replace(_portraits(1)[0], hair="bald", facial_hair="none", skin="pale")
    other = dataclasses.replace(portrait, facial_hair="moustache", hair_colour="pink")
    none, pink = render.render([portrait, other]).astype(np.float32)
    (detection,) = detect((none + 0.4 * (pink - none) + 0.5).astype(np.uint8)[None])
    assert detection.portrait.facial_hair == "none"
    assert detection.confidence["facial_hair"] == pytest.approx(0.2, abs=0.05)


def test_error_is_the_distance_from_the_rendering():
    portraits = _portraits(3)
    images = render.render(portraits)
    assert all(detection.error < 0.5 for detection in detect(images))
    noise = np.random.default_rng(1).normal(0, 10, images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
    assert all(6 < detection.error < 11 for detection in detect(noisy))


def test_report_counts_what_captions_name():
    portraits = _portraits(4)
    captions = ["a person smiling", "a person", "a person smiling", "a person"]
    rates = report(check(render.render(portraits), captions))
    assert tuple(rates) == ATTRIBUTES
    smiling = sum(portraits[k].mouth == "smiling" for k in (0, 2))
    assert (rates["mouth"].hits, rates["mouth"].total) == (smiling, 2)
    assert rates["hair"].total == 0 and rates["joint"].total == 4


def test_every_attribute_of_a_spec_is_judged():
    assert set(CRITERIA) == set(VALUES) - {"skin"}
    assert to_spec(_portraits(1)[0]).named().keys() <= set(CRITERIA)


def test_what_is_rejected():
    images = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(UserError, match="1 images but 2 captions"):
        check(images, ["a person", "a person"])
    with pytest.raises(UserError, match="not in the grammar of the portraits world"):
        check(images, ["three green stars"])
    with pytest.raises(UserError, match="images are 16 x 16; the checker of portraits needs"):
        check(images[:, :16, :16], ["a person"])
    with pytest.raises(UserError, match="images are 64 x 40"):
        check(images[:, :, :40], ["a person"])
    with pytest.raises(UserError, match=r"float images reach 2; expected \[-1, 1\]"):
        check(np.full((1, 64, 64, 3), 2, np.float32), ["a person"])
