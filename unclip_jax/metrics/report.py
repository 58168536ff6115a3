"""Two sets of features to all scores, with the protocol and the warnings that belong to them.

A figure without its protocol compares with nothing, so a `Report` holds both, and prints both.
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

# What must be equal for two sets of features to be compared at all.
AGREE = ("features", "weights", "resize")


@dataclasses.dataclass(frozen=True)
class Collected:
    """Features of one set.

    Attributes:
        facts: where the pictures come from; "count" is their exact number, or None if unknown.
        protocol: of the extractor; empty for statistics that do not say.
        moments: of the pooled features.
        spatial: of the spatial ones, or None.
        pool: [n d] pooled features; None where only statistics are known.
        probabilities: [n classes], or None.
        lossy: files were compressed with loss.
    """

    facts: Mapping[str, Any]
    protocol: Mapping[str, Any]
    moments: Moments
    spatial: Moments | None = None
    pool: Float32[np.ndarray, "n d"] | None = None
    probabilities: Float32[np.ndarray, "n classes"] | None = None
    lossy: bool = False


@dataclasses.dataclass(frozen=True)
class Options:
    """How scores are made of features.

    Attributes:
        kid_subsets: number of subsets of KID.
        kid_size: pictures of each set in each of them.
        k: neighbours of precision and recall.
        k_density: neighbours of density and coverage.
        seed: of KID's subsets.
    """

    kid_subsets: int = kernels.SUBSETS
    kid_size: int = kernels.SUBSET_SIZE
    k: int = neighbours.K_PRECISION
    k_density: int = neighbours.K_DENSITY
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Report:
    """Scores and what they depend on.

    Attributes:
        scores: name -> value, JSON-ready.
        protocol: everything that a comparison with other figures needs.
        warnings: one line each; part of the result.
    """

    scores: dict[str, float]
    protocol: dict[str, Any]
    warnings: list[str]

    def plain(self) -> dict[str, Any]:
        """JSON-ready; what is not a number is null."""
        known = {n: None if math.isnan(v) else v for n, v in self.scores.items()}
        return {"scores": known, "protocol": self.protocol, "warnings": self.warnings}

    def __str__(self) -> str:
        """Warnings, scores, protocol."""
        lines = [f"WARNING: {line}" for line in self.warnings]
        lines += [f"{name:22} {value:.6g}" for name, value in self.scores.items()]
        return "\n".join([*lines, "protocol:", *_indented(self.protocol)]) + "\n"


def compare(real: Collected, fake: Collected, *, kind: str, options: Options = Options()) -> Report:
    """All scores that the features allow.

    Args:
        real: the reference.
        fake: what is judged.
        kind: of the extractor; "inception" distances are FID and sFID, others are named for what
            they are.
        options: of the scores.

    Raises:
        UserError: the sets were made by different protocols or have too few pictures.
    """
    check_same(real, fake)
    name = "fid" if kind == "inception" else "frechet"
    found = {name: squared_distance(real.moments, fake.moments)}
    if real.spatial is not None and fake.spatial is not None:
        found["sfid"] = squared_distance(real.spatial, fake.spatial)
    protocol: dict[str, Any] = {**fake.protocol, "real": dict(real.facts), "fake": dict(fake.facts)}
    if real.pool is not None and fake.pool is not None:
        kid = kernels.kid(
            real.pool,
            fake.pool,
            subsets=options.kid_subsets,
            size=options.kid_size,
            seed=options.seed,
        )
        found |= {"kid": kid.value, "kid_std": kid.std}
        if kind == "clip":
            found["cmmd"] = kernels.cmmd(real.pool, fake.pool)
            protocol["cmmd"] = f"Gaussian kernel, sigma {kernels.SIGMA:g}, biased, x 1000"
        near = {"k": options.k, "k_density": options.k_density}
        found |= neighbours.overlap(real.pool, fake.pool, **near)._asdict()
        protocol["kid"] = f"{kid.subsets} subsets of {kid.size}, seed {kid.seed}"
        protocol["neighbours"] = near
    if fake.probabilities is not None:
        score = scores.inception_score(fake.probabilities)
        found |= {"inception_score": score.value}
        protocol["inception_score"] = f"of fake, {score.count} splits of at most {scores.SPLIT}"
    return Report(found, protocol, warnings(real, fake))


def check_same(real: Collected, fake: Collected) -> None:
    """Refuse features that were not made alike.

    Raises:
        UserError: naming the first part of the protocol that differs.
    """
    for part in AGREE:
        here, there = real.protocol.get(part), fake.protocol.get(part)
        if here is not None and there is not None and here != there:
            raise UserError(
                f"protocols are mixed: {part} is {here!r} for real and {there!r} for fake; use one "
                "for both."
            )


def warnings(real: Collected, fake: Collected) -> list[str]:
    """What makes the scores doubtful."""
    found = []
    for name, one in (("real", real), ("fake", fake)):
        count, width = one.facts.get("count"), len(one.moments.mean)
        if count is None:
            found.append(f"the reference of {name} does not say how many pictures it is made of.")
        elif count <= width:
            found.append(
                f"{name} has {count} pictures, too few for a covariance of {width} dimensions "
                f"(at least {width + 1}; 10,000 or more are usual): the Frechet distance is "
                "biased upwards and compares only with equal counts. KID has no such bias."
            )
    if not real.protocol:
        found.append(
            f"{real.facts.get('source')} does not say how its features were made; that weights and "
            "resize agree is unchecked."
        )
    for part in ("size", "crop"):
        here, there = real.facts.get(part), fake.facts.get(part)
        if here is not None and there is not None and here != there:
            found.append(
                f"{part} differs, {here} for real and {there} for fake: the scores include that."
            )
    if real.lossy != fake.lossy:
        which = "real" if real.lossy else "fake"
        found.append(
            f"only {which} holds files that lose detail (JPEG, WebP), which moves FID strongly "
            "(arXiv 2104.11222)."
        )
    return found


def _indented(tree: Mapping[str, Any], depth: int = 1) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += [f"{'  ' * depth}{key}:", *_indented(value, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{key}: {value}")
    return lines
