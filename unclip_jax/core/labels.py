r"""Labels below images in any script: fonts with fallback, line breaks, and escapes for the rest.

Latin labels use Pillow's own font. A character that it lacks comes from the first font of the
system that has it; where none has, its code is shown, such as \u732b.
"""

import functools
import importlib.util
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from PIL import ImageDraw, ImageFont

SIZE = 12  # pixels
ELLIPSIS = "…"
# Pillow seeks these names in the font folders of Linux, macOS and Windows.
FALLBACKS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "FreeSans.ttf"),
    *("NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "unifont.otf"),
    *("NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansThai-Regular.ttf"),
    *("NotoSansDevanagari-Regular.ttf", "NotoSansBengali-Regular.ttf", "Lohit-Devanagari.ttf"),
    *("NotoSansTamil-Regular.ttf", "NotoSansEthiopic-Regular.ttf", "NotoEmoji-Regular.ttf"),
    *("Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc"),
    *("arial.ttf", "msyh.ttc", "meiryo.ttc", "malgun.ttf", "Nirmala.ttf", "seguisym.ttf"),
)
_MARKS = ("Mn", "Mc", "Me")  # categories of marks, which stay in the font of their letter
_SCRIPTS_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Measure = Callable[[str], int | float]


def readable(text: str) -> str:
    """`text` on one line, with the codes of characters that no font here has."""
    result, font = "", _default()
    for char in " ".join(unicodedata.normalize("NFC", text).split()):
        if unicodedata.category(char) == "Cf":  # invisible, such as a change of direction
            continue
        if _is_mark(char):
            has_glyph = _has(font, char)
        else:
            font = _font_of(char) or _default()
            has_glyph = char == " " or _font_of(char) is not None
        result += char if has_glyph else _escape(char)
    return result


def width(text: str) -> float:
    """Pixels that a readable text takes."""
    return float(sum(font.getlength(part) for font, part in _parts(text)))


def draw(pen: ImageDraw.ImageDraw, text: str, *, x: int, y: int, room: int) -> None:
    """Draws one line of a readable text; of scripts from right to left, at the right of `room`."""
    parts = list(_parts(text))
    left = float(x)
    if is_right_to_left(text):
        parts.reverse()
        left = x + max(0.0, room - width(text))
    for font, part in parts:
        pen.text((left, y), part, fill="black", font=font)
        left += font.getlength(part)


def wrap(text: str, *, room: int | float, lines: int, measure: Measure = width) -> list[str]:
    """Breaks a readable text into lines no wider than `room`.

    Breaks are at spaces, between characters of scripts without spaces, and within words that are
    wider than a line. What does not fit into the last line is replaced by an ellipsis.
    """
    result, line = [], ""
    for piece in _pieces(text, room, measure):
        if line and measure((line + piece).rstrip()) > room:
            result.append(line.rstrip())
            line = ""
            if len(result) == lines:  # before the pieces beyond are measured
                return [*result[:-1], _with_ellipsis(result[-1], room, measure)]
        line = (line + piece).lstrip()
    return [*result, line.rstrip()] if line else result or [""]


def is_right_to_left(text: str) -> bool:
    """True if the first letter of `text` is of a script that is written from right to left."""
    directions = (unicodedata.bidirectional(char) for char in text)
    return next((each in ("R", "AL") for each in directions if each in ("L", "R", "AL")), False)


def _with_ellipsis(line: str, room: int | float, measure: Measure) -> str:
    while line and measure(line + ELLIPSIS) > room:
        line = line[:-1].rstrip()
    return line + ELLIPSIS


def _pieces(text: str, room: int | float, measure: Measure) -> Iterator[str]:
    """Parts of a text that are not broken; a space belongs to the part before it."""
    for word in text.split(" "):
        for part in _between_letters(word):
            while len(part) > 1 and measure(part) > room:
                count = 1
                while measure(part[: count + 1]) <= room:
                    count += 1
                yield part[:count]
                part = part[count:]
            yield part
        yield " "


def _between_letters(word: str) -> Iterator[str]:
    """Splits before and after letters of scripts without spaces."""
    part = ""
    for char in word:
        alone = unicodedata.name(char, "").startswith(_SCRIPTS_WITHOUT_SPACES)
        if part and alone:
            yield part
            part = ""
        part += char
    if part:
        yield part


def _parts(text: str) -> Iterator[tuple[Font, str]]:
    """Runs of one font."""
    font, part = _default(), ""
    for char in text:
        other = font if char == " " or _is_mark(char) else _font_of(char) or _default()
        if part and other is not font:
            yield font, part
            part = ""
        font = other
        part += char
    if part:
        yield font, part


def _is_mark(char: str) -> bool:
    return unicodedata.category(char) in _MARKS


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@functools.lru_cache(maxsize=4096)
def _font_of(char: str) -> Font | None:
    """The first font with a glyph for a character, or None."""
    if _has(_default(), char):
        return _default()
    return next((font for font in _fallbacks() if _has(font, char)), None)


@functools.lru_cache(maxsize=4096)
def _has(font: Font, char: str) -> bool:
    """True if a font has a glyph: another one than for a character that is in no font."""
    if not char.isprintable():
        return False
    glyph: Any = font.getmask(char)
    missing: Any = font.getmask("\uffff")
    return (glyph.size, list(glyph)) != (missing.size, list(missing))


@functools.cache
def _default() -> Font:
    return ImageFont.load_default(size=SIZE)


@functools.cache
def _fallbacks() -> tuple[Font, ...]:
    """The fonts of this system, and the one that comes with Matplotlib."""
    names = list(FALLBACKS)
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.submodule_search_locations:
        folder = spec.submodule_search_locations[0]
        names.insert(1, f"{folder}/mpl-data/fonts/ttf/DejaVuSans.ttf")
    fonts = []
    for name in names:
        try:
            fonts.append(ImageFont.truetype(name, SIZE))
        except OSError:  # not here
            continue
    return tuple(fonts)
