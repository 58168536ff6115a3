r"""Classifier of noised images: guides a decoder by the gradient of log p(class | x_t).

Paper: Dhariwal and Nichol 2021 (ADM, arXiv 2105.05233), section 4.3 and Table 12.
Run:   python -m unclip_jax.train --config=experiments/classifier.py:shapes \
           --workdir=runs/shapes/classifier
Cost:  shapes: about 2 minutes on 2 CPU cores. paper: 300K steps at batch 1,024.
Expect: shapes: accuracy_t000 0.59, accuracy_t250 0.39, accuracy_t500 0.25, accuracy_t750 0.16
    (chance an eighth).
Needs: images whose captions name their class; nothing trained.
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of

SHAPES = ("circle|circles", "square|squares", "triangle|triangles", "diamond|diamonds")
SHAPES += ("star|stars", "heart|hearts", "ring|rings", "cross|crosses")


def paper() -> ConfigDict:
    config = ConfigDict({"stage": "classifier", "name": "classifier", "size": "paper"})
    config.rules = "fsdp"

    config.model = model = ConfigDict()
    model.classes = tuple(str(i) for i in range(1000))  # captions are the numbers of classes
    model.model = ConfigDict()
    model.model.unet = unet = ConfigDict()  # Table 12, 64 x 64
    unet.image_size = 64
    unet.in_channels, unet.out_channels = 3, 1000
    unet.channels = 128
    unet.multiples = (1, 2, 3, 4)
    unet.depth = 4
    unet.attention_at = (32, 16, 8)
    unet.head_channels = 64
    unet.remat, unet.dtype = "block", "bfloat16"
    model.diffusion = diffusion = ConfigDict()
    diffusion.schedule, diffusion.num_timesteps = "cosine", 1000

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.load_size = 64

    config.optim = optim = ConfigDict()  # Table 12
    optim.name = "adamw"
    optim.learning_rate = 6e-4
    optim.warmup_steps = 0  # none printed
    optim.schedule, optim.final_scale = "linear", 0.0  # annealed to 0, as its code does
    optim.weight_decay = 0.2
    optim.clip_norm = None

    config.train = train = ConfigDict()
    train.steps = 300_000  # Table 12
    train.batch_size = 1024
    train.ema_decay = 0.9999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    config = _small("shapes")
    config.train.steps, config.train.batch_size, config.train.eval_every = 600, 64, 200
    return config


def tiny() -> ConfigDict:
    config = _small("tiny")
    unet, train = config.model.model.unet, config.train
    unet.channels, unet.head_channels, unet.norm_groups = 16, 16, 8
    train.steps, train.batch_size, train.eval_every = 100, 32, 50
    return config


def _small(size: str) -> ConfigDict:
    # On the chain and at the size of the decoder: 16 px, the kind of the first object.
    config = paper()
    config.size = size
    unet, optim = config.model.model.unet, config.optim
    config.model.classes = SHAPES
    unet.image_size = config.data.load_size = 16
    unet.out_channels = len(SHAPES)
    unet.channels, unet.multiples, unet.depth = 48, (1, 2), 1
    unet.attention_at, unet.head_channels, unet.norm_groups = (8,), 32, 16
    unet.remat, unet.dtype = "none", "float32"
    config.data.path = f"runs/{size}/data"
    optim.name, optim.learning_rate, optim.muon_learning_rate = "muon", 1e-3, 1e-2
    optim.warmup_steps, optim.schedule, optim.weight_decay = 20, "cosine", 0.05
    config.train.ema_decay = 0.99
    return config


SIZES = {"paper": paper, "shapes": shapes, "tiny": tiny}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/classifier.py", size, SIZES)]()
