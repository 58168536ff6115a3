import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh

from tests.training import toy
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.training import memory
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.train_program import TrainProgram, make_train_program

SIZE = 64 * 64 * 4  # bytes of one matrix of the deep stage


def init(key):
    names = ("layers", "embed", "mlp")
    return {"kernel": nn.LogicallyPartitioned(jax.random.normal(key, (5, 64, 64)), names)}


def loss(params, batch, key, *, remat: bool = False):
    """Five times sin(x W): the backward pass needs each layer's input and cosine."""

    def layer(x, w):
        return jnp.sin(x @ w), None

    x, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, batch["x"], params["kernel"])
    return jnp.sum(x), {}


DEEP = toy.Toy(name="deep", batch_spec={"x": Field((64,), "float32")}, init=init, loss=loss)


def program(*, name: str = "adamw", stage=DEEP, **mesh: int) -> TrainProgram:
    rules = "fsdp" if mesh.get("fsdp", 1) > 1 else "dp"
    return make_train_program(
        stage,
        optim=OptimConfig(name=name),
        mesh=make_mesh(MeshConfig(**mesh)),
        rules=rules,
        steps=10,
        ema_decay=0.9,
    )


def check(program: TrainProgram, **changes) -> str:
    settings = {"mesh": program.mesh, "batch_size": 64, **changes}
    return memory.check(settings.pop("stage", DEEP), program.abstract, **settings)


def resident(program: TrainProgram) -> tuple[int, int]:
    return memory._resident(program.abstract, program.mesh)


def test_the_parameters_of_a_teacher_are_counted():
    plain = program()
    taught = program(stage=dataclasses.replace(DEEP, teacher=init))
    assert plain.teacher == () and len(taught.teacher) == 1
    sizes = {"mesh": plain.mesh, "batch_size": 0}
    lines = [
        memory.check(DEEP, each.abstract, teacher=each.teacher, **sizes) for each in (plain, taught)
    ]
    states = [float(re.search(r"state ([\d.]+) MiB", line)[1]) for line in lines]
    everywhere = 8 * 5 * SIZE / 2**20  # on each of eight devices that share one memory
    assert states[1] - states[0] == pytest.approx(everywhere, rel=0.01)


def test_state_and_gradients_by_hand():
    few = 100  # counters
    state, gradients = resident(program())  # 8 devices of one CPU, each with a whole copy
    assert gradients == 8 * 5 * SIZE
    assert 0 <= state - 8 * 5 * SIZE * 4 < 8 * few  # parameters, average, two moments
    state, gradients = resident(program(fsdp=8))
    assert gradients == 5 * SIZE
    assert 0 <= state - 5 * SIZE * 4 < 8 * few
    state, _ = resident(program(fsdp=8, name="muon"))
    assert 0 <= state - 5 * SIZE * 3 < 8 * few


def test_replicas_with_parameters_of_their_own_are_counted():
    sharded = program(fsdp=8)
    _, plain = resident(sharded)
    _, gradients = memory._resident(sharded.abstract, sharded.mesh, 3)
    assert gradients - plain == 8 * 3 * 2 * 5 * SIZE  # devices x replicas x (weights, gradients)


def test_memory_of_too_many_replicas_is_reported(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda mesh: 100 * SIZE)
    assert "state" in check(program(fsdp=8), batch_size=0)
    with pytest.raises(
        UserError, match=r"cannot fit: .*, or config.optim.sam_batch=0, which needs"
    ):
        check(program(fsdp=8), batch_size=0, copies=3)


def test_activations_grow_with_the_batch_and_shrink_with_remat():
    params, mesh = program().abstract.params, program().mesh

    def activation_bytes(stage, batch_size):
        return memory.activations(stage, params, batch_size=batch_size, mesh=mesh)

    per_layer = 64 * 4  # bytes of one example
    assert activation_bytes(DEEP, 64) == pytest.approx(64 * per_layer * 5 * 2, rel=0.1)
    assert activation_bytes(DEEP, 128) == pytest.approx(2 * activation_bytes(DEEP, 64), rel=0.1)
    lean = dataclasses.replace(DEEP, loss=lambda p, b, k: loss(p, b, k, remat=True))
    assert activation_bytes(lean, 64) <= 0.55 * activation_bytes(DEEP, 64)


def test_the_startup_line(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda mesh: 3 * 2**30)
    line = check(program(fsdp=4))
    assert line.startswith("deep: 20,480 parameters on 8 x cpu (data 2, fsdp 4, tensor 1); needs ")
    assert line.endswith("and this machine has 3 GiB free")
    for part in ("state 640", "gradients 160 KiB", "activations about "):
        assert part in line


def test_a_state_that_cannot_fit_is_rejected_before_anything_is_traced(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda mesh: 2**20)
    monkeypatch.setattr(memory, "activations", lambda *a, **k: pytest.fail("traced"))
    message = r"has 1 MiB free\. It cannot fit: .*fsdp=\d+ or more.*optim\.name='muon'"
    with pytest.raises(UserError, match=message) as error:
        check(program())
    assert "\n" not in str(error.value)


def test_activations_that_cannot_fit_are_rejected_with_other_advice(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda mesh: 5 * 2**20)
    program_1 = program(fsdp=8)
    check(program_1)
    with pytest.raises(UserError, match=r"lower config.train.batch_size or raise .*accumulate"):
        check(program_1, batch_size=64000)
    check(program_1, batch_size=64000, accumulate=1000)
    activations = memory.activations(
        DEEP, program_1.abstract.params, batch_size=64, mesh=program_1.mesh
    )
    there = sum(resident(program_1)) + int(0.8 * activations)  # XLA may manage with that
    monkeypatch.setattr(memory, "available", lambda mesh: there)
    check(program_1, batch_size=64)
    assert "activations" in check(program_1, batch_size=64000, enforce=False)


def test_a_prior_of_the_papers_size_stops_at_once_on_24_gigabytes(monkeypatch):
    def big(key):
        kernel = jax.random.normal(key, (24, 2048, 27_000))
        return {"kernel": nn.LogicallyPartitioned(kernel, ("layers", "embed", "mlp"))}

    monkeypatch.setattr(memory, "available", lambda mesh: 24 * 10**9)
    stage = dataclasses.replace(DEEP, name="prior", init=big)
    with pytest.raises(UserError, match=r"prior: 1.327 billion parameters .* 24.7\d GiB"):
        check(program(stage=stage, fsdp=8), stage=stage)


def test_available_memory_is_that_of_the_machine(monkeypatch):
    mesh = make_mesh(MeshConfig())
    there = memory.available(mesh)
    assert 2**28 < there < 2**50
    monkeypatch.setattr(memory, "_control_group_limit", lambda: 12345)
    assert memory.available(mesh) == 12345


@pytest.mark.parametrize(
    ("number", "text"),
    [(136, "136"), (20480, "20,480"), (3_400_000, "3.4 million"), (1_325_000_000, "1.325 billion")],
)
def test_counts_are_formatted(number: int, text: str):
    assert memory.count_text(number) == text


def test_activation_estimate_is_close_to_the_compilers():
    deep = program(data=8)
    x = jax.ShapeDtypeStruct((512, 64), np.float32)
    grad = jax.jit(jax.grad(lambda p, x: loss(p, {"x": x}, None)[0]))
    compiled = grad.lower({"kernel": jax.ShapeDtypeStruct((5, 64, 64), np.float32)}, x).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes
    estimate = memory.activations(DEEP, deep.abstract.params, batch_size=512, mesh=deep.mesh)
    assert 0.7 < estimate / needed < 1.5


def devices(monkeypatch, *stats, platform="gpu"):
    """Puts devices with these memory statistics in the place of those of this process."""
    result = [types.SimpleNamespace(platform=platform, memory_stats=lambda s=s: s) for s in stats]
    monkeypatch.setattr(Mesh, "local_devices", property(lambda mesh: result))


@pytest.mark.parametrize(
    ("stats", "free"),
    [
        ([{"bytes_limit": 80, "bytes_in_use": 30}], 50),
        ([{"bytes_limit": 80, "bytes_in_use": 30}, {"bytes_limit": 90, "bytes_in_use": 45}], 45),
        ([{"bytes_limit": 80}, {"bytes_limit": 90, "bytes_in_use": 5}], 80),
        ([None, {"bytes_limit": 90, "bytes_in_use": 5}, {"bytes_in_use": 5}], 85),
        ([None, {}], 2**63 - 1),  # a device without a limit is unlimited
    ],
)
def test_the_free_memory_is_that_of_the_fullest_device(monkeypatch, stats, free):
    mesh = make_mesh(MeshConfig())
    devices(monkeypatch, *stats)
    assert memory.available(mesh) == free
    assert memory._sharers(mesh) == 1


@pytest.mark.parametrize(("machine", "container"), [(70, 90), (90, 70)])
def test_devices_of_a_cpu_share_the_memory_of_the_machine_or_its_container(
    monkeypatch, machine, container
):
    monkeypatch.setattr(memory, "_control_group_limit", lambda: container)
    memory_info = types.SimpleNamespace(available=machine)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: memory_info)
    assert memory.available(make_mesh(MeshConfig())) == 70


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 2**63 - 1),
        ({"memory.max": "max\n"}, 2**63 - 1),
        ({"memory.max": "4096\n"}, 4096),
        ({"memory/memory.limit_in_bytes": "8192\n"}, 8192),  # version 1
        ({"memory.max": "max\n", "memory/memory.limit_in_bytes": "8192\n"}, 8192),
        ({"memory.max": "4096\n", "memory/memory.limit_in_bytes": "8192\n"}, 4096),
    ],
)
def test_the_limit_of_a_container_is_read_from_its_control_group(
    tmp_path, monkeypatch, files, limit
):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    fake_pathlib = types.SimpleNamespace(Path={"/sys/fs/cgroup": tmp_path}.__getitem__)
    monkeypatch.setattr(memory, "pathlib", fake_pathlib)
    assert memory._control_group_limit() == limit


def test_needs_add_up_and_xla_may_need_seven_tenths_of_the_activations():
    needs = memory.Needs(100, 30, 11)
    assert (needs.total, needs.least) == (141, 138)  # 7.7 is rounded up
    assert memory.Needs(100, 30, 0).least == memory.Needs(100, 30, 0).total == 130


@pytest.mark.parametrize(
    ("state", "gradients", "copies", "advice"),
    [
        (60, 40, 0, "batch_size or raise"),  # it fits without activations
        (61, 40, 0, r"\(config.mesh.fsdp=2 or more, config.rules='fsdp'\)\.$"),
        (250, 70, 0, r"fsdp=4 or more, config.rules='fsdp'\), or config.optim.name='muon', which"),
        (245, 70, 0, r"fsdp=4 or more, config.rules='fsdp'\)\.$"),  # 3.5 times the gradients
        (
            61,
            40,
            1,
            r"'fsdp'\), or config.optim.sam_batch=0, which needs one copy of the parameters\.$",
        ),
        (61, 40, 2, "sam_batch=0, .*, or config.optim.sam_cached=True, which needs two.$"),
    ],
)
def test_advice_for_what_does_not_fit_into_100_bytes(state, gradients, copies, advice):
    needs = memory.Needs(state, gradients, 50)
    result = memory._advice(needs, 100, make_mesh(MeshConfig()), copies)
    assert re.search(advice, result) and result.endswith(".")
    twice = memory._advice(memory.Needs(300, 1, 0), 100, make_mesh(MeshConfig(fsdp=2)), copies)
    assert "fsdp=8 or more" in twice  # four times as many as now


def test_the_memory_is_called_that_of_each_device_where_it_is(monkeypatch):
    train_program = program(fsdp=8)
    assert "and this machine has" in check(train_program, batch_size=0)
    devices(monkeypatch, {"bytes_limit": 2**30}, {"bytes_limit": 2**30})
    assert check(train_program, batch_size=0).endswith("and each device has 1 GiB free")


@pytest.mark.parametrize(
    ("number", "text"), [(999_999, "999,999"), (10**6, "1 million"), (10**9, "1 billion")]
)
def test_counts_from_a_million_on_are_words(number, text):
    assert memory.count_text(number) == text
