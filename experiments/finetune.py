r"""Training on: any stage from any export, ours or public, in the form that it has.

Paper: none; the paper trains every stage from scratch.
Run:   python -m unclip_jax.train --config=experiments/finetune.py:decoder \
           --config.init_from=runs/karlo/decoder/export --workdir=runs/tuned/decoder
Cost:  that of the stage itself; `python -m unclip_jax.plan` with the same arguments says.
Expect: a loss that begins where the export's training ended, on data like its own.
Needs: the export; its model, noise and sampling become `config.model`, where each key can still be
    overridden. For all but upsamplers, prepared data tokenised as its CLIP reads (docs/weights.md).
"""

from ml_collections import ConfigDict


def get_config(stage: str = "decoder") -> ConfigDict:
    # The name of a stage's folder in a run. Its manifest fills in config.stage and config.model,
    # and of the data how images, captions and embeddings are read.
    config = ConfigDict({"name": stage, "size": "finetune", "rules": "fsdp"})
    config.init_from = ""

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.embeddings = "data/embeddings"
    data.load_size = 64

    config.optim = optim = ConfigDict()
    optim.name = "adamw"
    optim.learning_rate = 1e-5  # ours: a tenth of what these stages were trained with
    optim.warmup_steps = 500
    optim.schedule = "constant"
    optim.weight_decay = 1e-2
    optim.clip_norm = 1.0

    config.train = train = ConfigDict()
    train.steps = 10_000
    train.batch_size = 64
    train.ema_decay = 0.999

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config
