"""The benchmarks of speed as a user calls them, and their mistakes."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from benchmarks import baselines, compare, interleaved, loader, speed, unclip_side
from tests.stages import tiny
from unclip_jax import prepare
from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import loading
from unclip_jax.parallel.mesh import MeshConfig, make_mesh

PRIOR = "--config=experiments/prior.py:tiny"
ADAMW = "--config.optim.name=adamw"


@pytest.mark.slow
def test_a_step_is_measured_and_its_figures_follow_from_each_other(tmp_path, capsys):
    out = tmp_path / "step.json"
    small = ["--config.model.model.depth=1", "--config.train.batch_size=32"]
    compare.run("train", [PRIOR, *small, "--rounds=3", "--count=1", f"--json={out}"])
    result = json.loads(out.read_text())
    actual = result["ours"]
    took = actual["seconds"]
    assert 0 < took["least"] <= took["median"] <= took["greatest"]
    assert actual["examples_per_second"] == pytest.approx(32 / took["median"])
    assert actual["mfu"] == pytest.approx(
        actual["model_flops"] / took["median"] / actual["peak_flops"]
    )
    assert 0 < actual["mfu"] < 1  # no step is faster than its matrix products
    experiment = loading.read("experiments/prior.py:tiny", overrides=small)
    assert actual["parameters"] == sum(
        x.size for x in tiny.jax.tree.leaves(tiny.abstract(experiment.build_stage()))
    )
    sizes = actual["compiled_memory"]
    assert sizes["arguments"] > 16 * actual["parameters"]  # float32: values, average, two moments
    assert actual["peak_memory"] > sizes["arguments"] + sizes["temporary"]
    assert "peer" not in result
    assert "examples/s" in capsys.readouterr().out


@pytest.mark.slow
def test_a_chain_is_measured(tmp_path):
    out = tmp_path / "chain.json"
    small = ["--config.model.model.depth=1", "--config.model.sampling.steps=2"]
    compare.run("sample", [PRIOR, *small, "--batch=2", "--rounds=1", "--count=1", f"--json={out}"])
    actual = json.loads(out.read_text())["ours"]
    assert actual["examples"] == 2 and actual["examples_per_second"] > 0


@pytest.mark.parametrize(("small", "large"), [(0.04, 2), (0.06, 1)])
def test_the_peak_is_looked_for_up_to_the_size_of_a_long_product(monkeypatch, small, large):
    sides = []

    def time_once(once):
        side = once.keywords["w"].shape[0]
        sides.append(side)
        return interleaved.Duration(small * (side / 8) ** 3 / 2 ** (side > 8), 0.0)

    monkeypatch.setattr(unclip_side, "MATMUL_SIDES", (8, 16))
    monkeypatch.setattr(interleaved, "timed", time_once)
    mesh = make_mesh(MeshConfig())
    rate = 2 * (8 * jax.device_count()) * 8**2 / small
    actual = unclip_side.peak(mesh, dtype="float32", times=2)
    assert sides == [8, 8, 16, 16][: 2 * large]
    assert actual == pytest.approx(large * rate)  # the large product has twice the rate


def test_random_batches_satisfy_the_stage():
    for name in ("clip", "prior", "decoder", "upsampler_256"):
        spec = tiny.experiment(name).build_stage().batch_spec
        batches.check(spec, unclip_side.random_batch(spec, 3))


@pytest.mark.parametrize(
    ("what", "arguments", "message"),
    [
        ("train", [PRIOR, "--peer=keras"], "unknown --peer 'keras'. Known: dalle2, diffusers"),
        ("train", [PRIOR, "--rounds=0"], "--rounds is 0; it must be greater than 0"),
        ("train", [PRIOR, "--depth=3"], "unknown argument '--depth=3'; overrides begin with"),
        ("sample", [PRIOR, "--batch=0"], "--batch is 0; it must be greater than 0"),
        ("sample", ["--config=experiments/clip.py:tiny"], "stage 'clip' generates nothing"),
        (
            "train",
            ["--config=experiments/clip.py:tiny", "--peer=diffusers"],
            "diffusers has no network like stage 'clip'; leave out --peer",
        ),
        (
            "train",
            ["--config=experiments/prior.py:shapes", "--peer=diffusers"],
            "trains with AdamW, this experiment with 'muon'; add --config.optim.name=adamw",
        ),
        (
            "train",
            ["--config=experiments/upsampler_256.py:tiny", "--peer=dalle2"],
            "dalle2 has no network like stage 'upsampler'; .* one of: prior, decoder",
        ),
        ("sample", [PRIOR, "--peer=dalle2"], "dalle2 is compared only in training"),
        (
            "train",
            [PRIOR, "--peer=dalle2"],
            "this one 64 with embeddings of 32; add --config.model.model.width=32",
        ),
        (
            "train",
            ["--config=embedding_prior:tiny", "--peer=dalle2"],
            "dalle2's prior reads one vector as one token, as wide as the target and the network",
        ),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(monkeypatch, what, arguments, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=message):
        compare.run(what, arguments)


def test_a_peer_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torch, .*pip install 'unclip_jax\[parity\]'"):
        baselines.check("diffusers", tiny.experiment("prior"), what="train")
    with pytest.raises(UserError, match="needs torch, .*pip install dalle2-pytorch`"):
        baselines.check("dalle2", tiny.experiment("prior"), what="train")


@pytest.mark.parametrize(
    ("name", "what", "settings"),
    [
        ("prior", "train", {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 3}),
        ("decoder", "sample", {"block_out_channels": [48, 96], "layers_per_block": 1}),
        ("upsampler_256", "train", {"block_out_channels": [32, 32, 64], "in_channels": 6}),
    ],
)
def test_the_peer_has_the_experiment_s_shapes(name, what, settings):
    experiment = loading.read(f"experiments/{name}.py:shapes", overrides=[ADAMW])
    task = baselines.task("diffusers", experiment, what=what, batch=6)
    assert settings.items() <= task["settings"].items()
    twice = 2 if name == "prior" and what == "sample" else 1
    assert task["batch"] == 6 * twice
    assert task["steps"] == int(experiment.model.sampling.steps)
    assert task["guided"] == (experiment.model.sampling.guidance_scale != 1.0)
    assert json.loads(json.dumps(task))["settings"].keys() == task["settings"].keys()


def test_dalle2_gets_the_experiment_s_shapes():
    task = {}
    net = "--config.model.model"
    alike = [f"{net}.target=(12,)", f"{net}.width=12", f"{net}.ridge=False"]
    for name, size, overrides in (
        ("prior", "shapes", []),
        ("decoder", "shapes", []),
        ("embedding_prior", "tiny", alike),
    ):
        experiment = loading.read(f"{name}:{size}", overrides=[ADAMW, *overrides])
        task[name] = baselines.task("dalle2", experiment, what="train", batch=6)["settings"]
    assert task["prior"] == {
        "dim": 128,
        "depth": 3,
        "heads": 4,
        "dim_head": 32,
        "max_text_len": 24,
    }
    sizes = {"dim": 12, "depth": 2, "heads": 2, "dim_head": 6, "max_text_len": 0}
    assert task["embedding_prior"] == sizes
    assert (task["decoder"]["dim"], task["decoder"]["dim_mults"]) == (48, (1, 2))
    assert task["decoder"]["self_attn"] == [False, True]  # at 8 of 16 and 8 pixels


def test_every_row_of_the_page_is_a_command_that_is_understood(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    modules = {"benchmarks.train_step": "train", "benchmarks.sample": "sample"}
    names = set()
    for row in speed.rows():
        names.add(row.name)
        if row.module == "benchmarks.loader":
            args, overrides = loader.parse(row.arguments)
        else:
            args, overrides = compare.parse(modules[row.module], row.arguments)
        experiment = loading.read(args.config, overrides=overrides)
        if getattr(args, "peer", ""):
            baselines.check(args.peer, experiment, what=modules[row.module])
            task = baselines.task(args.peer, experiment, what=modules[row.module], batch=2)
            assert json.dumps(task)
    assert len(names) == len(speed.rows())


def measurement(**changes):
    spread = {"median": 0.5, "least": 0.25, "greatest": 1.0}
    memory = {"arguments": 2**29, "temporary": 2**29}
    ours = {"parameters": 1234, "examples": 8, "seconds": spread, "examples_per_second": 16.0}
    ours |= {"flops_per_second": 2e9, "mfu": 0.25, "compiled_memory": memory, "peak_memory": 2**31}
    return {"ours": ours, **changes}


def test_the_page_shows_ratios_and_what_was_not_measured():
    spread = {"median": 2.0, "least": 1.5, "greatest": 3.0}
    peer = {"peer": {"over_ours": {"wall": spread, "cpu": {**spread, "median": 1.75}}}}
    wait = {"waited_seconds": 0.01, "step_seconds": 0.1}
    load = {"experiment": "clip", "step_examples_per_second": 640.0, "waiting": wait}
    load["loader"] = [{"workers": 2, "decoding": 1280.0, "cached": 9000.0}]
    actual = {"train prior karlo": measurement(**peer), "train clip shapes": measurement()}
    page = speed.tables({**actual, "load clip shapes": load})
    assert "| train prior karlo | 1,234 | 8 | 0.5 [0.25, 1] | 16 | 2 | 25 | 1.00, 2.00 |" in page
    assert "| 2 [1.5, 3] | 1.75 [1.5, 3] |" in page
    assert "| clip | 640 | 2: 1,280 (9,000) | 10.0 % |" in page
    assert "Not measured: train decoder karlo, " in page


def test_a_row_that_fails_does_not_cost_the_others(tmp_path, monkeypatch):
    def measure(row):
        if "decoder" in row.name:
            raise UserError("it was killed")
        return measurement()

    monkeypatch.setattr(speed, "measure", measure)
    out = tmp_path / "speed.md"
    with pytest.raises(UserError, match="1 rows could not be measured: it was killed"):
        speed.main([f"--out={out}", "--only=train decoder karlo"])
    with pytest.raises(UserError, match="it was killed"):
        speed.main([f"--out={out}", "--only=train"])
    actual = json.loads(out.with_suffix(".json").read_text())
    assert "train prior karlo" in actual and "train upsampler_256 medium" in actual
    assert actual["train prior karlo"]["command"].startswith("python -m benchmarks.train_step")
    monkeypatch.setattr(speed, "measure", lambda row: 1 / 0)
    speed.main([f"--out={out}", "--only=train prior karlo"])  # it is there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=paper"], "--only is 'paper'; it must be part of one of: train prior karlo"),
        (["--out=table.txt"], "--out is 'table.txt'; give a name that ends in .md"),
    ],
)
def test_mistakes_about_the_page_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        speed.main(arguments)


def test_a_patched_unet_has_a_peer_whose_levels_have_its_sides():
    unet = loading.read("experiments/decoder.py:emoji").model.model.unet
    plain = baselines.plain(unet)
    assert (unet.image_size, unet.patch) == (64, 4)
    assert (plain.image_size, plain.patch, plain.in_channels) == (16, 1, 48)
    assert plain.channels == unet.channels and plain.attention_at == unet.attention_at


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("data") / "shapes"
    arguments = ["shapes:train=64,validation=8,compositional=8", f"--out={out}", "--image-size=32"]
    prepare.main(arguments)
    return out


CLIP = "--config=experiments/clip.py:tiny"
SHALLOW = ["--config.model.model.image_depth=1", "--config.model.model.text_depth=1"]


@pytest.mark.slow
def test_the_loader_is_measured_beside_the_step(data, tmp_path, capsys):
    out = tmp_path / "loader.json"
    arguments = [CLIP, *SHALLOW, f"--config.data.path={data}", "--config.train.batch_size=16"]
    loader.main([*arguments, "--workers=0,1", "--seconds=0.2", "--steps=2", f"--json={out}"])
    actual = json.loads(out.read_text())
    assert [row["workers"] for row in actual["loader"]] == [0, 1]
    assert all(row["decoding"] > 0 and row["cached"] > 0 for row in actual["loader"])
    wait = actual["waiting"]
    assert 0 <= wait["waited_seconds"] < wait["step_seconds"]
    assert "the step waits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--workers=many", "--workers is 'many'; give numbers such as 0,1,2,4"),
        ("--seconds=0", "--seconds is 0.0; it must be greater than 0"),
        ("--steps=0", "--steps is 0; it must be greater than 0"),
        ("--worker=1", "unknown argument '--worker=1'; overrides begin with"),
    ],
)
def test_mistakes_about_the_loader_are_one_line(argument, message):
    with pytest.raises(UserError, match=message):
        loader.main([CLIP, argument])


def test_an_epoch_counts_every_example_once(data):
    overrides = [f"--config.data.path={data}", "--config.train.batch_size=12"]
    experiment = loading.read("experiments/upsampler_256.py:tiny", overrides=overrides)
    data_loader = loader.open_loader(experiment, 0, cache_mb=0)
    assert loader.epoch(data_loader, experiment) == int(np.ceil(64 / 12))
    data_loader.close()
