r"""Distillation: any diffusion stage from its export into a student of few steps.

Paper: none; progressive distillation (arXiv 2202.00512), consistency distillation (arXiv
    2303.01469), and guidance as part of the student (arXiv 2210.03142).
Run:   python -m unclip_jax.train --config=experiments/distill.py:decoder \
           --config.init_from=runs/shapes/decoder/export --workdir=runs/fast/decoder
Cost:  a step takes the time of one of that stage and, in addition, of `distill.substeps` forward
    passes (twice as many with guidance).
Expect: val/sample_error well below val/plain_error, the error of the teacher in as few steps.
Needs: the export, whose model, noise and sampling become `config.model`, and prepared data as for
    `finetune.py`. To distil in rounds, give the export of one round to the next: 16 steps, 8, 4.
"""

from ml_collections import ConfigDict


def get_config(stage: str = "decoder") -> ConfigDict:
    # The name of a stage's folder in a run. The export's manifest fills in config.stage and
    # config.model, and of the data how images, captions and embeddings are read.
    config = ConfigDict({"name": stage, "size": "distilled", "rules": "fsdp"})
    config.init_from = ""

    config.distill = distill = ConfigDict()
    distill.method = "progressive"
    distill.steps = 4
    distill.substeps = 4  # ours: 16 steps of the teacher in one round

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.embeddings = "data/embeddings"
    data.load_size = 64

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 1e-4  # linear to 0 in arXiv 2202.00512, table 2
    optim.warmup_steps = 100
    optim.schedule = "cosine"
    optim.weight_decay = 0.0
    optim.clip_norm = 1.0

    config.train = train = ConfigDict()
    train.steps = 10_000
    train.batch_size = 64
    train.ema_decay = 0.999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config
