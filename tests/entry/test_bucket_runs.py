"""Runs on data and in workdirs of object stores that fail now and then."""

import io
import json
import logging
import pathlib
import tarfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import cascades, object_stores, processes
from unclip_jax import prepare, sample, train
from unclip_jax.core import storage
from unclip_jax.core.storage import Url
from unclip_jax.core.trees import flatten_paths
from unclip_jax.data.prepared import open_split
from unclip_jax.handoff import remote
from unclip_jax.inference.load import load_clip

STEPS, BATCH = 1000, 8
OPTIONS = (
    *("--config=clip:tiny", f"--config.train.steps={STEPS}", f"--config.train.batch_size={BATCH}"),
    *("--config.train.log_every=10", "--config.train.save_every=100"),
    *("--config.train.eval_every=500", "--config.train.sample_every=0", "--config.data.workers=32"),
    "--config.data.cache_mb=0",
)


def losses(text: bytes) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in text.splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def bits(export: pathlib.Path) -> dict[str, bytes]:
    _, params, _ = load_clip(export)
    return {path: np.asarray(x).tobytes() for path, x in flatten_paths(params).items()}


@pytest.mark.nightly
def test_a_run_with_failures_ends_with_the_same_bits(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
    caplog.set_level(logging.CRITICAL, logger="gcp_storage_emulator")
    data, local = tmp_path / "data", tmp_path / "run"
    prepare.main(["shapes:train=256,validation=32", f"--out={data}", "--shards=4"])
    train.main([*OPTIONS, f"--workdir={local}", f"--config.data.path={data}"])
    with object_stores.faulty_google(share=0.05, seed=0) as counts:
        bucket = Url(f"gs://{object_stores.BUCKET}")
        upload(data, bucket / "data")
        train.main([*OPTIONS, f"--workdir={bucket}/run", f"--config.data.path={bucket}/data"])
        exported = bits(remote.local_export(f"{bucket}/run/export"))
        records = (bucket / "run/metrics.jsonl").read_bytes()
        checkpoints = (bucket / "run/checkpoints").names()
    assert counts["served"] > STEPS * BATCH and min(counts.values()) > 100, counts
    assert losses(records) == losses((local / "metrics.jsonl").read_bytes())
    assert len(losses(records)) == STEPS / 10
    assert checkpoints == ["1000", "800", "900"]
    assert exported == bits(local / "export")


def tars(records: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> None:
    """Writes records as WebDataset tars of 24."""
    folder.mkdir(parents=True)
    for first in range(0, len(records), 24):
        with tarfile.open(folder / f"{first // 24:05d}.tar", "w") as tar:
            for record in (records[i] for i in range(first, min(first + 24, len(records)))):
                for suffix, data in (("png", record["image"]), ("txt", record["caption"].encode())):
                    member = tarfile.TarInfo(f"{record['key']}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def upload(folder: pathlib.Path, url: Url) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (url / path.relative_to(folder).as_posix()).upload(path)


def run(*command: str, count: int, devices: int) -> None:
    """Runs a command in so many processes, to a good end."""
    outcomes = processes.outcome(
        processes.start_together(["-m", *command], count=count, devices=devices)
    )
    assert [status for status, _, _ in outcomes] == [0] * count, [
        text[-1500:] for *_, text in outcomes
    ]


def kill_after(checkpoint: Url, *command: str) -> None:
    """Starts a command in two processes, and kills both when a checkpoint is complete."""
    running = processes.start_together(["-m", *command], count=2, devices=4)
    try:
        end = time.monotonic() + processes.PATIENCE
        while not (checkpoint / "commit_success.txt").exists():
            assert all(process.poll() is None for process in running), processes.outcome(running)
            assert time.monotonic() < end
            time.sleep(0.2)
    finally:
        for process in running:
            process.kill()
            process.communicate()


@pytest.mark.nightly
def test_from_tars_in_a_bucket_to_images(tmp_path, caplog, monkeypatch):
    """Two processes embed and train, are killed, and one continues; images from the exports."""
    caplog.set_level(logging.CRITICAL, logger="gcp_storage_emulator")
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
    cascades.write(tmp_path / "cascade")
    tokenizer = f"--tokenizer={tmp_path}/cascade/tokenizer"
    prepare.main(["shapes:train=96,validation=32", f"--out={tmp_path}/world", tokenizer])
    for split in ("train", "validation"):
        tars(open_split(tmp_path / "world", split=split), tmp_path / "in" / split)
    with object_stores.google():
        bucket = Url(f"gs://{object_stores.BUCKET}")
        upload(tmp_path / "in", bucket / "in")
        inputs = [f"{split}={bucket}/in/{split}" for split in ("train", "validation")]
        prepare.main([*inputs, f"--out={bucket}/data", tokenizer])
        data, embeddings = f"{bucket}/data", f"{bucket}/embeddings"
        clip = f"--clip={tmp_path}/cascade/clip/export"
        where = (f"--data={data}", f"--out={embeddings}", "--batch=24")
        run("unclip_jax.embed", clip, *where, count=2, devices=4)
        command = (
            *("unclip_jax.train", "--config=prior:tiny", "--config.mesh.fsdp=4"),
            *(f"--config.data.path={data}", f"--config.data.embeddings={embeddings}"),
            *("--config.train.steps=60", "--config.train.batch_size=32"),
            *("--config.train.log_every=1", "--config.train.save_every=5"),
            *("--config.train.eval_every=0", "--config.train.sample_every=0"),
        )
        run(*command, f"--workdir={tmp_path}/alone", count=1, devices=8)
        workdir = bucket / "run" / "prior"
        kill_after(workdir / "checkpoints" / "10", *command, f"--workdir={workdir}")
        assert "export" not in workdir.names()
        run(*command, f"--workdir={workdir}", count=1, devices=8)
        expected = losses((tmp_path / "alone" / "metrics.jsonl").read_bytes())
        actual = losses((workdir / "metrics.jsonl").read_bytes())
        assert [step for step, _ in actual] == [step for step, _ in expected] == [*range(1, 61)]
        np.testing.assert_allclose(
            [loss for _, loss in actual], [loss for _, loss in expected], rtol=2e-4
        )
        for name in ("clip", "decoder", "upsampler_256"):
            upload(tmp_path / "cascade" / name, bucket / "run" / name)
        out = tmp_path / "images.png"
        sample.main(["a red circle", f"--models={bucket}/run", f"--out={out}", "--steps=4"])
    with Image.open(out) as image:
        assert image.size[0] >= 16
