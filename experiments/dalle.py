r"""DALL-E: the codes of an image, one after another, for a caption.

Paper: Ramesh et al. 2021 (arXiv 2102.12092), sections 2.2 and B.
Run:   python -m unclip_jax.train --config=experiments/dalle.py:shapes \
           --workdir=runs/shapes/dalle
Cost:  shapes: about 8 minutes on 2 CPU cores. paper: 430,000 steps at batch 1,024, 4e22 FLOPs.
Expect: loss starts at ln(vocab_size) / 8 + 7 ln(codes) / 8; loss_wrong_text parts from loss_image
    once captions are read.
Needs: images, and a trained discrete VAE (experiments/dvae.py).
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict({"stage": "dalle", "name": "dalle", "size": "paper", "rules": "fsdp"})

    config.model = model = ConfigDict()
    model.text_weight = 0.125  # section 2.2
    model.drop_text = 0.0  # the paper has no guidance
    model.model = net = ConfigDict()
    net.width, net.depth, net.heads = 3968, 64, 62  # section B.1
    net.context, net.vocab_size = 256, 16384
    net.grid, net.code_count = 32, 8192
    net.attention, net.kernel = (), 11  # row, column, row, row, ..., convolution
    net.remat, net.dtype = "block", "bfloat16"
    model.sampling = sampling = ConfigDict()
    sampling.guidance_scale = 1.0
    sampling.temperature = 1.0  # section 2.6: no truncation, the best of 512
    sampling.top_p = 1.0

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.dvae = "runs/paper/dvae/export"
    data.load_size = 256
    data.bpe_dropout = 0.1  # section B.2

    config.optim = optim = ConfigDict()  # section B.2
    optim.name = "adamw"
    optim.learning_rate = 4.5e-4
    optim.warmup_steps = 5000
    optim.schedule, optim.final_scale = "cosine", 1 / 32  # ours; five halvings by hand in the paper
    optim.b1 = 0.9
    optim.b2 = 0.96
    optim.eps = 1e-8
    optim.weight_decay = 4.5e-2
    optim.clip_norm = 4.0

    config.train = train = ConfigDict()
    train.steps = 430_000
    train.batch_size = 1024
    train.ema_decay = 0.9996  # 0.99 every 25 updates

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    return _small("shapes")


def emoji() -> ConfigDict:
    config = _small("emoji")
    config.model.model.context, config.model.model.vocab_size = 32, 2048
    return config


def tiny() -> ConfigDict:
    config = _small("tiny")
    net, train = config.model.model, config.train
    net.width, net.depth, net.heads = 64, 2, 2
    net.grid, net.code_count, net.attention = 4, 64, ("row", "full")
    config.data.load_size = 16
    config.optim.warmup_steps = 10
    train.steps, train.batch_size, train.eval_every, train.ema_decay = 150, 64, 75, 0.98
    return config


def _small(size: str) -> ConfigDict:
    config = paper()
    config.size = size
    model, data, optim, train = config.model, config.data, config.optim, config.train
    net = model.model
    model.drop_text = 0.1  # for guidance
    net.width, net.depth, net.heads = 128, 6, 4
    net.context, net.vocab_size = 24, 1024
    net.grid, net.code_count, net.kernel = 8, 1000, 3
    net.remat, net.dtype = "none", "float32"
    data.bpe_dropout = 0.0  # captions of a small world are whole words
    data.path, data.dvae, data.load_size = f"runs/{size}/data", f"runs/{size}/dvae/export", 32
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.final_scale, optim.clip_norm = 50, 0.0, 1.0
    train.steps, train.batch_size, train.eval_every, train.ema_decay = 1000, 32, 500, 0.99
    return config


SIZES = {"paper": paper, "shapes": shapes, "emoji": emoji, "tiny": tiny}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/dalle.py", size, SIZES)]()
