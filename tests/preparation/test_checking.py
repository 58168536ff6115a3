import io

import numpy as np
import pytest
from PIL import Image

from unclip_jax.data import image_codec
from unclip_jax.data.image_codec import ImageLimits
from unclip_jax.preparation.checking import CheckConfig, check
from unclip_jax.preparation.items import RawExample, Skip

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encode(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, kind, **options)
    return buffer.getvalue()


def reason(raw: RawExample, config: CheckConfig | None = None) -> str:
    with pytest.raises(Skip) as error:
        check("k", raw, config or CheckConfig())
    return error.value.reason


def test_good_examples_are_kept_byte_for_byte():
    data = encode("JPEG")
    record = check("k", RawExample(data, "  ein Bär\n".encode(), scene="{}"), CheckConfig())
    assert record == {"image": data, "caption": "ein Bär", "key": "k", "scene": "{}"}


@pytest.mark.parametrize(
    ("caption", "field", "want"),
    [
        (b"\xef\xbb\xbfwith a mark", "text", "with a mark"),
        ("in UTF-16 \u00e4".encode("utf-16"), "text", "in UTF-16 \u00e4"),
        ("a text", "text", "a text"),
        (b'{"caption": "in JSON", "x": 1}', "json", "in JSON"),
        (b'{"prompt": "in JSON", "caption": null}', "json", "in JSON"),
        (b'"a JSON string"', "json", "a JSON string"),
        (b"zero\0byte", "text", "zerobyte"),
        (b"red_fox\n", "class", "red fox"),
        (b"1", "class", "grey wolf"),
    ],
)
def test_captions_in_many_forms(caption: bytes | str, field: str, want: str):
    raw = RawExample(encode("PNG"), caption, field, classes=("red_fox", "grey_wolf"))
    record = check("k", raw, CheckConfig())
    assert record["caption"] == want
    assert "captions" not in record


@pytest.mark.parametrize(
    ("caption", "form", "want"),
    [
        (("a", "b "), "text", ["a", "b"]),
        (("a", "a", "", "b"), "text", ["a", "b"]),
        (b'{"captions": ["a", "b"]}', "json", ["a", "b"]),
        (b'["a", "b"]', "json", ["a", "b"]),
        (b'{"sentences": [{"raw": "a"}, {"raw": "b", "tokens": []}]}', "json", ["a", "b"]),
    ],
)
def test_several_captions_are_stored_and_the_first_is_the_caption(caption, form: str, want: list):
    record = check("k", RawExample(encode("PNG"), caption, form), CheckConfig())
    assert (record["caption"], record["captions"]) == (want[0], want)


@pytest.mark.parametrize(
    ("caption", "field", "want"),
    [
        (b"caf\xe9", "", "bad UTF-8"),
        (b'{"caption": "\\ud800"}', "caption", "bad UTF-8"),
        (b"", "", "empty caption"),
        (b" \n\t", "", "empty caption"),
        (b'{"caption": "a"}', "title", "no caption"),
        (b'{"caption": null}', "caption", "no caption"),
        (b'{"caption": 5}', "caption", "no caption"),
        (b'{"caption": ["", " "]}', "caption", "empty caption"),
        (b"5", "caption", "no caption"),
        (b"{", "caption", "caption is not JSON"),
        (b"[" * 5000, "caption", "caption is not JSON"),
    ],
)
def test_captions_that_cannot_be_used(caption: bytes, field: str, want: str):
    assert reason(RawExample(encode("PNG"), caption, "json" if field else "text", field)) == want


@pytest.mark.parametrize("number", [b"2", b"-1", b"99999999999999999999"])
def test_classes_without_a_name(number: bytes):
    raw = RawExample(encode("PNG"), number, "class", classes=("red_fox", "grey_wolf"))
    if number == b"-1":
        assert check("k", raw, CheckConfig())["caption"] == "-1"  # no number of a class
    else:
        assert reason(raw) == "class number without a name in classes.txt"


def test_images_that_cannot_be_used():
    assert reason(RawExample(encode("PNG")[:100], b"c")) == "truncated image"
    assert reason(RawExample(b"hello", b"c")) == "not an image"
    tight = CheckConfig(ImageLimits(max_pixels=1000))
    assert reason(RawExample(encode("PNG"), b"c"), tight) == "decompression bomb"
    assert (
        reason(RawExample(encode("PNG"), b"c"), CheckConfig(ImageLimits(min_side=41)))
        == "too small"
    )
    assert reason(RawExample(encode("PNG"), b"c"), CheckConfig(ImageLimits(max_aspect=1.4))) == (
        "absurd aspect ratio"
    )


def test_great_images_are_stored_smaller():
    config = CheckConfig(max_side=20)
    for kind, stored in (("PNG", "PNG"), ("BMP", "PNG"), ("JPEG", "JPEG"), ("WEBP", "JPEG")):
        record = check("k", RawExample(encode(kind), b"c"), config)
        with Image.open(io.BytesIO(record["image"])) as picture:
            assert (picture.format, picture.size) == (stored, (30, 20))
    want = image_codec.resize_short(NOISE, 20)
    lossless = check("k", RawExample(encode("PNG"), b"c"), config)["image"]
    np.testing.assert_array_equal(image_codec.decode(lossless), want)


def test_smaller_images_are_left_alone():
    data = encode("JPEG")
    assert check("k", RawExample(data, b"c"), CheckConfig(max_side=40))["image"] == data


def test_images_stored_as_squares():
    record = check("k", RawExample(encode("PNG"), b"c"), CheckConfig(image_size=16))
    want = image_codec.center_crop(image_codec.resize_short(NOISE, 16), 16)
    np.testing.assert_array_equal(image_codec.decode(record["image"]), want)
