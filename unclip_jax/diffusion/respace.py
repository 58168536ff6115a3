"""Short chains: which of the original steps a sampler visits, and their betas.

Source: improved DDPM's fractional stride and DDIM's integer stride as used by ADM (arXiv
2105.05233, appendix I), GLIDE's sectioned 27-step list (arXiv 2112.10741, released code).
"""

import numpy as np
from jaxtyping import Int

from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.schedule import Schedule

FAST_27 = "10,10,3,2,2"  # GLIDE's counts per fifth of the chain, most steps near the data


def timesteps(spec: str, *, num_timesteps: int) -> Int[np.ndarray, " n"]:
    """The original indices to keep, ascending.

    Args:
        spec: one of
            "250": that many at a rounded fractional stride; holds 0 and T - 1;
            "ddim25": that many at the smallest integer stride that gives exactly 25 from 0;
            "10,10,3,2,2": so many from each of equal sections, fractional stride within each;
            "fast27": "10,10,3,2,2" with the last index T - 1 replaced by T - 3 (GLIDE: fewer
            artefacts with DDIM).
        num_timesteps: T, the length of the original chain.

    Raises:
        UserError: the spec has no meaning or asks for more steps than there are.
    """
    if spec == "fast27":
        return np.append(timesteps(FAST_27, num_timesteps=num_timesteps)[:-1], num_timesteps - 3)
    try:
        if spec.startswith("ddim"):
            return _integer_stride(int(spec.removeprefix("ddim")), num_timesteps)
        counts = [int(part) for part in spec.split(",")]
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"sampling steps {spec!r} not understood; give a number such as '250', 'ddim25', "
            "'fast27' or counts per section such as '10,10,3,2,2'."
        ) from error
    if counts == [1]:
        raise UserError("sampling steps '1' would keep index 0 only; give at least 2 steps.")
    return _sections(counts, num_timesteps)


def respace(schedule: Schedule, *, timesteps: Int[np.ndarray, " n"]) -> Schedule:
    """The short chain through `timesteps`, with the original alpha_bar at each of them.

    The network is still given the original indices: they become the new chain's `timesteps`.

    Args:
        schedule: the chain to shorten.
        timesteps: positions in `schedule`, strictly ascending.

    Raises:
        UserError: the positions do not ascend or leave the chain.
    """
    kept = np.asarray(timesteps)
    inside = kept.size and kept[0] >= 0 and kept[-1] < schedule.num_timesteps
    if not inside or np.any(np.diff(kept) <= 0):
        raise UserError(
            f"sampling steps {kept.tolist()} must ascend strictly within "
            f"[0, {schedule.num_timesteps - 1}]."
        )
    alpha_bar = schedule.alpha_bar[kept]
    beta = 1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    return Schedule(beta, schedule.timesteps[kept])


def _integer_stride(count: int, num_timesteps: int) -> Int[np.ndarray, " n"]:
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == count:
            return np.arange(0, num_timesteps, stride, dtype=np.int32)
    raise UserError(
        f"sampling steps 'ddim{count}': no integer stride gives {count} of {num_timesteps} steps; "
        f"use the fractional rule '{count}'."
    )


def _sections(counts: list[int], num_timesteps: int) -> Int[np.ndarray, " n"]:
    """Fractional strides within sections whose lengths differ by at most one, longer ones first."""
    kept = []
    for section, count in zip(
        np.array_split(np.arange(num_timesteps), len(counts)), counts, strict=True
    ):
        if not 1 <= count <= len(section):
            raise UserError(
                f"sampling steps ask for {count} of a section of {len(section)} steps; "
                "give between 1 and its length."
            )
        stride = (len(section) - 1) / max(count - 1, 1)
        offsets = np.cumsum([0.0] + [stride] * (count - 1))  # a running sum, as the originals do
        kept.append(section[0] + np.round(offsets))
    return np.concatenate(kept).astype(np.int32)
