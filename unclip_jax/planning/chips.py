"""Published peaks of the chips that plans support. To add a chip, add one line to CHIPS.

Every figure is the vendor's and no program reaches it; times computed from them are lower bounds.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator.

    Attributes:
        name: as people call it.
        kind: how JAX's `device_kind` begins.
        flops: bfloat16 matrix FLOP/s.
        hbm_bandwidth: bytes/s.
        hbm: bytes.
        link: bytes/s that one interconnect link carries one way.
        axes: dimensions of the interconnect's torus; every chip has two links along each.
        clock: Hz at which the compiler's cycle estimates are read; None = it makes none. Derived:
            peak over the FLOPs per cycle of the matrix units.
        source: where the figures are from.
    """

    name: str
    kind: str
    flops: float
    hbm_bandwidth: float
    hbm: float
    link: float
    axes: int
    source: str
    clock: float | None = None

    @property
    def one_axis(self) -> float:
        """Bytes/s that arrive when a collective runs around one dimension of the torus."""
        return 2 * self.link

    @property
    def all_axes(self) -> float:
        """Bytes/s that arrive when it uses every link."""
        return 2 * self.axes * self.link


_TPU = "cloud.google.com/tpu/docs/{}; links: jax-ml.github.io/scaling-book"
_GIB = 2.0**30

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kind="TPU v4",
            flops=275e12,
            hbm_bandwidth=1.2e12,
            hbm=32 * _GIB,
            link=45e9,
            axes=3,
            source=_TPU.format("v4"),
            clock=1.05e9,
        ),
        Chip(
            name="v5e",
            kind="TPU v5 lite",
            flops=197e12,
            hbm_bandwidth=0.819e12,
            hbm=15.75 * _GIB,  # what the compiler hands out of 16 GiB
            link=50e9,
            axes=2,
            source=_TPU.format("v5e"),
            clock=1.5e9,
        ),
        Chip(
            name="v5p",
            kind="TPU v5",
            flops=459e12,
            hbm_bandwidth=2.765e12,
            hbm=95e9,
            link=100e9,
            axes=3,
            source=_TPU.format("v5p"),
            clock=1.75e9,
        ),
        Chip(
            name="v6e",
            kind="TPU v6 lite",
            flops=918e12,
            hbm_bandwidth=1.6e12,
            hbm=32e9,
            link=100e9,
            axes=2,
            source=_TPU.format("v6e"),
            clock=1.75e9,
        ),
        # NVLink: a switch, not a torus; its whole bandwidth stands for both bounds.
        Chip(
            name="a100",
            kind="NVIDIA A100",
            flops=312e12,
            hbm_bandwidth=2.039e12,
            hbm=80e9,
            link=150e9,
            axes=1,
            source="NVIDIA A100 data sheet (80 GB SXM), dense",
        ),
        Chip(
            name="h100",
            kind="NVIDIA H100",
            flops=989e12,
            hbm_bandwidth=3.35e12,
            hbm=80e9,
            link=225e9,
            axes=1,
            source="NVIDIA H100 data sheet (SXM), dense",
        ),
        Chip(
            name="h200",
            kind="NVIDIA H200",
            flops=989e12,
            hbm_bandwidth=4.8e12,
            hbm=141e9,
            link=225e9,
            axes=1,
            source="NVIDIA H200 data sheet (SXM), dense",
        ),
    )
}


def of_kind(device_kind: str) -> Chip | None:
    """Returns the chip whose devices JAX calls `device_kind`; None if its peaks are unknown."""
    fitting = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(fitting, key=lambda chip: len(chip.kind), default=None)
