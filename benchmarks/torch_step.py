"""A step of training in PyTorch as its users write it, whatever the network; no JAX in here.

Forward, backward, clipping, a fused AdamW step, an average of the parameters.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import interleaved

Work = Callable[[], Any]


def settle() -> None:
    """One seed, and all cores that this process may use."""
    torch.manual_seed(0)
    torch.set_num_threads(interleaved.cores())


def trained(model: nn.Module, loss: Callable[[], torch.Tensor], task: dict[str, Any]) -> Work:
    """One step on the parameters of `model`, whose `loss()` is a scalar; returns its value."""
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
    """Its parameters."""
    return sum(p.numel() for p in model.parameters())


def peak(side: int = 2048, times: int = 5) -> float:
    """The most FLOP/s that a plain float32 product of matrices reached here."""
    x = torch.ones(side, side)
    return 2.0 * side**3 / min(interleaved.timed(lambda: x @ x).wall for _ in range(times + 1))
