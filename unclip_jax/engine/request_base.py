"""Base classes of requests, with the fields of decoding and of inversion."""

import dataclasses
import importlib
from typing import Any, ClassVar

from unclip_jax.core.checks import MAX_SEED, UserError, in_range
from unclip_jax.diffusion import guidance_schedule
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.engine import request_fields
from unclip_jax.engine.request_fields import option

MAX_IMAGES = 4096  # of one request
MAX_GUIDANCE = 100
SCHEDULES = "constant, rising, falling, or interval:LOW:HIGH of the way from noise to image"
ANIMATIONS = ("gif", "webp")
# Of an inversion: fewer steps than the paper's 250, each solved by fixed-point iteration,
# reconstruct more exactly in the same time.
STEPS, REFINE = "50", 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A request; subclasses declare their fields with `option`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[str] = ""  # a condition that some stage of the models must read

    def __post_init__(self):
        request_fields.check(self)
        self.validate()
        in_range("number of images", self.image_count, 1, MAX_IMAGES)

    @classmethod
    def fits(cls, cascade: Any) -> bool:
        """Returns True if a cascade has the stages that this kind of request needs."""
        conditions = {name for stage in cascade.stages for name in stage.reads}
        z_img = {"z_img"} if conditions & {"z_img", "z_txt"} else set()  # either may be passed
        return not cls.needs or cls.needs in conditions | z_img

    def validate(self) -> None:
        """Checks constraints between fields.

        Raises:
            UserError: naming the fields.
        """

    @property
    def image_count(self) -> int:
        """Number of images that the models generate for this request, a measure of its cost."""
        return 1

    def run(self, engine: Any) -> Any:
        """Runs the request on an `InferenceEngine` and returns a `Result`; see `engine.run`."""
        module = f"unclip_jax.engine.handlers.{self.name.replace('-', '_')}"
        return importlib.import_module(module).run(engine, self)


def check_negative(negative: str | None, guidance: GuidanceSchedule) -> None:
    """Rejects a negative caption without guidance, which has no effect.

    Raises:
        UserError: guidance is off.
    """
    if negative is not None and guidance.off:
        raise UserError(
            "negative has no effect while guidance is 1.0; give a larger guidance such as 3."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeded(Request):
    """A request that uses a random seed."""

    seed: int = option(
        0, help="random seed; image i depends on it and on i alone", low=0, high=MAX_SEED
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsamplingRequest(Seeded):
    """A request whose upsamplers sample from fresh noise."""

    upsampler_guidance: float | None = option(
        None,
        help="guidance scale of upsamplers that read captions, 1 = off; default: as exported",
        low=0,
        high=MAX_GUIDANCE,
    )
    upsampler_steps: str | None = option(
        None, help="steps of the upsamplers, as --steps; default: as exported"
    )
    upsampler_level: float | None = option(
        None,
        help="noise on the images that upsamplers enlarge, as a fraction of the chain, at most "
        "that of training; default: as exported",
        low=0,
        high=1,
    )

    @property
    def upsampling(self) -> dict[str, Any]:
        """The settings of the upsamplers by name."""
        names = ("guidance", "steps", "level")
        return {name: getattr(self, f"upsampler_{name}") for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingRequest(Seeded):
    """A request that decodes latents."""

    needs = "z_img"

    upsample: bool = option(
        True, help="run the upsamplers; without them images have the decoder's size"
    )
    steps: str = option("ddim250", help="steps of the decoder: ddim250, 50, ...")
    guidance: float = option(1.0, help="guidance scale, 1 = off", low=0, high=MAX_GUIDANCE)
    guidance_schedule: str = option("constant", help=SCHEDULES)
    negative: str | None = option(None, help="a caption that guidance leads away from")

    @property
    def schedule(self) -> GuidanceSchedule:
        """Guidance scale along the chain."""
        return guidance_schedule.parse(self.guidance_schedule, scale=self.guidance)

    def validate(self) -> None:
        """Checks constraints between fields."""
        check_negative(self.negative, self.schedule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingRequest(DecodingRequest):
    """A request that inverts images."""

    caption: str | None = option(None, help="caption of the images for the decoder")
    steps: str = option(STEPS, help="steps of the decoder in both directions; ddim250 in the paper")
    refine: int = option(
        REFINE,
        help="fixed-point iterations per step of the inversion; 0 in the paper",
        low=0,
        high=32,
    )
    details: str | None = option(
        None,
        help="noise of the upsamplers; default: inverted",
        choices=("inverted", "fresh"),
    )
    upsampler_steps: str | None = option(
        None, help="steps of the upsamplers' inversion; default: as exported"
    )

    @property
    def inverts_details(self) -> bool:
        """True if the upsamplers are inverted too."""
        return self.upsample and (self.details or "inverted") == "inverted"
