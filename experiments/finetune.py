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

from unclip_jax.core.checks import one_of

# Name of the stage -> its kind.
STAGES = {
    "clip": "clip",
    "prior": "prior",
    "prior_ar": "prior_ar",
    "decoder": "decoder",
    "upsampler_256": "upsampler",
    "upsampler_1024": "upsampler",
}


def get_config(stage: str = "decoder") -> ConfigDict:
    one_of("stage of experiments/finetune.py", stage, STAGES)
    kind = STAGES[stage]
    config = ConfigDict({"stage": kind, "name": stage, "size": "finetune", "rules": "fsdp"})
    # Its manifest fills in config.model, which is why there is none here, and of the data how
    # pictures and captions are read.
    config.init_from = ""

    config.data = data = ConfigDict()
    data.path = "data/prepared"
    data.embeddings = "data/embeddings" if kind in ("prior", "prior_ar", "decoder") else ""
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
