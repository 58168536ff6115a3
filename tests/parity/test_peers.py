"""The peers that benchmarks compare with: for Karlo's options they are the same networks."""

import jax
import pytest

from tests.stages import tiny
from unclip_jax.experiment import loading

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from benchmarks import baselines, diffusers_side  # noqa: E402

STATISTICS = 2  # rows that PriorTransformer counts among its parameters
NAMES = ("prior", "decoder", "upsampler_256")


def task(name, what):
    overrides = ["--config.optim.name=adamw", "--config.model.sampling.steps=2"]
    overrides += ["--config.model.last_step=False"] if name == "upsampler_256" else []
    experiment = loading.read(f"experiments/{name}.py:karlo", overrides=overrides)
    return experiment, baselines.task("diffusers", experiment, what=what, batch=2)


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_have_the_same_parameters(name):
    experiment, case = task(name, "train")
    model = diffusers_side.CLASSES[case["settings"]["_class_name"]](case)
    theirs = sum(p.numel() for p in model.parameters())
    params = tiny.jax.eval_shape(experiment.build_stage().init, jax.random.key(0))
    ours = sum(x.size for x in jax.tree.leaves(params))
    if name == "prior":
        theirs -= STATISTICS * experiment.model.model.embed_dim
    if name == "decoder":
        ours -= extras(params)
    assert ours == theirs


def extras(params):
    """Returns the parts before the decoder's network beyond its three projections: null, norm."""
    names = ("null_z", "text_norm")
    return sum(x.size for name in names for x in jax.tree.leaves(params.get(name, ())))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains_and_its_average_follows(name):
    _, case = task(name, "train")
    torch.manual_seed(0)
    model = diffusers_side.CLASSES[case["settings"]["_class_name"]](case)
    before = [p.detach().clone() for p in model.parameters()]
    step, _ = diffusers_side.train(model, case, "contiguous_format")
    assert torch.isfinite(torch.tensor([step(), step()])).all()
    changes = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changes) > 0.9 * len(changes)


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_calls_the_network_once_per_step(name):
    _, case = task(name, "sample")
    model = diffusers_side.CLASSES[case["settings"]["_class_name"]](case)
    rows = []
    model.net.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    chain, _ = diffusers_side.sample(model, case, "contiguous_format")
    chain()
    assert rows == 2 * [case["batch"] * (2 if case["guided"] else 1)]
