r"""Second upsampler: 256 -> 1024; the miniature sizes enlarge the first upsampler's output twice.

Paper: Ramesh et al. 2022, section 2.1 and Table 3.
Run:   python -m unclip_jax.train --config=experiments/upsampler_1024.py \
           --workdir=runs/paper/upsampler_1024
Cost:  paper: 1M steps at batch 512.
Expect: loss of the eps target near that of ADM's upsamplers.
Needs: images of at least 1,024 pixels.
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict(
        {"stage": "upsampler", "name": "upsampler_1024", "size": "paper", "rules": "fsdp"}
    )

    config.model = model = ConfigDict()
    model.crop = 256  # a quarter of the target's side (section 2.1, Table 3)
    model.model = net = ConfigDict()
    net.factor = 4
    net.unet = unet = ConfigDict()
    unet.image_size = 1024
    unet.in_channels, unet.out_channels = 6, 3
    unet.channels = 192  # Table 3
    unet.multiples = (1, 1, 2, 2, 4, 4)
    unet.depth = 2
    unet.attention_at = ()  # section 2.1: only spatial convolutions
    unet.dropout = 0.0
    unet.remat = "none"  # the batch fits without it (docs/plan.md)
    unet.dtype = "bfloat16"
    model.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "linear"  # Table 3
    diffusion.num_timesteps = 1000
    diffusion.target = "eps"
    model.sampling = sampling = ConfigDict()
    sampling.steps = "15"  # 15 DDIM steps (Table 3), fractional strides
    sampling.sampler = "ddim"
    sampling.threshold = "static"

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.load_size = 1024
    data.blur, data.bsr = 0.0, 1.0  # section 2.1; always, as in latent diffusion

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 1e-4  # Table 3
    optim.warmup_steps = 5000  # ours; the paper is silent
    optim.schedule = "constant"
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.clip_norm = 1.0  # ours

    config.train = train = ConfigDict()
    train.steps = 1_000_000  # Table 3
    train.batch_size = 512
    train.ema_decay = 0.9999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    return _small("shapes")


def emoji() -> ConfigDict:
    return _small("emoji")


def tiny() -> ConfigDict:
    config = _small("tiny")
    unet, train = config.model.model.unet, config.train
    unet.image_size = config.data.load_size = 64
    unet.channels, config.model.crop = 16, 16
    train.steps, train.batch_size, train.eval_every = 100, 32, 50
    return config


def _small(size: str) -> ConfigDict:
    config = paper()
    config.size = size
    model, net, data = config.model, config.model.model, config.data
    unet, diffusion = net.unet, model.diffusion
    optim, train = config.optim, config.train
    model.residual, model.crop = True, 32
    net.factor = 2
    unet.image_size = data.load_size = 128
    unet.multiples, unet.depth, unet.norm_groups = (1, 2), 1, 8
    unet.channels, unet.remat, unet.dtype = 32, "none", "float32"
    diffusion.target = "x_0"
    diffusion.weighting = ConfigDict({"name": "snr_clip", "snr_min": 0.1, "snr_max": 5.0})
    model.sampling.steps = "8"
    data.path = f"runs/{size}/data"
    data.blur, data.bsr = 0.5, 0.0  # BSR was made for photographs
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.schedule = 50, "cosine"
    train.steps, train.batch_size, train.eval_every = 600, 64, 200
    train.ema_decay = 0.99
    return config


SIZES = {"paper": paper, "shapes": shapes, "emoji": emoji, "tiny": tiny}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/upsampler_1024.py", size, SIZES)]()
