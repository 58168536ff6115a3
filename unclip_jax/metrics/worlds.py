"""The procedural worlds whose images can be checked, and the choice of one by its captions.

To add a world, write its checker (`shapes_checker` is the example) and register it in `WORLDS`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import portraits_checker, shapes_checker
from unclip_jax.metrics.intervals import Rate
from unclip_jax.metrics.portraits_detector import Images


class WorldChecks(NamedTuple):
    """The checker of a procedural world.

    Attributes:
        name: name in `python -m unclip_jax.prepare NAME`.
        as_spec: parses a caption, or a scene as JSON; raises `UserError` for those of other worlds.
        check: returns a verdict per image for its caption or scene.
        report: returns the pass rates of verdicts, per attribute.
        summary: attributes shown in tables.
        criteria: attributes judged from the caption alone, whose conjunction is "joint".
        attributes: all attributes of a verdict, which are true, false or None (not named).
    """

    name: str
    as_spec: Callable[[str], Any]
    check: Callable[[Images, Sequence[Any]], list[Any]]
    report: Callable[[Sequence[Any]], dict[str, Rate]]
    summary: tuple[str, ...]
    criteria: tuple[str, ...]
    attributes: tuple[str, ...]


WORLDS: tuple[WorldChecks, ...] = tuple(
    WorldChecks(
        name,
        checker.as_spec,
        checker.check,
        checker.report,
        checker.SUMMARY,
        checker.CRITERIA,
        checker.ATTRIBUTES,
    )
    for name, checker in (("shapes", shapes_checker), ("portraits", portraits_checker))
)
# Distinct columns of a table for all worlds, with those that depend on others last.
_LAST = ("binding", "joint")
SUMMARY: tuple[str, ...] = (
    tuple(dict.fromkeys(n for world in WORLDS for n in world.summary if n not in _LAST)) + _LAST
)


def world_of(captions: Sequence[str]) -> WorldChecks | None:
    """Returns the world to which all captions (or scenes as JSON) belong; None if there is none."""
    if not captions:
        return None
    return next((world for world in WORLDS if _all_parse(world, captions)), None)


def _all_parse(world: WorldChecks, captions: Sequence[str]) -> bool:
    """Returns True if every caption belongs to the world."""
    try:
        for caption in captions:
            world.as_spec(caption)
    except UserError:
        return False
    return True


def check(images: Images, captions: Sequence[str]) -> dict[str, Rate]:
    """Computes pass rates per attribute of images by their captions; empty outside all worlds.

    Raises:
        UserError: numbers of images and captions differ, or the checker rejects the images.
    """
    world = world_of(captions)
    return world.report(world.check(images, captions)) if world else {}


def as_json(rates: dict[str, Rate]) -> dict[str, dict[str, int | float]]:
    """Returns JSON-ready rates, without attributes that no caption names."""
    return {name: dict(rate._asdict()) for name, rate in rates.items() if rate.total}
