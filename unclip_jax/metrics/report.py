"""All scores of two sets of features, with their protocol and warnings.

Scores are comparable only within one protocol, so a `Report` contains and prints both.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import kernels, neighbours, scores
from unclip_jax.metrics.frechet import Moments, squared_distance
from unclip_jax.metrics.score_options import ScoreOptions

# Parts of the protocol that must be equal for two sets of features to be comparable.
AGREE = ("features", "weights", "resize")
DEFAULT = ScoreOptions()


@dataclasses.dataclass(frozen=True)
class SetFeatures:
    """The features of one set of images.

    Attributes:
        facts: origin of the images; "count" is their exact number, or None if unknown.
        protocol: protocol of the extractor; empty for statistics without one.
        moments: moments of the pooled features.
        spatial: moments of the spatial features, or None.
        pool: [n d] pooled features; None if only statistics are stored.
        probabilities: [n classes], or None.
        lossy: True if files were compressed with loss.
    """

    facts: Mapping[str, Any]
    protocol: Mapping[str, Any]
    moments: Moments
    spatial: Moments | None = None
    pool: Float32[np.ndarray, "n d"] | None = None
    probabilities: Float32[np.ndarray, "n classes"] | None = None
    lossy: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """Scores with their protocol.

    Attributes:
        scores: name -> value, JSON-ready.
        protocol: all settings that affect comparability.
        warnings: reasons to doubt the scores, one line each.
    """

    scores: dict[str, float]
    protocol: dict[str, Any]
    warnings: list[str]

    def plain(self) -> dict[str, Any]:
        """Returns JSON-ready dicts, with None for nan."""
        scores = {n: None if math.isnan(v) else v for n, v in self.scores.items()}
        return {"scores": scores, "protocol": self.protocol, "warnings": self.warnings}

    def __str__(self) -> str:
        """Returns warnings, scores and protocol as text."""
        lines = [f"WARNING: {line}" for line in self.warnings]
        lines += [f"{name:22} {value:.6g}" for name, value in self.scores.items()]
        return "\n".join([*lines, "protocol:", *_indented(self.protocol)]) + "\n"


def compare(
    real: SetFeatures, fake: SetFeatures, *, kind: str, options: ScoreOptions = DEFAULT
) -> Report:
    """Computes all scores that the features allow.

    Args:
        real: the reference set.
        fake: the evaluated set.
        kind: kind of the extractor; distances of "inception" are called FID and sFID.
        options: settings of the scores.

    Raises:
        UserError: the sets have different protocols, or too few images.
    """
    check_same(real, fake)
    name = "fid" if kind == "inception" else "frechet"
    values = {name: squared_distance(real.moments, fake.moments)}
    if real.spatial is not None and fake.spatial is not None:
        values["sfid"] = squared_distance(real.spatial, fake.spatial)
    protocol: dict[str, Any] = {**fake.protocol, "real": dict(real.facts), "fake": dict(fake.facts)}
    if real.pool is not None and fake.pool is not None:
        kid = kernels.kid(
            real.pool,
            fake.pool,
            subsets=options.kid_subsets,
            size=options.kid_size,
            seed=options.seed,
        )
        values |= {"kid": kid.value, "kid_std": kid.std}
        if kind == "clip":
            values["cmmd"] = kernels.cmmd(real.pool, fake.pool)
            protocol["cmmd"] = f"Gaussian kernel, sigma {kernels.SIGMA:g}, biased, x 1000"
        near = {"k": options.k, "k_density": options.k_density}
        values |= neighbours.overlap(real.pool, fake.pool, **near)._asdict()
        protocol["kid"] = f"{kid.subsets} subsets of {kid.size}, seed {kid.seed}"
        protocol["neighbours"] = near
    if fake.probabilities is not None:
        score = scores.inception_score(fake.probabilities)
        values |= {"inception_score": score.value}
        protocol["inception_score"] = f"of fake, {score.count} splits of at most {scores.SPLIT}"
    return Report(values, protocol, warnings(real, fake))


def check_same(real: SetFeatures, fake: SetFeatures) -> None:
    """Checks that two sets of features have the same protocol.

    Raises:
        UserError: they differ; names the first part that does.
    """
    for part in AGREE:
        one, other = real.protocol.get(part), fake.protocol.get(part)
        if one is not None and other is not None and one != other:
            raise UserError(
                f"protocols are mixed: {part} is {one!r} for real and {other!r} for fake; use one "
                "for both."
            )


def warnings(real: SetFeatures, fake: SetFeatures) -> list[str]:
    """Returns the reasons to doubt the scores, one line each."""
    lines = []
    for name, features in (("real", real), ("fake", fake)):
        count, width = features.facts.get("count"), len(features.moments.mean)
        if count is None:
            lines.append(f"the statistics of {name} do not record their number of images.")
        elif count <= width:
            lines.append(
                f"{name} has {count} images, too few for a covariance of {width} dimensions "
                f"(at least {width + 1}; 10,000 or more are usual): the Fréchet distance is "
                "biased upwards and comparable only for equal counts. KID has no such bias."
            )
    if not real.protocol:
        lines.append(
            f"{real.facts.get('source')} does not record how its features were computed; whether "
            "weights and resize agree is unchecked."
        )
    for part in ("size", "crop"):
        one, other = real.facts.get(part), fake.facts.get(part)
        if one is not None and other is not None and one != other:
            lines.append(
                f"{part} differs, {one} for real and {other} for fake: the scores include that."
            )
    if real.lossy != fake.lossy:
        which = "real" if real.lossy else "fake"
        lines.append(
            f"only {which} holds lossy files (JPEG, WebP), which moves FID strongly "
            "(arXiv 2104.11222)."
        )
    return lines


def _indented(tree: Mapping[str, Any], depth: int = 1) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += [f"{'  ' * depth}{key}:", *_indented(value, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{key}: {value}")
    return lines
