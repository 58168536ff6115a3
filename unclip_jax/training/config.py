"""Lengths, intervals and sizes of a training run."""

import dataclasses

from unclip_jax.core.checks import check_seed, in_range, positive


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Lengths, intervals (in steps; 0 = never) and sizes of one run.

    Attributes:
        steps: length of the run.
        batch_size: examples per step, over all devices.
        accumulate: microbatches per step.
        ema_decay: largest decay of the parameter average.
        log_every: steps per line of metrics.jsonl.
        eval_every: interval of validation; also after the last step.
        eval_batches: batches per validation.
        sample_every: interval of sample grids; also after the last step.
        num_samples: images per grid.
        save_every: interval of checkpoints; also after the last step.
        save_minutes: minutes after which another checkpoint is written too; 0 = never.
        keep: number of newest checkpoints that are kept.
        keep_every: checkpoints at multiples of this step are never deleted.
        single_replica_restore: True reads a checkpoint by one of several replicas (mesh axis data,
            such as slices), which sends it to the devices of the others.
        stall_minutes: minutes without a step after which the process writes the stacks of its
            threads and exits with a status for which its launcher restarts it.
        seed: seed of the parameters and of all randomness in steps.
        max_bad_steps: consecutive steps with gradients that are not finite after which the run
            stops.
        profile_start: first step of a profile.
        profile_steps: number of steps in a profile.
        wandb: PROJECT or ENTITY/PROJECT of Weights & Biases to which metrics are sent too; "" =
            none.
        check_memory: True rejects a run that cannot fit into memory before it starts.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    ema_decay: float = 0.9999
    log_every: int = 50
    eval_every: int = 500
    eval_batches: int = 8
    sample_every: int = 500
    num_samples: int = 16
    save_every: int = 500
    save_minutes: float = 0.0
    keep: int = 3
    keep_every: int = 0
    single_replica_restore: bool = False
    stall_minutes: float = 0.0
    seed: int = 0
    max_bad_steps: int = 20
    profile_start: int = 10
    profile_steps: int = 0
    wandb: str = ""
    check_memory: bool = True

    def __post_init__(self):
        for name in ("batch_size", "accumulate", "log_every", "eval_batches", "num_samples"):
            positive(f"config.train.{name}", getattr(self, name))
        for name in ("steps", "save_every", "keep", "max_bad_steps"):
            positive(f"config.train.{name}", getattr(self, name))
        for name in ("save_minutes", "stall_minutes"):
            in_range(f"config.train.{name}", getattr(self, name), 0.0, 1e6)
        for name in (
            *("eval_every", "sample_every", "keep_every"),
            "profile_start",
            "profile_steps",
        ):
            in_range(f"config.train.{name}", getattr(self, name), 0, 2**31 - 1)
        check_seed("config.train.seed", self.seed)
        in_range("config.train.ema_decay", self.ema_decay, 0.0, 1.0)
