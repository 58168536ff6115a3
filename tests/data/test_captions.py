"""Captions in JSON and text, by the fields and encodings that data sets have."""

import pytest

from unclip_jax.data import captions


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a cat", ("a cat",)),
        (["a cat", "a dog"], ("a cat", "a dog")),
        ([], ()),
        ({"raw": "a cat", "id": 7}, ("a cat",)),  # COCO's list of sentences
        ([{"raw": "a cat"}, {"raw": "a dog"}], ("a cat", "a dog")),
        ([["a cat"], "a dog", 3, None, {"id": 1}], ("a cat", "a dog")),
        ({"caption": "third", "text": "second", "raw": "first"}, ("first",)),
        ({"caption": "third", "text": "second"}, ("second",)),
        ({"caption": ["third", "fourth"]}, ("third", "fourth")),
        ({"raw": {"text": "deep"}}, ("deep",)),
        ({"url": "a cat"}, ()),
        (7, ()),
        (None, ()),
    ],
)
def test_texts_of_a_json_value(value, texts):
    assert captions.texts_of(value) == texts


@pytest.mark.parametrize(
    ("facts", "field", "texts"),
    [
        ({"caption": "b", "text": "a"}, "", ("a",)),
        ({"caption": "b", "text": None}, "", ("b",)),
        ({"caption": "b", "text": ""}, "", ("",)),  # it has one, though an empty one
        ({"prompt": "c", "sentences": [{"raw": "d"}]}, "", ("c",)),
        ({"sentences": [{"raw": "d"}, {"raw": "e"}], "url": "x"}, "", ("d", "e")),
        ({"TEXT": "a"}, "", ()),
        ({"TEXT": "a", "text": "b"}, "TEXT", ("a",)),
        ({"text": "b"}, "TEXT", ("b",)),  # the case of a field differs between data sets
        ({"TEXT": None, "text": "b"}, "TEXT", ("b",)),
        ({"TEXT": "a"}, "text", ()),
        ({"caption": "b"}, "TEXT", ()),
        ({}, "", ()),
    ],
)
def test_texts_of_a_field(facts, field, texts):
    assert captions.field_of(facts, field) == texts


@pytest.mark.parametrize("text", ["a cat", "Zürich 東京 😀", ""])
def test_text_in_any_of_the_usual_encodings(text: str):
    assert captions.decode(text.encode()) == text
    assert captions.decode(b"\xef\xbb\xbf" + text.encode()) == text
    assert captions.decode(b"\xff\xfe" + text.encode("utf-16-le")) == text
    assert captions.decode(b"\xfe\xff" + text.encode("utf-16-be")) == text
    with pytest.raises(UnicodeDecodeError):
        captions.decode(b"\xe9t\xe9")  # Latin-1


def test_texts_are_stripped_and_each_is_there_once():
    texts = [" b\n", "", "a\0", "b", " \0 ", "\0", "a", "c d"]
    assert captions.cleaned(iter(texts)) == ("b", "a", "c d")
    assert captions.cleaned([]) == ()
