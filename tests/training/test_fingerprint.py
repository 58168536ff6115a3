import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import processes
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.training.fingerprint import FILE, checksum, claim, describe_tree, digest, release

IDENTITY = {"stage": "prior", "model": {"width": 64, "heads": [1, 2]}, "seed": 0}


def tree():
    rng = np.random.default_rng(0)
    return {
        "w": jnp.asarray(rng.standard_normal((8, 6)), jnp.float32),
        "half": jnp.asarray(rng.standard_normal((4, 3)), jnp.bfloat16),
        "n": jnp.int32(7),
        "on": jnp.array([True, False]),
        "byte": jnp.arange(5, dtype=jnp.uint8),
    }


def reference(tree) -> int:
    """The checksum as its docstring defines it."""
    total = 0
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        x = np.asarray(leaf).reshape(-1)
        if x.dtype == bool:
            words = x.astype(int)
        else:
            words = x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])
        part = sum(int(word) * (2 * position + 1) for position, word in enumerate(words))
        total += (2 * index + 1) * part
    return total % 2**32


def test_checksum_is_its_definition():
    assert checksum(tree()) == reference(tree())


def test_every_single_bit_counts():
    whole = checksum(tree())
    x = np.asarray(tree()["w"])
    for bit in (0, 17, 31):
        for place in (0, 20, 47):
            words = x.copy().view(np.uint32)
            words.reshape(-1)[place] ^= np.uint32(1 << bit)
            other = {**tree(), "w": jnp.asarray(words.view(np.float32))}
            assert checksum(other) != whole


def test_the_order_of_values_counts():
    other = {**tree(), "w": tree()["w"][::-1]}
    assert checksum(other) != checksum(tree())


@pytest.mark.parametrize("config", [MeshConfig(fsdp=8), MeshConfig(fsdp=2, tensor=2)])
def test_the_checksum_does_not_depend_on_sharding(config: MeshConfig):
    mesh = make_mesh(config)
    split = jax.device_put(tree()["w"], NamedSharding(mesh, P("fsdp", "tensor")))
    assert checksum({**tree(), "w": split}) == checksum(tree())


MANY = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.training.fingerprint import checksum
where = NamedSharding(make_mesh(MeshConfig(data=2, fsdp=4)), P("fsdp"))
tree = [jax.device_put(np.full((64, 512), i, np.float32), where) for i in range(200)]
print(checksum(tree), checksum([np.asarray(x) for x in tree]))
"""


@pytest.mark.slow
def test_more_split_arrays_than_programs_may_be_in_flight_do_not_stop_each_other():
    # Eight devices of one CPU wait for each other, and 32 programs may begin on each: without a
    # bound on both the process hangs and is aborted.
    ((status, stdout, stderr),) = processes.outcome([processes.start(["-c", MANY], devices=8)])
    assert status == 0, stderr[-1500:]
    split, whole = stdout.split()
    assert split == whole


def test_a_tree_is_described_by_path():
    assert describe_tree({"a": {"b": jnp.zeros((2, 3))}}) == {"a/b": "float32[2, 3]"}


def test_a_claimed_workdir_accepts_the_same_run(tmp_path: pathlib.Path):
    claim(tmp_path / "new", IDENTITY)
    stored = json.loads((tmp_path / "new" / FILE).read_text())
    assert stored == {"hash": digest(IDENTITY), "identity": IDENTITY}
    claim(tmp_path / "new", {**IDENTITY, "model": {"heads": (1, 2), "width": 64}})


def test_fingerprints_with_sampling_options_are_accepted(tmp_path: pathlib.Path):
    identity = {**IDENTITY, "model": {**IDENTITY["model"], "sampling": {"steps": "25"}}}
    claim(tmp_path, identity)
    claim(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**IDENTITY, "seed": 1}, r"another experiment: its seed is 0, this one.s 1"),
        (
            {**IDENTITY, "model": {"width": 32}},
            r"its model.heads is \[1, 2\], this one.s \"absent\"",
        ),
        ({**IDENTITY, "stage": "clip"}, r"its stage is \"prior\", this one.s \"clip\""),
    ],
)
def test_another_experiment_is_rejected_by_name(tmp_path: pathlib.Path, other: dict, message: str):
    claim(tmp_path, IDENTITY)
    with pytest.raises(UserError, match=message):
        claim(tmp_path, other)
    claim(tmp_path, IDENTITY)  # and nothing was overwritten


INPUTS = {"data": "d" * 64, "tokenizer": "t" * 64, "embeddings": "c" * 64, "init_from": "i" * 64}
WORDS = {
    "data": "the digest of the training records",
    "tokenizer": "the hash of the tokenizer",
    "embeddings": "the CLIP that computed the embeddings",
    "init_from": "the digest of the export named by config.init_from",
}


@pytest.mark.parametrize("name", INPUTS)
def test_other_inputs_are_rejected_in_words(tmp_path: pathlib.Path, name: str):
    claim(tmp_path, {**IDENTITY, "inputs": INPUTS})
    with pytest.raises(
        UserError, match=f"run on other inputs: {WORDS[name]} is .* xxxxxxxxxxxx no"
    ):
        claim(tmp_path, {**IDENTITY, "inputs": {**INPUTS, name: "x" * 64}})
    with pytest.raises(UserError, match="run on other inputs"):
        claim(tmp_path, {**IDENTITY, "inputs": dict.fromkeys(INPUTS, "x" * 64)})
    claim(tmp_path, {**IDENTITY, "inputs": INPUTS})


@pytest.mark.parametrize(
    ("name", "before", "now", "message"),
    [
        ("data", f"{'a' * 64} + {'b' * 64}", f"{'a' * 64} + {'c' * 64}", r"a{12} \+ c{12} now"),
        ("embeddings", "e" * 64, f"{'e' * 64} raw", "e{12} there, e{12} raw now"),
    ],
)
def test_inputs_of_several_parts_are_shortened_part_by_part(tmp_path, name, before, now, message):
    claim(tmp_path, {**IDENTITY, "inputs": {**INPUTS, name: before}})
    with pytest.raises(UserError, match=message):
        claim(tmp_path, {**IDENTITY, "inputs": {**INPUTS, name: now}})


def test_a_run_that_knew_its_inputs_by_paths_is_continued_and_then_knows_their_content(
    tmp_path: pathlib.Path,
):
    earlier = {**IDENTITY, "data": {"path": "runs/data"}}
    now = {**IDENTITY, "inputs": INPUTS}
    claim(tmp_path, earlier)
    elsewhere = {**earlier, "data": {"path": "elsewhere"}}
    with pytest.raises(UserError, match="its data.path is .*runs/data.*, this one's .*elsewhere"):
        claim(tmp_path, now, earlier=elsewhere)
    claim(tmp_path, now, earlier=earlier)
    claim(tmp_path, now, earlier=elsewhere)  # from now on, content counts
    with pytest.raises(UserError, match="run on other inputs"):
        claim(tmp_path, {**now, "inputs": {**INPUTS, "data": "x" * 64}}, earlier=earlier)


def test_a_claim_is_cancelled_by_the_first_process_alone(tmp_path: pathlib.Path, monkeypatch):
    assert claim(tmp_path, IDENTITY) and not claim(tmp_path, IDENTITY)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_index", lambda: 1)
        release(tmp_path)
    assert (tmp_path / FILE).exists()
    release(tmp_path)
    release(tmp_path)  # of a folder that nobody claimed
    assert claim(tmp_path, {**IDENTITY, "seed": 1})


def test_only_the_first_process_writes_a_claim(tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert claim(tmp_path / "run", IDENTITY)
    assert not (tmp_path / "run" / FILE).exists() and (tmp_path / "run").is_dir()


def test_a_damaged_fingerprint_is_rejected(tmp_path: pathlib.Path):
    (tmp_path / FILE).write_text('{"identity": {"na')
    with pytest.raises(UserError, match=r"fingerprint.json is damaged"):
        claim(tmp_path, IDENTITY)


def test_checkpoints_without_a_fingerprint_are_rejected(tmp_path: pathlib.Path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints but no fingerprint.json"):
        claim(tmp_path, IDENTITY)


def test_a_workdir_that_cannot_be_written_is_rejected(tmp_path: pathlib.Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the workdir .*: Not a directory"):
        claim(tmp_path / "file" / "run", IDENTITY)
