r"""First upsampler: 64 -> 256 (16 -> 64 for shapes, 32 -> 128 for portraits, 64 -> 128 for emoji).

Paper: Ramesh et al. 2022, section 2.1 and Table 3.
Run:   python -m unclip_jax.train --config=experiments/upsampler_256.py:shapes \
           --workdir=runs/shapes/upsampler_256
Cost:  shapes: about 4 minutes on 2 CPU cores. paper: 1M steps at batch 1,024.
Expect: shapes: 5 dB over bicubic enlargement (32.2 against 27.3 dB).
    portraits: about 1.3 CPU seconds a step.
    karlo: the miniature as diffusers can draw it (docs/weights.md); not tuned, cost not measured.
Needs: images only.
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict(
        {"stage": "upsampler", "name": "upsampler_256", "size": "paper", "rules": "fsdp"}
    )

    config.model = model = ConfigDict()
    model.crop = 64  # a quarter of the target's side (section 2.1, Table 3)
    model.model = net = ConfigDict()
    net.factor = 4
    net.unet = unet = ConfigDict()
    unet.image_size = 256
    unet.in_channels, unet.out_channels = 6, 3  # noised image and enlarged low-res image
    unet.channels = 320  # Table 3
    unet.multiples = (1, 2, 3, 4)
    unet.depth = 3
    unet.attention_at = ()  # section 2.1: only spatial convolutions
    unet.dropout = 0.1
    unet.remat = "none"  # the batch fits without it (docs/plan.md)
    unet.dtype = "bfloat16"
    model.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "cosine"  # Table 3
    diffusion.num_timesteps = 1000
    diffusion.target = "eps"
    model.sampling = sampling = ConfigDict()
    sampling.steps = "fast27"  # 27 DDIM steps (Table 3); the list is GLIDE's
    sampling.sampler = "ddim"
    sampling.threshold = "static"

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.load_size = 256
    data.blur = 0.5  # Gaussian, kernel 3, sigma 0.6 (section 2.1); the share is CDM's

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 1.2e-4  # Table 3
    optim.warmup_steps = 5000  # ours; the paper is silent
    optim.schedule = "constant"
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.clip_norm = 1.0  # ours

    config.train = train = ConfigDict()
    train.steps = 1_000_000  # Table 3
    train.batch_size = 1024
    train.ema_decay = 0.9999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    return _pixels_64("shapes")


def shapes_long() -> ConfigDict:
    config = _pixels_32_to_128("shapes_long")
    config.train.steps, config.train.eval_every = 3000, 1000
    return config


def portraits() -> ConfigDict:
    config = _pixels_32_to_128("portraits")
    config.train.steps, config.train.eval_every = 300, 150
    return config


def portraits_long() -> ConfigDict:
    config = portraits()
    config.size = "portraits_long"
    config.train.steps, config.train.eval_every = 3000, 1000
    return config


def emoji() -> ConfigDict:
    return _pixels_128("emoji")


def karlo() -> ConfigDict:
    # Karlo's options: a network of its own for the last of seven ancestral steps, low-res images as
    # they are, the timestep added instead of scaling.
    config = _pixels_64("karlo")
    model, net, sampling = config.model, config.model.model, config.model.sampling
    model.residual, model.last_step, model.quantise = False, True, False
    net.interpolation, net.unet.scale_shift = "cubic", False
    model.diffusion.tables = "float32"
    sampling.steps, sampling.sampler = "7", "ancestral"
    return config


def tiny() -> ConfigDict:
    config = _small("tiny")
    unet, train = config.model.model.unet, config.train
    unet.image_size = config.data.load_size = 32
    unet.channels, config.model.crop = 16, 16
    train.steps, train.batch_size, train.eval_every = 100, 32, 50
    return config


def _pixels_64(size: str) -> ConfigDict:
    config = _small(size)
    model, net, train = config.model, config.model.model, config.train
    net.factor = 4
    net.unet.image_size = config.data.load_size = 64
    net.unet.channels, net.unet.multiples, model.crop = 32, (1, 1, 2), 32
    train.steps, train.batch_size, train.eval_every = 900, 16, 300
    return config


def _pixels_32_to_128(size: str) -> ConfigDict:
    # Patches of 2 make it four times cheaper, and a person waits for the images.
    config = _pixels_128(size)
    net, unet, train = config.model.model, config.model.model.unet, config.train
    net.factor = 4
    unet.patch = 2
    unet.channels, unet.multiples, config.model.crop = 48, (1, 1, 2), 64
    train.steps, train.batch_size, train.eval_every = 500, 8, 250
    return config


def _pixels_128(size: str) -> ConfigDict:
    config = _small(size)
    unet, train = config.model.model.unet, config.train
    unet.image_size = config.data.load_size = 128
    unet.channels, config.model.crop = 32, 32
    train.steps, train.batch_size, train.eval_every = 400, 16, 200
    return config


def _small(size: str) -> ConfigDict:
    config = paper()
    config.size = size
    model, net, optim = config.model, config.model.model, config.optim
    unet, diffusion = net.unet, model.diffusion
    model.residual = True
    net.factor = 2
    unet.multiples, unet.depth, unet.norm_groups = (1, 2), 1, 8
    unet.dropout, unet.remat, unet.dtype = 0.0, "none", "float32"
    diffusion.target = "x_0"
    diffusion.weighting = ConfigDict({"name": "snr_clip", "snr_min": 0.1, "snr_max": 5.0})
    model.sampling.steps = "8"
    config.data.path = f"runs/{size}/data"
    config.data.blur = 0.25
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.schedule = 50, "cosine"
    config.train.ema_decay = 0.99
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
    return SIZES[one_of("size of experiments/upsampler_256.py", size, SIZES)]()
