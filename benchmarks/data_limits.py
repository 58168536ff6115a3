"""Limits of data sets of web scale: planning, merging, latency, memory, and training from tars.

`data_scale` calls these measurements and reports them.
"""

import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import slow_store
from unclip_jax.core import ranged_reads
from unclip_jax.core.folder import Folder
from unclip_jax.core.storage import Location, Url
from unclip_jax.data import dataset_manifest, prepared, records, sources
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.loader import LoaderConfig, make_loader
from unclip_jax.preparation import engines, merging, pipeline, shard_tasks, shard_writer
from unclip_jax.preparation.pipeline import TokenizerConfig
from unclip_jax.preparation.plan_specs import FileSpec
from unclip_jax.preparation.shard_writer import ImportConfig

PER_TAR = 10_000  # pairs per tar
SIDE, QUALITY = 512, 95
LATENCY = 0.03  # seconds
STORES = (  # for the rates of the loader: label, store, library for ranged reads
    ("in this process", slow_store.in_process, ""),
    ("gcsfs and a server", slow_store.served, "fsspec"),
    ("TensorStore and a server", slow_store.served, ""),
)
WORDS = [
    "a",
    "red",
    "fox",
    "sleeps",
    "on",
    "the",
    "warm",
    "stone",
    "beside",
    "quiet",
    "blue",
    "water",
]


def plan(count: int) -> dict[str, float]:
    """Lists the tars of `count` records and plans their shards; the tars are long but empty."""
    with tempfile.TemporaryDirectory() as folder, slow_store.in_process(pathlib.Path(folder)):
        place = pathlib.Path(folder, slow_store.BUCKET, "in")
        place.mkdir(parents=True)
        for number in range(count // PER_TAR):
            with (place / f"{number:05d}.tar").open("wb") as file:
                file.truncate(150_000 * PER_TAR)
        started = time.perf_counter()
        spec = FileSpec((f"gs://{slow_store.BUCKET}/in",))
        planned = shard_tasks.split_tasks(spec, split="train", config=ImportConfig())
        return {"shards": planned.total, "seconds": time.perf_counter() - started, **peak()}


def merge(count: int) -> dict[str, float]:
    """Merges the logs and hashes of `count` records, and searches for duplicates among them."""
    planned = shard_tasks.SplitTasks(
        "train", count // PER_TAR, "f", ("in",), "s", True, {}, "", dedup="exact"
    )
    generator = np.random.default_rng(0)
    log = {
        "plan": "f",
        **dict.fromkeys(("signature", "inputs", "sha256"), "0" * 64),
        "written": PER_TAR,
        "tally": {"kept": PER_TAR, "skipped": {}, "named": {}, "seconds": 1.0},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(pathlib.Path(name))
        for shard in planned.names:
            hashes = generator.integers(1, 2**63, (PER_TAR, 2), dtype=np.uint64)
            shard_writer.write_hashes(folder, shard, hashes)
            shard_writer.write_log(folder, shard, log)
        started, before = time.process_time(), time.perf_counter()
        split, _ = merging.merge_split(folder, planned, engine=engines.Engine())
        assert split.count == planned.total * PER_TAR
        cpu, seconds = time.process_time() - started, time.perf_counter() - before
        return {"cpu_per_record": cpu / count, "seconds": seconds, **peak()}


def loader_rates(seconds: float) -> list[dict[str, Any]]:
    """Measures the examples/s of one loader at `LATENCY`, by number of threads and store."""
    image = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image, "PNG")
    rates = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name, slow_store.BUCKET)
        urls = write_shards(folder, image.getvalue(), shards=8, count=2000)
        source = prepared.ShardSource(urls, [2000] * 8)
        for threads in (16, 64, 128):  # stores in turns, because the load of the machine varies
            for label, store, library in STORES:
                os.environ[ranged_reads.LIBRARY] = library
                with store(pathlib.Path(name), latency=LATENCY):
                    facts = rate(source, threads, seconds)
                rates.append({"store": label, "threads": threads, **facts})
        os.environ.pop(ranged_reads.LIBRARY)
    return sorted(rates, key=lambda facts: [label for label, *_ in STORES].index(facts["store"]))


def rate(source: sources.Source, threads: int, seconds: float) -> dict[str, float]:
    """Measures a loader of captions, whose decoding costs nothing."""
    config = LoaderConfig(batch_size=256, workers=threads)
    loader = make_loader(source, example=ExampleConfig(("caption",)), config=config)
    for _ in range(12):  # opens all shards
        next(loader)
    started, cpu, count = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        count += len(next(loader)["caption"])
    cpu = time.process_time() - cpu
    loader.close()
    per_second = count / elapsed
    return {
        "examples_per_second": per_second,
        "of_threads_over_latency": per_second * LATENCY / threads,
        "cpu_per_example": cpu / count,
        "cores": cpu / elapsed,
    }


def write_shards(folder: pathlib.Path, image: bytes, *, shards: int, count: int) -> list[Url]:
    """Writes one shard and links under the other names."""
    folder.mkdir(parents=True)
    names = [records.shard_name("train", number, shards) for number in range(shards)]
    parts = ({"image": image, "caption": "a", "key": str(i), "scene": ""} for i in range(count))
    records.write_shard(folder / names[0], parts)
    for other in names[1:]:
        (folder / other).hardlink_to(folder / names[0])
    return [Url(f"gs://{slow_store.BUCKET}/{name}") for name in names]


def memory(count: int) -> dict[str, Any]:
    """Reads 16 random records of each of many shards; returns the memory after every fifth."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name, slow_store.BUCKET)
        rows = 8192  # per shard
        urls = write_shards(folder, b"x" * 40, shards=count, count=rows)
        source = prepared.ShardSource([folder / url.name for url in urls], [rows] * count)
        order = np.random.default_rng(0).integers(0, rows * count, 16 * count)
        sizes = []
        for position, row in enumerate(order):
            _ = source[int(row)]
            if position % (len(order) // 5) == len(order) // 5 - 1:
                sizes.append(resident())
        return {"megabytes": sizes, "open": len(source._readers), **peak()}


def index(count: int) -> dict[str, Any]:
    """Prepares tars as a copy and as an index; compares records and training batches of both."""
    image = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image, "PNG")
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = pathlib.Path(name)
        for first in range(0, count, PER_TAR):
            tar = folder / "in" / f"{first // PER_TAR:05d}.tar"
            write_tar(tar, min(PER_TAR, count - first), images=[image.getvalue()], first=first)
        started = time.perf_counter()
        for indexed in (False, True):
            out = folder / ("index" if indexed else "copy")
            prepare(folder / "in", out, index=indexed, shard_mb=8, processes=engines.cores())
        seconds = time.perf_counter() - started
        opened = [
            sources.open_source(p, split="train")
            for p in (f"{folder}/copy", f"tars:{folder}/index")
        ]
        digests = {dataset_manifest.read(folder / p).split("train").hash for p in ("copy", "index")}
        config = LoaderConfig(batch_size=512, workers=2)
        example = ExampleConfig(("image", "caption", "key"), image_size=16)
        loaders = [make_loader(each, example=example, config=config) for each in opened]
        equal = all(
            all(np.array_equal(one[field], other[field]) for field in one)
            for one, other in (
                (next(loaders[0]), next(loaders[1])) for _ in range(min(40, count // 512))
            )
        )
        size = sum(path.stat().st_size for path in (folder / "index").glob("*.tar_index"))
        return {
            "samples": [len(each) for each in opened],
            "same_records": len(digests) == 1,
            "same_batches": equal,
            "bytes_per_sample": size / count,
            "seconds": seconds,
        }


def prepare(inputs: Location, out: Location, *, processes: int = 0, **options: Any) -> None:
    """Prepares tars like the command, without a tokenizer."""
    specs = {"train": FileSpec((str(inputs),))}
    config = ImportConfig(workers=0, **options)
    engine = engines.Engine(processes=processes)
    none = TokenizerConfig(source="none")
    pipeline.prepare(specs, out=out, config=config, engine=engine, tokenizer=none)


def apart(function: Callable[[int], Any], argument: int) -> Any:
    """Calls a function in a new process, so that the peak of memory is its own."""
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, argument).result()


def peak() -> dict[str, float]:
    """Returns the peak memory of this process in megabytes."""
    return {"peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def resident() -> float:
    """Returns the memory of this process in megabytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def write_tar(
    path: pathlib.Path, count: int, *, images: Sequence[bytes] = (), first: int = 0
) -> None:
    """Writes pairs like img2dataset: adjacent image, caption and JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = images or [jpeg(number) for number in range(min(count, 64))]
    facts = json.dumps({"url": "https://example.com/image", "similarity": 0.3, "status": "success"})
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            image, caption = images[i % len(images)], f"{' '.join(WORDS)} {i}"
            for suffix, data in (
                ("jpg", image),
                ("txt", caption.encode()),
                ("json", facts.encode()),
            ):
                member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def jpeg(number: int) -> bytes:
    """Returns an image of about 150 KB with the spectrum of photographs and some noise."""
    generator = np.random.default_rng(number)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.rfftfreq(SIDE), indexing="ij"))
    frequency[0, 0] = 1
    planes = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * generator.random(frequency.shape))
        plane = np.fft.irfft2(phases / frequency**1.3, s=(SIDE, SIDE))
        planes.append(128 + 45 * (plane - plane.mean()) / plane.std())
    buffer = io.BytesIO()
    pixels = np.uint8(np.clip(np.stack(planes, axis=-1), 0, 255))
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
