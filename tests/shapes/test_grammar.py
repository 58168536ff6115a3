import itertools

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.shapes import grammar, scene, world
from unclip_jax.shapes.scene import ObjectSpec, Scene, SceneSpec
from unclip_jax.shapes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    INVERSE,
    RELATIONS,
    SHAPES,
)

CIRCLE, SQUARE = ObjectSpec("red", "circle"), ObjectSpec("blue", "square")


@pytest.mark.parametrize(
    ("caption", "request_"),
    [
        (
            "a red circle above a blue square on a navy background",
            SceneSpec((CIRCLE, SQUARE), "above", "navy"),
        ),
        ("three green stars", SceneSpec((ObjectSpec("green", "star"),) * 3)),
        (
            "a large purple heart",
            SceneSpec((ObjectSpec("purple", "heart", "large"),)),
        ),
        ("an orange cross", SceneSpec((ObjectSpec("orange", "cross"),))),
        (
            "two small pink crosses",
            SceneSpec((ObjectSpec("pink", "cross", "small"),) * 2),
        ),
        (
            "a picture of a red circle under a blue square",
            SceneSpec((CIRCLE, SQUARE), "below"),
        ),
        (
            "a red circle to the right of a blue square",
            SceneSpec((CIRCLE, SQUARE), "right of"),
        ),
        (
            "an image of a red circle left of a blue square against a mint background",
            SceneSpec((CIRCLE, SQUARE), "left of", "mint"),
        ),
        ("  A Red  circle. ", SceneSpec((CIRCLE,))),
    ],
)
def test_captions_parse_to_their_spec(caption, request_):
    assert grammar.parse(caption) == request_


def _seen_from_the_other_side(spec):
    if spec.relation is None:
        return spec
    return SceneSpec(spec.objects[::-1], INVERSE[spec.relation], spec.background)


@pytest.mark.parametrize("split", ["train", "compositional"])
@pytest.mark.parametrize("background", [True, False])
def test_every_caption_parses_back_to_its_scene(split, background):
    for index in range(150):
        case = world.example(split, seed=7, index=index).scene
        full = scene.to_spec(case)
        want = SceneSpec(full.objects, full.relation, full.background if background else None)
        captions = grammar.captions(case, background=background)
        assert len(set(captions)) == len(captions)
        for caption in captions:
            assert grammar.parse(caption) in (want, _seen_from_the_other_side(want))


def test_captions_describe_a_relation_from_both_sides():
    items = tuple(
        scene.SceneObject(w.colour, w.shape, "medium", 0.5, y, 0.17)
        for w, y in zip((CIRCLE, SQUARE), (0.2, 0.8), strict=True)
    )
    captions = grammar.captions(Scene("white", items, "above"), background=False)
    assert "a red circle above a blue square" in captions
    assert "a blue square below a red circle" in captions
    assert "an image of a blue square under a red circle" in captions


def test_every_noun_parses():
    for colour, shape in itertools.product(COLOURS, SHAPES):
        for number, size in itertools.product((1, *COUNTS.values()), (None, "small", "large")):
            plural = {"cross": "crosses"}.get(shape, shape + "s")
            word = {2: "two", 3: "three", 4: "four"}.get(number)
            words = [size, colour] if size else [colour]
            article = word or ("an" if words[0] == "orange" else "a")
            caption = " ".join([article, *words, shape if number == 1 else plural])
            assert grammar.parse(caption) == SceneSpec((ObjectSpec(colour, shape, size),) * number)


def test_vocabulary_is_what_captions_use():
    words = {
        word
        for index in range(800)
        for caption in world.example("train", seed=0, index=index).captions
        for word in caption.split()
    }
    assert words == set(grammar.vocabulary())
    assert {w.split()[-1] for w in RELATIONS} | set(BACKGROUNDS) <= words


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a photo of a dog", r"unknown: dog, photo"),
        ("", "is not in the grammar"),
        ("a red circles", "is not in the grammar"),
        ("two red circle", "is not in the grammar"),
        ("a medium red circle", "unknown: medium"),
        ("a red circle on a red background", "is not in the grammar"),
        ("two red circles above a blue square", "relates groups"),
    ],
)
def test_sentences_outside_the_grammar_are_rejected(caption, message):
    with pytest.raises(UserError, match=message):
        grammar.parse(caption)
