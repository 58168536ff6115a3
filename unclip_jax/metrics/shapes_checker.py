"""Does a picture hold what its caption asks for? An exact check, with no raters and no model.

Every attribute is judged apart, for the one pairing of wanted and found objects that suits the
picture best; so swapped colours cost `colour`, a swapped relation costs `relation`, and a missing
copy costs `count` only. Nothing is demanded that the caption does not say.

    verdicts = check(images, captions)
    print(table(report(verdicts)))
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.intervals import Rate, wilson
from unclip_jax.metrics.shapes_detector import Found, Pictures, Sight, look
from unclip_jax.shapes import grammar, scene
from unclip_jax.shapes.scene import Request, Scene, Wanted

Pairing = tuple[tuple[Wanted, Found], ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is right about one picture; None where the caption asks for nothing.

    Attributes:
        background: it has the named colour.
        count: as many objects as named, no more and no fewer.
        colour: every wanted object that is there has its colour, and no kind is missing.
        shape: the same for shapes.
        size: the same for sizes, where one is named.
        relation: the two objects stand as said: along the named axis, more than across it.
        objects: colour and shape at once.
        binding: for two unlike objects, given that the picture holds both colours and both
            shapes: each colour is on its own shape.
        joint: background, count, colour, shape, size and relation at once.
        sight: what the picture holds.
    """

    background: bool | None
    count: bool
    colour: bool
    shape: bool
    size: bool | None
    relation: bool | None
    objects: bool
    binding: bool | None
    joint: bool
    sight: Sight = dataclasses.field(repr=False)


ATTRIBUTES: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(Verdict) if field.name != "sight"
)


def check(images: Pictures, asked: Sequence[Request | Scene | str]) -> list[Verdict]:
    """Judge every picture by what was asked of it.

    Args:
        images: square RGB, uint8 or float in [-1, 1].
        asked: per picture a caption, a request, a scene, or a scene's JSON; a scene asks for
            everything that a caption of it can say.

    Raises:
        UserError: numbers of pictures and captions differ, a caption outside the grammar, JSON
            that is no scene, or pictures that `look` refuses.
    """
    if len(images) != len(asked):
        raise UserError(f"{len(images)} pictures but {len(asked)} captions; give one for each.")
    requests = [as_request(entry) for entry in asked]
    return [judge(sight, request) for sight, request in zip(look(images), requests, strict=True)]


def as_request(entry: Request | Scene | str) -> Request:
    """What a caption, a scene or a scene's JSON asks for.

    Raises:
        UserError: see `grammar.parse` and `scene.from_json`.
    """
    if isinstance(entry, Request):
        return entry
    if isinstance(entry, Scene):
        return scene.request_of(entry)
    if entry.lstrip().startswith("{"):
        return scene.request_of(scene.from_json(entry))
    return grammar.parse(entry)


def understands(captions: Iterable[str]) -> bool:
    """Whether all captions are sentences of the shapes world."""
    try:
        for caption in captions:
            as_request(caption)
    except UserError:
        return False
    return True


def judge(sight: Sight, request: Request) -> Verdict:
    """Compare what is seen with what was asked, attribute by attribute."""
    pairs = max(_pairings(sight, request), key=lambda pairs: _merit(pairs, request), default=())
    complete = {_kind(wanted) for wanted, _ in pairs} == {_kind(w) for w in request.wanted}
    background = request.background and sight.background == request.background
    count = len(sight.objects) == len(request.wanted)
    colour = complete and all(found.colour == wanted.colour for wanted, found in pairs)
    shape = complete and all(found.shape == wanted.shape for wanted, found in pairs)
    sized = any(wanted.size for wanted in request.wanted)
    size = complete and all(_size_fits(wanted, found) for wanted, found in pairs) if sized else None
    relation = request.relation and _related(pairs, request.relation)
    asked = (background, count, colour, shape, size, relation)
    return Verdict(
        background=background if isinstance(background, bool) else None,
        count=count,
        colour=colour,
        shape=shape,
        size=size,
        relation=relation if isinstance(relation, bool) else None,
        objects=colour and shape,
        binding=_binding(sight, request),
        joint=all(entry is not False for entry in asked),
        sight=sight,
    )


def report(verdicts: Iterable[Verdict], *, confidence: float = 0.95) -> dict[str, Rate]:
    """Share of pictures that are right per attribute, among those asked for it (Wilson)."""
    verdicts = list(verdicts)
    rates = {}
    for name in ATTRIBUTES:
        asked = [getattr(v, name) for v in verdicts if getattr(v, name) is not None]
        rates[name] = wilson(sum(asked), len(asked), confidence=confidence)
    return rates


def table(rates: dict[str, Rate]) -> str:
    """One line per attribute: name, share, interval, number of pictures asked."""
    width = max(map(len, rates))
    return "\n".join(f"{name:<{width}}  {rate}" for name, rate in rates.items())


def _pairings(sight: Sight, request: Request) -> Iterable[Pairing]:
    """Every way to take found objects for wanted ones; like objects are not told apart."""
    wanted, found = request.wanted, sight.objects
    if request.relation is None and len(set(wanted)) == 1:
        ranked = sorted(found, key=lambda each: -_likeness(wanted[0], each))
        return [tuple(zip(wanted, ranked, strict=False))]
    number = min(len(wanted), len(found))
    return (
        tuple((wanted[k], each) for k, each in zip(chosen, order, strict=True))
        for chosen in itertools.combinations(range(len(wanted)), number)
        for order in itertools.permutations(found, number)
    )


def _merit(pairs: Pairing, request: Request) -> int:
    likeness = sum(_likeness(wanted, found) for wanted, found in pairs)
    return likeness + bool(request.relation and _related(pairs, request.relation))


def _likeness(wanted: Wanted, found: Found) -> int:
    colour, shape = found.colour == wanted.colour, found.shape == wanted.shape
    return colour + shape + _size_fits(wanted, found)


def _size_fits(wanted: Wanted, found: Found) -> bool:
    return wanted.size is None or found.size == wanted.size


def _kind(wanted: Wanted) -> tuple[str, str]:
    return wanted.colour, wanted.shape


def _related(pairs: Pairing, relation: str) -> bool:
    """Whether both objects are there and the first lies `relation` of the second."""
    if len(pairs) != 2:
        return False
    (_, first), (_, second) = pairs
    right, down = second.x - first.x, second.y - first.y
    along = {"above": down, "below": -down, "left of": right, "right of": -right}[relation]
    across = right if relation in ("above", "below") else down
    return along > abs(across)


def _binding(sight: Sight, request: Request) -> bool | None:
    kinds = [_kind(wanted) for wanted in request.wanted]
    (colour, shape), (other_colour, other_shape) = kinds[0], kinds[-1]
    if colour == other_colour or shape == other_shape:
        return None  # nothing to mix up
    held = [(found.colour, found.shape) for found in sight.objects]
    if not {colour, other_colour} <= {c for c, _ in held}:
        return None  # something is missing altogether
    if not {shape, other_shape} <= {s for _, s in held}:
        return None
    return set(kinds) <= set(held)
