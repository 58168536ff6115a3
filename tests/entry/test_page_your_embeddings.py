"""The commands of docs/your_embeddings.md in their order, on small arrays, with few steps."""

import contextlib
import importlib.util
import json
import re
import shlex

import numpy as np
import pytest

from tests.conftest import ROOT
from unclip_jax import embed, evaluate, train

PAGE = (ROOT / "docs" / "your_embeddings.md").read_text("utf-8")
MAINS = {"train": train.main, "evaluate": evaluate.main, "embed": embed.main}
# A network of seconds; the commands' own keys come first, so that these win.
SMALL = {
    "model.model.width": 16,
    "model.model.depth": 1,
    "model.model.heads": 2,
    "model.sampling.steps": "2",
    "train.steps": 2,
    "train.batch_size": 8,
    "train.eval_every": 2,
    "optim.warmup_steps": 0,
}


def commands():
    """The commands of the page that need no foreign weights, as (name, words)."""
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            name = words[2].removeprefix("unclip_jax.") if words[:2] == ["python", "-m"] else ""
            if name in MAINS:
                yield name, words[3:]


def write_arrays():
    """Writes the arrays that the commands name."""
    generator = np.random.default_rng(0)
    betas = generator.normal(size=(160, 12)).astype(np.float32)
    clip = (betas @ generator.normal(size=(12, 8))).astype(np.float32)
    np.save("clip.npy", clip)
    np.save("betas.npy", betas)
    np.save("new.npy", betas[:3])
    np.save("tokens.npy", generator.normal(size=(160, 5, 8)).astype(np.float32))
    with open("subjects.txt", "w") as file:
        file.write("one\ntwo\n" * 80)
    if importlib.util.find_spec("h5py"):
        import h5py

        with h5py.File("betas.h5", "w") as file:
            file["betas"] = betas


@pytest.mark.nightly
def test_every_command_of_the_page_runs(tmp_path, capsys):
    runs = []
    with contextlib.chdir(tmp_path):
        write_arrays()
        python = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        brain = next(block for block in python if "trials.keys.txt" in block)
        for name, words in commands():
            if any(word.endswith("=trials.npy") for word in words) and "trials" not in runs:
                exec(brain, {"np": np})
                runs.append("trials")
            if not importlib.util.find_spec("h5py"):
                words = [word.replace("betas.h5:betas", "betas.npy") for word in words]
            if name == "train":
                codes = {"model.model.codec.buckets": 8} if "codes" in " ".join(words) else {}
                small = {**SMALL, **codes}
                words = [*words, *(f"--config.{key}={value}" for key, value in small.items())]
            if name == "evaluate":
                words = [*words, "--num=2", "--pool=4", "--most=8"]
            MAINS[name](words)
            runs += [word for word in words if word.startswith("--workdir=")]
        assert len(runs) == 7  # six trainings, and the arrays of the synthetic brain
        report = json.loads((tmp_path / "runs" / "report" / "pairs.json").read_text())
        assert {*report["priors"]} == {"brain", "mlp", "ridge", "mean"}
    assert "wrote z.safetensors: 3 rows, 4 samples each" in capsys.readouterr().out
