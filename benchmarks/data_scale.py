"""Resources for data sets of web scale: measured per record, and extrapolated.

    python -m benchmarks.data_scale --out=docs/scale.md
    python -m benchmarks.data_scale --samples=1000000 --only=index

Images are synthetic JPEGs of 512 pixels and about 150 KB, captions have twelve words, and a tar has
10,000 pairs, as written by img2dataset. Every step reads from and writes to a store in this process
that counts requests and bytes (`slow_store`); times are CPU seconds of one core. Further
measurements: planning and merging of ten million records, reading at a latency of 30 ms, memory
over 5,000 shards, and whether training from an index equals training from copied data.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import io
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import compare, data_limits, markdown_page, slow_store
from unclip_jax.cli import entry
from unclip_jax.core.checks import positive
from unclip_jax.core.storage import Url
from unclip_jax.data import prepared, sources
from unclip_jax.data.embedding_writer import EmbeddingFolder
from unclip_jax.data.embeddings import KINDS
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.loader import Loader, LoaderConfig, make_loader
from unclip_jax.data.remote_embeddings import open_embeddings
from unclip_jax.preparation.checking import CheckConfig
from unclip_jax.tokenization import caption_tokenizer

SIZES = {"CC12M": 12_423_374, "4·10^8 pairs": 400_000_000, "DataComp-1B": 1_387_173_656}
DIM = 1024
PLANNED = 10_000_000  # records


@dataclasses.dataclass(frozen=True)
class Cost:
    """Resources of one step per record: CPU-seconds, bytes, and requests to the store."""

    cpu: float
    read: float
    written: float
    requests: float


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_scale")
    add = parser.add_argument
    add("--records", type=int, default=400, help="records to measure every step on [400]")
    add("--samples", type=int, default=20_000, help="records of the index to compare [20000]")
    add("--seconds", type=float, default=8.0, help="seconds per rate of the loader [8]")
    add("--only", default="", help="costs, plan, merge, loader, memory or index; default: all")
    add("--out", type=pathlib.Path, help="write the tables to this page, and JSON beside it")
    args = parser.parse_args(argv)
    positive("--records", args.records)
    positive("--samples", args.samples)
    if args.out:
        markdown_page.check_path(args.out)
    parts: dict[str, Callable[[], Any]] = {
        "costs": lambda: costs(args.records),
        "plan": lambda: data_limits.apart(data_limits.plan, PLANNED),
        "merge": lambda: data_limits.apart(data_limits.merge, PLANNED),
        "loader": lambda: data_limits.loader_rates(args.seconds),
        "memory": lambda: data_limits.apart(data_limits.memory, 5000),
        "index": lambda: data_limits.apart(data_limits.index, args.samples),
    }
    result = dict(markdown_page.read_json(args.out.with_suffix(".json"))) if args.out else {}
    for name, measure in parts.items():
        if args.only in ("", name):
            result[name] = measure()
            sys.stdout.write(f"{name}: {json.dumps(result[name], ensure_ascii=False)}\n")
    result["machine"] = compare.machine()
    result["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    if args.out:
        markdown_page.write(args.out, tables(result), result, title="# Scale\n\n")


# Costs per record.


def costs(count: int) -> dict[str, dict[str, float]]:
    """Measures the steps of preparing and reading on `count` records."""
    with tempfile.TemporaryDirectory() as folder, slow_store.in_process(pathlib.Path(folder)):
        bucket = Url(f"gs://{slow_store.BUCKET}")
        data_limits.write_tar(pathlib.Path(folder, slow_store.BUCKET, "in", "00000.tar"), count)
        prepare = functools.partial(data_limits.prepare, bucket / "in")
        reduced = CheckConfig(max_side=256)
        steps = {
            "copy 512 px": lambda: prepare(bucket / "copy"),
            "copy, `--max-side=256`": lambda: prepare(bucket / "small", check=reduced),
            "`--index`": lambda: prepare(bucket / "index", index=True),
        }
        result = {name: cost(step, count, per_tar=True) for name, step in steps.items()}
        tokenizer = caption_tokenizer.train([" ".join(data_limits.WORDS)], vocab_size=600)
        source: sources.Source = prepared.open_split(bucket / "copy", split="train")
        digest = sources.content_digest(source)
        write_embeddings(bucket / "z", count, digest=digest)
        embeddings = open_embeddings(bucket / "z")
        for name, example in EXAMPLES.items():
            fields = [field for field in KINDS if field in example.fields]
            joined = sources.JoinedSource(source, embeddings, fields=fields)
            examples = _loader(joined if fields else source, example, tokenizer)
            result[name] = cost(lambda e=examples: list(e), count)
        rows = 16_384  # per shard
        written = functools.partial(write_embeddings, bucket / "y", rows, digest=digest)
        result["embed: write"] = cost(written, rows)
        return result


# As in experiment files at the paper's sizes.
EXAMPLES = {
    "embed: read and decode": ExampleConfig(("image", "tokens", "token_mask"), image_size=256),
    "train `clip`": ExampleConfig(("image", "tokens", "token_mask"), image_size=256),
    "train `prior`": ExampleConfig(("z_img", "z_txt", "tokens", "token_mask")),
    "train `decoder`": ExampleConfig(("image", "z_img", "tokens", "token_mask"), image_size=64),
}


def cost(step: Callable[[], Any], count: int, *, per_tar: bool = False) -> dict[str, float]:
    """Measures a step on `count` records; requests are per tar of 10,000 with `per_tar`."""
    store = slow_store.SlowStore
    before = (store.read, store.written, store.requests)
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        step()
    cpu = time.process_time() - started
    read, written, requests = (
        now - then
        for now, then in zip((store.read, store.written, store.requests), before, strict=True)
    )
    divisor = data_limits.PER_TAR if per_tar else count
    return dataclasses.asdict(Cost(cpu / count, read / count, written / count, requests / divisor))


def _loader(
    source: sources.Source, example: ExampleConfig, tokenizer: caption_tokenizer.Tokenizer
) -> Loader:
    config = LoaderConfig(
        batch_size=min(len(source), 64), num_epochs=1, workers=0, remainder="keep"
    )
    return make_loader(source, example=example, config=config, tokenizer=tokenizer)


def write_embeddings(url: Url, count: int, *, digest: str) -> None:
    """Writes random embeddings of `count` records."""
    rows = np.random.default_rng(0).standard_normal((count, DIM)).astype(np.float32)
    keys, captions = [f"{i:09d}" for i in range(count)], [" ".join(data_limits.WORDS)] * count
    folder = EmbeddingFolder(url, info={"clip_id": "x", "data_digest": digest})
    folder.write(0, keys=keys, captions=captions, vectors={"z_img": rows, "z_txt": rows})
    folder.complete(1)


# Tables.


def tables(result: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    parts = [f"Measured on {result['machine']}, {result['date']}.\n"]
    if "costs" in result:
        steps = {name: Cost(**each) for name, each in result["costs"].items()}
        if "merge" in result:
            steps["merge with `--dedup`"] = Cost(
                result["merge"]["cpu_per_record"], 16, 0, 3 / data_limits.PER_TAR
            )
        parts += [per_record(steps), totals(steps)]
    if {"plan", "merge"} <= result.keys():
        plan, merge = result["plan"], result["merge"]
        parts.append(
            f"Planning {PLANNED:,} records in {plan['shards']:,} tars took {plan['seconds']:.2g} s "
            f"and {plan['peak_megabytes']:.0f} MB, merging them {merge['seconds']:.3g} s and "
            f"{merge['peak_megabytes']:.0f} MB.\n"
        )
    if "loader" in result:
        parts.append(loader_table(result["loader"]))
    if "memory" in result:
        sizes = ", ".join(f"{size:.0f}" for size in result["memory"]["megabytes"])
        parts.append(
            "Memory while 80,000 random records of 5,000 shards are read, after every fifth of "
            f"them: {sizes} MB, with {result['memory']['open']:,} shards open.\n"
        )
    if "index" in result:
        facts = result["index"]
        same = "the same" if facts["same_records"] and facts["same_batches"] else "DIFFERENT"
        parts.append(
            f"An index of {facts['samples'][1]:,} samples takes {facts['bytes_per_sample']:.3g} "
            f"bytes per sample; its records and shuffled batches are {same} as those of the copy.\n"
        )
    return "\n".join(parts)


def per_record(steps: dict[str, Cost]) -> str:
    """Formats the costs per record."""
    heads = ["step, per record", "CPU ms", "KB read", "KB written", "requests"]
    rows = [
        [
            name,
            f"{1e3 * c.cpu:.3g}",
            f"{c.read / 1e3:.4g}",
            f"{c.written / 1e3:.3g}",
            f"{c.requests:.2g}",
        ]
        for name, c in steps.items()
    ]
    return markdown_page.table(heads, rows)


def totals(steps: dict[str, Cost]) -> str:
    """Formats the costs of whole data sets; for training, of one epoch."""
    heads = ["step", *(f"{name} ({size:.3g})" for name, size in SIZES.items())]
    rows = []
    for name, each in steps.items():
        rows.append([name, *(total(each, size) for size in SIZES.values())])
    return markdown_page.table(heads, rows)


def total(each: Cost, size: int) -> str:
    """Formats the cost of `size` records; amounts of less than a gigabyte are left out."""
    parts = {
        "core-h": each.cpu * size / 3600,
        "TB in": each.read * size / 1e12,
        "TB out": each.written * size / 1e12,
        "M requests": each.requests * size / 1e6,
    }
    return ", ".join(f"{amount(value)} {unit}" for unit, value in parts.items() if value >= 1e-3)


def amount(value: float) -> str:
    """Formats a number with at most three digits; large ones without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def loader_table(rates: list[dict[str, Any]]) -> str:
    """Formats the rates of the loader."""
    heads = ["store", "threads", "examples/s", "of threads / 30 ms", "CPU ms per example", "cores"]
    rows = [
        [
            each["store"],
            str(each["threads"]),
            f"{each['examples_per_second']:,.0f}",
            f"{each['of_threads_over_latency']:.2f}",
            f"{1e3 * each['cpu_per_example']:.2f}",
            f"{each['cores']:.2f}",
        ]
        for each in rates
    ]
    return markdown_page.table(heads, rows)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
