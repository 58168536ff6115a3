r"""CLIP: the two towers whose image encoder the rest of unCLIP inverts.

Paper: Radford et al. 2021 (settings), Ramesh et al. 2022, section 3 (ViT-H/16 at 256 px).
Run:   python -m unclip_jax.train --config=experiments/clip.py:shapes \
           --workdir=runs/shapes/clip
Cost:  shapes: 5 minutes on 2 CPU cores. paper: 32 epochs of 650M pairs on hundreds of chips.
Expect: shapes: retrieval@1 of 256 held-out pairs of 0.96 (chance 0.004); of captions that
    differ in the relation alone the right one is nearest in 78 % of cases (of four), in the shape
    of one object of a pair in 94 % (of eight).
    portraits: about 0.8 CPU seconds a step; val/loss 0.04 after 1,000 steps.
    portraits_long: 64 px; what a linear map reads from z_img is in docs/portraits.md.
    karlo: the miniature as diffusers can draw it (docs/weights.md); not tuned, cost not measured.
Needs: a prepared data set with a tokenizer (python -m unclip_jax.prepare).
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict({"stage": "clip", "name": "clip", "size": "paper", "rules": "fsdp"})

    config.model = model = ConfigDict()
    model.model = net = ConfigDict()
    net.embed_dim = 1024  # unCLIP section 2.2: PCA starts from 1,024 dimensions
    net.image_size = 256  # unCLIP section 3
    net.patch_size = 16
    net.image_width = 1280
    net.image_depth = 32
    net.image_heads = 16  # open_clip's ViT-H/16; the paper is silent
    net.text_width = 1024
    net.text_depth = 24
    net.text_heads = 16
    net.context = 77  # Radford et al.
    net.vocab_size = 49408
    net.activation = "quick_gelu"
    net.remat = "block"
    net.dtype = "bfloat16"

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.load_size = 256
    data.mixture = ("data/prepared_clip",)  # DALL-E's and CLIP's sets, equal shares (section 3)

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 3e-4  # unCLIP appendix C
    optim.warmup_steps = 2000  # Radford et al., table 18
    optim.schedule = "cosine"
    optim.b1 = 0.9
    optim.b2 = 0.98
    optim.eps = 1e-6
    optim.weight_decay = 0.2
    optim.sam, optim.sam_batch = 0.1, 64  # unCLIP appendix C: perturbed by replicas of 64

    config.train = train = ConfigDict()
    train.steps = 634_765  # 32 epochs of 650M pairs at batch 32,768
    train.batch_size = 32_768
    train.ema_decay = 0.9999  # ours; the paper names no average for CLIP

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    config = _miniature("shapes")
    net, data, train = config.model.model, config.data, config.train
    data.group = 4  # siblings that share colours and background: hard negatives
    # Retrieval is good long before relations are seen, which the decoder lives on: 400 steps at
    # 64 px told 43 % of them apart, twice as many at 32 px cost little more.
    net.image_size, net.patch_size, data.load_size = 32, 8, 32
    train.steps, train.eval_every = 800, 200
    return config


def shapes_long() -> ConfigDict:
    config = shapes()
    config.size = "shapes_long"
    config.train.steps, config.train.batch_size, config.train.eval_every = 4000, 128, 1000
    return config


def portraits() -> ConfigDict:
    config = _miniature("portraits")
    config.model.model.context = 40  # the longest caption has 39 tokens
    config.data.group = 4  # siblings that differ in details: hard negatives
    # Siblings are what is hard, and a batch has as many for each of its examples as a larger one.
    # 32 px, as the decoder: 1.4 times as many steps in the same time as with 64 px.
    net = config.model.model
    net.image_size, net.patch_size, config.data.load_size = 32, 8, 32
    config.train.steps, config.train.batch_size, config.train.eval_every = 1000, 128, 200
    return config


def portraits_long() -> ConfigDict:
    # A linear map reads 0.69 of the mouths from z_img after 400 steps and 0.99 after 4,500; a
    # network reads 0.83 of the facial hair after 6,000 and 0.99 after 13,800 (docs/portraits.md).
    config = portraits()
    config.size = "portraits_long"
    net = config.model.model
    net.image_size, net.patch_size, config.data.load_size = 64, 16, 64
    config.train.steps, config.train.eval_every = 12_000, 2000
    return config


def emoji() -> ConfigDict:
    config = _miniature("emoji")
    net = config.model.model
    net.context, net.vocab_size = 32, 2048
    config.optim.weight_decay = 0.2
    return config


def karlo() -> ConfigDict:
    config = _miniature("karlo")
    net, train = config.model.model, config.train
    config.data.group = 4
    # Embeddings as wide as the text tower, and patches as transformers has them; such a stem
    # needs more steps.
    net.embed_dim, net.stem, net.patch_size = 96, "patches", 8
    train.steps, train.eval_every = 1200, 300
    return config


def shapes_noised() -> ConfigDict:
    # To guide the decoder of shapes: on its chain, at its size. --workdir=runs/shapes/guide, since
    # the cascade's embeddings are those of the clean CLIP. Expect retrieval@1 of 256 pairs of 0.81
    # without noise, 0.70, 0.38 and 0.10 at timesteps 250, 500 and 750.
    config = shapes()
    config.size = "shapes_noised"
    net = config.model.model
    net.image_size, net.patch_size, config.data.load_size = 16, 4, 16
    net.reads_time = True
    config.model.diffusion = ConfigDict({"schedule": "cosine", "num_timesteps": 1000})
    return config


def tiny() -> ConfigDict:
    config = _single_data_set("tiny")
    net, data, optim, train = config.model.model, config.data, config.optim, config.train
    net.embed_dim = 32
    net.image_size, net.patch_size = 32, 8
    net.image_width, net.image_depth, net.image_heads = 48, 2, 2
    net.text_width, net.text_depth, net.text_heads = 48, 2, 2
    net.context, net.vocab_size = 24, 1024
    net.remat, net.dtype = "none", "float32"
    data.load_size = 32
    optim.learning_rate, optim.warmup_steps = 2e-3, 10
    train.steps, train.batch_size, train.ema_decay = 150, 128, 0.98
    train.eval_every = 50
    return config


def _miniature(size: str) -> ConfigDict:
    config = _single_data_set(size)
    net, data, optim, train = config.model.model, config.data, config.optim, config.train
    net.embed_dim = 128
    net.image_size, net.patch_size = 64, 16
    net.stem, net.position_scale = "conv", 8.0  # else 500 steps see neither shape nor place
    net.image_width, net.image_depth, net.image_heads = 128, 2, 4
    net.text_width, net.text_depth, net.text_heads = 96, 2, 3
    net.context, net.vocab_size = 24, 1024
    net.remat, net.dtype = "none", "float32"
    data.load_size = 64
    optim.name, optim.muon_learning_rate, optim.muon_weight_decay = "muon", 2e-2, 0.0
    optim.learning_rate, optim.warmup_steps, optim.weight_decay = 1e-3, 50, 0.1
    train.steps, train.batch_size, train.ema_decay = 400, 256, 0.99
    train.eval_every = 100
    return config


def _single_data_set(size: str) -> ConfigDict:
    config = paper()
    config.size = size
    config.data.path, config.data.mixture = f"runs/{size}/data", ()
    # Two passes a step; rank is not what is short here.
    config.optim.sam, config.optim.sam_batch = 0.0, 0
    return config


SIZES = {
    "paper": paper,
    "shapes": shapes,
    "shapes_long": shapes_long,
    "portraits": portraits,
    "portraits_long": portraits_long,
    "emoji": emoji,
    "shapes_noised": shapes_noised,
    "tiny": tiny,
    "karlo": karlo,
}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/clip.py", size, SIZES)]()
