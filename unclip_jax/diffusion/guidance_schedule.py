"""Guidance that changes along the chain: its scale at each timestep.

A constant scale does harm where there is much noise (it narrows the choice) and nothing where there
is little (Kynkäänniemi et al. 2024, arXiv 2404.07724); a scale that grows from 1 keeps variety
(Chang et al. 2023, arXiv 2301.00704; Wang et al. 2024, arXiv 2404.13040).
Command lines are parsed with it, so importing it imports no JAX.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.dynamic_fields import dynamic, is_static

KINDS = ("constant", "rising", "falling", "interval")


@dataclasses.dataclass(frozen=True)
class GuidanceSchedule:
    """Guidance scale as a function of progress u, 0 = pure noise, 1 = the finished sample.

    Attributes:
        scale: the largest scale; 1.0 = no guidance.
        kind: "constant" scale everywhere; "rising" linearly from 1 to scale; "falling" from scale
            to 1; "interval": scale while low <= u <= high, 1 elsewhere.
        low: begin of the interval.
        high: end of the interval.
    """

    scale: float | Float[Any, ""] = dataclasses.field(default=1.0, metadata=dynamic(off=1.0))
    kind: str = "constant"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        one_of("guidance schedule", self.kind, KINDS)
        if isinstance(self.scale, int | float):
            in_range("guidance scale", self.scale, 0.0, 100.0)
        in_range("guidance schedule's begin", self.low, 0.0, 1.0)
        in_range("guidance schedule's end", self.high, self.low, 1.0)

    @property
    def off(self) -> bool:
        """True if there is no guidance anywhere, so that one pass per step is enough."""
        return is_static(self.scale, 1.0)

    def share(self, num_timesteps: int) -> Float[np.ndarray, " T"]:
        """Returns how much of scale - 1 applies at every timestep, 0 = least noise: 0 to 1."""
        progress = 1.0 - np.arange(num_timesteps) / max(num_timesteps - 1, 1)
        shares = {
            "constant": np.ones(num_timesteps),
            "rising": progress,
            "falling": 1.0 - progress,
            "interval": (progress >= self.low) & (progress <= self.high),
        }
        return shares[self.kind].astype(float)


def parse(text: str, *, scale: float) -> GuidanceSchedule:
    """Reads "constant", "rising", "falling" or "interval:0.2:0.8" with the largest `scale`.

    Raises:
        UserError: the text is none of these, or the interval is empty or outside [0, 1].
    """
    kind, *bounds = text.split(":")
    if not bounds:
        return GuidanceSchedule(scale, kind)
    try:
        (low, high), kind = map(float, bounds), {"interval": "interval"}[kind]
    except (ValueError, KeyError):
        raise UserError(
            f"guidance schedule {text!r} not understood; give constant, rising, falling or "
            "interval:LOW:HIGH with LOW and HIGH in [0, 1], such as interval:0.2:0.8."
        ) from None
    return GuidanceSchedule(scale, kind, low, high)
