import contextlib
import json
import logging
import os
import pathlib
import resource
import shutil
import types

import jax
import numpy as np
import optax
import pytest

from tests.training import toy
from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import flatten_paths
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.parallel.place import global_batch
from unclip_jax.training import checkpoint
from unclip_jax.training.checkpoint import Checkpoints, decode_position, encode_position
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.state import create
from unclip_jax.training.train_program import TrainProgram, make_train_program


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """Seconds for which the storage was waited for; none pass."""
    durations: list[float] = []
    monkeypatch.setattr(checkpoint, "time", types.SimpleNamespace(sleep=durations.append))
    return durations


def program(count: int = 8, *, fsdp: int = 1, tensor: int = 1, name: str = "muon") -> TrainProgram:
    mesh = make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor), devices=jax.devices()[:count])
    rules = "dp" if fsdp == 1 else "fsdp" if tensor == 1 else "fsdp_tp"
    return make_train_program(
        toy.Toy(),
        optim=OptimConfig(name=name),
        mesh=mesh,
        rules=rules,
        steps=100,
        ema_decay=0.9,
    )


PROGRAM = program()


def train(program: TrainProgram, steps: int):
    """States after 1, 2, ... steps; each is donated when the next is asked for."""
    state = program.create(jax.random.key(0))
    for index in range(steps):
        batch = global_batch(toy.batch_at(index), program.mesh)
        state, _ = program.step(state, batch, jax.random.key(1))
        yield index + 1, state


def bits(tree) -> dict[str, bytes]:
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten_paths(tree).items()}


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory) -> tuple[pathlib.Path, dict[int, dict[str, bytes]]]:
    """A workdir with checkpoints after steps 1, 2 and 3, and the bits of those states."""
    workdir = tmp_path_factory.mktemp("run")
    expected = {}
    with Checkpoints(workdir, keep=3) as checkpoints:
        for step, state in train(PROGRAM, 3):
            checkpoints.save(step, state, position={"position": step})
            expected[step] = bits(state)
    return workdir, expected


@pytest.fixture
def run_copy(saved_run, tmp_path: pathlib.Path) -> tuple[pathlib.Path, dict]:
    shutil.copytree(saved_run[0], tmp_path / "run")
    return tmp_path / "run", saved_run[1]


def restore(workdir: pathlib.Path, program: TrainProgram = PROGRAM):
    with Checkpoints(workdir, keep=3) as checkpoints:
        return checkpoints.restore(program.abstract)


def test_newest_checkpoint_is_restored_bit_for_bit(saved_run):
    restored = restore(saved_run[0])
    assert bits(restored.state) == saved_run[1][3] and restored.position == {"position": 3}
    assert jax.tree.structure(restored.state) == jax.tree.structure(PROGRAM.abstract)


def test_an_empty_folder_restores_nothing(tmp_path: pathlib.Path):
    assert restore(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path: pathlib.Path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, state in train(PROGRAM, 4):
            checkpoints.save(step, state, position=step)
            checkpoints.save(step, state, position="ignored: it is there already")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps == [3, 4]
        assert checkpoints.restore(PROGRAM.abstract).position == 4


def test_a_state_may_be_donated_while_it_is_written(tmp_path: pathlib.Path):
    expected = {}
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        for step, state in train(PROGRAM, 6):  # the generator donates at once
            expected[step] = bits(state)
            checkpoints.save(step, state, position=step)
    for step in reversed(expected):
        restored = restore(tmp_path)
        assert restored.position == step and bits(restored.state) == expected[step]
        shutil.rmtree(tmp_path / "checkpoints" / str(step))


@pytest.mark.parametrize(
    "other",
    [{"count": 8, "fsdp": 8}, {"count": 4, "fsdp": 2}, {"count": 1}, {"fsdp": 2, "tensor": 2}],
)
def test_other_devices_and_other_rules_get_the_same_bits(saved_run, other: dict):
    there = program(**other)
    restored = restore(saved_run[0], there)
    assert bits(restored.state) == saved_run[1][3]
    places = jax.tree.map(lambda x: x.sharding, restored.state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, places, there.shardings))


def test_from_8_to_4_to_1_device(saved_run, tmp_path: pathlib.Path):
    first = restore(saved_run[0], program(8, fsdp=8)).state
    with Checkpoints(tmp_path / "a", keep=1) as checkpoints:
        checkpoints.save(3, first, position=0)
    second = restore(tmp_path / "a", program(4, fsdp=4)).state
    with Checkpoints(tmp_path / "b", keep=1) as checkpoints:
        checkpoints.save(3, second, position=0)
    assert bits(restore(tmp_path / "b", program(1)).state) == saved_run[1][3]


def arrays(folder: pathlib.Path) -> pathlib.Path:
    """The file with most of the arrays, when these are large."""
    files = [path for path in (folder / "state").rglob("d/*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def index(folder: pathlib.Path) -> pathlib.Path:
    """The database's index, which holds small arrays itself."""
    (path,) = (folder / "state" / "d").iterdir()
    return path


def flip(path: pathlib.Path, *, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x10
    path.write_bytes(data)


def edit(folder: pathlib.Path, old: str, new: str) -> None:
    """Changes the JSON of a part of a checkpoint."""
    path = folder / "metadata"
    compact = json.dumps(json.loads(path.read_text()), separators=(",", ":"))
    assert old in compact
    path.write_text(compact.replace(old, new))


def replace_by_pipe(path: pathlib.Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "truncated": lambda step: os.truncate(index(step), 100),
    "emptied": lambda step: os.truncate(index(step), 0),
    "deleted": lambda step: index(step).unlink(),
    "one bit": lambda step: flip(index(step)),
    "zeroed": lambda step: index(step).write_bytes(bytes(index(step).stat().st_size)),
    "no tree": lambda step: (step / "state" / "_METADATA").unlink(),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "half meta": lambda step: os.truncate(step / "meta" / "metadata", 20),
    "no meta": lambda step: shutil.rmtree(step / "meta"),
    "no position": lambda step: (step / "data" / "metadata").unlink(),
    "no database": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "another position": lambda step: edit(step / "data", '"position":3', '"position":4'),
    "another tree": lambda step: edit(step / "meta", "float32", "float16"),
    "another checksum": lambda step: edit(step / "meta", '"checksum":', '"checksum":1'),
    "another digest": lambda step: edit(step / "meta", '"digest":"', '"digest":"0'),
    "no digest": lambda step: edit(step / "meta", '"digest"', '"digets"'),
    "named pipe": lambda step: replace_by_pipe(step / "data" / "metadata"),
    "named pipe among arrays": lambda step: replace_by_pipe(step / "state" / "_METADATA"),
    "nothing": lambda step: [shutil.rmtree(p) for p in step.iterdir() if p.is_dir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_and_set_aside(
    run_copy, damage: str, caplog: pytest.LogCaptureFixture
):
    workdir, expected = run_copy
    DAMAGES[damage](workdir / "checkpoints" / "3")
    with caplog.at_level(logging.WARNING, logger="unclip_jax"):
        restored = restore(workdir)
    assert bits(restored.state) == expected[2] and restored.position == {"position": 2}
    assert "checkpoint 3 is damaged" in caplog.text
    assert [path.name for path in (workdir / "damaged").iterdir()] == ["3-0"]
    with Checkpoints(workdir, keep=3) as checkpoints:  # its place is free again
        for step, state in train(PROGRAM, 3):
            checkpoints.save(step, state, position={"position": step})
    assert bits(restore(workdir).state) == expected[3]


def test_a_checkpoint_under_another_step_is_damaged(run_copy, caplog: pytest.LogCaptureFixture):
    workdir, expected = run_copy
    (workdir / "checkpoints" / "3").rename(workdir / "checkpoints" / "7")
    restored = restore(workdir)
    assert bits(restored.state) == expected[2] and restored.position == {"position": 2}
    assert "checkpoint 7 is damaged (it was saved as the checkpoint of step 3)" in caplog.text


def test_a_checkpoint_of_version_0_1_0_has_no_digests(run_copy):
    workdir, expected = run_copy
    path = workdir / "checkpoints" / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({name: meta[name] for name in ("checksum", "tree")}))
    restored = restore(workdir)
    assert bits(restored.state) == expected[3] and restored.position == {"position": 3}


def test_every_flipped_bit_is_detected(tmp_path, caplog: pytest.LogCaptureFixture):
    """Arrays large enough to lie outside the database's own checksums."""
    states = {}
    with Checkpoints(tmp_path / "whole", keep=2) as checkpoints:
        for step in (1, 2):
            large = {"w": jax.random.normal(jax.random.key(step), (64, 64))}
            states[step] = create(large, optax.sgd(0.1))
            checkpoints.save(step, states[step], position=step)
    for number in range(12):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", workdir)
        flip(arrays(workdir / "checkpoints" / "2"), place=(number + 0.5) / 12)
        with Checkpoints(workdir, keep=2) as checkpoints:
            restored = checkpoints.restore(states[2])
        assert bits(restored.state) == bits(states[restored.position])
    assert (
        "its checksum differs from the one that was saved" in caplog.text
    )  # Orbax noticed nothing


def test_two_damaged_checkpoints_are_skipped_and_set_aside(run_copy):
    workdir, expected = run_copy
    for step in ("2", "3"):
        flip(index(workdir / "checkpoints" / step))
    assert bits(restore(workdir).state) == expected[1]
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["2-0", "3-0"]


def test_if_all_are_damaged_the_run_stops_and_moves_nothing(run_copy):
    workdir, _ = run_copy
    for step in ("1", "2", "3"):
        flip(index(workdir / "checkpoints" / step))
    with pytest.raises(UserError, match=r"none of the checkpoints \[3, 2, 1\] .* can be read"):
        restore(workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_remains_of_a_killed_save_are_not_a_checkpoint(run_copy):
    workdir, expected = run_copy
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp-7")
    restored = restore(workdir)
    assert bits(restored.state) == expected[3]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_checkpoints_of_another_model_are_rejected_and_not_moved(run_copy):
    workdir, _ = run_copy
    with pytest.raises(UserError, match=r"/3 belongs to another model: its opt_state/.* is absent"):
        restore(workdir, program(name="adamw"))
    assert not (workdir / "damaged").exists()


def test_a_full_disk_is_one_line_and_existing_checkpoints_are_untouched(run_copy, monkeypatch):
    workdir, expected = run_copy
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 100))
    with Checkpoints(workdir, keep=1) as checkpoints:
        state = checkpoints.restore(PROGRAM.abstract).state
        message = r"cannot write .*checkpoints: .* needed, 100 B free on the disk. .* untouched"
        with pytest.raises(UserError, match=message):
            checkpoints.save(9, state, position=0)
    assert bits(restore(workdir).state) == expected[3]


def save_with_little_space(workdir: pathlib.Path) -> None:
    """Save step 9 where no file may grow beyond 1000 bytes, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(workdir, keep=1) as checkpoints:
        state = checkpoints.restore(PROGRAM.abstract).state
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            checkpoints.save(9, state, position=0)
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_writing_destroys_nothing(run_copy):
    workdir, expected = run_copy
    with pytest.raises(UserError, match=r"cannot write checkpoints in .*; free space") as error:
        save_with_little_space(workdir)
    assert "\n" not in str(error.value)
    assert bits(restore(workdir).state) == expected[3]
    with Checkpoints(workdir, keep=3) as checkpoints:
        assert checkpoints.steps == [1, 2, 3]


@contextlib.contextmanager
def small_files(lifted_by=None):
    """No file may grow beyond 1000 bytes, until the end or until `lifted_by` sleeps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift(seconds=0.0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    if lifted_by is not None:
        lifted_by.setattr(checkpoint, "time", types.SimpleNamespace(sleep=lift))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        lift()


def test_saves_are_retried_while_the_disk_is_full(run_copy, monkeypatch, caplog, pauses):
    workdir, expected = run_copy
    real, answers = shutil.disk_usage, [9, 9]

    def usage(path):
        return shutil._ntuple_diskusage(9, 9, answers.pop()) if answers else real(path)

    with Checkpoints(workdir, keep=1) as checkpoints:
        state = checkpoints.restore(PROGRAM.abstract).state
        monkeypatch.setattr(shutil, "disk_usage", usage)
        checkpoints.save(9, state, position=0)
    assert pauses == [checkpoint.PAUSE, 3 * checkpoint.PAUSE]
    assert caplog.text.count("9 B free on the disk") == 2 and "Trying again in" in caplog.text
    restored = restore(workdir)
    assert bits(restored.state) == expected[3] and restored.position == 0


def test_next_save_replaces_one_that_failed_in_the_background(run_copy, caplog):
    workdir, expected = run_copy
    with Checkpoints(workdir, keep=9) as checkpoints:
        state = checkpoints.restore(PROGRAM.abstract).state
        with small_files():
            checkpoints.save(9, state, position=9)
            with pytest.raises(UserError):
                checkpoints.wait()
        checkpoints.save(10, state, position=10)
    with Checkpoints(workdir, keep=9) as checkpoints:
        assert checkpoints.steps == [1, 2, 3, 10]
    restored = restore(workdir)
    assert bits(restored.state) == expected[3] and restored.position == 10


def save_in_vain(workdir: pathlib.Path) -> None:
    """Once more than the storage may fail in a row."""
    with Checkpoints(workdir, keep=9) as checkpoints, small_files():
        state = checkpoints.restore(PROGRAM.abstract).state
        for step in range(9, 10 + checkpoint.TRIES):
            checkpoints.save(step, state, position=0)


def test_repeated_background_failures_end_the_run(run_copy, caplog):
    workdir, expected = run_copy
    with pytest.raises(UserError, match="cannot write checkpoints in .*; free space"):
        save_in_vain(workdir)
    assert caplog.text.count("Trying again with this step's") == checkpoint.TRIES - 1
    assert bits(restore(workdir).state) == expected[3]


def test_immediate_saves_are_retried(run_copy, monkeypatch):
    workdir, expected = run_copy
    with Checkpoints(workdir, keep=9) as checkpoints:
        state = checkpoints.restore(PROGRAM.abstract).state
        with small_files(lifted_by=monkeypatch):
            checkpoints.save_now(9, state, position=9)
        assert checkpoints.steps == [1, 2, 3, 9]
    assert bits(restore(workdir).state) == expected[3]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: pathlib.Path):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"cannot open checkpoints in .*: File exists"):
        Checkpoints(tmp_path, keep=1)


@pytest.mark.parametrize("position", [{"a": [1, {"b": None}]}, b"\x00\xffgrain", 7, "text", None])
def test_positions_go_through_json(position):
    assert decode_position(encode_position(position)) == position
