r"""GLIDE: a 64x64 image from its caption alone, the baseline that unCLIP is compared with.

The decoder with the null in place of every z_img; all else is as in experiments/decoder.py, so
that the two differ in the condition alone. In a folder of its own beside links to RUN/clip and
RUN/prior it is sampled, judged and swept like any cascade.

Paper: Nichol et al. 2021 (arXiv 2112.10741), sections 4.1 and 4.2; Ramesh et al. 2022, section 5.
Run:   python -m unclip_jax.train --config=experiments/glide.py:shapes \
           --workdir=runs/shapes_glide/decoder
Cost:  that of experiments/decoder.py. paper: 2.5M steps at batch 2,048, and a fine-tune.
       Its two fine-tunes, for guidance and for inpainting, are in docs/evaluation.md.
Expect: shapes: loss_wrong_z equal to loss, because nothing of z_img is read.
Needs: images, and embeddings under a trained CLIP, which the loader reads with them.
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of

SIZES = ("paper", "shapes", "emoji", "tiny")


def get_config(size: str = "paper") -> ConfigDict:
    one_of("size of experiments/glide.py", size, SIZES)
    config = ConfigDict({"stage": "decoder", "name": "glide", "size": size, "rules": "fsdp"})

    config.model = model = ConfigDict()
    model.drop_text = 0.2  # section 4.2 of GLIDE, which fine-tunes with it
    model.model = net = ConfigDict()
    net.reads_z = False  # the one difference
    net.z_dim = 1024
    net.num_z_tokens = 4
    net.text_width = 2048  # section 4.1 of GLIDE
    net.text_depth = 24
    net.text_heads = 32
    net.context = 256
    net.vocab_size = 49408
    net.unet = unet = ConfigDict()
    unet.image_size = 64
    unet.in_channels, unet.out_channels = 3, 6  # eps and learned variance
    unet.channels = 512  # section 4.1 of GLIDE
    unet.multiples = (1, 2, 3, 4)
    unet.depth = 3
    unet.attention_at = (32, 16, 8)
    unet.head_channels = 64
    unet.dropout = 0.1
    unet.remat = "block"
    unet.dtype = "bfloat16"
    model.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "cosine"
    diffusion.num_timesteps = 1000
    diffusion.target = "eps"
    diffusion.learned_variance = True
    model.sampling = sampling = ConfigDict()
    sampling.steps = "250"  # section 4.1 of GLIDE: 250 for metrics
    sampling.sampler = "ancestral"
    sampling.variance = "learned_range"
    sampling.threshold = "static"
    sampling.guidance_scale = 1.5  # the best of FID

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.embeddings = "data/embeddings"
    data.load_size = 64

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 1.2e-4  # that of experiments/decoder.py; GLIDE is silent
    optim.warmup_steps = 5000  # ours; the paper is silent
    optim.schedule = "constant"
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.clip_norm = 1.0  # ours

    config.train = train = ConfigDict()
    train.steps = 2_500_000  # section 4.1 of GLIDE
    train.batch_size = 2048
    train.ema_decay = 0.9999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    if size in ("shapes", "emoji", "tiny"):
        # What the miniature changes, and why: x_0 with a clipped SNR weight and Muon learn several
        # times faster in a thousand steps.
        net.text_width, net.text_depth, net.text_heads = 64, 2, 2
        net.z_map = 4  # of the null: a learned background
        unet.out_channels, unet.dropout = 3, 0.0
        unet.remat, unet.dtype = "none", "float32"
        diffusion.target, diffusion.learned_variance = "x_0", False
        diffusion.weighting = ConfigDict({"name": "snr_clip", "snr_min": 0.1, "snr_max": 5.0})
        sampling.variance = "small"
        optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
        optim.warmup_steps, optim.schedule = 50, "cosine"
        train.ema_decay = 0.995
    if size in ("shapes", "emoji"):
        net.z_dim = 128
        net.context, net.vocab_size = 24, 1024
        unet.attention_at, unet.head_channels, unet.norm_groups = (8,), 32, 16
        sampling.steps, sampling.guidance_scale = "25", 2.0
        data.path, data.embeddings = f"runs/{size}/data", f"runs/{size}/embeddings"
    if size == "shapes":  # as experiments/decoder.py, so that the same upsampler fits
        unet.image_size = data.load_size = 16
        unet.channels, unet.multiples, unet.depth = 48, (1, 2), 1
        unet.resample_blocks = False
        diffusion.weighting = ConfigDict({"name": "snr_clip", "snr_min": 0.1, "snr_max": 2.0})
        train.steps, train.batch_size, train.eval_every = 2800, 32, 700
    if size == "emoji":
        net.context, net.vocab_size = 32, 2048
        unet.image_size = data.load_size = 64
        unet.patch = 4
        unet.channels, unet.multiples, unet.depth = 32, (1, 2, 4), 1
        unet.attention_at = (8, 4)
        train.steps, train.batch_size, train.eval_every = 1500, 32, 500
    if size == "tiny":
        net.z_dim = 32
        net.context, net.vocab_size = 24, 1024
        unet.image_size = 16
        unet.channels, unet.multiples, unet.depth = 16, (1, 2), 1
        unet.attention_at, unet.head_channels, unet.norm_groups = (8,), 16, 8
        sampling.steps, sampling.guidance_scale = "8", 2.0
        data.path, data.embeddings = "runs/tiny/data", "runs/tiny/embeddings"
        data.load_size = 16
        train.steps, train.batch_size, train.eval_every = 200, 64, 100
    return config
