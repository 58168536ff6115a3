"""The sharding of every experiment of the paper's size, as text to review when it changes.

    python -m tests.parallel.goldens     # writes shardings.json anew

Parameters whose paths differ by numbers alone share a line while they are sharded alike.
"""

import json
import pathlib
import re

import jax

from tests.test_experiments import FROM_EXPORTS
from unclip_jax.core.trees import flatten_paths
from unclip_jax.experiment import loading
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import MeshConfig, make_mesh

ROOT = pathlib.Path(__file__).parents[2]
FILE = pathlib.Path(__file__).with_name("shardings.json")
FILES = (ROOT / "experiments").glob("*.py")
NAMES = sorted(path.stem for path in FILES if path.stem not in FROM_EXPORTS)
RULES = ("fsdp", "fsdp_tp")


def of(name: str, rules: str) -> dict[str, str]:
    """Path of a parameter, numbers as #, -> the mesh axis of each of its axes, - = none."""
    stage = loading.read(f"{ROOT}/experiments/{name}.py").build_stage()
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    mesh = make_mesh(
        MeshConfig(data=2, fsdp=2, tensor=2 if rules == "fsdp_tp" else 1), **_some(rules)
    )
    result: dict[str, set[str]] = {}
    placed = flatten_paths(place.shardings(boxed, mesh, rules=rules))
    for path, leaf in flatten_paths(place.unbox(boxed)).items():
        axes = [*placed[path].spec, *[None] * leaf.ndim][: leaf.ndim]
        text = ", ".join(axis or "-" for axis in axes)
        result.setdefault(re.sub(r"\d+", "#", path), set()).add(text)
    return {path: " or ".join(sorted(texts)) for path, texts in sorted(result.items())}


def _some(rules: str) -> dict[str, list[jax.Device]]:
    return {"devices": jax.devices()[: 8 if rules == "fsdp_tp" else 4]}


def main() -> None:
    """Write all of them."""
    case = {name: {rules: of(name, rules) for rules in RULES} for name in NAMES}
    FILE.write_text(json.dumps(case, indent=1) + "\n")


if __name__ == "__main__":
    main()
