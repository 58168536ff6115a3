"""Imagen against unCLIP: captions, binding, and diversity under guidance."""

from typing import Any

from studies import statistics
from studies.imagen.harness import IMAGEN, UNCLIP, Harness
from studies.scoring import table_row

TITLE = "Imagen and unCLIP"
SOURCE = "section 4.3, figure 3; unCLIP, section 5.3"
CLAIM = (
    "People prefer Imagen to unCLIP for fidelity and for what captions say, above all for colours "
    "and positions; unCLIP keeps more diversity under guidance."
)
ABOUT = (
    "Both chains sample the same captions, at every scale of guidance of base model or decoder; "
    "unCLIP's z_img are those of its prior. Their training compute is equal if both are those of "
    "`studies.history`. Imagen's text encoder is the stand-in that was trained on the captions of "
    "this world, not a language model."
)
CHART = ("curves", "guidance", ("followed", "binding", "diversity", "frechet"))
SCALES = (1.0, 2.0, 4.0, 8.0)
SYSTEMS = {"Imagen": IMAGEN, "unCLIP": UNCLIP}


def measure(harness: Harness) -> dict[str, Any]:
    """Samples from both chains at every scale, and with their exported settings."""
    examples, rows, scores, spread = harness.examples, [], {}, {}
    for system, name in SYSTEMS.items():
        for scale in (None, *SCALES):
            changes = {} if scale is None else {"guidance_scale": scale}
            scored = harness.score(harness.sample(name, **changes).images)
            scores[system, scale], spread[system, scale] = scored, examples.diversity(scored.z)
            if scale is None:
                continue
            facts = {"name": f"{system}, guidance {scale:g}", "line": system, "guidance": scale}
            binding = examples.mean(scored.correct["binding"])._asdict()
            rows.append({**facts, **table_row(examples, scored), "binding": binding})
    least, most, count = SCALES[0], SCALES[-1], examples.count

    def loss(indices: Any) -> float:
        lost = (
            statistics.nan_mean((spread[system, least] - spread[system, most])[indices])
            for system in SYSTEMS
        )
        imagen, unclip = lost
        return imagen - unclip

    imagen, unclip = scores["Imagen", None], scores["unCLIP", None]
    tests = [
        statistics.inequality(
            "captions followed, Imagen - unCLIP",
            examples.difference(imagen.followed, unclip.followed),
            captions=count,
        ),
        statistics.inequality(
            "binding, Imagen - unCLIP",
            examples.difference(imagen.correct["binding"], unclip.correct["binding"]),
            captions=count,
        ),
        statistics.inequality(
            "Fréchet distance, unCLIP - Imagen",
            examples.distances(lambda d: d(unclip.z) - d(imagen.z)),
            captions=count,
        ),
        statistics.inequality(
            f"loss of diversity from guidance {least:g} to {most:g}, Imagen - unCLIP",
            statistics.interval(loss, count),
            captions=count,
        ),
    ]
    return {"rows": rows, "tests": tests}
