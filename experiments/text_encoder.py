r"""Text encoder: a stand-in for Imagen's T5-XXL, trained here on captions alone.

T5's architecture, which predicts masked tokens of captions and sees no images. It is no language
model: it knows the words of one data set. T5, Flan-T5 and encoders of BERT's family are not trained
but imported (docs/imagen.md).

Paper: Saharia et al. 2022 (arXiv 2205.11487), section 2.1; masks as in Devlin et al. 2018 (arXiv
       1810.04805), section 3.1.
Run:   python -m unclip_jax.train --config=experiments/text_encoder.py:shapes \
           --workdir=runs/imagen_shapes/text_encoder
Cost:  not measured. paper: T5 v1.1 XXL, 1M steps of its own task on C4; import it instead.
Expect: shapes: 0.46 of the masked tokens (val/accuracy).
Needs: captions with a tokenizer; images are not read.
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of


def paper() -> ConfigDict:
    config = ConfigDict(
        {"stage": "text_encoder", "name": "text_encoder", "size": "paper", "rules": "fsdp_tp"}
    )

    config.model = model = ConfigDict()
    model.mask_share = 0.15  # BERT; T5 predicts spans with its decoder
    model.model = net = ConfigDict()
    net.family = "t5"
    net.width = 4096  # T5 v1.1 XXL
    net.depth = 24
    net.heads = 64
    net.head_width = 64
    net.mlp = 10240
    net.vocab_size = 32_128
    net.context = 128  # the paper is silent; its ports take 128 or 256
    net.remat = "block"
    net.dtype = "bfloat16"

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.load_size = 64

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 1e-4  # ours
    optim.warmup_steps = 10_000
    optim.schedule = "constant"
    optim.b1 = 0.9
    optim.b2 = 0.98
    optim.eps = 1e-6
    optim.weight_decay = 0.01
    optim.clip_norm = 1.0

    config.train = train = ConfigDict()
    train.steps = 1_000_000
    train.batch_size = 2048
    train.ema_decay = 0.9999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def shapes() -> ConfigDict:
    config = paper()
    config.size, config.rules = "shapes", "dp"
    net = config.model.model
    net.width, net.depth, net.heads, net.head_width, net.mlp = 128, 3, 4, 32, 256
    net.vocab_size, net.context = 1025, 24  # a row for the mask beside 1,024 entries
    net.remat, net.dtype = "none", "float32"
    data = config.data
    data.path, data.load_size, data.cache_mb = "runs/shapes/data", 64, 0
    optim, train = config.optim, config.train
    optim.name, optim.learning_rate, optim.warmup_steps = "adamw", 1e-3, 100
    optim.schedule = "cosine"
    train.steps, train.batch_size, train.ema_decay = 1500, 64, 0.99
    return config


def emoji() -> ConfigDict:
    config = shapes()
    config.size, config.data.path = "emoji", "runs/emoji/data"
    config.data.load_size = 128
    config.model.model.vocab_size, config.model.model.context = 2049, 32
    return config


def tiny() -> ConfigDict:
    config = shapes()
    config.size, config.data.path = "tiny", "runs/tiny/data"
    net = config.model.model
    net.width, net.depth, net.heads, net.head_width, net.mlp = 32, 2, 2, 16, 64
    config.train.steps, config.train.batch_size = 200, 16
    return config


SIZES = {"paper": paper, "shapes": shapes, "emoji": emoji, "tiny": tiny}


def get_config(size: str = "paper") -> ConfigDict:
    return SIZES[one_of("size of experiments/text_encoder.py", size, SIZES)]()
