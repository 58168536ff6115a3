"""The exact checker of the shapes world: judges images by their captions, without a model.

Every attribute is judged separately for the best matching of specified and detected objects, so
swapped colours fail only `colour`, a swapped relation only `relation`, and a missing copy only
`count`. Attributes that the caption omits are ignored.

    verdicts = check(images, captions)
    print(table(report(verdicts)))
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.intervals import Rate, wilson
from unclip_jax.metrics.shapes_detector import DetectedObject, Detection, Images, detect
from unclip_jax.shapes import grammar, scene
from unclip_jax.shapes.scene import ObjectSpec, Scene, SceneSpec

Pairing = tuple[tuple[ObjectSpec, DetectedObject], ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of one image; None for attributes that the caption does not name.

    Attributes:
        background: it has the named colour.
        count: there are exactly as many objects as named.
        colour: every matched object has its colour, and no kind is missing.
        shape: the same for shapes.
        size: the same for sizes, if one is named.
        relation: the two objects are related as named, along the axis more than across it.
        objects: colour and shape together.
        binding: for two unlike objects, if the image has both colours and both shapes: each colour
            is on its own shape.
        joint: background, count, colour, shape, size and relation together.
        detection: background and objects of the image.
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
    detection: Detection = dataclasses.field(repr=False)


ATTRIBUTES: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(Verdict) if field.name != "detection"
)
# Attributes judged from the caption, whose conjunction is `joint`.
CRITERIA = ("background", "count", "colour", "shape", "size", "relation")
# Columns of tables.
SUMMARY = ("background", "count", "colour", "shape", "relation", "binding", "joint")


def check(images: Images, captions: Sequence[SceneSpec | Scene | str]) -> list[Verdict]:
    """Judges every image by its caption.

    Args:
        images: square RGB, uint8 or float in [-1, 1].
        captions: per image a caption, a spec, a scene, or a scene's JSON; a scene specifies
            everything that captions can say.

    Raises:
        UserError: numbers of images and captions differ, a caption is outside the grammar, JSON is
            not a scene, or `detect` rejects the images.
    """
    if len(images) != len(captions):
        raise UserError(f"{len(images)} images but {len(captions)} captions; give one for each.")
    specs = [as_spec(entry) for entry in captions]
    return [judge(detection, spec) for detection, spec in zip(detect(images), specs, strict=True)]


def as_spec(entry: SceneSpec | Scene | str) -> SceneSpec:
    """Returns the spec of a caption, a scene or a scene's JSON.

    Raises:
        UserError: see `grammar.parse` and `scene.from_json`.
    """
    if isinstance(entry, SceneSpec):
        return entry
    if isinstance(entry, Scene):
        return scene.to_spec(entry)
    if entry.lstrip().startswith("{"):
        return scene.to_spec(scene.from_json(entry))
    return grammar.parse(entry)


def judge(detection: Detection, spec: SceneSpec) -> Verdict:
    """Compares the detected objects with the specified ones, attribute by attribute."""
    pairs = max(_pairings(detection, spec), key=lambda pairs: _merit(pairs, spec), default=())
    complete = {_kind(target) for target, _ in pairs} == {_kind(entry) for entry in spec.objects}
    background = spec.background and detection.background == spec.background
    count = len(detection.objects) == len(spec.objects)
    colour = complete and all(actual.colour == target.colour for target, actual in pairs)
    shape = complete and all(actual.shape == target.shape for target, actual in pairs)
    size = None
    if any(target.size for target in spec.objects):
        size = complete and all(_size_fits(target, actual) for target, actual in pairs)
    relation = spec.relation and _related(pairs, spec.relation)
    criteria = (background, count, colour, shape, size, relation)
    return Verdict(
        background=background if isinstance(background, bool) else None,
        count=count,
        colour=colour,
        shape=shape,
        size=size,
        relation=relation if isinstance(relation, bool) else None,
        objects=colour and shape,
        binding=_binding(detection, spec),
        joint=all(entry is not False for entry in criteria),
        detection=detection,
    )


def report(verdicts: Iterable[Verdict], *, confidence: float = 0.95) -> dict[str, Rate]:
    """Computes the pass rate per attribute over images whose caption names it (Wilson)."""
    verdicts = list(verdicts)
    rates = {}
    for name in ATTRIBUTES:
        passed = [getattr(v, name) for v in verdicts if getattr(v, name) is not None]
        rates[name] = wilson(sum(passed), len(passed), confidence=confidence)
    return rates


def table(rates: dict[str, Rate]) -> str:
    """Formats one line per attribute: name, rate, interval, number of images."""
    width = max(map(len, rates))
    return "\n".join(f"{name:<{width}}  {rate}" for name, rate in rates.items())


def _pairings(detection: Detection, spec: SceneSpec) -> Iterable[Pairing]:
    """Enumerates matchings of specified and detected objects; equal specs are interchangeable."""
    targets, detected = spec.objects, detection.objects
    if spec.relation is None and len(set(targets)) == 1:
        ranked = sorted(detected, key=lambda actual: -_likeness(targets[0], actual))
        return [tuple(zip(targets, ranked, strict=False))]
    number = min(len(targets), len(detected))
    return (
        tuple((targets[k], actual) for k, actual in zip(chosen, order, strict=True))
        for chosen in itertools.combinations(range(len(targets)), number)
        for order in itertools.permutations(detected, number)
    )


def _merit(pairs: Pairing, spec: SceneSpec) -> int:
    likeness = sum(_likeness(target, actual) for target, actual in pairs)
    return likeness + bool(spec.relation and _related(pairs, spec.relation))


def _likeness(target: ObjectSpec, actual: DetectedObject) -> int:
    colour, shape = actual.colour == target.colour, actual.shape == target.shape
    return colour + shape + _size_fits(target, actual)


def _size_fits(target: ObjectSpec, actual: DetectedObject) -> bool:
    return target.size is None or actual.size == target.size


def _kind(target: ObjectSpec | DetectedObject) -> tuple[str, str | None]:
    return target.colour, target.shape


def _related(pairs: Pairing, relation: str) -> bool:
    """True if both objects are matched and the first is `relation` of the second."""
    if len(pairs) != 2:
        return False
    (_, first), (_, second) = pairs
    right, down = second.x - first.x, second.y - first.y
    along = {"above": down, "below": -down, "left of": right, "right of": -right}[relation]
    across = right if relation in ("above", "below") else down
    return along > abs(across)


def _binding(detection: Detection, spec: SceneSpec) -> bool | None:
    kinds = [_kind(target) for target in spec.objects]
    (colour, shape), (other_colour, other_shape) = kinds[0], kinds[-1]
    if colour == other_colour or shape == other_shape:
        return None  # nothing to confuse
    detected = {_kind(actual) for actual in detection.objects}
    if not {colour, other_colour} <= {c for c, _ in detected}:
        return None  # a colour is missing
    if not {shape, other_shape} <= {s for _, s in detected}:
        return None
    return set(kinds) <= detected
