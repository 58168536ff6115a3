import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core import labels
from unclip_jax.core.picture import labelled_grid, to_float, to_uint8

CAPTIONS = [
    "a black cat on a red roof below a yellow moon and three green stars and so on",
    "一只黑猫坐在屋顶上一只黑猫坐在屋顶上一只黑猫坐在屋顶上",
    "قطة سوداء تجلس على سطح المنزل تحت القمر الأصفر",
    "חתול שחור על הגג",
    "чёрная кошка на крыше",
    "काली बिल्ली छत पर",
    "แมวดำบนหลังคาแมวดำบนหลังคา",
    "w" * 60,
    "e\u0301\u0328 \ud83d \x00 \u202egnp.exe \U0001f431 \U000fffff",
    "",
]


@pytest.mark.parametrize(
    "convert", [to_float, jax.jit(to_float), jax.jit(lambda x: to_float(x) * 2.0 / 2.0)]
)
def test_bytes_become_the_floats_of_the_formula(convert):
    """Bit for bit, whatever the compiler makes of a division."""
    values = np.arange(256, dtype=np.uint8)
    expected = values.astype(np.float32) / np.float32(127.5) - np.float32(1)
    floats = np.asarray(convert(jnp.asarray(values)))
    np.testing.assert_array_equal(floats.view(np.int32), expected.view(np.int32))
    np.testing.assert_array_equal(to_uint8(floats), values)


@pytest.mark.parametrize("convert", [to_uint8, jax.jit(to_uint8)])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_floats_are_rounded_and_clipped_to_bytes(convert, array):
    x = array(np.float32([-2.0, -1.0, 0.0, 1.0 / 127.5, 1.0, 3.0]).reshape(1, 1, 2, 3))
    images = convert(x)
    np.testing.assert_array_equal(images.reshape(-1), [0, 0, 128, 128, 255, 255])
    assert images.dtype == np.uint8


def test_numpy_stays_on_the_host():
    assert type(to_uint8(np.zeros((1, 2, 2, 3), np.float32))) is np.ndarray


@pytest.mark.parametrize("fallbacks", ["of this machine", "none"])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_labels_have_no_empty_boxes_and_stay_in_their_tile(caption, fallbacks, monkeypatch):
    if fallbacks == "none":
        monkeypatch.setattr(labels, "_fallbacks", tuple)
        labels._font_of.cache_clear()
    text = labels.readable(caption)
    for font, part in labels._parts(text):
        assert all(char == " " or labels._has(font, char) for char in part)
    if fallbacks == "none":
        assert text.isascii()
    images = np.full((3, 64, 64, 3), 200, np.uint8)
    empty = np.asarray(labelled_grid(images, labels=["", "", ""], columns=3))
    sheet = np.asarray(labelled_grid(images, labels=["", caption, ""], columns=3))
    pixels = np.argwhere((sheet != empty).any(axis=-1))
    tile = 128 + 4
    if caption:
        assert pixels[:, 0].min() >= 4 + 128 and pixels[:, 0].max() < sheet.shape[0]
        # a glyph may reach into the margin of 4 pixels by one
        assert pixels[:, 1].min() >= 4 + tile - 1 and pixels[:, 1].max() < 4 + 2 * tile
    else:
        assert not len(pixels)
    labels._font_of.cache_clear()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("aa bb cc", ["aa bb", "cc"]),
        ("aa bb cc dd ee ff", ["aa bb", "cc d…"]),
        ("abcdefgh", ["abcde", "fgh"]),
        ("a bcdefghijk", ["a", "bcde…"]),
        ("猫犬鳥魚馬牛 a", ["猫犬鳥魚馬", "牛 a"]),
        ("ab猫犬鳥魚", ["ab猫犬鳥", "魚"]),
        ("", [""]),
    ],
)
def test_lines_break_within_long_words_and_between_ideographs(text, lines):
    assert labels.wrap(text, room=5, lines=2, measure=len) == lines


def test_a_long_word_is_measured_as_far_as_it_is_shown():
    lengths = []

    def measure(text):
        lengths.append(len(text))
        return len(text)

    assert labels.wrap("x" * 1000, room=10, lines=3, measure=measure)[2] == "x" * 9 + "…"
    assert sum(lengths) < 10_000


def test_characters_without_a_glyph_are_shown_by_their_codes():
    assert labels.readable("a \ud83d\x00\u202eb\nc") == "a \\ud83d\\u0000b c"
    assert labels.is_right_to_left("1 قطة a") and not labels.is_right_to_left("1 a قطة")
