"""The grammar of captions: writes captions of a portrait and parses them.

It is finite and unambiguous: `parse` reads back every caption that `write` writes, and takes the
clauses in any order.

    caption = [opening] a person {clause}
    clause  = with HAIR, FACIAL HAIR and GLASSES | MOUTH | EYES | in CLOTHES
            | on a COLOUR background
"""

import re
from collections.abc import Callable, Mapping, Sequence

from unclip_jax.core.checks import UserError
from unclip_jax.portraits.scene import PortraitSpec
from unclip_jax.portraits.vocabulary import BACKGROUNDS, CLOTHES_COLOURS, HAIR_COLOURS

OPENINGS: tuple[str, ...] = ("", "a portrait of ", "a picture of ")
SUBJECT = "a person"
# Nouns by value; {} stands for the colour and a space, or for nothing.
HAIR_NOUNS: dict[str, str] = {
    "bald": "no hair",
    "short": "short {}hair",
    "spiky": "spiky {}hair",
    "mohawk": "a {}mohawk",
    "curly": "curly {}hair",
    "afro": "a {}afro",
    "bob": "a {}bob",
    "straight": "long straight {}hair",
    "wavy": "long wavy {}hair",
    "bun": "{}hair in a bun",
    "pigtails": "{}pigtails",
}
FACIAL_HAIR_NOUNS: dict[str, str] = {
    "none": "no facial hair",
    "beard": "a {}beard",
    "goatee": "a {}goatee",
    "moustache": "a {}moustache",
}
GLASSES_NOUNS: dict[str, str] = {
    "none": "no glasses",
    "round": "round glasses",
    "square": "square glasses",
    "sunglasses": "sunglasses",
}
CLOTHES_NOUNS: dict[str, str] = {
    "hoodie": "a {}hoodie",
    "t-shirt": "a {}t-shirt",
    "turtleneck": "a {}turtleneck",
    "overalls": "{}overalls",
    "suit": "a {}suit",
    "striped": "a striped {}shirt",
}
ANY_HAIR, ANY_CLOTHES = "{}hair", "{}clothes"  # of a style that is left open
MOUTH_WORDINGS: dict[str, tuple[str, ...]] = {
    "smiling": ("smiling", "with a smile"),
    "sad": ("frowning", "looking sad"),
    "serious": ("looking serious", "with a straight face"),
    "shouting": ("shouting", "with an open mouth"),
}
EYES_WORDINGS: dict[str, tuple[str, ...]] = {
    "open": ("with open eyes",),
    "closed": ("with closed eyes",),
    "winking": ("winking",),
    "hearts": ("with hearts for eyes",),
}
WEARING: tuple[str, ...] = ("in", "wearing")
GROUNDS: tuple[str, ...] = ("on", "against")

Choose = Callable[[Sequence[str]], str]


def first(options: Sequence[str]) -> str:
    """Returns the first wording."""
    return options[0]


def write(spec: PortraitSpec, *, choose: Choose = first) -> str:
    """Writes a caption that says what `spec` says.

    Args:
        spec: the attributes to name; none at all gives "a person".
        choose: picks one of several wordings; the first of each is the plainest.
    """
    nouns = _with(_nouns(spec))
    face = _face(spec, choose)
    clothes = _clothes(spec, choose)
    order = choose(("face first", "clothes first"))
    clauses = [nouns, face, clothes] if order == "face first" else [clothes, nouns, face]
    if spec.background is not None:
        clauses.append(f"{choose(GROUNDS)} a {spec.background} background")
    clauses = [clause for clause in clauses if clause]
    text = choose(OPENINGS) + " ".join([SUBJECT, *clauses[:1]])
    return _articles(", ".join([text, *clauses[1:]]))


def parse(caption: str) -> PortraitSpec:
    """Parses `caption`; case, extra spaces and a final full stop do not matter.

    Raises:
        UserError: the caption is not a sentence of this grammar, or names something twice.
    """
    text = " ".join(caption.lower().strip().rstrip(".").split())
    match = _SUBJECT.match(text)
    if match is None:
        raise UserError(_complaint(caption))
    named: dict[str, str] = {}
    position = match.end()
    while position < len(text):
        match = _CLAUSE.match(text, position)
        if match is None:
            raise UserError(_complaint(caption))
        for name, value in _MEANING[match[match.lastgroup or 0]].items():
            if named.setdefault(name, value) != value:
                raise UserError(
                    f"caption {caption!r} gives {name.replace('_', ' ')} twice, as "
                    f"{named[name]!r} and {value!r}; name it once (facial hair has the colour of "
                    "the hair)."
                )
        position = match.end()
    return PortraitSpec(**named)


def vocabulary() -> tuple[str, ...]:
    """Returns every word of the grammar, sorted."""
    words = set(" ".join([SUBJECT, *OPENINGS, *_MEANING, *WEARING, *GROUNDS, "with and"]).split())
    return tuple(sorted(words))


def _nouns(spec: PortraitSpec) -> list[str]:
    nouns = []
    beard = spec.facial_hair is not None and spec.hair == "bald"  # the beard carries the colour
    colour = f"{spec.hair_colour} " if spec.hair_colour else ""
    if spec.hair is not None:
        nouns.append(HAIR_NOUNS[spec.hair].format(colour))
    elif colour:
        nouns.append(ANY_HAIR.format(colour))
    if spec.facial_hair is not None:
        nouns.append(FACIAL_HAIR_NOUNS[spec.facial_hair].format(colour if beard else ""))
    if spec.glasses is not None:
        nouns.append(GLASSES_NOUNS[spec.glasses])
    return nouns


def _with(nouns: Sequence[str]) -> str:
    if len(nouns) < 2:
        return "".join(f"with {noun}" for noun in nouns)
    return f"with {', '.join(nouns[:-1])} and {nouns[-1]}"


def _face(spec: PortraitSpec, choose: Choose) -> str:
    mouth = choose(MOUTH_WORDINGS[spec.mouth]) if spec.mouth else ""
    eyes = choose(EYES_WORDINGS[spec.eyes]) if spec.eyes else ""
    if not mouth or not eyes:
        return mouth or eyes
    if eyes.startswith("with "):
        joined = eyes if not mouth.startswith("with ") else "and " + eyes.removeprefix("with ")
        return f"{mouth} {joined}"
    return f"{mouth} and {eyes}"


def _clothes(spec: PortraitSpec, choose: Choose) -> str:
    if spec.clothes is None and spec.clothes_colour is None:
        return ""
    colour = f"{spec.clothes_colour} " if spec.clothes_colour else ""
    noun = CLOTHES_NOUNS[spec.clothes] if spec.clothes else ANY_CLOTHES
    return f"{choose(WEARING)} {noun.format(colour)}"


def _articles(text: str) -> str:
    return re.sub(r"\ba(?= [aeiou])", "an", text)


def _meanings(
    nouns: Mapping[str, str], *, name: str, colours: Sequence[str] = (), colour_name: str = ""
) -> dict[str, dict[str, str]]:
    """Returns the meaning of every noun, without a colour and with each."""
    table = {}
    for value, noun in nouns.items():
        attribute = {name: value} if value else {}
        table[_articles(noun.format(""))] = attribute
        if "{}" in noun:
            for colour in colours:
                phrase = _articles(noun.format(f"{colour} "))
                table[phrase] = {**attribute, colour_name: colour}
    return {phrase: meaning for phrase, meaning in table.items() if meaning}


def _alternatives(phrases: Sequence[str]) -> str:
    return "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))


def _complaint(caption: str) -> str:
    words = set(re.findall(r"[a-z-]+", caption.lower()))
    unknown = sorted(words - set(re.findall(r"[a-z-]+", " ".join(vocabulary()))))
    reason = f" (unknown: {', '.join(unknown)})" if unknown else ""
    return (
        f"caption {caption!r} is not in the grammar of the portraits world{reason}; write for "
        'example "a person with curly red hair and round glasses, smiling, in a blue hoodie, on '
        'a yellow background".'
    )


_HAIR = {**HAIR_NOUNS, "": ANY_HAIR}
_FACE_NOUNS = (
    _meanings(_HAIR, name="hair", colours=tuple(HAIR_COLOURS), colour_name="hair_colour")
    | _meanings(
        FACIAL_HAIR_NOUNS,
        name="facial_hair",
        colours=tuple(HAIR_COLOURS),
        colour_name="hair_colour",
    )
    | _meanings(GLASSES_NOUNS, name="glasses")
)
_CLOTHES = _meanings(
    {**CLOTHES_NOUNS, "": ANY_CLOTHES},
    name="clothes",
    colours=tuple(CLOTHES_COLOURS),
    colour_name="clothes_colour",
)
_EXPRESSIONS = {
    wording.removeprefix("with "): {name: value}
    for name, wordings in (("mouth", MOUTH_WORDINGS), ("eyes", EYES_WORDINGS))
    for value, texts in wordings.items()
    for wording in texts
}
_GROUNDS = {_articles(f"a {colour} background"): {"background": colour} for colour in BACKGROUNDS}
_MEANING = {**_FACE_NOUNS, **_CLOTHES, **_EXPRESSIONS, **_GROUNDS}

_SUBJECT = re.compile(f"(?:{_alternatives(OPENINGS)}){SUBJECT}(?![a-z])")
_CLAUSE = re.compile(
    "(?:, and|,| and)? "
    f"(?:(?:with |wearing )?(?P<face>{_alternatives(tuple(_FACE_NOUNS))})"
    f"|(?:with )?(?P<expression>{_alternatives(tuple(_EXPRESSIONS))})"
    f"|(?:{_alternatives(WEARING)}) (?P<clothes>{_alternatives(tuple(_CLOTHES))})"
    f"|(?:{_alternatives(GROUNDS)}) (?P<ground>{_alternatives(tuple(_GROUNDS))}))"
    "(?![a-z])"
)
