"""The checker of the portraits world: judges images by their captions, without a model.

Every attribute that a caption names is judged separately; attributes that it omits are ignored.

    verdicts = check(images, captions)
    print(table(report(verdicts)))
"""

import dataclasses
from collections.abc import Iterable, Sequence

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.intervals import Rate, wilson
from unclip_jax.metrics.portraits_detector import Detection, Images, detect
from unclip_jax.portraits import grammar, scene
from unclip_jax.portraits.scene import Portrait, PortraitSpec, hidden


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of one image; None for attributes that the caption does not name.

    Attributes:
        hair: it has the named style.
        hair_colour: colour of the hair, or of the facial hair if there is no hair, is as named;
            false if neither is visible.
        facial_hair: it is of the named kind.
        glasses: they are of the named kind.
        eyes: they are as named; false behind sunglasses.
        mouth: it is as named.
        clothes: they are of the named kind.
        clothes_colour: they have the named colour.
        background: it has the named colour.
        binding: hair, clothes and background have their own colours, if the caption names at least
            two different ones.
        joint: all named attributes are right.
        confidence: lowest confidence of a named and visible attribute; 1 if there is none.
        detection: attributes of the image.
    """

    hair: bool | None
    hair_colour: bool | None
    facial_hair: bool | None
    glasses: bool | None
    eyes: bool | None
    mouth: bool | None
    clothes: bool | None
    clothes_colour: bool | None
    background: bool | None
    binding: bool | None
    joint: bool
    confidence: float
    detection: Detection = dataclasses.field(repr=False)


# Attributes judged from the caption, whose conjunction is `joint`.
CRITERIA: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(PortraitSpec))
ATTRIBUTES: tuple[str, ...] = (*CRITERIA, "binding", "joint")
SUMMARY: tuple[str, ...] = ATTRIBUTES  # columns of tables
COLOURS = ("hair_colour", "clothes_colour", "background")


def check(images: Images, captions: Sequence[PortraitSpec | Portrait | str]) -> list[Verdict]:
    """Judges every image by its caption.

    Args:
        images: square RGB, uint8 or float in [-1, 1].
        captions: per image a caption, a spec, a portrait, or a portrait's JSON; a portrait
            specifies everything that captions can say.

    Raises:
        UserError: numbers of images and captions differ, a caption is outside the grammar, JSON is
            not a portrait, or `detect` rejects the images.
    """
    if len(images) != len(captions):
        raise UserError(f"{len(images)} images but {len(captions)} captions; give one for each.")
    specs = [as_spec(entry) for entry in captions]
    return [judge(detection, spec) for detection, spec in zip(detect(images), specs, strict=True)]


def as_spec(entry: PortraitSpec | Portrait | str) -> PortraitSpec:
    """Returns the spec of a caption, a portrait or a portrait's JSON.

    Raises:
        UserError: see `grammar.parse` and `scene.from_json`.
    """
    if isinstance(entry, PortraitSpec):
        return entry
    if isinstance(entry, Portrait):
        return scene.to_spec(entry)
    if entry.lstrip().startswith("{"):
        return scene.to_spec(scene.from_json(entry))
    return grammar.parse(entry)


def judge(detection: Detection, spec: PortraitSpec) -> Verdict:
    """Compares the detected attributes with the named ones."""
    named, omitted = spec.named(), hidden(detection.portrait)
    right: dict[str, bool | None] = {
        name: None
        if name not in named
        else name not in omitted and getattr(detection.portrait, name) == named[name]
        for name in CRITERIA
    }
    colours = [named[name] for name in COLOURS if name in named]
    binding = None
    if len(set(colours)) > 1:
        binding = all(right[name] for name in COLOURS if name in named)
    return Verdict(
        **right,
        binding=binding,
        joint=all(value is not False for value in right.values()),
        confidence=min((detection.confidence.get(name, 1.0) for name in named), default=1.0),
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
