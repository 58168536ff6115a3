"""Scores of one set of images: Inception score, CLIP score, diversity within a caption."""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError

Embeddings = Float[np.ndarray, "n z"]
Captions = Float[np.ndarray, "m z"]
Probabilities = Float[np.ndarray, "n classes"]

SPLIT = 5000  # images per split of the Inception score, as in ADM's evaluator
CLIP_SCALE = 100.0  # GLIDE: E[100 cos]; Hessel et al. use 2.5 max(cos, 0), Karlo the plain cosine


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean with its standard error.

    Attributes:
        value: the mean.
        error: its standard error; nan for a single value.
        count: number of values.
    """

    value: float
    error: float
    count: int


def inception_score(probabilities: Probabilities, *, split: int = SPLIT) -> Score:
    """Computes exp of the mean KL of p(class | image) to its mean (arXiv 1606.03498, sec. 4).

    Splits are consecutive with `split` images each; the last may be smaller. The score lies between
    1 and the number of classes.
    """
    parts = np.split(probabilities.astype(np.float64), range(split, len(probabilities), split))
    values = [math.exp(float(np.mean(_kl(part, part.mean(axis=0))))) for part in parts]
    return _score(np.array(values))


def clip_score(z_img: Embeddings, z_txt: Captions) -> Score:
    """Computes the mean of 100 cos(image, its caption), not clipped at zero.

    Raises:
        UserError: the numbers of images and captions differ.
    """
    if len(z_img) != len(z_txt):
        raise UserError(
            f"there are {len(z_img)} images and {len(z_txt)} captions; give one for each."
        )
    cosines = np.sum(unit(z_img.astype(np.float64)) * unit(z_txt.astype(np.float64)), axis=1)
    return _score(CLIP_SCALE * cosines)


def diversity(z_img: Embeddings, captions: Sequence[Hashable]) -> Score:
    """Computes 1 - cos of two images of one caption, mean over pairs, then over captions.

    This is the variety of images of one caption, which human raters judge in unCLIP's section 5.2.
    Captions with a single image are ignored.

    Raises:
        UserError: no caption has two images.
    """
    rows: dict[Hashable, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption, []).append(row)
    z = unit(z_img.astype(np.float64))
    values = [_spread(z[group]) for group in rows.values() if len(group) > 1]
    if not values:
        raise UserError(
            "no caption has two images, so their diversity is undefined; sample more per caption."
        )
    return _score(np.array(values))


def _spread(z: np.ndarray) -> float:
    """Returns the mean of 1 - cos over pairs of unit vectors; |sum|^2 = n + sum over pairs."""
    count, total = len(z), z.sum(axis=0)
    return 1.0 - float(total @ total - count) / (count * (count - 1))


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * (np.log(p) - np.log(q)[None]), 0.0).sum(axis=1)


def _score(values: np.ndarray) -> Score:
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Score(float(values.mean()), error, count)
