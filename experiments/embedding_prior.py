r"""Prior between two embedding spaces: arrays x -> arrays y.

Paper: Ramesh et al. 2022, section 2.2, for any pair of spaces.
Run:   python -m unclip_jax.train --config=experiments/embedding_prior.py:small \
           --workdir=runs/mine --config.data.x=a.npy --config.data.y=b.npy
Cost:  small: minutes on 2 CPU cores. large: not measured; docs/plan.md has estimates.
Expect: cosine above cosine_ridge where the relation is not linear, equal to it where it is.
    autoregressive: by codes of principal components, as the paper's other prior.
    ridge and mlp: the baselines, trained by the same command.
Needs: arrays of embeddings, one row per pair (docs/your_embeddings.md).
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def large() -> ConfigDict:
    # Millions of pairs on accelerators.
    config = ConfigDict({"stage": "embedding_prior", "name": "embedding_prior", "size": "large"})
    config.rules = "fsdp"

    config.model = model = ConfigDict()
    model.drop_all = 0.1  # as captions are dropped in section 2.2
    model.scaling = "unit"
    model.model = net = ConfigDict()
    # Shapes are those of the data; these are for planning.
    net.conditions = ({"name": "x", "shape": (768,)},)
    net.target = (1024,)
    net.width = 1024
    net.depth = 12
    net.heads = 16
    net.vector_tokens = 4
    net.remat = "block"
    net.dtype = "bfloat16"
    model.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "cosine"  # Table 3
    diffusion.target = "x_0"  # section 2.2
    model.sampling = sampling = ConfigDict()
    sampling.steps = "64"  # Table 3
    sampling.sampler = "ancestral"

    config.data = data = ConfigDict()
    data.x, data.y = "x.npy", "y.npy"

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 1.1e-4  # Table 3
    optim.warmup_steps = 5000
    optim.b1 = 0.9
    optim.b2 = 0.96
    optim.eps = 1e-6
    optim.weight_decay = 6e-2
    optim.clip_norm = 1.0

    config.train = train = ConfigDict()
    train.steps = 300_000
    train.batch_size = 2048
    train.ema_decay = 0.9999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def small() -> ConfigDict:
    config = large()
    config.size = "small"
    net, optim, train = config.model.model, config.optim, config.train
    net.conditions, net.target = ({"name": "x", "shape": (512,)},), (768,)
    net.width, net.depth, net.heads, net.vector_tokens = 128, 3, 4, 1
    net.remat, net.dtype = "none", "float32"
    config.model.sampling.steps = "25"
    optim.learning_rate, optim.warmup_steps, optim.schedule = 2e-3, 50, "cosine"
    optim.weight_decay = 1e-2
    train.steps, train.batch_size, train.ema_decay = 1000, 128, 0.99
    train.eval_every = 500
    return config


def tiny() -> ConfigDict:
    config = small()
    config.size = "tiny"
    net, train = config.model.model, config.train
    net.conditions, net.target = ({"name": "x", "shape": (12,)},), (16,)
    net.width, net.depth, net.heads = 32, 2, 2
    config.model.sampling.steps = "8"
    train.steps, train.batch_size, train.eval_every = 60, 64, 30
    config.optim.warmup_steps = 5
    return config


def autoregressive() -> ConfigDict:
    config = small()
    config.size = config.model.method = "autoregressive"
    codec = config.model.model.codec = ConfigDict()
    codec.components, codec.explained_variance = 0, 0.9  # 319 of 1,024 in section 2.2
    codec.buckets = 64  # 1,024 in section 2.2, for millions of pairs
    config.optim.learning_rate = 1e-3
    return config


def mlp() -> ConfigDict:
    config = small()
    config.size = config.model.method = "mlp"
    net = config.model.model
    net.width, net.depth = 128, 2  # 512 hidden units
    return config


def ridge() -> ConfigDict:
    config = small()
    config.size = config.model.method = "ridge"
    config.train.steps, config.optim.warmup_steps = 1, 0  # everything is fitted before
    return config


SIZES = {
    "large": large,
    "small": small,
    "tiny": tiny,
    "autoregressive": autoregressive,
    "mlp": mlp,
    "ridge": ridge,
}


def get_config(size: str = "small") -> ConfigDict:
    return SIZES[one_of("size of experiments/embedding_prior.py", size, SIZES)]()
