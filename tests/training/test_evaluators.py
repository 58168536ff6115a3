import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.training import toy
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.training import evaluators
from unclip_jax.training.evaluators import PeriodicEval, SamplePreview
from unclip_jax.training.hooks import LoopState
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.train_program import make_train_program

MESH = make_mesh(MeshConfig())
KEY = jax.random.key(5)


def preview(params, batch, key):
    """Gray squares whose level is the first input, beside one of noise."""
    level = jnp.clip(batch["x"][:, :1, None, None], -1, 1) * jnp.ones((1, 6, 6, 3))
    noise = jax.random.uniform(key, level.shape, minval=-1.0)
    return jnp.concatenate([level, noise], axis=2)


STAGE = toy.Toy(preview=preview)
PROGRAM = make_train_program(
    STAGE, optim=OptimConfig(), mesh=MESH, rules="dp", steps=10, ema_decay=0.9
)


def moment(step: int = 3) -> LoopState:
    """A state whose averaged parameters are not the raw ones."""
    state = PROGRAM.create(jax.random.key(0))
    raw = jax.tree.map(lambda x: -2 * x - 1, state.params)
    return LoopState(step, dataclasses.replace(state, params=raw), None)


def validation(data, *, count: int = 3, stage=STAGE, teacher=()):
    reports = []
    hook = PeriodicEval(
        stage,
        data,
        count=count,
        key=KEY,
        mesh=MESH,
        shardings=PROGRAM.shardings.params,
        report=lambda step, numbers: reports.append((step, dict(numbers))),
        teacher=teacher,
    )
    return hook, reports


def held_out(sizes=(16, 16, 16, 16)):
    return lambda: (toy.batch_at(100 + i, size=size) for i, size in enumerate(sizes))


def test_validation_is_the_mean_over_the_batches_with_the_averaged_parameters():
    hook, reports = validation(held_out())
    now = moment()
    hook(now)
    kernel = np.asarray(now.state.ema_params["map"]["kernel"], np.float64)
    errors = [toy.batch_at(i)["x"] @ kernel - toy.batch_at(i)["y"] for i in (100, 101, 102)]
    ((step, numbers),) = reports
    assert step == 3 and set(numbers) == {"val/loss"}
    np.testing.assert_allclose(numbers["val/loss"], np.mean(np.square(errors)), rtol=1e-5)


def test_validation_repeats_exactly_and_each_batch_has_its_own_key():
    def evaluate(params, batch, key):
        return {"loss": jax.random.normal(key)}

    hook, reports = validation(held_out(), stage=toy.Toy(evaluate=evaluate), count=2)
    hook(moment())
    hook(moment())
    assert reports[0] == reports[1]
    single, alone = validation(held_out(), stage=toy.Toy(evaluate=evaluate), count=1)
    single(moment())
    assert alone[0] != reports[0]


def test_the_key_of_a_batch_is_that_of_its_place():
    """So that its noise can be reproduced, whatever the batches before it and their number."""

    def evaluate(params, batch, key):
        return {"draw": jax.random.normal(key), "first": batch["x"][0, 0]}

    for sizes, places in (((16, 16, 16, 16), (0, 1, 2)), ((16, 8, 16, 16), (0, 2))):
        hook, reports = validation(held_out(sizes), stage=toy.Toy(evaluate=evaluate), count=3)
        hook(moment())
        draws = [jax.random.normal(rng.fold(KEY, "validation", place)) for place in places]
        ((_, numbers),) = reports
        np.testing.assert_allclose(numbers["val/draw"], np.mean(draws), rtol=1e-6)
        first = [toy.batch_at(100 + place)["x"][0, 0] for place in places]
        np.testing.assert_allclose(numbers["val/first"], np.mean(first), rtol=1e-6)


def test_the_stage_s_teacher_takes_part_and_other_fields_do_not():
    def evaluate(params, batch, key, first, second):
        assert set(batch) == {"x", "y"}
        ratio = jnp.mean(first["w"]) / jnp.mean(second["w"])
        return {"ratio": ratio, "bias": jnp.mean(params["map"]["bias"])}

    place = jax.tree.leaves(PROGRAM.shardings.step)[0]
    teacher = tuple({"w": jax.device_put(np.full(3, n, np.float32), place)} for n in (6, 2))
    data = [{**toy.batch_at(0), "caption": np.array(["a"] * 16)}]
    hook, reports = validation(lambda: data, stage=toy.Toy(evaluate=evaluate), teacher=teacher)
    hook(moment())
    assert reports == [(3, {"val/ratio": 3.0, "val/bias": 0.0})]


def test_a_last_smaller_batch_is_left_out():
    short, reports = validation(held_out((16, 16, 3)))
    exact, expected = validation(held_out((16, 16)))
    short(moment())
    exact(moment())
    assert reports == expected


def test_held_out_data_that_cannot_be_used_are_rejected():
    with pytest.raises(UserError, match=r"validation data hold no batch; set .*eval_every=0"):
        validation(held_out(()))[0](moment())
    with pytest.raises(UserError, match=r"has 12 examples, which the mesh's 8 batch shards do not"):
        validation(held_out((12,)))[0](moment())
    with pytest.raises(UserError, match=r"batch lacks \['x', 'y'\]"):
        validation(lambda: [{"z": np.zeros(3)}])[0](moment())


def samples(tmp_path, *, count: int, labels=None, data=None, stage=STAGE) -> SamplePreview:
    return SamplePreview(
        stage,
        data or held_out((16, 16)),
        count=count,
        key=KEY,
        mesh=MESH,
        shardings=PROGRAM.shardings.params,
        folder=tmp_path / "samples",
        labels=labels,
    )


def test_a_grid_shows_what_the_preview_draws(tmp_path):
    batches = []

    def labels(batch):
        batches.append(batch["x"])
        assert list(batch["caption"]) == [["0"] * 16, ["1"] * 4][len(batches) - 1]
        return [f"level {value:.2f}" for value in batch["x"][:, 0]]

    def data():
        for index, host in enumerate(held_out((16, 16))()):
            yield {**host, "caption": np.array([f"{index}"] * 16)}

    hook = samples(tmp_path, count=20, labels=labels, data=data)
    hook(moment())
    hook(moment(step=12))
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step_00000003.png", "step_00000012.png"]
    first, second = (Image.open(tmp_path / "samples" / name) for name in names)
    assert first.tobytes() == second.tobytes()  # same keys, same parameters
    levels = np.concatenate([toy.batch_at(100)["x"], toy.batch_at(101)["x"]])[:20, 0]
    expected = np.round((np.clip(levels, -1, 1) + 1) * 127.5)
    grays = {pixel[0] for _, pixel in first.convert("RGB").getcolors(1 << 20) if len({*pixel}) == 1}
    assert {int(level) for level in expected} <= grays
    np.testing.assert_array_equal(batches[0][:16], toy.batch_at(100)["x"])


def test_a_grid_shows_samples_of_the_averaged_parameters(tmp_path):
    def level(params):
        return jnp.clip(jnp.mean(jnp.abs(params["map"]["kernel"])), -1, 1)

    stage = toy.Toy(preview=lambda params, batch, key: jnp.full((16, 6, 6, 3), level(params)))
    now = moment()
    samples(tmp_path, count=4, stage=stage)(now)
    image = Image.open(tmp_path / "samples" / "step_00000003.png").convert("RGB")
    counts = {pixel: count for count, pixel in image.getcolors(1 << 20)}
    averaged, raw = (
        counts.get((round(float((level(params) + 1) * 127.5)),) * 3, 0)
        for params in (now.state.ema_params, now.state.params)
    )
    assert averaged >= 4 * 6 * 6 > raw  # labels have some of every grey


def record_grids(monkeypatch) -> list[tuple[np.ndarray, list[str]]]:
    """Returns a list that gets the images and labels of every grid."""
    grids = []
    grid = evaluators.labelled_grid

    def record(images, *, labels):
        grids.append((np.asarray(images), list(labels)))
        return grid(images, labels=labels)

    monkeypatch.setattr(evaluators, "labelled_grid", record)
    return grids


def test_images_keep_the_order_of_the_examples_and_their_names(tmp_path, monkeypatch):
    grids = record_grids(monkeypatch)
    samples(tmp_path, count=19)(moment())
    labelled = samples(
        tmp_path, count=19, labels=lambda batch: [f"{x:.3f}" for x in batch["x"][:, 0]]
    )
    labelled(moment())
    levels = np.concatenate([toy.batch_at(100 + i)["x"][:, 0] for i in range(2)])
    expected = np.round((np.clip(levels, -1, 1) + 1) * 127.5)[:19]
    noise = jax.random.uniform(rng.fold(KEY, "samples"), (24, 6, 6, 3), minval=-1.0)
    noise = np.round((np.asarray(noise) + 1) * 127.5)[:19]
    for images, _ in grids:
        assert images.shape == (19, 6, 12, 3)
        np.testing.assert_array_equal(images[:, :, :6], expected[:, None, None, None] + 0 * noise)
        assert np.abs(images[:, :, 6:] - noise).max() <= 1
    assert grids[0][1] == [f"toy {index}" for index in range(19)]
    assert grids[1][1] == [f"{x:.3f}" for x in levels[:19]]


@pytest.mark.parametrize(
    ("count", "num_batches"), [(1, 1), (8, 1), (16, 1), (17, 2), (24, 2), (32, 2), (33, 3)]
)
def test_no_more_batches_are_read_than_a_grid_needs(tmp_path, count, num_batches):
    batches = []

    def data():
        for host in held_out((16, 16, 16, 16))():
            batches.append(host)
            yield host

    hook = samples(tmp_path, count=count, data=data)
    hook(moment())
    hook(moment(step=4))
    assert len(batches) == num_batches
    assert hook._count == count and len(hook._examples[0]["x"]) == -(-count // 8) * 8


@pytest.mark.parametrize(("sizes", "line"), [((16, 8), False), ((16,), True)])
def test_a_smaller_grid_than_asked_for_is_logged(tmp_path, caplog, sizes, line):
    with caplog.at_level("INFO"):
        samples(tmp_path, count=24, data=held_out(sizes))(moment())
    expected = ["toy: 16 samples per grid, as there are no more"] if line else []
    assert [message for message in caplog.messages if "samples per grid" in message] == expected


def test_a_batch_is_divided_over_the_processes_together(monkeypatch):
    """By eight batch shards: of two processes with 4 examples each, not with 6."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert evaluators._first_size(toy.SPEC, toy.batch_at(0, size=4), MESH) == 4
    with pytest.raises(UserError, match="has 6 examples, which the mesh's 8 batch shards do not"):
        evaluators._first_size(toy.SPEC, toy.batch_at(0, size=6), MESH)


def test_a_grid_of_fewer_samples_than_the_mesh_has_shards(tmp_path, monkeypatch):
    grids = record_grids(monkeypatch)
    samples(tmp_path / "new", count=3, data=held_out((8,)))(moment())
    assert len(grids[0][0]) == len(grids[0][1]) == 3
    assert (tmp_path / "new" / "samples" / "step_00000003.png").exists()


def test_examples_are_numbered_over_the_processes_of_which_the_first_writes(tmp_path, monkeypatch):
    hook = samples(tmp_path, count=16)
    hook(moment())
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert hook._rows(16).tolist() == list(range(32, 48))
    hook(moment(step=4))
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step_00000003.png"]


def test_a_share_of_each_process_fills_the_shards_of_all(tmp_path, monkeypatch):
    """Of two processes each has half of the examples, and a batch is divided over 8 devices."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    both = lambda part, count: {name: np.repeat(x, 2, 0)[:count] for name, x in part.items()}  # noqa: E731
    monkeypatch.setattr(evaluators, "first_rows", both)
    for sizes, own, count in (((8, 8), 8, 13), ((5,), 4, 8), ((6, 1), 4, 8), ((3, 5), 8, 13)):
        hook = samples(tmp_path, count=13, data=held_out(sizes))
        assert len(hook._first_examples()[0]["x"]) == own and hook._count == count
    message = r"have 3 examples here, but a batch is split over 4 devices"
    with pytest.raises(UserError, match=message):
        samples(tmp_path, count=13, data=held_out((3,)))._first_examples()


class TwoProcesses:
    """Collectives of two processes, of which each has one half of every batch."""

    def __init__(self, monkeypatch, whole):
        self.whole, self.half = whole, len(whole[0]["x"]) // 2
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(evaluators, "first_rows", self.first_rows)
        monkeypatch.setattr(evaluators, "gather", self.gather)

    def data(self, process):
        """The batches of one process."""
        first = self.half * process
        self.step = -1
        for batch in self.whole:
            self.step += 1
            yield {name: x[first : first + self.half] for name, x in batch.items()}

    def first_rows(self, part, count):
        return {name: x[:count] for name, x in self.whole[self.step].items()}

    def gather(self, own):
        x = self.whole[self.step]["x"]
        halves = (x[: self.half], x[self.half :])
        return [label_rows(half)[: len(own)] for half in halves]


def label_rows(rows):
    return [f"{row[0]:.6f}" for row in rows]


@pytest.mark.parametrize("count", [3, 6, 11])
def test_the_first_examples_of_all_processes_are_previewed(tmp_path, monkeypatch, count):
    whole = [toy.batch_at(i, size=8) for i in range(2)]
    expected = np.concatenate([batch["x"] for batch in whole])[:count]
    both, rows = TwoProcesses(monkeypatch, whole), {}
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        options = {"data": lambda process=process: both.data(process), "count": count}
        hook = samples(tmp_path, labels=lambda batch: label_rows(batch["x"]), **options)
        batch, labels = hook._first_examples()
        assert labels == label_rows(expected)
        rows |= dict(zip(hook._rows(len(batch["x"])).tolist(), batch["x"], strict=True))
    np.testing.assert_array_equal([rows[i] for i in range(count)], expected)


@pytest.mark.parametrize(
    ("sizes", "count"), [((16, 16), 32), ((16, 12), 24), ((8,), 8), ((15,), 8)]
)
def test_a_grid_has_as_many_samples_as_there_are_held_out_examples(tmp_path, sizes, count):
    """Rounded down to a multiple of the mesh's eight batch shards."""
    hook = samples(tmp_path, count=40, data=held_out(sizes))
    hook(moment())
    hook(moment(step=4))
    assert hook._count == count
    assert len(hook._examples[0]["x"]) == count


@pytest.mark.parametrize("sizes", [(), (7,), (3, 4)])
def test_too_few_held_out_examples_for_the_mesh_are_rejected(tmp_path, sizes):
    with pytest.raises(UserError, match=r"have \d examples here, but a batch is split over 8 dev"):
        samples(tmp_path, count=4, data=held_out(sizes))(moment())


def test_a_folder_that_cannot_be_written_is_rejected(tmp_path):
    (tmp_path / "samples").write_text("")
    with pytest.raises(UserError, match=r"cannot write the sample grid .*: File exists"):
        samples(tmp_path, count=4)(moment())
