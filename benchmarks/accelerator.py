"""Speed of one GPU or TPU within some minutes: train steps, sampling, the slowest kernels.

    python -m benchmarks.accelerator --minutes=9 [--out=docs/accelerator.json] [--only=prior]

Trains each stage at the paper's size in bfloat16 on random data, with and without fused attention,
and samples with networks of Karlo's size, in turns with diffusers if it is installed. Rows are
measured in order of importance until the minutes have passed. The file is written after each row,
so the same command continues. A batch that does not fit in memory is halved. `--tiny` replaces
every network by its smallest size, to try the command without an accelerator.
"""

import contextlib
import gc
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks import markdown_page, row_page
from unclip_jax.cli import compilation_cache, entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, positive

STEPS = 5  # timed steps, whose median counts
PROFILED = 3  # profiled steps
KERNELS = 12  # kernels in the profile
NET = "--config.model.model."
UNET = f"{NET}unet."
# About 500 million parameters: the paper's decoder with narrower blocks.
NARROW = (f"{UNET}channels=192", f"{NET}text_width=1024", f"{NET}text_depth=12")
# Widths and depths of Karlo v1 alpha (`benchmarks.full_size`).
KARLO = {
    "prior": (
        *(f"{NET}embed_dim=768", f"{NET}clip_text_width=768", f"{NET}width=2048"),
        *(f"{NET}depth=20", f"{NET}heads=32", f"{NET}context=77", f"{NET}dtype=bfloat16"),
    ),
    "decoder": (
        *(f"{NET}z_dim=768", f"{NET}clip_text_width=768", f"{NET}text_width=1536"),
        *(f"{NET}context=77", f"{UNET}image_size=64", f"{UNET}channels=320", f"{UNET}depth=3"),
        *(f"{UNET}multiples=(1,2,3,4)", f"{UNET}attention_at=(32,16,8)"),
        *(f"{UNET}head_channels=64", f"{UNET}norm_groups=32", f"{UNET}dtype=bfloat16"),
        "--config.data.load_size=64",
    ),
    "upsampler_256": (
        *(f"{UNET}image_size=256", f"{UNET}channels=320", f"{UNET}depth=3"),
        *(f"{UNET}multiples=(1,2,3,4)", f"{UNET}norm_groups=32", f"{UNET}dtype=bfloat16"),
        "--config.data.load_size=256",
        "--config.model.last_step=False",  # the peer is one network
    ),
}


class Row(NamedTuple):
    """One measurement.

    Attributes:
        name: name of the row.
        what: "train", or "sample" in turns with diffusers.
        config: experiment and size.
        overrides: overrides of the config.
        batch: largest batch size to try.
        fused: False disables fused attention kernels.
    """

    name: str
    what: str
    config: str
    overrides: tuple[str, ...]
    batch: int
    fused: bool = True


def rows(*, tiny: bool = False) -> list[Row]:
    """Returns all rows, the most important first."""
    train = [
        Row("train prior", "train", "prior:paper", (), 256),
        Row("train decoder, 500 M", "train", "decoder:paper", NARROW, 128),
        *(
            Row(f"sample {name}, Karlo", "sample", f"{name}:karlo", overrides, 4)
            for name, overrides in KARLO.items()
        ),
        Row("train upsampler_256", "train", "upsampler_256:paper", (), 256),
        Row("train clip", "train", "clip:paper", ("--config.optim.sam=0.0",), 1024),
        Row("train prior, attention not fused", "train", "prior:paper", (), 256, False),
        Row("train decoder, attention not fused", "train", "decoder:paper", NARROW, 128, False),
        Row("train upsampler_1024", "train", "upsampler_1024:paper", (), 128),
    ]
    if not tiny:
        return train
    small = [row._replace(config=f"{row.config.partition(':')[0]}:tiny", batch=8) for row in train]
    return [
        row._replace(overrides=tuple(o for o in row.overrides if "sam" in o or "last" in o))
        for row in small
    ]


def main(argv: Sequence[str]) -> None:
    """Measures the missing rows while there is time.

    Raises:
        UserError: `--only` matches no row, or a number is not positive.
    """
    args = parser().parse_args(argv)
    positive("--minutes", args.minutes)
    selected = row_page.select(rows(tiny=args.tiny), args.only)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # shared with the peer
    compilation_cache.use()
    results: dict[str, Any] = markdown_page.read_json(args.out)
    end = time.monotonic() + 60 * args.minutes
    for row in selected:
        if row.name in results and not args.again:
            continue
        if time.monotonic() > end:
            sys.stderr.write(f"{row.name}: no time left; the same command continues.\n")
            continue
        sys.stderr.write(f"{row.name} ...\n")
        results[row.name] = measure(row)
        markdown_page.save(args.out, json.dumps(results, indent=1) + "\n")
    slowest = worst(selected, results)
    if slowest and "kernels" not in results[slowest.name] and time.monotonic() < end:
        results[slowest.name]["kernels"] = profile(slowest, results[slowest.name]["examples"])
        markdown_page.save(args.out, json.dumps(results, indent=1) + "\n")
    sys.stdout.write(tables(results))


def parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(
        "accelerator",
        prog="python -m benchmarks.accelerator",
        description="Measure train steps, sampling and kernels on one accelerator.",
    )
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="minutes after which no row is started"
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/accelerator.json"))
    parser.add_argument("--only", default="", help="part of a row's name, such as 'train prior'")
    parser.add_argument("--again", action="store_true", help="measure rows that exist again")
    parser.add_argument("--tiny", action="store_true", help="replace every network by its smallest")
    return parser


def measure(row: Row) -> dict[str, Any]:
    """Measures one row; a failure becomes its result, so that the others are still measured."""
    try:
        return _sampled(row) if row.what == "sample" else _trained(row)
    except UserError as error:
        return {"failed": str(error)}


def _trained(row: Row) -> dict[str, Any]:
    """Measures a train step with the largest batch that fits.

    Raises:
        UserError: not even one example per device fits.
    """
    from benchmarks import compare, interleaved, unclip_side
    from unclip_jax.backbones import attention

    for batch in halved(row.batch):
        try:
            with contextlib.nullcontext() if row.fused else attention.plain():
                facts, once = unclip_side.prepare(_task(row, batch))
                once()
                durations = [interleaved.timed(once) for _ in range(STEPS)]
            return {**facts, **compare.rates(facts, durations)}
        except Exception as error:  # JAX has no public class for this error
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        finally:
            facts = once = None
            gc.collect()
    raise UserError("no batch fits in the memory of the device.")


def _sampled(row: Row) -> dict[str, Any]:
    """Measures a chain in turns with diffusers', or alone if diffusers is not installed."""
    from benchmarks import compare

    peer = [] if importlib.util.find_spec("diffusers") is None else ["--peer=diffusers"]
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "row.json"
        arguments = [f"--config={row.config}", *row.overrides, "--config.optim.name=adamw", *peer]
        arguments += [f"--batch={row.batch}", "--rounds=3", "--count=1", f"--json={out}"]
        with contextlib.redirect_stdout(sys.stderr):
            compare.run("sample", arguments)
        result = json.loads(out.read_text())
    ratio = {"over_ours": result["peer"]["over_ours"]} if peer else {}
    return {**result["ours"], **ratio}


def _task(row: Row, batch: int) -> dict[str, Any]:
    overrides = [*row.overrides, f"--config.train.batch_size={batch}"]
    return {"config": row.config, "overrides": overrides, "what": "train", "batch": batch}


def halved(batch: int) -> Iterator[int]:
    """Yields a batch size and its halves, down to 1."""
    while batch:
        yield batch
        batch //= 2


def worst(selected: Sequence[Row], results: dict[str, Any]) -> Row | None:
    """Returns the train step with the smallest share of the device's peak."""
    steps = [
        row
        for row in selected
        if row.what == "train" and row.fused and "mfu" in results.get(row.name, {})
    ]
    return min(steps, key=lambda row: results[row.name]["mfu"], default=None)


def profile(row: Row, batch: int) -> list[dict[str, Any]]:
    """Returns the slowest kernels of a train step: name, milliseconds, share."""
    import jax

    from benchmarks import unclip_side

    _, once = unclip_side.prepare(_task(row, batch))
    once()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(PROFILED):
                once()
        busy = kernel_times(pathlib.Path(folder))
    total = sum(busy.values())
    return [
        {"name": name, "ms": ns / 1e6 / PROFILED, "share": ns / total}
        for name, ns in busy.most_common(KERNELS)
    ]


def kernel_times(folder: pathlib.Path) -> Counter[str]:
    """Adds up nanoseconds by kernel on devices; on CPUs by operation of XLA's threads."""
    import jax

    busy: Counter[str] = Counter()
    for path in folder.rglob("*.xplane.pb"):
        profiled: Any = jax.profiler.ProfileData.from_file(str(path))
        for plane in profiled.planes:
            device = plane.name.startswith("/device:")
            for line in plane.lines:
                if line.name.startswith(("Stream", "XLA Ops") if device else "tf_XLA"):
                    for event in line.events:
                        busy[event.name.rstrip("0123456789.")] += int(event.end_ns - event.start_ns)
    return busy


def tables(results: dict[str, Any]) -> str:
    """Formats all results as Markdown."""
    lines = []
    for name, result in results.items():
        if "failed" in result:
            lines.append([name, result["failed"], *[""] * 5])
            continue
        memory = sum(result["compiled_memory"].values()) / 2**30
        ratio = result.get("over_ours", {}).get("wall", {}).get("median")
        lines.append(
            [
                name,
                f"{result['parameters'] / 1e6:,.0f}",
                str(result["examples"]),
                f"{result['seconds']['median']:.3g}",
                f"{100 * result['mfu']:.1f}",
                f"{memory:.1f}",
                "" if ratio is None else f"{ratio:.2f}",
            ]
        )
    heads = ["what", "million parameters", "examples", "s", "MFU, %", "GiB", "diffusers / ours"]
    text = markdown_page.table(heads, lines)
    for name, result in results.items():
        if "kernels" in result:
            shares = [[k["name"], f"{k['ms']:.2f}", f"{100 * k['share']:.0f} %"]
                      for k in result["kernels"]]  # fmt: skip
            text += f"\n{name}:\n\n" + markdown_page.table(["kernel", "ms", "share"], shares)
    return text


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
