"""Whatever stops an import, running it again gives the results of an uninterrupted import."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.core.folder import Folder
from unclip_jax.data import dataset_manifest
from unclip_jax.data.prepared import open_split
from unclip_jax.preparation.checking import CheckConfig
from unclip_jax.preparation.importer import Importer, locked
from unclip_jax.preparation.items import RawExample, Skip
from unclip_jax.preparation.shard_writer import ImportConfig


class ToyPlan:
    """Numbered pictures; some are bad, and one may interrupt."""

    sources: tuple[str, ...] = ("toy",)
    others: Mapping[str, int] = {}
    note = ""

    def __init__(self, samples, *, bad: tuple[int, ...] = (), count: int = 20, name: str = "toy"):
        self.samples, self.bad, self.count, self.fingerprint = samples, bad, count, name
        self.signature: str | None = ""
        self.read_indices: list[int] = []
        self.interrupt_at = -1
        self.closed = False

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"k{index:04d}"

    def read(self, index: int) -> RawExample:
        if index == self.interrupt_at:
            raise KeyboardInterrupt
        self.read_indices.append(index)
        if index in self.bad:
            raise Skip("no image")
        return RawExample(self.samples.png(index), f"picture number {index}")

    def close(self) -> None:
        self.closed = True


def run(
    plan: ToyPlan, directory: pathlib.Path, *, shards: int = 4, max_bad: float = 0.2, workers=2
) -> tuple[dataset_manifest.Split, Importer]:
    config = ImportConfig(shards=shards, max_bad=max_bad, workers=workers)
    importer = Importer(plan, folder=Folder(directory), split="train", config=config)
    directory.mkdir(exist_ok=True)
    split = importer.run()
    dataset_manifest.write(directory, dataset_manifest.DatasetManifest().with_split(split))
    return split, importer


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_good_records_in_order(samples, tmp_path: pathlib.Path, workers: int):
    plan = ToyPlan(samples, bad=(3, 19))
    split, importer = run(plan, tmp_path / "out", workers=workers)
    source = open_split(tmp_path / "out", split="train")
    want = [samples.record(i) for i in range(20) if i not in (3, 19)]
    assert [source[i] for i in range(len(source))] == want
    assert [shard.count for shard in split.shards] == [4, 5, 5, 4]
    assert (split.count, split.sources) == (18, ("toy",))
    assert (importer.tally.written, importer.tally.skipped) == (18, {"no image": 2})
    assert importer.tally.named == {"no image": ["k0003", "k0019"]}
    assert plan.closed


@pytest.mark.parametrize("stop", [0, 4, 5, 12, 19])
def test_an_interrupted_import_goes_on_without_loss(samples, tmp_path: pathlib.Path, stop: int):
    straight, _ = run(ToyPlan(samples, bad=(3,)), tmp_path / "straight")
    plan = ToyPlan(samples, bad=(3,))
    plan.interrupt_at = stop
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))
    plan.interrupt_at = -1
    plan.read_indices.clear()
    split, importer = run(plan, tmp_path / "out")
    assert split == straight
    assert plan.read_indices == list(range(stop // 5 * 5, 20))  # finished shards are not read
    assert (importer.tally.written, importer.tally.skipped) == (19, {"no image": 1})
    source = open_split(tmp_path / "out", split="train")
    assert [source[i]["key"] for i in range(19)] == [f"k{i:04d}" for i in range(20) if i != 3]


def test_a_killed_import_goes_on_without_loss(samples, tmp_path: pathlib.Path):
    script = textwrap.dedent("""
        import os, pathlib, signal, sys
        from tests.data.conftest import Samples
        from tests.preparation.test_importer import ToyPlan, run
        class Deadly(ToyPlan):
            def read(self, index):
                if index == 13:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().read(index)
        run(Deadly(Samples), pathlib.Path(sys.argv[1]), workers=0)
    """)
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")], env=environment, check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert list((tmp_path / "out").glob("train-00002-of-00004.array_record.tmp"))
    plan = ToyPlan(samples)
    with locked(Folder(tmp_path / "out")):
        split, _ = run(plan, tmp_path / "out")
    assert plan.read_indices == list(range(10, 20))
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert split == run(ToyPlan(samples), tmp_path / "straight")[0]


def test_a_shard_lost_after_an_interruption_is_rebuilt(samples, tmp_path: pathlib.Path):
    straight, _ = run(ToyPlan(samples), tmp_path / "out")
    (tmp_path / "out" / straight.shards[1].file).unlink()
    plan = ToyPlan(samples)
    assert run(plan, tmp_path / "out")[0] == straight
    assert plan.read_indices == list(range(5, 10))


def test_too_many_bad_records_stop_early_and_can_be_allowed(samples, tmp_path: pathlib.Path):
    plan = ToyPlan(samples, bad=(0, 1, 2, 3, 4, 17))
    with pytest.raises(UserError, match=r"stopped: 5 of .*--max-bad=0.2 of 20 .*k0000, k0001"):
        run(plan, tmp_path / "out")
    assert max(plan.read_indices) < 5  # the other shards were not begun
    split, importer = run(plan, tmp_path / "out", max_bad=0.3)
    assert (split.count, importer.tally.bad) == (14, 6)


def test_a_limit_lowered_later_counts_finished_shards(samples, tmp_path: pathlib.Path):
    run(ToyPlan(samples, bad=(0, 1, 2)), tmp_path / "out")
    with pytest.raises(UserError, match="stopped: 3 of"):
        run(ToyPlan(samples, bad=(0, 1, 2)), tmp_path / "out", max_bad=0.1)


def test_a_crash_of_the_decoder_is_a_bad_record(
    samples, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    from unclip_jax.preparation import shard_writer

    real = shard_writer.check

    def crash(key: str, raw: RawExample, config: CheckConfig):
        if key == "k0002":
            raise ZeroDivisionError
        return real(key, raw, config)

    monkeypatch.setattr(shard_writer, "check", crash)
    _, importer = run(ToyPlan(samples), tmp_path / "out")
    assert importer.tally.skipped == {"unexpected ZeroDivisionError": 1}


def test_nothing_good_at_all(samples, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match=r"would be empty: 1 no image \(k0000\); check the inputs"):
        run(ToyPlan(samples, bad=(0,), count=1), tmp_path / "out")


def test_more_shards_than_records(samples, tmp_path: pathlib.Path):
    split, _ = run(ToyPlan(samples, count=3), tmp_path / "out", shards=50)
    assert [shard.count for shard in split.shards] == [1, 1, 1]


@pytest.mark.parametrize("change", ["inputs", "shards", "options"])
def test_an_unfinished_split_is_not_mixed_with_another(
    samples, tmp_path: pathlib.Path, change: str
):
    plan = ToyPlan(samples)
    plan.interrupt_at = 7
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path)
    other = ToyPlan(samples, name="other" if change == "inputs" else "toy")
    config = ImportConfig(
        shards=5 if change == "shards" else 4,
        check=CheckConfig(image_size=8 if change == "options" else None),
    )
    with pytest.raises(UserError, match="unfinished split 'train' of other inputs"):
        Importer(other, folder=Folder(tmp_path), split="train", config=config)


def test_two_imports_into_one_folder(tmp_path: pathlib.Path):
    with locked(Folder(tmp_path)), pytest.raises(UserError, match="another prepare is writing to"):  # noqa: SIM117
        with locked(Folder(tmp_path)):
            pass


@pytest.mark.parametrize(
    ("config", "message"),
    [({"max_bad": 1.5}, "--max-bad is 1.5"), ({"shards": -1}, "--shards is -1")],
)
def test_impossible_settings(config: dict, message: str):
    with pytest.raises(UserError, match=message):
        ImportConfig(**config)
