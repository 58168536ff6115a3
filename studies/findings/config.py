"""The configuration of the replication study."""

import dataclasses
import pathlib

from studies.study_config import StudyConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindingsConfig(StudyConfig):
    """Models and sizes of the study.

    Attributes:
        models: run directory of the models under study.
        embeddings: embeddings that `embed` wrote.
        decoder_steps: training steps of the decoders among the baselines.
        prior_steps: training steps of the diffusion priors.
        prior_ar_steps: training steps of the autoregressive prior.
        only: names of findings; () = all.
    """

    models: pathlib.Path
    embeddings: pathlib.Path
    decoder_steps: int
    prior_steps: int
    prior_ar_steps: int
    only: tuple[str, ...] = ()

    @property
    def results(self) -> pathlib.Path:
        """Folder of the results."""
        return self.work / "findings"
