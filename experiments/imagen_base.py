r"""Imagen's base model: a small image from the features of a frozen text encoder.

No CLIP and no prior: the U-Net attends to the caption, whose features come from RUN/text_encoder
(T5-XXL in the paper; the stand-in of experiments/text_encoder.py in miniature).

Paper: Saharia et al. 2022 (arXiv 2205.11487), sections 2.1, 2.3, 2.5 and 4.1, appendix F.1.
Run:   python -m unclip_jax.train --config=experiments/imagen_base.py:shapes \
           --workdir=runs/imagen_shapes/imagen_base
Cost:  shapes: that of experiments/decoder.py. paper: 2.5M steps at batch 2,048 on 256 TPU v4.
Expect: shapes: val/loss 0.008, without the caption 0.013, with that of another image 0.033.
Needs: images with captions, and the export of a text encoder.
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict(
        {"stage": "text_base", "name": "imagen_base", "size": "paper", "rules": "fsdp"}
    )

    config.model = model = ConfigDict()
    model.drop_text = 0.1  # section 4.1, by zeroing
    model.model = net = ConfigDict()
    net.text = text = ConfigDict()
    text.width = 4096  # T5-XXL
    text.context = 128  # silent; 128 in two ports
    text.project = 2048  # silent; two ports
    text.pooling = "attention"  # appendix F.1
    text.pool_heads = 64  # silent; DeepFloyd IF's
    net.unet = unet = ConfigDict()
    unet.image_size = 64
    unet.in_channels, unet.out_channels = 3, 3
    unet.channels = 512  # from here on appendix F.1
    unet.multiples = (1, 2, 3, 4)
    unet.depth = 3
    unet.attention_at = (32, 16, 8)
    unet.head_channels = 64
    unet.dropout = 0.0
    unet.context_norm = "layer"  # section 2.5
    unet.remat = "block"
    unet.dtype = "bfloat16"
    model.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "cosine"
    diffusion.num_timesteps = 1000  # continuous in the paper; a chain, as DeepFloyd IF's
    diffusion.target = "eps"  # appendix A
    diffusion.learned_variance = False
    model.sampling = sampling = ConfigDict()
    sampling.steps = "256"  # silent
    sampling.sampler = "ancestral"
    sampling.variance = "mix"  # equation 6
    sampling.gamma = 0.0  # silent
    sampling.guidance_scale = 1.35  # Table 1, the best FID
    sampling.threshold = "dynamic"
    sampling.percentile = 99.5  # figure A.10

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.text_encoder = "runs/imagen/text_encoder/export"
    data.load_size = 64

    config.optim = optim = ConfigDict()
    optim.name = "adafactor"  # section 4.1, with optax's defaults
    optim.learning_rate = 1e-4
    optim.warmup_steps = 10_000
    optim.schedule = "cosine"
    optim.final_scale = 0.0  # the paper prints a misprint
    optim.weight_decay = 0.0
    optim.clip_norm = None  # none printed

    config.train = train = ConfigDict()
    train.steps = 2_500_000  # section 4.1
    train.batch_size = 2048
    train.ema_decay = 0.9999  # silent

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    # Sizes and recipe of GLIDE's miniature (experiments/glide.py:shapes), so that the two differ in
    # who reads the caption.
    config = _small("shapes")
    unet, data, train = config.model.model.unet, config.data, config.train
    unet.image_size = data.load_size = 16
    unet.channels, unet.multiples, unet.depth = 48, (1, 2), 1
    unet.resample_blocks = False
    config.model.diffusion.weighting.snr_max = 2.0
    train.steps, train.batch_size, train.eval_every = 2800, 32, 700
    return config


def emoji() -> ConfigDict:
    config = _small("emoji")
    unet, data, train = config.model.model.unet, config.data, config.train
    config.model.model.text.context = 32
    unet.image_size = data.load_size = 64
    unet.patch = 4
    unet.channels, unet.multiples, unet.depth = 32, (1, 2, 4), 1
    unet.attention_at = (8, 4)
    train.steps, train.batch_size, train.eval_every = 1500, 32, 500
    return config


def tiny() -> ConfigDict:
    config = _small("tiny")
    net, data, train = config.model.model, config.data, config.train
    unet, text = net.unet, net.text
    text.width = text.project = 32
    text.pool_heads = 2
    unet.image_size = data.load_size = 16
    unet.channels, unet.multiples, unet.depth = 16, (1, 2), 1
    unet.attention_at, unet.head_channels, unet.norm_groups = (8,), 16, 8
    config.model.sampling.steps = "8"
    train.steps, train.batch_size, train.eval_every = 120, 32, 60
    return config


def _small(size: str) -> ConfigDict:
    # x_0 with a clipped SNR weight and Muon learn several times faster in a thousand steps.
    config = paper()
    config.size = size
    model, data, optim = config.model, config.data, config.optim
    unet, text, diffusion = model.model.unet, model.model.text, model.diffusion
    text.width, text.context, text.project, text.pool_heads = 128, 24, 64, 4
    unet.attention_at, unet.head_channels, unet.norm_groups = (8,), 32, 16
    unet.remat, unet.dtype = "none", "float32"
    diffusion.target = "x_0"
    diffusion.weighting = ConfigDict({"name": "snr_clip", "snr_min": 0.1, "snr_max": 5.0})
    model.sampling.steps, model.sampling.guidance_scale = "25", 2.0
    data.path = f"runs/{size}/data"
    data.text_encoder = f"runs/imagen_{size}/text_encoder/export"
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.clip_norm = 50, 1.0
    config.train.ema_decay = 0.995
    return config


SIZES = {"paper": paper, "shapes": shapes, "emoji": emoji, "tiny": tiny}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/imagen_base.py", size, SIZES)]()
