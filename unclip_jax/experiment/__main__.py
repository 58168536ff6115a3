"""Lists the stages of a cascade in training order, with what each needs beside the data set.

    python -m unclip_jax.experiment SIZE [--chain=NAME] [--upsamplers=N] [--experiments=FOLDER]

One line per stage, for launch/cascade: the name of its run folder and experiment file, then
"embeddings" if it is trained on CLIP embeddings, "raw" if on those that are not normalised, "clip"
if it reads features of the frozen CLIP, "text_encoder" if it reads those of a text encoder, "dvae"
if it is trained on codes, and "file=NAME" if its experiment file has another name.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.cli import entry
from unclip_jax.experiment import loading
from unclip_jax.stages import registry

# Chain -> folder of a run -> its experiment file, where that has another name.
FILES = {"imagen": {"upsampler_256": "imagen_sr256", "upsampler_1024": "imagen_sr1024"}}


def main(argv: Sequence[str]) -> None:
    """Prints the list."""
    parser = argparse.ArgumentParser(prog="python -m unclip_jax.experiment", description=__doc__)
    parser.add_argument("size", help="a size that the experiment files know")
    parser.add_argument("--chain", default="unclip", help="the chain of stages")
    parser.add_argument("--upsamplers", type=int, default=1, help="number of upsamplers")
    parser.add_argument(
        "--experiments", type=pathlib.Path, default=pathlib.Path("experiments"), help="folder"
    )
    args = parser.parse_args(argv)
    upsamplers = list(registry.run_folders("upsampler"))[args.upsamplers :]
    files = FILES.get(args.chain, {})
    names = [name for name in registry.default_chain(args.chain) if name not in upsamplers]
    specs = {name: f"{args.experiments / files.get(name, name)}.py:{args.size}" for name in names}
    lines = {name: needs(spec) for name, spec in specs.items()}
    for name in sorted(names, key=lambda name: "dvae" in lines[name]):  # after the discrete VAE
        file = [f"file={files[name]}"] if name in files else []
        sys.stdout.write(f"{' '.join([name, *lines[name], *file])}\n")


def needs(spec: str) -> list[str]:
    """Returns what the training of an experiment needs beside its data set."""
    stage = loading.read(spec).build_stage()
    answers = {
        "embeddings": bool(stage.batch_spec.keys() & {"z_img", "z_txt"}),
        "raw": stage.describe.get("embedding") == "raw",
        "clip": "text_seq" in stage.batch_spec,
        "dvae": "codes" in stage.batch_spec,
        "text_encoder": "text_features" in stage.batch_spec,
    }
    return [name for name, answer in answers.items() if answer]


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
