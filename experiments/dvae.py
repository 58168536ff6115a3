r"""Discrete VAE: an image as a grid of codes, and back; the first half of DALL-E.

Paper: Ramesh et al. 2021 (arXiv 2102.12092), sections 2.1 and A.
Run:   python -m unclip_jax.train --config=experiments/dvae.py:shapes --workdir=runs/shapes/dvae
Cost:  shapes: about 7 minutes on 2 CPU cores. paper: 3M steps at batch 512.
Expect: psnr rises; shapes: 33 dB, 40 % of the codes in use, since most squares are plain ground.
    With gumbel usage falls from the start and recovers as the temperature falls, relax_gap near 0
    at the end. All images as a few codes (usage below 1 %) means that pixels have another range
    than [-1, 1].
Needs: images.
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict({"stage": "dvae", "name": "dvae", "size": "paper", "rules": "fsdp"})

    config.model = model = ConfigDict()
    model.reconstruction = "logit_laplace"  # section A.3
    model.model = net = ConfigDict()
    net.image_size = 256
    net.hidden, net.groups, net.blocks, net.decoder_in = 256, 4, 2, 128  # OpenAI's code
    net.quantizer, net.code_count, net.out_channels = "gumbel", 8192, 6  # section 2.1
    net.remat, net.dtype = "block", "bfloat16"
    model.gumbel = gumbel = ConfigDict()  # section A.2
    gumbel.kl_weight, gumbel.kl_steps = 6.6, 5000
    gumbel.temperature_start, gumbel.temperature, gumbel.temperature_steps = 1.0, 1 / 16, 150_000

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.load_size = 256
    data.flip = True  # listing 1

    config.optim = optim = ConfigDict()  # section A.2
    optim.name = "adamw"
    optim.learning_rate = 1e-4
    optim.schedule, optim.final_scale = "cosine", 1.25e-2
    optim.decay_steps = 1_200_000
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 1e-4
    optim.clip_norm = None  # the paper names none

    config.train = train = ConfigDict()
    train.steps = 3_000_000
    train.batch_size = 512
    train.ema_decay = 0.999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    return _small("shapes")


def emoji() -> ConfigDict:
    return _small("emoji")


def tiny() -> ConfigDict:
    config = _small("tiny")
    net, train = config.model.model, config.train
    net.image_size = config.data.load_size = 16
    net.hidden, net.levels, net.code_count = 16, (8, 8), 64
    config.optim.warmup_steps = 10
    train.steps, train.batch_size, train.eval_every, train.ema_decay = 150, 32, 75, 0.98
    return config


def _small(size: str) -> ConfigDict:
    # 4 x 4 pixels per code: with 8 x 8 the best of a thousand codes loses the shapes. FSQ needs no
    # schedule and has no dead codes. Of 200 reconstructions the checker accepts 7 % after 1,200
    # steps with logit_laplace (21.7 dB), and 16 % after 400 with squared errors (24.3 dB): where
    # grounds are exactly predictable their scale falls, and edges, whose scale is large, count
    # little. Three times both rates change nothing. After 2,500 steps it accepts 89 % (33.3 dB,
    # perplexity 133), 12 CPU minutes.
    config = paper()
    config.size = size
    net, data, optim, train = config.model.model, config.data, config.optim, config.train
    config.model.reconstruction, net.out_channels = "l2", 3
    net.image_size = data.load_size = 32
    net.hidden, net.groups, net.blocks, net.decoder_in = 32, 3, 1, 32
    net.quantizer, net.levels, net.code_count = "fsq", (8, 5, 5, 5), 1000
    net.remat, net.dtype = "none", "float32"
    data.path, data.flip = f"runs/{size}/data", False
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.final_scale, optim.decay_steps = 50, 0.0, 0
    train.steps, train.batch_size, train.eval_every, train.ema_decay = 2500, 32, 500, 0.99
    return config


SIZES = {"paper": paper, "shapes": shapes, "emoji": emoji, "tiny": tiny}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/dvae.py", size, SIZES)]()
