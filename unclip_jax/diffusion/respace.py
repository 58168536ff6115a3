"""Short chains: the timesteps that a sampler visits, and their betas.

Source: improved DDPM's fractional stride and DDIM's integer stride as used by ADM (arXiv
2105.05233, appendix I), GLIDE's sectioned 27-step list (arXiv 2112.10741, released code), even
steps in log(signal / noise) from DPM-Solver (arXiv 2206.00927, section 3.4).
"""

import itertools

import numpy as np
from jaxtyping import Int

from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.float32_schedule import Float32Schedule
from unclip_jax.diffusion.schedule import Schedule

FAST_27 = "10,10,3,2,2"  # GLIDE's counts per fifth of the chain, most steps near the data
LOG_SNR = "logsnr"
TRAILING = "trailing"
AT = "at:"
MIN_LOG_SNR = -4.0  # log(signal / noise) below which an even grid spends one step: signal < 2 %


def strided(schedule: Schedule, *, steps: str) -> Schedule:
    """Returns the short chain of `schedule` through the timesteps of a grid.

    Args:
        schedule: the full chain.
        steps: a grid of `timesteps`, or "logsnr20": the 20 indices that lie most evenly in
            log(signal / noise), for solvers that are made for even steps there.

    Raises:
        UserError: the grid has no meaning or more steps than the chain.
    """
    if steps.startswith(LOG_SNR):
        return respace(schedule, timesteps=_even_log_snr(steps, schedule))
    summed = not isinstance(schedule, Float32Schedule) or schedule.exact
    grid = timesteps(steps, num_timesteps=schedule.num_timesteps, summed=summed)
    return respace(schedule, timesteps=grid)


def timesteps(spec: str, *, num_timesteps: int, summed: bool = True) -> Int[np.ndarray, " n"]:
    """Returns the indices of a grid on a chain, ascending.

    Args:
        spec: one of
            "250": that many at a rounded fractional stride, from 0 to T - 1;
            "ddim25": that many at the smallest integer stride that gives exactly 25 from 0;
            "10,10,3,2,2": that many in each of equal sections, at fractional strides;
            "fast27": "10,10,3,2,2" with the last index T - 1 replaced by T - 3 (GLIDE: fewer
            artefacts with DDIM);
            "22@140": a grid of 22 on the indices from 140;
            "trailing4": T / 4, T / 2, 3 T / 4 and T, minus 1 and rounded, for distilled models;
            "at:120-480-999": these indices.
        num_timesteps: T, the length of the original chain.
        summed: fractional strides are added up one after another before they are rounded, as ADM's
            code and DeepFloyd IF's do; False multiplies them instead, as diffusers' UnCLIPScheduler
            does. For some counts, 31 of 1000 among them, a few indices differ by one.

    Raises:
        UserError: the grid has no meaning or more steps than the chain.
    """
    if spec == "fast27":
        return np.append(timesteps(FAST_27, num_timesteps=num_timesteps)[:-1], num_timesteps - 3)
    if spec.startswith(AT):
        return _listed(spec, num_timesteps)
    plain, at, first = spec.partition("@")
    if at:
        skipped = _index(first, spec, num_timesteps)
        return timesteps(plain, num_timesteps=num_timesteps - skipped, summed=summed) + np.int32(
            skipped
        )
    if spec.startswith(TRAILING):
        return _trailing(spec, num_timesteps)
    try:
        if spec.startswith("ddim"):
            return _integer_stride(int(spec.removeprefix("ddim")), num_timesteps)
        counts = [int(part) for part in spec.split(",")]
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"sampling steps {spec!r} not understood; give a number such as '250', 'ddim25', "
            "'logsnr20', 'fast27', '22@140', 'trailing4', indices such as 'at:120-480-999', or "
            "counts per section such as '10,10,3,2,2'."
        ) from error
    if counts == [1]:
        raise UserError("sampling steps '1' would keep index 0 only; give at least 2 steps.")
    return _sections(counts, num_timesteps, summed)


def respace(schedule: Schedule, *, timesteps: Int[np.ndarray, " n"]) -> Schedule:
    """Returns the short chain through `timesteps`, with the original alpha_bar at each of them.

    The network still takes the original indices: they become the new chain's `timesteps`.

    Args:
        schedule: the chain to shorten.
        timesteps: positions in `schedule`, strictly ascending.

    Raises:
        UserError: the positions do not ascend or leave the chain.
    """
    positions = np.asarray(timesteps)
    inside = positions.size and positions[0] >= 0 and positions[-1] < schedule.num_timesteps
    if not inside or np.any(np.diff(positions) <= 0):
        raise UserError(
            f"sampling steps {positions.tolist()} must ascend strictly within "
            f"[0, {schedule.num_timesteps - 1}]."
        )
    return schedule.keep(positions)


def _index(digits: str, spec: str, num_timesteps: int) -> int:
    if not digits.isdecimal() or int(digits) > num_timesteps - 2:
        raise UserError(
            f"sampling steps {spec!r} not understood; after '@' give the index that the last step "
            f"leaves from, 0 to {num_timesteps - 2}."
        )
    return int(digits)


def _even_log_snr(spec: str, schedule: Schedule) -> Int[np.ndarray, " n"]:
    """Returns the indices nearest to an even grid, distinct, the last one T - 1.

    The last betas of a cosine chain are so large that an even grid would crowd into the last ten
    indices, where x_t holds no signal; the grid ends at `MIN_LOG_SNR` and one step leads there.
    """
    digits, length = spec.removeprefix(LOG_SNR), schedule.num_timesteps
    if not digits.isdecimal() or not 2 <= int(digits) <= length:
        raise UserError(
            f"sampling steps {spec!r} not understood; give a number from 2 to {length} after "
            f"{LOG_SNR!r}, such as 'logsnr20'."
        )
    log_snr = np.log(schedule.signal / schedule.noise)
    even = np.linspace(log_snr[0], max(log_snr[-1], MIN_LOG_SNR), int(digits))
    nearest = np.abs(log_snr - even[:, None]).argmin(axis=1)
    nearest[-1] = length - 1
    for k in range(len(nearest) - 2, -1, -1):
        nearest[k] = max(k, min(nearest[k], nearest[k + 1] - 1))
    return nearest.astype(np.int32)


def listed(indices: Int[np.ndarray, " n"]) -> str:
    """Returns the grid with these indices, "at:120-480-999"."""
    return AT + "-".join(str(int(index)) for index in indices)


def _listed(spec: str, num_timesteps: int) -> Int[np.ndarray, " n"]:
    parts = spec.removeprefix(AT).split("-")
    indices = [int(part) if part.isdecimal() else -1 for part in parts]
    ascend = all(a < b for a, b in itertools.pairwise(indices))
    if indices[0] < 0 or not ascend or not 0 < indices[-1] < num_timesteps:
        raise UserError(
            f"sampling steps {spec!r} not understood; after {AT!r} give indices from 0 to "
            f"{num_timesteps - 1} in ascending order, such as 'at:120-480-{num_timesteps - 1}'."
        )
    return np.array(indices, np.int32)


def _trailing(spec: str, num_timesteps: int) -> Int[np.ndarray, " n"]:
    digits = spec.removeprefix(TRAILING)
    if not digits.isdecimal() or not 1 <= int(digits) <= num_timesteps:
        raise UserError(
            f"sampling steps {spec!r} not understood; give a number from 1 to {num_timesteps} "
            f"after {TRAILING!r}, such as 'trailing4'."
        )
    ends = np.arange(1, int(digits) + 1) * num_timesteps / int(digits)
    return (np.round(ends) - 1).astype(np.int32)


def _integer_stride(count: int, num_timesteps: int) -> Int[np.ndarray, " n"]:
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == count:
            return np.arange(0, num_timesteps, stride, dtype=np.int32)
    raise UserError(
        f"sampling steps 'ddim{count}': no integer stride gives {count} of {num_timesteps} steps; "
        f"use the fractional rule '{count}'."
    )


def _sections(counts: list[int], num_timesteps: int, summed: bool) -> Int[np.ndarray, " n"]:
    """Returns fractional strides in sections whose lengths differ by at most 1, longer first."""
    indices = []
    for section, count in zip(
        np.array_split(np.arange(num_timesteps), len(counts)), counts, strict=True
    ):
        if not 1 <= count <= len(section):
            raise UserError(
                f"sampling steps ask for {count} of {len(section)} levels; they must ask for 1 to "
                f"{len(section)}."
            )
        stride = (len(section) - 1) / max(count - 1, 1)
        offsets = np.cumsum([0.0] + [stride] * (count - 1)) if summed else np.arange(count) * stride
        indices.append(section[0] + np.round(offsets))
    return np.concatenate(indices).astype(np.int32)
