"""Settings of the scores of two sets of features, importable without JAX."""

import dataclasses

from unclip_jax.core.checks import check_seed

KID_SUBSETS, KID_SIZE = 100, 1000  # arXiv 1801.01401, as in torch-fidelity and clean-fid
K_PRECISION = 3  # arXiv 1904.06991, section 4; ADM's evaluator too
K_DENSITY = 5  # arXiv 2002.09797, section 4


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """Settings of the scores.

    Attributes:
        kid_subsets: number of subsets of KID.
        kid_size: images per set in a subset.
        k: number of neighbours for precision and recall.
        k_density: number of neighbours for density and coverage.
        seed: seed of KID's subsets.
    """

    kid_subsets: int = KID_SUBSETS
    kid_size: int = KID_SIZE
    k: int = K_PRECISION
    k_density: int = K_DENSITY
    seed: int = 0

    def __post_init__(self):
        """Checks the seed."""
        check_seed("--seed", self.seed)
