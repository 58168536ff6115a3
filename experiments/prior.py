r"""Diffusion prior: caption -> CLIP image embedding.

Paper: Ramesh et al. 2022, section 2.2 and Table 3.
Run:   python -m unclip_jax.train --config=experiments/prior.py:shapes \
           --workdir=runs/shapes/prior
Cost:  shapes: about 3 minutes on 2 CPU cores. paper: 600K steps at batch 4,096.
Expect: cosine_image well above cosine_unrelated within the first hundred steps, then slow growth.
    portraits: about 0.8 CPU seconds a step.
    karlo: the miniature as diffusers can draw it (docs/weights.md); not tuned, cost not measured.
Needs: embeddings of the data under a trained CLIP (python -m unclip_jax.embed).
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict({"stage": "prior", "name": "prior", "size": "paper", "rules": "fsdp"})

    config.model = model = ConfigDict()
    model.drop_text = 0.1  # section 2.2
    model.num_candidates = 2  # section 2.2
    model.model = net = ConfigDict()
    net.embed_dim = 1024
    net.width = 2048  # Table 3
    net.depth = 24
    net.heads = 32
    net.context = 256
    net.vocab_size = 49408
    net.remat = "block"
    net.dtype = "bfloat16"
    model.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "cosine"  # Table 3
    diffusion.num_timesteps = 1000
    diffusion.target = "x_0"  # section 2.2
    model.sampling = sampling = ConfigDict()
    sampling.steps = "64"  # Table 3
    sampling.sampler = "ancestral"
    # Table 3 says analytic; training measures it at its end (python -m unclip_jax.analytic)
    sampling.variance = "table"
    sampling.guidance_scale = 1.0  # the paper gives no value

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.embeddings = "data/embeddings"
    data.load_size = 256

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 1.1e-4  # Table 3
    optim.warmup_steps = 5000  # ours; the paper is silent
    optim.schedule = "constant"
    optim.b1 = 0.9
    optim.b2 = 0.96
    optim.eps = 1e-6
    optim.weight_decay = 6e-2
    optim.clip_norm = 1.0  # ours

    config.train = train = ConfigDict()
    train.steps = 600_000  # Table 3
    train.batch_size = 4096
    train.ema_decay = 0.9999

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
    config.train.batch_size = 64
    return config


def portraits_long() -> ConfigDict:
    config = portraits()
    config.size = "portraits_long"
    # As good as 64 ancestral steps, for a fourth of the evaluations (docs/portraits.md).
    config.model.sampling.steps, config.model.sampling.sampler = "trailing16", "ddim"
    config.train.steps, config.train.batch_size, config.train.eval_every = 4000, 128, 1000
    return config


def emoji() -> ConfigDict:
    config = _miniature("emoji")
    net = config.model.model
    net.context, net.vocab_size = 32, 2048
    return config


def karlo() -> ConfigDict:
    # Karlo's options: CLIP's features are the caption, the empty one is the null, raw embeddings
    # are standardised; the chain in the arithmetic of diffusers.
    config = _miniature("karlo")
    model, data, sampling = config.model, config.data, config.model.sampling
    net = model.model
    net.embed_dim = net.clip_text_width = 96
    net.caption, net.padding, net.null = "clip_sequence", "mask", "empty"
    model.drop_text, model.num_candidates, model.standardise = 0.0, 1, True
    data.empty_captions, data.clip = 0.1, "runs/karlo/clip/export"
    model.diffusion.tables = "float32"
    sampling.steps, sampling.threshold, sampling.limit = "25", "static", 5.0
    sampling.guidance_scale = 2.0
    return config


def tiny() -> ConfigDict:
    config = _small("tiny")
    net, optim, train = config.model.model, config.optim, config.train
    net.embed_dim = 32
    net.width, net.depth, net.heads = 64, 2, 2
    config.model.sampling.steps = "8"
    config.data.load_size = 32
    optim.learning_rate, optim.warmup_steps = 2e-3, 10
    train.steps, train.batch_size, train.ema_decay = 200, 128, 0.98
    train.eval_every = 100
    return config


def _miniature(size: str) -> ConfigDict:
    config = _small(size)
    net, optim, train = config.model.model, config.optim, config.train
    net.embed_dim = 128
    net.width, net.depth, net.heads = 128, 3, 4
    config.data.load_size = 64
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.schedule, optim.weight_decay = 50, "cosine", 1e-2
    train.steps, train.batch_size, train.ema_decay = 600, 128, 0.99
    train.eval_every = 200
    return config


def _small(size: str) -> ConfigDict:
    config = paper()
    config.size = size
    net, data = config.model.model, config.data
    net.context, net.vocab_size = 24, 1024
    net.remat, net.dtype = "none", "float32"
    config.model.sampling.variance = "small"
    data.path, data.embeddings = f"runs/{size}/data", f"runs/{size}/embeddings"
    return config


SIZES = {
    "paper": paper,
    "shapes": shapes,
    "shapes_long": shapes_long,
    "portraits": portraits,
    "portraits_long": portraits_long,
    "emoji": emoji,
    "tiny": tiny,
    "karlo": karlo,
}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/prior.py", size, SIZES)]()
