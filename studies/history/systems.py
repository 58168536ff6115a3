"""The compared systems: their chains, and how each divides its training compute.

The budget of every system is the compute of DALL-E's two stages in the run under study. CLIP and
Imagen's text encoder, which the papers take from other work, do not count.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TrainedStage:
    """A stage that the study trains once for all systems that use it.

    Attributes:
        name: name of its workdir.
        folder: its folder in the run of a system.
        experiment: its file.
        share: share of the budget; 0 = not counted, with the length of the experiment.
        overrides: overrides of the config.
    """

    name: str
    folder: str
    experiment: str
    share: float
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class System:
    """A chain with its sampling options.

    Attributes:
        name: name of its row.
        paper: year and paper.
        run: name of its folder.
        stages: stages that the study trains.
        linked: stages of the run under study.
        prior: name of the prior or chain to load.
        best_of: candidates per image, of which CLIP selects one.
    """

    name: str
    paper: str
    run: str
    stages: tuple[TrainedStage, ...] = ()
    linked: tuple[str, ...] = ()
    prior: str = "prior"
    best_of: int = 1


UPSAMPLER = TrainedStage("upsampler_256", "upsampler_256", "upsampler_256", 0.2)
GLIDE = TrainedStage("glide", "decoder", "glide", 0.8)
DECODER = TrainedStage("decoder", "decoder", "decoder", 0.6)
PRIOR = TrainedStage("prior", "prior", "prior", 0.2)
# A sequence of codes costs six times an embedding; a smaller batch allows equally many steps.
PRIOR_AR = TrainedStage("prior_ar", "prior_ar", "prior_ar", 0.2, ("--config.train.batch_size=32",))
TEXT_ENCODER = TrainedStage("text_encoder", "text_encoder", "text_encoder", 0.0)
IMAGEN_BASE = TrainedStage("imagen_base", "imagen_base", "imagen_base", 0.8)

BUDGET = ("dvae", "dalle")  # the stages of the run under study that define it
DALLE = {"paper": "2021, arXiv 2102.12092", "run": "dalle", "linked": ("clip", *BUDGET)}
UNCLIP = {"paper": "2022, arXiv 2204.06125", "run": "unclip", "linked": ("clip",)}
UNCLIP_STAGES = (UPSAMPLER, PRIOR, PRIOR_AR, DECODER)
SYSTEMS = (
    System("DALL-E", **DALLE, prior="dalle"),
    System("DALL-E, best of 8 by CLIP", **DALLE, prior="dalle", best_of=8),
    System("GLIDE", "2021, arXiv 2112.10741", "glide", (UPSAMPLER, GLIDE)),
    System("unCLIP, diffusion prior", **UNCLIP, stages=UNCLIP_STAGES),
    System("unCLIP, autoregressive prior", **UNCLIP, stages=UNCLIP_STAGES, prior="prior_ar"),
    System(
        "Imagen",
        "2022, arXiv 2205.11487",
        "imagen",
        (TEXT_ENCODER, UPSAMPLER, IMAGEN_BASE),
        prior="imagen",
    ),
)
EMBEDDED = ("prior", "prior_ar", "decoder")  # stages trained on CLIP's embeddings


def trained_stages() -> dict[str, TrainedStage]:
    """Returns all stages that the study trains by name, in an order that permits training."""
    return {stage.name: stage for system in SYSTEMS for stage in system.stages}
