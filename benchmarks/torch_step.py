"""A training step in PyTorch in its usual form, for any network; does not import JAX.

Forward, backward, clipping, a fused AdamW step, an average of the parameters.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import interleaved

Work = Callable[[], Any]


def device() -> str:
    """Returns "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def configure() -> None:
    """Sets the seed, the device of new tensors, and the threads to all usable cores."""
    torch.manual_seed(0)
    torch.set_default_device(device())
    torch.set_num_threads(interleaved.cores())


def complete(work: Work, *, dtype: str = "float32") -> Work:
    """Returns `work` in a compute dtype, followed by waiting for the device."""

    def run() -> None:
        with torch.autocast(device(), torch.bfloat16, enabled=dtype == "bfloat16"):
            work()
        if device() == "cuda":
            torch.cuda.synchronize()

    return run


def train_step(model: nn.Module, loss: Callable[[], torch.Tensor], task: dict[str, Any]) -> Work:
    """Returns a function that takes one step on the parameters of `model` and returns the loss."""
    average = copy.deepcopy(model)
    ours, theirs = list(model.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(ours, fused=True, **task["optim"])

    def step() -> float:
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(ours, task["clip_norm"], foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(theirs, ours, 1.0 - task["ema_decay"])
        return value.item()

    return step


def count(model: nn.Module) -> int:
    """Counts the parameters of a model."""
    return sum(p.numel() for p in model.parameters())


def peak(side: int = 2048, times: int = 5) -> float:
    """Measures the peak FLOP/s of a plain float32 matrix product."""
    x = torch.ones(side, side)
    product = complete(lambda: x @ x)
    return 2.0 * side**3 / min(interleaved.timed(product).wall for _ in range(times + 1))
