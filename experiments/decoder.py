r"""Decoder: a 64x64 image from a CLIP image embedding and, optionally, its caption.

Paper: Ramesh et al. 2022, section 2.1 and Table 3; Nichol et al. 2021 (GLIDE) for the U-Net.
Run:   python -m unclip_jax.train --config=experiments/decoder.py:shapes \
           --workdir=runs/shapes/decoder
Cost:  shapes: 13 minutes on 2 CPU cores. paper: 800K steps at batch 2,048.
Expect: shapes: val/loss 0.0067, loss_wrong_z 0.17; colours, counts and relations right, four shapes
    in ten (docs/miniature.md has what was tried).
    shapes_long: about 1 CPU second a step; val/loss 0.0136 after 13,500 steps, six shapes in ten.
    portraits: 0.4 to 0.8 CPU seconds a step; docs/portraits.md has what the checker sees.
    karlo: the miniature as diffusers can draw it (docs/weights.md); not tuned, cost not measured.
Needs: images, and their embeddings under a trained CLIP (python -m unclip_jax.embed).
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict({"stage": "decoder", "name": "decoder", "size": "paper", "rules": "fsdp"})

    config.model = model = ConfigDict()
    model.drop_z = 0.1  # section 2.1
    model.drop_text = 0.5
    model.condition = "z_img"  # "z_txt" is the baseline of section 5.1
    model.model = net = ConfigDict()
    net.z_dim = 1024
    net.num_z_tokens = 4  # section 2.1
    net.text_width = 2048  # Table 3
    net.text_depth = 24
    net.text_heads = 32
    net.context = 256
    net.vocab_size = 49408
    net.unet = unet = ConfigDict()
    unet.image_size = 64
    unet.in_channels, unet.out_channels = 3, 6  # eps and learned variance
    unet.channels = 512  # Table 3
    unet.multiples = (1, 2, 3, 4)
    unet.depth = 3
    unet.attention_at = (32, 16, 8)
    unet.head_channels = 64
    unet.dropout = 0.1
    unet.remat = "block"
    unet.dtype = "bfloat16"
    model.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "cosine"  # Table 3
    diffusion.num_timesteps = 1000
    diffusion.target = "eps"
    diffusion.learned_variance = True
    model.sampling = sampling = ConfigDict()
    sampling.steps = "250"  # Table 3
    sampling.sampler = "ancestral"
    sampling.variance = "learned_range"
    sampling.threshold = "static"
    sampling.guidance_scale = 1.25  # section 5.3, the value of the FID table

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.embeddings = "data/embeddings"
    data.load_size = 64

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
    train.steps = 800_000  # Table 3
    train.batch_size = 2048
    train.ema_decay = 0.9999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    return _pixels_16("shapes")


def shapes_long() -> ConfigDict:
    # 32 px, to be enlarged to 128. Without patches: behind patches of 2, outlines that are right
    # at medium noise are lost in the last steps (docs/miniature.md).
    config = _miniature("shapes_long")
    net, data, train = config.model.model, config.data, config.train
    unet = net.unet
    net.z_map, net.z_map_width = 8, 256
    unet.image_size = data.load_size = 32
    unet.channels, unet.multiples, unet.depth = 32, (1, 2, 3, 3), 1
    unet.attention_at = (8, 4)
    unet.resample_blocks, unet.resampling = False, "shuffle"
    config.model.diffusion.weighting.snr_min = 1.0  # as for portraits
    train.steps, train.batch_size, train.eval_every = 20_000, 16, 4000
    return config


def portraits() -> ConfigDict:
    # 32 px, to be enlarged to 128; the feature maps are those of 64 px behind patches of 4.
    config = _miniature("portraits")
    net, data, train = config.model.model, config.data, config.train
    unet = net.unet
    net.context = 40
    net.z_map, net.z_map_width = 8, 256
    unet.image_size = data.load_size = 32
    unet.patch = 2
    unet.channels, unet.multiples, unet.depth = 48, (1, 2, 2), 1
    unet.attention_at = (8, 4)
    unet.resample_blocks = False
    # Colours of large areas are decided while there is hardly a signal; with a weight of 0.1 there,
    # faces were drawn long before clothes had the right colour.
    config.model.diffusion.weighting.snr_min = 1.0
    train.steps, train.batch_size, train.eval_every = 2000, 16, 1000
    return config


def portraits_long() -> ConfigDict:
    config = portraits()
    config.size = "portraits_long"
    # As good as 25 ancestral steps once it is trained (docs/samplers.md).
    config.model.sampling.steps, config.model.sampling.sampler = "trailing8", "ddim"
    config.train.steps, config.train.eval_every = 24_000, 4000
    return config


def emoji() -> ConfigDict:
    config = _pixels_64("emoji")
    config.model.model.context, config.model.model.vocab_size = 32, 2048
    return config


def karlo() -> ConfigDict:
    # Karlo's options, which diffusers has classes for: CLIP's features are the caption, raw
    # embeddings, blocks that resample, a learned variance, and no map of z_img.
    config = _pixels_16("karlo")
    model, data = config.model, config.data
    net, diffusion = model.model, model.diffusion
    net.z_dim = net.clip_text_width = 96
    net.caption, net.padding = "clip_sequence", "mask"
    net.text_depth, net.text_heads, net.z_map = 0, 0, 0
    model.embedding, model.drop_text = "raw", 0.0
    data.empty_captions, data.clip = 0.1, "runs/karlo/clip/export"
    net.unet.resample_blocks, net.unet.out_channels = True, 6
    diffusion.learned_variance, diffusion.tables = True, "float32"
    model.sampling.variance = "learned_range"
    return config


def tiny() -> ConfigDict:
    config = _small("tiny")
    net, data, train = config.model.model, config.data, config.train
    unet, sampling = net.unet, config.model.sampling
    net.z_dim = 32
    unet.image_size = data.load_size = 16
    unet.channels, unet.multiples, unet.depth = 16, (1, 2), 1
    unet.attention_at, unet.head_channels, unet.norm_groups = (8,), 16, 8
    sampling.steps, sampling.guidance_scale = "8", 2.0
    train.steps, train.batch_size, train.eval_every = 120, 32, 60
    return config


def _pixels_16(size: str) -> ConfigDict:
    # To be enlarged to 64 px: small batches and cheap levels, because the number of steps decides.
    # Three times Muon's rate, or 3 times the width of the path of z_img, made no difference; four
    # times as many steps on a quarter of the batch did. Weights of 0.3 to 1 lower the error at high
    # noise by 8 %, and cost a third of the shapes.
    config = _miniature(size)
    unet, data, train = config.model.model.unet, config.data, config.train
    unet.image_size = data.load_size = 16
    unet.channels, unet.multiples, unet.depth = 48, (1, 2), 1
    unet.resample_blocks = False
    config.model.diffusion.weighting.snr_max = 2.0  # what is nearly clean already teaches little
    train.steps, train.batch_size, train.eval_every = 2800, 32, 700
    return config


def _pixels_64(size: str) -> ConfigDict:
    config = _miniature(size)
    unet, data, train = config.model.model.unet, config.data, config.train
    unet.image_size = data.load_size = 64
    unet.patch = 4
    unet.channels, unet.multiples, unet.depth = 32, (1, 2, 4), 1
    unet.attention_at = (8, 4)
    train.steps, train.batch_size, train.eval_every = 1500, 32, 500
    return config


def _miniature(size: str) -> ConfigDict:
    config = _small(size)
    net, sampling = config.model.model, config.model.sampling
    unet = net.unet
    net.z_dim = 128
    unet.attention_at, unet.head_channels, unet.norm_groups = (8,), 32, 16
    sampling.steps, sampling.guidance_scale = "25", 2.0
    return config


def _small(size: str) -> ConfigDict:
    # x_0 with a clipped SNR weight and Muon learn several times faster in a thousand steps.
    config = paper()
    config.size = size
    net, data, optim = config.model.model, config.data, config.optim
    unet, diffusion = net.unet, config.model.diffusion
    net.text_width, net.text_depth, net.text_heads = 64, 2, 2
    net.context, net.vocab_size = 24, 1024
    net.z_map = 4
    unet.out_channels, unet.dropout = 3, 0.0
    unet.remat, unet.dtype = "none", "float32"
    diffusion.target, diffusion.learned_variance = "x_0", False
    diffusion.weighting = ConfigDict({"name": "snr_clip", "snr_min": 0.1, "snr_max": 5.0})
    config.model.sampling.variance = "small"
    data.path, data.embeddings = f"runs/{size}/data", f"runs/{size}/embeddings"
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.schedule = 50, "cosine"
    config.train.ema_decay = 0.995
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
    return SIZES[one_of("size of experiments/decoder.py", size, SIZES)]()
