import random

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.portraits import grammar, world
from unclip_jax.portraits.scene import PortraitSpec, to_spec
from unclip_jax.portraits.vocabulary import ATTRIBUTES


@pytest.mark.parametrize(
    ("caption", "spec"),
    [
        (
            "a person with curly red hair and round glasses, smiling, in a blue hoodie, on a "
            "yellow background",
            PortraitSpec(
                hair="curly",
                hair_colour="red",
                glasses="round",
                mouth="smiling",
                clothes="hoodie",
                clothes_colour="blue",
                background="yellow",
            ),
        ),
        ("a person", PortraitSpec()),
        (
            "a picture of a person with a bob, no facial hair and sunglasses",
            PortraitSpec(hair="bob", facial_hair="none", glasses="sunglasses"),
        ),
        (
            "a person with no hair and a gray beard",
            PortraitSpec(hair="bald", hair_colour="gray", facial_hair="beard"),
        ),
        ("a person with red hair", PortraitSpec(hair_colour="red")),
        ("a person with hair in a bun", PortraitSpec(hair="bun")),
        (
            "a person with a straight face and closed eyes, wearing orange overalls",
            PortraitSpec(
                mouth="serious", eyes="closed", clothes="overalls", clothes_colour="orange"
            ),
        ),
        (
            "a portrait of a person in an orange suit, with an afro, frowning and winking",
            PortraitSpec(
                clothes="suit", clothes_colour="orange", hair="afro", mouth="sad", eyes="winking"
            ),
        ),
        (
            "a person wearing pink clothes against an orange background",
            PortraitSpec(clothes_colour="pink", background="orange"),
        ),
        (
            "a person in a striped green shirt",
            PortraitSpec(clothes="striped", clothes_colour="green"),
        ),
        (
            "  A Person with  a Mohawk and round glasses wearing a t-shirt. ",
            PortraitSpec(hair="mohawk", glasses="round", clothes="t-shirt"),
        ),
        (
            "a person on a white background, smiling, with short black hair and a black moustache",
            PortraitSpec(
                background="white",
                mouth="smiling",
                hair="short",
                hair_colour="black",
                facial_hair="moustache",
            ),
        ),
    ],
)
def test_captions_parse_to_their_spec(caption, spec):
    assert grammar.parse(caption) == spec


@pytest.mark.parametrize(
    ("spec", "caption"),
    [
        (
            PortraitSpec(hair="afro", clothes_colour="orange"),
            "a person with an afro, in orange clothes",
        ),
        (
            PortraitSpec(hair="wavy", hair_colour="green", facial_hair="goatee", glasses="none"),
            "a person with long wavy green hair, a goatee and no glasses",
        ),
        (
            PortraitSpec(mouth="smiling", eyes="hearts", background="navy"),
            "a person smiling with hearts for eyes, on a navy background",
        ),
    ],
)
def test_plainest_captions(spec, caption):
    assert grammar.write(spec) == caption


def test_every_wording_is_read_back():
    rng = random.Random(0)
    captions = set()
    for index in range(400):
        full = to_spec(world.example("validation", seed=3, index=index).portrait).named()
        names = [name for name in full if rng.random() < 0.6]
        if full["hair"] == "bald" and not {"hair", "facial_hair"} <= set(names):
            names = [name for name in names if name != "hair_colour"]
        spec = PortraitSpec(**{name: full[name] for name in names})
        caption = grammar.write(spec, choose=rng.choice)
        assert grammar.parse(caption) == spec, caption
        captions.add(caption)
    for wordings in (grammar.MOUTH_WORDINGS, grammar.EYES_WORDINGS):
        texts = [text for options in wordings.values() for text in options]
        assert all(any(text.removeprefix("with ") in c for c in captions) for text in texts)
    assert all(any(c.startswith(opening) for c in captions) for opening in grammar.OPENINGS)


def test_vocabulary_holds_every_word_of_every_caption():
    words = set(grammar.vocabulary())
    assert words >= {"a", "an", "with", "and", "person", "t-shirt"}
    for index in range(200):
        for caption in world.example("train", seed=0, index=index).captions:
            assert set(caption.replace(",", "").split()) <= words


def test_no_caption_names_the_skin():
    skins = set(ATTRIBUTES["skin"]) - set(ATTRIBUTES["hair_colour"])  # brown is a hair colour too
    assert skins and not skins & set(grammar.vocabulary())


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a dog",
        "a personage",
        "a person with",
        "a person with curly hair in a",
        "a person in round glasses",
        "a person with a blue hoodie",
        "a person smiling and and winking",
        "a person with purple hair",
        "a red circle above a blue square",
    ],
)
def test_other_sentences_are_rejected(caption):
    with pytest.raises(UserError, match="is not in the grammar of the portraits world"):
        grammar.parse(caption)


def test_unknown_words_are_named():
    with pytest.raises(UserError, match=r"\(unknown: hat, top\); write for example"):
        grammar.parse("a person with a top hat")


def test_contradictions_are_rejected():
    with pytest.raises(UserError, match="gives hair colour twice, as 'red' and 'gray'; name it"):
        grammar.parse("a person with short red hair and a gray beard")
    with pytest.raises(UserError, match="gives glasses twice, as 'round' and 'square'"):
        grammar.parse("a person with round glasses and square glasses")
