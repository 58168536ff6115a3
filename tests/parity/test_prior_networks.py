"""Priors of DALLE2-pytorch and MindEye2 give the same outputs here, on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.parity import prior_networks
from tests.parity.prior_networks import torch
from unclip_jax.convert import __main__ as command
from unclip_jax.convert import dalle2_pytorch
from unclip_jax.core.checks import UserError
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel
from unclip_jax.stages import embedding_prior, pair_inputs

DIM, LENGTH, SIZE = 40, 5, 4
DALLE2 = [
    {"num_timesteps": 50, "max_text_len": 6},
    {"num_timesteps": None, "max_text_len": 6, "num_time_embeds": 2, "num_text_embeds": 3},
    {"num_timesteps": 50, "max_text_len": 6, "num_image_embeds": 2, "normformer": True},
    {"num_timesteps": 50, "max_text_len": 40, "norm_in": True, "ff_mult": 2},  # far distances
    {"num_timesteps": 50, "max_text_len": 6, "norm_out": False, "final_proj": False},
]
MINDEYE = [
    {"num_timesteps": 20, "learned_query_mode": "pos_emb"},
    {"num_timesteps": None, "learned_query_mode": "all_pos_emb"},
    {"num_timesteps": 20, "learned_query_mode": "none"},
]
NETWORK = {"depth": 2, "heads": 3, "dim_head": 36}


def perturb(network):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise)
    return network.eval()


def save(network, path, prefix=""):
    state = {f"{prefix}{name}": t.numpy() for name, t in network.state_dict().items()}
    safetensors.numpy.save_file(state, path)
    return path


def ours(path, x_t, t, conditions, keep):
    prior = dalle2_pytorch.read(path)

    @jax.jit
    def run(params, x_t, t, conditions, keep):
        inputs = pair_inputs.read(prior.cfg, params, conditions, size=SIZE)
        inputs = inputs._replace(keep=keep[:, None] & inputs.keep)
        return embedding_prior.output(prior.cfg, params, x_t, t, inputs)

    return run(*jax.tree.map(jnp.asarray, (prior.params(), x_t, t, conditions, keep)))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


T = np.array([0, 3, 11, 19], np.int32)
KEEP = np.array([True, True, False, True])


@pytest.mark.parametrize("options", DALLE2)
def test_dalle2_pytorch(options, tmp_path):
    torch.manual_seed(1)
    network = perturb(prior_networks.DiffusionPriorNetwork(DIM, **NETWORK, **options))
    x_t, text = random(SIZE, DIM, seed=1), random(SIZE, DIM, seed=2)
    context = options["max_text_len"]
    features = random(SIZE, context, DIM, seed=3)
    real = np.arange(context)[None] < np.array([[context], [3], [2], [1]])
    features = np.where(real[..., None], features, 0.0).astype(np.float32)
    arrays = [torch.from_numpy(a) for a in (x_t, T, text, features, KEEP)]
    with torch.no_grad():
        expected = network(*arrays).numpy()
    conditions = {"text_embed": text, "text_encodings": features, "text_encodings_mask": real}
    out = ours(save(network, tmp_path / "a.safetensors"), x_t, T, conditions, KEEP)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("options", MINDEYE)
def test_mindeye2(options, tmp_path):
    torch.manual_seed(1)
    options = {**options, "causal": False, "num_tokens": LENGTH}
    network = perturb(prior_networks.PriorNetwork(DIM, **NETWORK, **options))
    x_t, brain = random(SIZE, LENGTH, DIM, seed=1), random(SIZE, LENGTH, DIM, seed=2)
    arrays = [torch.from_numpy(a) for a in (x_t, T, brain, KEEP)]
    with torch.no_grad():
        expected = network(*arrays).numpy()
    path = save(network, tmp_path / "a.safetensors", prefix="net.")
    out = ours(path, x_t, T, {"x": brain}, KEEP)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_the_command_writes_an_export_that_samples(tmp_path, capsys):
    torch.manual_seed(1)
    options = {"num_timesteps": 50, "max_text_len": 6}
    network = perturb(prior_networks.DiffusionPriorNetwork(DIM, **NETWORK, **options))
    path = save(network, tmp_path / "theirs.safetensors", prefix="net.")
    command.main([str(path), f"--out={tmp_path}/run", "--licence=MIT"])
    assert "wrote" in capsys.readouterr().out
    prior = EmbeddingPriorModel.open(tmp_path / "run" / "embedding_prior")
    assert prior.manifest.licence == "MIT" and prior.manifest.embedding == "unit"
    assert prior.cfg.diffusion.num_timesteps == 50
    rows = {"text_embed": random(2, DIM), "text_encodings": random(2, 6, DIM)}
    samples = prior.sample(rows, steps="3", guidance=2.0)
    assert samples.shape == (2, 1, DIM)
    np.testing.assert_allclose(np.linalg.norm(samples, axis=-1), 1.0, rtol=1e-5)
    with pytest.raises(UserError, match="run has embedding_prior already"):
        command.main([str(path), f"--out={tmp_path}/run"])


def test_latents_are_scaled_as_there(tmp_path):
    network = prior_networks.PriorNetwork(DIM, **NETWORK, num_timesteps=20, num_tokens=LENGTH)
    prior = dalle2_pytorch.read(save(network, tmp_path / "a.safetensors"))
    y = random(2, LENGTH, DIM)
    latent = pair_inputs.to_latent(prior.cfg, prior.params(), jnp.asarray(y))
    np.testing.assert_allclose(latent, y * DIM**0.5, rtol=1e-5)


def test_rates_of_rotary_positions_are_constants(tmp_path):
    network = prior_networks.PriorNetwork(DIM, **NETWORK, num_timesteps=20, num_tokens=LENGTH)
    state = {name: t.numpy() for name, t in network.state_dict().items()}
    name = "causal_transformer.layers.0.0.rotary_emb.freqs"
    rates = (10000.0 ** (-np.arange(16) / 16)).astype(np.float32)
    safetensors.numpy.save_file({**state, name: rates}, tmp_path / "a.safetensors")
    assert name not in dalle2_pytorch.read(tmp_path / "a.safetensors").source.shapes
    safetensors.numpy.save_file({**state, name: rates * 2}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="has learned .*rotary_emb.freqs, which is not supported"):
        dalle2_pytorch.read(tmp_path / "b.safetensors")


def test_a_tensor_that_does_not_fit_is_named(tmp_path):
    network = prior_networks.PriorNetwork(DIM, **NETWORK, num_timesteps=20, num_tokens=LENGTH)
    network.extra = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(UserError, match=r"does not fit .* in 1 tensors: extra extra \(2,\)"):
        dalle2_pytorch.read(save(network, tmp_path / "a.safetensors")).params()
