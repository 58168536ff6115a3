r"""Imagen's first upsampler: 64 -> 256 by an Efficient U-Net that reads the caption.

Trained on whole images, because its attention sees the image too; the low-res image is noised to a
random level, which the network is told, so that it listens to the caption. It takes the place of
unCLIP's first upsampler in a run.

Paper: Saharia et al. 2022 (arXiv 2205.11487), sections 2.4 and 2.5, appendices B.1, D.2 and F.2.
Run:   python -m unclip_jax.train --config=experiments/imagen_sr256.py:shapes \
           --workdir=runs/imagen_shapes/upsampler_256
Cost:  shapes: that of experiments/upsampler_256.py. paper: 2.5M steps at batch 2,048 on 128 TPU v4.
Expect: shapes: val/loss 0.0033, with the caption of another image 0.0034.
Needs: images with captions, and the export of a text encoder.
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict(
        {"stage": "upsampler", "name": "imagen_sr256", "size": "paper", "rules": "fsdp"}
    )

    config.model = model = ConfigDict()
    model.crop = 256  # no crops
    model.drop_text = 0.1  # section 4.1
    model.model = net = ConfigDict()
    net.factor = 4
    net.text = text = ConfigDict()
    text.width = 4096
    text.context = 128
    text.project = 1024  # silent; a port's
    text.pooling = "attention"  # appendix F.2
    text.pool_heads = 64
    net.unet = unet = ConfigDict()
    unet.topology = "efficient"
    unet.image_size = 256
    unet.in_channels, unet.out_channels = 6, 3
    unet.channels = 128
    # Appendix F.2 prints four levels for this network of 600M parameters and for the next of 400M;
    # a fifth level makes it 595M.
    unet.multiples = (1, 2, 4, 8, 8)
    unet.depth = (2, 4, 8, 8, 2)
    unet.attention_at = (16, 8)
    unet.attention = "joint"
    unet.attention_width = 2  # hidden size of twice the channels (figure A.28)
    unet.head_channels = 64
    unet.context_norm = "layer"
    unet.residual_scale = 2**-0.5  # appendix B.1
    unet.emb_channels = 512  # silent; a port's
    unet.dropout = 0.0
    unet.remat = "block"
    unet.dtype = "bfloat16"
    model.augment = augment = ConfigDict()
    augment.most = 1.0  # section 2.4; the distribution is silent, uniform in DeepFloyd IF
    augment.level = 0.2  # the best samples 0.1 to 0.3, the best FID 0 (appendix D.2)
    model.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "cosine"
    diffusion.num_timesteps = 1000
    diffusion.target = "eps"
    model.sampling = sampling = ConfigDict()
    sampling.steps = "128"  # silent
    sampling.sampler = "ancestral"
    sampling.variance = "mix"
    sampling.gamma = 0.0
    sampling.guidance_scale = 8.0  # Table 1
    sampling.threshold = "dynamic"
    sampling.percentile = 99.5

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.text_encoder = "runs/imagen/text_encoder/export"
    data.load_size = 256
    data.blur = 0.0

    config.optim = optim = ConfigDict()
    optim.name = "adamw"  # Adam: Adafactor hurt the upsamplers (section 4.1)
    optim.learning_rate = 1e-4
    optim.warmup_steps = 10_000
    optim.schedule = "cosine"
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.clip_norm = None

    config.train = train = ConfigDict()
    train.steps = 2_500_000
    train.batch_size = 2048
    train.ema_decay = 0.9999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    config = _small("shapes")
    net, train = config.model.model, config.train
    net.factor = 4
    net.unet.image_size = config.data.load_size = config.model.crop = 64
    net.unet.channels, net.unet.multiples, net.unet.depth = 32, (1, 2), (1, 4)
    train.steps, train.batch_size, train.eval_every = 900, 16, 300
    return config


def emoji() -> ConfigDict:
    config = _small("emoji")
    net, train = config.model.model, config.train
    net.text.context = 32
    net.unet.image_size = config.data.load_size = config.model.crop = 128
    net.unet.attention_at = (32,)
    net.unet.channels, net.unet.multiples, net.unet.depth = 32, (1, 2), (1, 2)
    train.steps, train.batch_size, train.eval_every = 400, 16, 200
    return config


def tiny() -> ConfigDict:
    config = _small("tiny")
    net, train = config.model.model, config.train
    net.text.width = net.text.project = 32
    net.text.pool_heads = 2
    net.unet.image_size = config.data.load_size = config.model.crop = 32
    net.unet.channels, net.unet.attention_at, net.unet.head_channels = 16, (8,), 16
    train.steps, train.batch_size, train.eval_every = 100, 32, 50
    return config


def _small(size: str) -> ConfigDict:
    config = paper()
    config.size = size
    model, net, optim = config.model, config.model.model, config.optim
    unet, text, diffusion = net.unet, net.text, model.diffusion
    text.width, text.context, text.project, text.pool_heads = 128, 24, 64, 4
    net.factor = 2
    unet.multiples, unet.depth, unet.norm_groups = (1, 2), (1, 1), 8
    unet.attention_at = (16,)
    unet.attention_width, unet.head_channels, unet.emb_channels = 1, 32, 128
    unet.remat, unet.dtype = "none", "float32"
    model.augment.most, model.augment.level = 0.2, 0.0
    model.residual = True
    diffusion.target = "x_0"
    diffusion.weighting = ConfigDict({"name": "snr_clip", "snr_min": 0.1, "snr_max": 5.0})
    model.sampling.steps, model.sampling.guidance_scale = "8", 2.0
    config.data.path = f"runs/{size}/data"
    config.data.text_encoder = f"runs/imagen_{size}/text_encoder/export"
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.clip_norm = 50, 1.0
    config.train.ema_decay = 0.99
    return config


SIZES = {"paper": paper, "shapes": shapes, "emoji": emoji, "tiny": tiny}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/imagen_sr256.py", size, SIZES)]()
