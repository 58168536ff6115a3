"""The parts of the detector: colours, windows and renderings, against the renderer itself."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import ndimage

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import portraits_detector as detector
from unclip_jax.metrics.portraits_detector import Window
from unclip_jax.portraits import render, world
from unclip_jax.portraits.vocabulary import (
    ATTRIBUTES,
    CLOTHES_COLOURS,
    HAIR_COLOURS,
    SKINS,
    Rgb,
)

RNG = np.random.default_rng(0)
PALETTE = {
    "red": Rgb(250, 0, 0),
    "green": Rgb(0, 250, 0),
    "blue": Rgb(0, 0, 250),
    "gray": Rgb(90, 90, 90),
    "white": Rgb(250, 250, 250),
}


def portraits(count, *, seed=3):
    return [world.example("validation", seed=seed, index=i).portrait for i in range(count)]


def pixels_of(portrait, size=64):
    return render.render([portrait], size=size)[0].astype(np.float32)


def test_regions_are_percents_of_the_side():
    pixels = np.arange(50 * 50 * 3, dtype=np.float32).reshape(50, 50, 3)
    actual = detector._region(pixels, (20, 80, 0, 30))
    np.testing.assert_array_equal(actual, pixels[:15, 10:40].reshape(-1, 3))
    np.testing.assert_array_equal(
        detector._region(pixels, (21, 79, 33, 97)), pixels[16:48, 10:40].reshape(-1, 3)
    )


@pytest.mark.parametrize("size", [32, 64, 100])
def test_the_regions_of_the_guess_show_what_they_are_for(size):
    """Corners the background, the face the skin, the chest the clothes, on almost all portraits."""
    right = dict.fromkeys(("background", "skin", "clothes_colour", "hair_colour"), 0)
    cases = [p for p in portraits(40) if p.hair not in ("bald", "mohawk")]
    for portrait in cases:
        pixels = pixels_of(portrait, size)
        corners = np.concatenate([detector._region(pixels, c) for c in detector.CORNERS])
        middle = np.median(corners, axis=0)
        right["background"] += (
            detector._nearest(middle, detector.BACKGROUNDS) == portrait.background
        )
        likely = {
            "skin": detector._likely(pixels, detector.FACE, SKINS)[: detector.SKIN_GUESSES],
            "clothes_colour": detector._likely(pixels, detector.CHEST, CLOTHES_COLOURS),
            "hair_colour": detector._likely(pixels, detector.HEAD, HAIR_COLOURS),
        }
        for name, values in likely.items():
            right[name] += getattr(portrait, name) in values
    assert right["background"] >= len(cases) - 1 and right["skin"] >= 0.95 * len(cases)
    assert min(right.values()) >= 0.8 * len(cases), right


def test_the_nearest_colour_is_that_of_least_distance():
    for colour, name in (
        ((200, 40, 40), "red"),
        ((100, 80, 90), "gray"),
        ((240, 250, 249), "white"),
    ):
        assert detector._nearest(np.array(colour, np.float32), PALETTE) == name
    for name, colour in PALETTE.items():
        assert detector._nearest(np.array(colour, np.float32), PALETTE) == name


def test_likely_colours_are_those_of_most_pixels_and_four_of_them():
    pixels = np.full((10, 10, 3), 90.0, np.float32)  # gray
    pixels[:3], pixels[3, :6], pixels[4, :2] = (0, 250, 0), (250, 0, 0), (250, 250, 250)
    whole = (0, 100, 0, 100)
    assert detector._likely(pixels, whole, PALETTE) == ("gray", "green", "red", "white")
    pixels[6:] += 20  # still gray, at 35 of distance, with exp(-(35 / 30)^2) = 0.26 of a vote
    assert detector._likely(pixels, whole, PALETTE)[0] == "gray"
    votes = 100 - 40 - 38 + 40 * np.exp(-((20 * np.sqrt(3) / 30) ** 2))
    assert 30 < votes < 33  # of gray: more than 30 of green
    pixels[6, :3] = (0, 250, 0)
    assert detector._likely(pixels, whole, PALETTE)[0] == "green"
    assert detector._likely(pixels, (0, 100, 30, 40), PALETTE)[:2] == ("red", "gray")


@pytest.mark.parametrize("factor", [2, 3])
def test_blocks_are_averaged(factor):
    pixels = RNG.uniform(0, 255, (6, 6, 3)).astype(np.float32)
    actual = detector._reduce(pixels, factor)
    assert actual.shape == (6 // factor, 6 // factor, 3)
    for row, column in itertools.product(range(6 // factor), repeat=2):
        block = pixels[factor * row :, factor * column :][:factor, :factor]
        np.testing.assert_allclose(actual[row, column], block.mean(axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize(("side", "result"), [(32, 32), (64, 64), (96, 96), (128, 64), (192, 64)])
def test_images_are_reduced_to_64_pixels_where_that_divides_them(side, result):
    bytes_ = RNG.integers(0, 256, (side, side, 3)).astype(np.uint8)
    pixels = detector._to_pixels(bytes_)
    expected = bytes_.astype(np.float32).reshape(result, side // result, result, side // result, 3)
    np.testing.assert_allclose(pixels, expected.mean(axis=(1, 3)), rtol=1e-5)
    floats = bytes_.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(detector._to_pixels(floats), pixels, atol=1e-3)
    assert detector._to_pixels(RNG.uniform(-1, 1, (65, 65, 3))).shape == (65, 65, 3)


def test_limits_of_images():
    detector._check(np.zeros((1, 32, 32, 3), np.uint8))
    detector._check(np.zeros((0, 32, 32, 3), np.float32))
    detector._check(np.full((1, 32, 32, 3), -1.001, np.float32))
    for bad in (1.0011, np.nan):
        with pytest.raises(UserError, match=r"float images reach .*; expected \[-1, 1\]"):
            detector._check(np.full((1, 32, 32, 3), bad, np.float32))
    for shape in ((31, 31), (32, 33), (33, 32)):
        with pytest.raises(UserError, match=f"images are {shape[0]} x {shape[1]}; .* at least 32"):
            detector._check(np.zeros((1, *shape, 3), np.uint8))


WHOLE = Window(0, 64, 0, 64)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_renderings_are_those_of_the_renderer_and_differ_in_the_window_alone(name):
    """Of every value of an attribute, all else equal."""
    for portrait in portraits(3, seed=8):
        values = dataclasses.asdict(portrait)
        options = [{name: value} for value in ATTRIBUTES[name]]
        expected = np.stack([pixels_of(dataclasses.replace(portrait, **o)) for o in options])
        actual = detector._renderings(values, options, size=64, window=WHOLE, blur=0.0)
        np.testing.assert_array_equal((actual + 0.5).astype(np.uint8), expected)
        window = detector._window((name,), 64)
        rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
        part = detector._renderings(values, options, size=64, window=window, blur=0.0)
        np.testing.assert_allclose(part, actual[:, rows, columns], atol=1e-3)
        outside = np.ones((64, 64), bool)
        outside[rows, columns] = False
        assert (expected[:, outside] == expected[:1, outside]).all()


def test_windows_are_the_least_that_hold_all_changes_and_two_pixels():
    """Of each value of the attribute, on any portrait: where a part of it is painted."""
    for name in ("hair", "glasses", "mouth", "clothes_colour", "facial_hair"):
        changes = np.zeros((64, 64), bool)
        for portrait in portraits(40, seed=5):
            images = [
                pixels_of(dataclasses.replace(portrait, **{name: v})) for v in ATTRIBUTES[name]
            ]
            changes |= np.ptp(np.stack(images), axis=0).max(axis=-1) > 0
        rows, columns = (np.flatnonzero(changes.any(axis=axis)) for axis in (1, 0))
        window = detector._window((name,), 64)
        limits = (rows[0] - 2, rows[-1] + 3, columns[0] - 2, columns[-1] + 3)
        for actual, limit in zip(window, np.clip(limits, 0, 64), strict=True):
            assert abs(actual - limit) <= 1, (name, window, limits)
        assert window.top <= limits[0] or limits[0] < 0
    assert detector._window(("mouth", "background"), 48) == Window(0, 48, 0, 48)
    both = detector._window(("mouth", "glasses"), 64)
    apart = [detector._window((name,), 64) for name in ("mouth", "glasses")]
    assert both == tuple(
        f(*pair) for f, pair in zip((min, max) * 2, zip(*apart, strict=True), strict=True)
    )


def test_blurred_renderings_are_gaussian_filtered():
    portrait = portraits(1)[0]
    values = dataclasses.asdict(portrait)
    (sharp,) = detector._renderings(values, [{}], size=64, window=WHOLE, blur=0.0)
    (soft,) = detector._renderings(values, [{}], size=64, window=WHOLE, blur=1.3)
    expected = ndimage.gaussian_filter(sharp, (1.3, 1.3, 0), mode="nearest")
    np.testing.assert_allclose(soft, expected, atol=0.6)  # cut at three deviations instead of four
    assert np.abs(soft - sharp).max() > 20


@pytest.mark.parametrize("blur", [0.0, 0.4, 0.6, 0.8, 1.0, 1.3])
def test_the_blur_of_an_image_is_estimated(blur):
    for portrait in portraits(2, seed=6):
        soft = ndimage.gaussian_filter(pixels_of(portrait), (blur, blur, 0), mode="nearest")
        values = dataclasses.asdict(portrait)
        assert detector._blur(soft, values) == blur
        assert detector._error(soft, values, blur) < 0.5
        assert detector._error(soft + 10, values, blur) == pytest.approx(10, abs=0.5)


def test_the_best_option_is_the_nearest_and_distances_are_squared():
    portrait = portraits(1, seed=9)[0]
    values = dataclasses.asdict(portrait)
    options = [{"clothes_colour": value} for value in ATTRIBUTES["clothes_colour"]]
    images = [pixels_of(dataclasses.replace(portrait, **option)) for option in options]
    blue = next(i for i, option in enumerate(options) if option["clothes_colour"] == "blue")
    actual = detector._compare(images[blue], values, options, blur=0.0)
    assert actual.best == {"clothes_colour": "blue"}
    for distances in (actual.errors, actual.apart):
        expected = [np.sum((image - images[blue]) ** 2) for image in images]
        np.testing.assert_allclose(distances, expected, rtol=0.02, atol=3000)


def test_the_confidence_is_the_least_margin_over_renderings_that_differ():
    """By hand: of errors 10 and 40 of options 50 apart (40 - 10) / 50, and others in between."""

    def confidence(errors, apart, values=("a", "b", "b", "c")):
        options = [{"name": value} for value in values]
        comparison = detector._Comparison(options, np.array(errors), np.array(apart))
        return comparison.confidence("name")

    assert confidence([10.0, 40, 60, 90], [0.0, 50, 100, 100]) == pytest.approx(0.5)
    assert confidence([10.0, 40, 60, 90], [0.0, 50, 50, 100]) == pytest.approx(0.6)
    assert confidence([10.0, 40, 60, 30], [0.0, 50, 100, 80]) == pytest.approx(0.25)
    assert confidence([40.0, 10, 11, 90], [50.0, 0, 2, 100]) == pytest.approx(0.6)  # b has two
    assert confidence([10.0, 400, 600, 900], [0.0, 50, 100, 80]) == 1.0
    assert confidence([10.0, 10, 60, 90], [0.0, 50, 100, 100]) == 0.0
    assert confidence([10.0, 10, 60, 90], [0.0, 0, 100, 100]) == pytest.approx(0.5)  # the same
    assert confidence([10.0, 10, 10, 10], [0.0, 0, 0, 0]) == 0.0
    assert confidence([10.0, 40], [0.0, 50], ("a", "a")) == 0.0


def test_options_are_all_values_together_or_the_likely_ones():
    values = dict(dataclasses.asdict(portraits(1)[0]), facial_hair="goatee")
    pairs = detector._options(("glasses", "eyes"), values, {})
    assert len(pairs) == len(ATTRIBUTES["glasses"]) * len(ATTRIBUTES["eyes"])
    assert {tuple(pair) for pair in pairs} == {("glasses", "eyes")}
    some = detector._options(
        ("clothes", "clothes_colour"), values, {"clothes_colour": ("red", "blue")}
    )
    assert len(some) == 2 * len(ATTRIBUTES["clothes"])
    assert {option["clothes_colour"] for option in some} == {"red", "blue"}


def test_without_hair_every_beard_of_every_colour_is_an_option():
    """With hair the facial hair is as before, and its colour that of the hair."""
    values = dict(dataclasses.asdict(portraits(1)[0]), facial_hair="goatee")
    options = detector._options(("hair", "hair_colour"), values, {"hair_colour": ("red",)})
    plain = options[: len(ATTRIBUTES["hair"])]
    assert {(o["hair"], o["hair_colour"], o["facial_hair"]) for o in plain} == {
        (hair, "red", "goatee") for hair in ATTRIBUTES["hair"]
    }
    bald = {(o["hair"], o["facial_hair"], o["hair_colour"]) for o in options[len(plain) :]}
    assert bald == {
        ("bald", *pair)
        for pair in itertools.product(ATTRIBUTES["facial_hair"], ATTRIBUTES["hair_colour"])
    }
    alone = detector._options(("hair",), values, {})
    assert alone == [{"hair": value} for value in ATTRIBUTES["hair"]]


def test_the_search_begins_with_the_likeliest_colours(monkeypatch):
    """It goes through the groups in order, each with the colours of those before."""
    portrait = dataclasses.replace(
        portraits(1)[0], hair="afro", hair_colour="green", clothes_colour="red", background="navy"
    )
    calls = []

    def last(pixels, values, options, *, blur):
        calls.append((dict(values), options))
        assert blur == 0.0
        return detector._Comparison(options[-1:], np.zeros(1), np.zeros(1))

    monkeypatch.setattr(detector, "_compare", last)
    actual = detector._from_skin(pixels_of(portrait), "deep")
    start = calls[0][0]
    assert (start["hair_colour"], start["clothes_colour"]) == ("green", "red")
    assert (start["background"], start["skin"]) == ("navy", "deep")
    assert start["mouth"] == ATTRIBUTES["mouth"][0]
    groups = [tuple(options[-1]) for _, options in calls]
    assert groups[0] == groups[-1] == ("clothes", "clothes_colour") and len(groups) == 6
    assert len(calls[0][1]) == 4 * len(ATTRIBUTES["clothes"])  # four likely colours
    assert len(calls[-1][1]) == len(ATTRIBUTES["clothes_colour"]) * len(ATTRIBUTES["clothes"])
    for (values, options), (after, _) in itertools.pairwise(calls):
        assert after == values | options[-1]
    assert actual == calls[-1][0] | calls[-1][1][-1]


@pytest.mark.parametrize(
    ("side", "size"), [(32, 32), (62, 62), (64, 32), (65, 65), (66, 33), (96, 48)]
)
def test_the_first_guess_is_made_at_half_the_size_if_that_is_enough(monkeypatch, side, size):
    """At 32 pixels or more, of an even side; the rest of the search is at the whole size."""
    sizes, values = [], dataclasses.asdict(portraits(1)[0])
    monkeypatch.setattr(detector, "_coarse", lambda pixels: (sizes.append(len(pixels)), values)[1])
    image = pixels_of(portraits(1)[0], side)
    actual = detector._detect(image)
    assert sizes == [size] and actual.portrait == portraits(1)[0] and actual.error < 0.5


def test_the_search_ends_when_nothing_changes_or_after_four_rounds(monkeypatch):
    """In each round every attribute once; without hair facial hair and its colour together."""
    portrait = dataclasses.replace(portraits(1)[0], hair="bald", facial_hair="beard")
    pixels, names = pixels_of(portrait), []
    restless = False

    def compare(pixels, values, options, *, blur):
        names.append(tuple(options[0]))
        (name, *_) = options[0]
        others = [o for o in options if o[name] != values[name]] if restless else options
        same = [o for o in options if all(values[k] == v for k, v in o.items())]
        return detector._Comparison((others if restless else same)[:1], np.zeros(1), np.zeros(1))

    monkeypatch.setattr(detector, "_coarse", lambda pixels: dataclasses.asdict(portrait))
    monkeypatch.setattr(detector, "_compare", compare)
    assert detector._detect(pixels).portrait == dataclasses.replace(
        portrait, **{n: ATTRIBUTES[n][0] for n in detector.hidden(portrait)}
    )
    pair = ("facial_hair", "hair_colour")
    assert names == [pair if name in pair else (name,) for name in ATTRIBUTES]
    names.clear()
    restless = True
    detector._detect(pixels)
    assert len(names) == 4 * len(ATTRIBUTES)


@pytest.mark.parametrize(
    ("errors", "attempts"), [((5.9, 1, 1), 1), ((6.0, 5.9, 1), 2), ((9, 8, 7), 3), ((7, 8, 9), 3)]
)
def test_of_three_skins_the_first_is_taken_that_is_good(monkeypatch, errors, attempts):
    """Below a root mean square error of 6, else the best."""
    skins = []

    def start(pixels, skin):
        skins.append(skin)
        return {"skin": skin}

    errors_of = dict(zip("abcd", (*errors, 0), strict=True))
    monkeypatch.setattr(detector, "_likely", lambda pixels, bounds, palette: ("a", "b", "c", "d"))
    monkeypatch.setattr(detector, "_from_skin", start)
    monkeypatch.setattr(detector, "_error", lambda pixels, values, blur: errors_of[values["skin"]])
    actual = detector._coarse(np.zeros((64, 64, 3), np.float32))
    assert skins == list("abc")[:attempts]
    assert actual == {"skin": min(skins, key=errors_of.__getitem__)}
