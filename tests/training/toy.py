"""A stage small enough to know everything about: a linear map fitted to a linear map."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from unclip_jax.core import rng
from unclip_jax.core.batch import Field
from unclip_jax.core.stage import Stage
from unclip_jax.parallel.mesh import MeshConfig
from unclip_jax.training import loop
from unclip_jax.training.loop import TrainConfig
from unclip_jax.training.optimizer import OptimConfig

WIDTH, OUT = 16, 8
SPEC = {"x": Field((WIDTH,), "float32"), "y": Field((OUT,), "float32")}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Toy(Stage):
    """A linear map as a stage, compared and hashed by identity."""

    __eq__, __hash__ = object.__eq__, object.__hash__

    name: str = "toy"
    batch_spec: Any = dataclasses.field(default_factory=lambda: dict(SPEC))
    init: Callable = dataclasses.field(default_factory=lambda: init)
    loss: Callable = dataclasses.field(default_factory=lambda: loss)
    evaluate: Callable = dataclasses.field(default_factory=lambda: evaluate)
    preview: Callable | None = None
    splittable: bool = True
    describe: dict[str, Any] = dataclasses.field(default_factory=dict)


def init(key):
    """Boxed parameters: a kernel [WIDTH, OUT] on (embed, mlp) and a bias."""
    kernel = jax.random.normal(rng.fold(key, "kernel"), (WIDTH, OUT)) * 0.1
    return {
        "map": {
            "kernel": nn.LogicallyPartitioned(kernel, ("embed", "mlp")),
            "bias": nn.LogicallyPartitioned(jnp.zeros(OUT), ("mlp",)),
        }
    }


def residual(params, batch):
    """Per-example squared error."""
    out = batch["x"] @ params["map"]["kernel"] + params["map"]["bias"][None, :]
    return jnp.mean((out - batch["y"]) ** 2, axis=-1)


def loss(params, batch, key):
    """Mean squared error, the inputs blurred by keyed noise so that keys matter."""
    noise = jax.random.normal(rng.fold(key, "noise"), batch["x"].shape)
    value = jnp.mean(residual(params, {**batch, "x": batch["x"] + 0.1 * noise}))
    return value, {"noise": jnp.mean(noise)}


def quiet_loss(params, batch, key):
    """Mean squared error, without randomness."""
    del key
    return jnp.mean(residual(params, batch)), {"size": jnp.mean(jnp.abs(batch["x"]))}


def evaluate(params, batch, key):
    """As the loss, without noise."""
    return {"loss": quiet_loss(params, batch, key)[0]}


def truth():
    """The map that generates the data."""
    return np.random.default_rng(7).standard_normal((WIDTH, OUT)).astype(np.float32)


def batch_at(index: int, *, size: int = 16) -> dict[str, np.ndarray]:
    """Batch number `index` of an endless stream."""
    x = np.random.default_rng(index).standard_normal((size, WIDTH)).astype(np.float32)
    return {"x": x, "y": x @ truth()}


class Stream:
    """An endless positioned iterator; `spoil` maps a batch number to a field set to NaN."""

    def __init__(self, *, size: int = 16, spoil: tuple[int, ...] = (), limit: int = 2**31):
        self.position, self.size, self.spoil, self.limit = 0, size, spoil, limit
        self.positions: list[int] = []

    def __next__(self):
        if self.position >= self.limit:
            raise StopIteration
        batch = batch_at(self.position, size=self.size)
        if self.position in self.spoil:
            batch["y"] = np.full_like(batch["y"], np.nan)
        self.positions.append(self.position)
        self.position += 1
        return batch

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


CONFIG = TrainConfig(
    steps=10,
    batch_size=16,
    ema_decay=0.9,
    log_every=2,
    eval_every=0,
    sample_every=0,
    save_every=4,
    num_samples=4,
)
OPTIM = OptimConfig(learning_rate=1e-2, weight_decay=0.1, warmup_steps=3, schedule="cosine")


# A program is a pure value, so equal runs may share one with its compiled functions.
SHARED = functools.cache(loop.make_train_program)
TOY = Toy()


def run(workdir, **changes):
    """Train the toy with the settings above, some changed (train's keywords, or TrainConfig's)."""
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    config = dataclasses.replace(CONFIG, **{k: v for k, v in changes.items() if k in fields})
    settings: dict[str, Any] = {
        "config": config,
        "optim": OPTIM,
        "mesh": MeshConfig(),
        "rules": "dp",
        "train_data": Stream(),
        "eval_data": None,
        "workdir": workdir,
        "identity": {"name": "toy"},
    }
    settings.update({k: v for k, v in changes.items() if k not in fields and k != "stage"})
    with mock.patch.object(loop, "make_train_program", SHARED):
        return loop.train(changes.get("stage", TOY), **settings)
