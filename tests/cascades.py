"""A whole cascade of random `tiny` stages, exported into a folder as training would do it."""

import pathlib

from tests.stages import tiny
from unclip_jax.data import text
from unclip_jax.handoff import export
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.stages import registry

CAPTIONS = ["a red circle", "a blue square above a green star", "three pink rings"]
NAMES = ("clip", "prior", "decoder", "upsampler_256")


def tokenizer():
    return text.train(CAPTIONS, vocab_size=600)


def write(folder: pathlib.Path, *, names: tuple[str, ...] = NAMES) -> pathlib.Path:
    """Export one untrained cascade of the stages `names`; returns the run directory."""
    words = tokenizer()
    words.save(folder / "tokenizer")
    facts = {"tokenizer_hash": words.hash}
    for name in names:
        experiment, entry = tiny.experiment(name), registry.folder_entry(name)
        stage = experiment.build_stage()
        required = entry.required_fields(experiment.model)
        mine = {field: value for field, value in facts.items() if field in required}
        card = Manifest(stage=stage.name, size="tiny", step=0, **stage.describe, **mine)
        written = export.write_export(
            folder / name / "export",
            params=tiny.stirred(tiny.init(stage)),
            manifest=card,
            tokenizer_dir=folder / "tokenizer" if "tokenizer_hash" in required else None,
            identity=entry.identity,
        )
        if entry.identity:
            facts[entry.identity] = getattr(written, entry.identity)
    return folder
