"""The configuration of the replication study."""

import dataclasses
import pathlib

from unclip_jax.core.checks import positive


@dataclasses.dataclass(frozen=True)
class FindingsConfig:
    """Models, data and sizes of the study.

    Attributes:
        models: run directory of the models under study.
        data: prepared data set of the shapes world.
        embeddings: embeddings that `embed` wrote.
        work: folder of baselines and results.
        out: page to write.
        decoder_steps: training steps of the decoders among the baselines.
        prior_steps: of the diffusion priors.
        prior_ar_steps: of the autoregressive prior.
        only: names of findings; () = all.
        split: of the data set.
        num: captions.
        images: images per caption.
        seed: image i depends on (seed, i) alone.
        note: remark for the page.
        overrides: --config.KEY=VALUE, for every training run.
    """

    models: pathlib.Path
    data: pathlib.Path
    embeddings: pathlib.Path
    work: pathlib.Path
    out: pathlib.Path
    decoder_steps: int
    prior_steps: int
    prior_ar_steps: int
    only: tuple[str, ...] = ()
    split: str = "validation"
    num: int = 100
    images: int = 2
    seed: int = 0
    note: str = ""
    overrides: tuple[str, ...] = ()

    def __post_init__(self):
        """Checks the bounds."""
        positive("--num", self.num)
        positive("--images", self.images)

    @property
    def results(self) -> pathlib.Path:
        """Folder of the results."""
        return self.work / "findings"

    def result_file(self, name: str) -> pathlib.Path:
        """Returns the file of one finding's result."""
        return self.results / "points" / f"{name}.json"
