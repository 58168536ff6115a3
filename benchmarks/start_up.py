"""Seconds from the start of Python to the first image, and of later requests.

    python -m benchmarks.start_up [--models=runs/shapes] [--json=OUT.json]

A process imports, loads, and runs requests like the page. The first of two processes finds no
compiled programs on disk; the second finds those of the first.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.markdown_page import table
from unclip_jax.cli import compilation_cache, entry, flags
from unclip_jax.cli.parser import Parser

CAPTION = "a person with red hair"
# Changes relative to the previous request, as made on the page; the first has its defaults.
REQUESTS: dict[str, dict[str, object]] = {
    "first request": {},
    "again": {},
    "another seed": {"seed": 1},
    "another guidance scale": {"guidance": 2.5},
    "4 images": {"num": 4},
    "3 images": {"num": 3},
    "other steps": {"steps": "10"},
}


def measure(models: pathlib.Path) -> dict[str, float]:
    """Returns the seconds of each part in this process."""
    started = time.perf_counter()
    seconds = {}

    def lap(name: str) -> None:
        nonlocal started
        seconds[name], started = time.perf_counter() - started, time.perf_counter()

    from unclip_jax.engine.inference_engine import InferenceEngine
    from unclip_jax.engine.requests import TextRequest

    compilation_cache.use()
    lap("import")
    engine = InferenceEngine.open(models, batch=4)
    lap("load")
    for name, changes in REQUESTS.items():
        request = TextRequest(captions=(CAPTION,), **{"num": 2, **changes})  # type: ignore[arg-type]
        engine.run(request, progress=lambda state: None)
        lap(name)
    return seconds


def processes(models: pathlib.Path) -> dict[str, dict[str, float]]:
    """Measures a process without compiled programs on disk, then one with them."""
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "compiled before"):
            command = [sys.executable, "-m", "benchmarks.start_up", f"--models={models}", "--part"]
            env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
            results[name] = json.loads(done.stdout)
    return results


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    parser = Parser(
        "start_up",
        prog="python -m benchmarks.start_up",
        description="Measure the time to the first image and of later ones.",
    )
    flags.add_models(parser)
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file")
    parser.add_argument("--part", action="store_true", help="measure in this process alone")
    args = parser.parse_args(argv)
    models = flags.run_directory(args.models)
    if args.part:
        sys.stdout.write(json.dumps(measure(models)))
        return
    results = processes(models)
    rows = [
        [name, *(f"{result[name]:.2f}" for result in results.values())] for name in results["cold"]
    ]
    sys.stdout.write(table(["seconds", *results], rows))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
