"""Estimates of time from counted work: a lower bound for any program and a pessimistic upper one.

    lowest   max(FLOPs / peak, memory bytes / bandwidth, collective bytes / all links)
    highest  the compiler's cycle estimates / clock + collective bytes / the links of one dimension,
             with nothing overlapping

Both come from the compiler's program and the vendor's peaks: estimates, not measurements. The
second exists only where the compiler estimates cycles (TPU, full effort).
"""

import dataclasses
from typing import NamedTuple

from unclip_jax.planning.chips import Chip
from unclip_jax.planning.work import Work

LABEL = "compiler-model estimate, not measured"
DAY = 86_400.0


class Interval(NamedTuple):
    """Lowest and highest value; None = there is no such bound."""

    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds per step on one device, each as if nothing else took time."""

    compute: float
    memory: float
    interconnect: float

    @property
    def binds(self) -> str:
        """Name of the longest of the times."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])

    @property
    def lowest(self) -> float:
        """Lower bound of the seconds per step."""
        return max(self.compute, self.memory, self.interconnect)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bounds on the time of a step and on quantities that follow from it.

    Attributes:
        times: by resource.
        step: seconds per step.
        mfu: share of the peak that goes into the model's own FLOPs.
        rate: examples/s over all chips.
        days: of a whole training run; None without its length.
        chip_hours: of the same.
    """

    times: Times
    step: Interval
    mfu: Interval
    rate: Interval
    days: Interval | None
    chip_hours: Interval | None


def times(work: Work, *, traced_flops: float, collective_bytes: float, chip: Chip) -> Times:
    """Computes the roofline of one device.

    Args:
        work: of the compiled program on it.
        traced_flops: its even share of the traced function's FLOPs, a lower bound where the
            compiler hides products in library calls.
        collective_bytes: bytes that arrive at it.
        chip: peaks.
    """
    return Times(
        compute=max(work.flops, traced_flops) / chip.flops,
        memory=work.bytes / chip.hbm_bandwidth,
        interconnect=collective_bytes / chip.all_axes,
    )


def highest(work: Work, *, collective_bytes: float, chip: Chip) -> float | None:
    """Returns the seconds of a step without any overlap; None without the compiler's cycles."""
    if work.cycles is None or chip.clock is None:
        return None
    return work.cycles / chip.clock + collective_bytes / chip.one_axis


def estimate(
    roofline: Times,
    slowest: float | None,
    *,
    model_flops: float,
    examples: int,
    calls: int | None,
    chips: int,
    chip: Chip,
) -> Estimate:
    """Derives an estimate from the bounds on a step.

    Args:
        roofline: lower bounds.
        slowest: upper bound in seconds; None = unknown.
        model_flops: of one step over all chips, without recomputation.
        examples: per step.
        calls: steps of the run.
        chips: number of chips.
        chip: peaks.
    """
    low = roofline.lowest
    high = None if slowest is None else max(slowest, low)
    need = model_flops / chips / chip.flops

    def per(amount: float) -> Interval:
        return Interval(None if high is None else amount / high, amount / low)

    def total(unit: float) -> Interval | None:
        if calls is None:
            return None
        return Interval(calls * low * unit, None if high is None else calls * high * unit)

    return Estimate(
        times=roofline,
        step=Interval(low, high),
        mfu=per(need),
        rate=per(float(examples)),
        days=total(1 / DAY),
        chip_hours=total(chips / 3600),
    )
