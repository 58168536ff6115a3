"""A whole cascade of random `tiny` stages, exported into a folder as training would do it."""

import pathlib

from tests.stages import tiny
from unclip_jax.data import text
from unclip_jax.handoff import export
from unclip_jax.handoff.manifest import Manifest

CAPTIONS = ["a red circle", "a blue square above a green star", "three pink rings"]
NAMES = ("clip", "prior", "decoder", "upsampler_256")


def tokenizer():
    return text.train(CAPTIONS, vocab_size=600)


def write(folder: pathlib.Path, *, names: tuple[str, ...] = NAMES) -> pathlib.Path:
    """Export one untrained cascade of the stages `names`; returns the run directory."""
    words = tokenizer()
    words.save(folder / "tokenizer")
    facts = {}
    for name in names:
        stage = tiny.experiment(name).build_stage()
        mine = {} if name.startswith("upsampler") else {"tokenizer_hash": words.hash, **facts}
        card = Manifest(stage=stage.name, size="tiny", step=0, **stage.describe, **mine)
        written = export.write_export(
            folder / name / "export",
            params=tiny.stirred(tiny.init(stage)),
            manifest=card,
            tokenizer_dir=folder / "tokenizer" if mine else None,
        )
        if name == "clip":
            facts["clip_id"] = written.clip_id
    return folder
