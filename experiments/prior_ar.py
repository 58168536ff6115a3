r"""Autoregressive prior: caption -> CLIP image embedding, as codes of its principal components.

Paper: Ramesh et al. 2022, section 2.2 and Table 3.
Run:   python -m unclip_jax.train --config=experiments/prior_ar.py:shapes \
           --workdir=runs/shapes/prior_ar
Cost:  shapes: about 6 minutes on 2 CPU cores. paper: 1M steps at batch 4,096.
Expect: loss starts at ln(buckets) and falls first in loss_000_..., the largest components;
       drawn_cosine_image well above drawn_cosine_unrelated after a few hundred steps.
Needs: embeddings of the data under a trained CLIP (python -m unclip_jax.embed).
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict({"stage": "prior_ar", "name": "prior_ar", "size": "paper", "rules": "fsdp"})

    config.model = model = ConfigDict()
    model.drop_text = 0.1  # section 2.2
    model.num_candidates = 1  # the dot token asks for a good match instead
    model.model = net = ConfigDict()
    net.embed_dim = 1024
    net.width = 1664  # Table 3, latent decoder
    net.depth = 24
    net.heads = 26
    net.latent_context = 384
    net.text_width = 2048  # Table 3, text encoder
    net.text_depth = 24
    net.text_heads = 32
    net.context = 256
    net.vocab_size = 49408
    net.remat = "block"
    net.dtype = "bfloat16"
    net.codec = codec = ConfigDict()
    codec.components = 319  # section 2.2; with another CLIP: 0, and explained_variance below
    codec.explained_variance = 0.0
    codec.buckets = 1024  # section 2.2
    codec.dot_buckets = 1024  # ours; the paper is silent
    model.sampling = sampling = ConfigDict()
    sampling.dot_percentile = 50.0  # section 2.2, the best of 50, 70, 85 and 95
    sampling.guidance_scale = 1.0  # the paper gives no value
    sampling.temperature = 1.0
    sampling.top_p = 1.0

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.embeddings = "data/embeddings"
    data.load_size = 256

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 1.6e-4  # Table 3
    optim.warmup_steps = 5000  # ours; the paper is silent
    optim.schedule = "constant"
    optim.b1 = 0.9
    optim.b2 = 0.91
    optim.eps = 1e-10
    optim.weight_decay = 4e-2
    optim.clip_norm = 1.0  # ours

    config.train = train = ConfigDict()
    train.steps = 1_000_000  # Table 3
    train.batch_size = 4096
    train.ema_decay = 0.999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    return _miniature("shapes")


def shapes_long() -> ConfigDict:
    config = shapes()
    config.size = "shapes_long"
    config.train.steps, config.train.eval_every = 3000, 500
    return config


def portraits() -> ConfigDict:
    config = _miniature("portraits")
    config.model.model.context = 40
    return config


def portraits_long() -> ConfigDict:
    config = portraits()
    config.size = "portraits_long"
    config.train.steps, config.train.eval_every = 4000, 1000
    return config


def emoji() -> ConfigDict:
    config = _miniature("emoji")
    net = config.model.model
    net.context, net.vocab_size = 32, 2048
    return config


def tiny() -> ConfigDict:
    config = _small("tiny")
    net, optim, train = config.model.model, config.optim, config.train
    codec = net.codec
    net.embed_dim = 32
    net.width, net.depth, net.heads, net.latent_context = 64, 2, 2, 17
    net.text_width, net.text_depth, net.text_heads = 64, 1, 2
    codec.components, codec.buckets, codec.dot_buckets = 16, 32, 16
    config.data.load_size = 32
    optim.learning_rate, optim.warmup_steps = 2e-3, 10
    train.steps, train.batch_size, train.ema_decay = 200, 128, 0.98
    train.eval_every = 100
    return config


def _miniature(size: str) -> ConfigDict:
    config = _small(size)
    net, optim, train = config.model.model, config.optim, config.train
    codec = net.codec
    net.embed_dim = 128
    net.width, net.depth, net.heads, net.latent_context = 128, 3, 4, 129
    net.text_width, net.text_depth, net.text_heads = 128, 2, 4
    codec.components, codec.explained_variance = 0, 0.995  # 24 of 128
    codec.buckets, codec.dot_buckets = 256, 256  # about a hundred examples each
    config.data.load_size = 64
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.schedule, optim.weight_decay = 50, "cosine", 1e-2
    train.steps, train.batch_size, train.ema_decay = 1000, 128, 0.99
    train.eval_every = 200
    return config


def _small(size: str) -> ConfigDict:
    config = paper()
    config.size = size
    net, data, optim = config.model.model, config.data, config.optim
    net.context, net.vocab_size = 24, 1024
    net.remat, net.dtype = "none", "float32"
    data.path, data.embeddings = f"runs/{size}/data", f"runs/{size}/embeddings"
    optim.b2, optim.eps = 0.96, 1e-8  # b2 = 0.91 is for a million steps
    return config


SIZES = {
    "paper": paper,
    "shapes": shapes,
    "shapes_long": shapes_long,
    "portraits": portraits,
    "portraits_long": portraits_long,
    "emoji": emoji,
    "tiny": tiny,
}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/prior_ar.py", size, SIZES)]()
