"""Whether colours stay with their shapes: in CLIP's embedding, with a caption, and in GLIDE."""

import dataclasses
from typing import Any

import numpy as np

from studies import statistics
from studies.findings import baseline_runs
from studies.findings.harness import Workshop
from studies.scoring import Truth, cosine
from unclip_jax.metrics import shapes_checker
from unclip_jax.shapes.scene import ObjectSpec

TITLE = "Binding of attributes"
SOURCE = "sections 2.1 and 7, Figures 14 and 15"
CLAIM = (
    "GLIDE binds attributes to objects better than unCLIP, whose CLIP embedding mixes them up; "
    "telling the decoder the caption as well helps little."
)
ABOUT = (
    "Captions of two objects that differ in colour and shape. *binding*: of pictures that hold "
    "both colours and both shapes, those with each colour on its own shape (*asked* of so many "
    "pictures); *objects*: of all pictures. GLIDE is compared with an unCLIP decoder of as many "
    "steps; the caption is taken from one and the same decoder, which saw half of its training "
    "without. Helping little: by less than 0.1."
)
CHART = ("bars", "binding", "objects", "colour", "shape")
LITTLE = 0.1


def unlike(caption: str) -> bool:
    """Whether a caption names two objects that differ in colour and in shape."""
    wanted = shapes_checker.as_spec(caption).objects
    one, other = wanted[0], wanted[-1]
    return len(wanted) == 2 and one.colour != other.colour and one.shape != other.shape


def swapped(caption: str) -> str:
    """The caption with the colours of its two objects exchanged, word by word."""
    one, other = shapes_checker.as_spec(caption).objects
    first, second = one.colour, other.colour
    exchange = {first: second, second: first}
    words = caption.split()
    places = [i for i, word in enumerate(words) if word in exchange][:2]
    for place in places:
        words[place] = exchange[words[place]]
    for place in places:  # an article before the colour
        if place and words[place - 1] in ("a", "an"):
            words[place - 1] = "an" if words[place][0] in "aeiou" else "a"
    changed = " ".join(words)
    asked = shapes_checker.as_spec(changed)
    assert asked.objects == (_coloured(one, second), _coloured(other, first)), changed
    return changed


def measure(shop: Workshop) -> dict[str, Any]:
    """Draw the same captions in five ways, and ask CLIP itself."""
    truth = shop.look(shop.args.num, shop.args.images, unlike)
    if not truth.count:
        return {"rows": [], "tests": [], "note": "No caption of two unlike objects in this split."}
    prior = shop.imagine("x_0", truth)
    arms = {
        "unCLIP, prior and caption": (baseline_runs.MAIN, prior, True),
        "unCLIP, prior without caption": (baseline_runs.MAIN, prior, False),
        "unCLIP, true z_img without caption": (baseline_runs.MAIN, truth.z_img, False),
        "unCLIP, as long as GLIDE": ("unclip", prior, True),
        "GLIDE": ("glide", truth.z_txt, True),
    }
    rows, right = [], {}
    for name, (run, z, caption) in arms.items():
        images = shop.draw(run, z, truth=truth, caption=caption, label=name)
        right[name] = shop.judge(images, truth.captions).right
        shown = {n: truth.mean(right[name][n]) for n in CHART[1:]}
        row = {n: each._asdict() for n, each in shown.items()}
        rows.append({"name": name, **row, "asked": int(np.sum(~np.isnan(right[name]["binding"])))})
    told, untold, _, twin, glide = (right[name]["binding"] for name in arms)
    better = truth.difference(glide, twin)
    helped = truth.difference(untold, told)
    tests = [
        statistics.inequality(
            "binding, GLIDE - unCLIP of equal length", better, captions=_asked(glide)
        ),
        statistics.inequality(
            "binding, without the caption - with it",
            helped,
            captions=_asked(told),
            margin=LITTLE,
        ),
    ]
    return {"rows": rows, "tests": tests, "note": _clip(shop, truth)}


def _clip(shop: Workshop, truth: Truth) -> str:
    """How often CLIP itself prefers the caption to the one with exchanged colours."""
    other = np.asarray(shop.main.text_embeddings([swapped(each) for each in truth.captions]))
    own = cosine(truth.z_img, truth.z_txt) > cosine(truth.z_img, other)
    found = truth.mean(own.astype(np.float64))
    return (
        "CLIP itself finds a true picture nearer to its caption than to the same caption with the "
        f"two colours exchanged in {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] of "
        f"{truth.count} cases; 0.5 would be a guess."
    )


def _asked(values: np.ndarray) -> int:
    """Pictures of which binding could be asked at all."""
    return int(np.sum(~np.isnan(values)))


def _coloured(wanted: ObjectSpec, colour: str) -> ObjectSpec:
    return dataclasses.replace(wanted, colour=colour)
