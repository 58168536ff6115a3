"""The PyTorch side of a comparison: a network of diffusers, trained or sampled on random input.

    (a task of `benchmarks.baselines` as JSON on stdin, see `benchmarks.interleaved`)

A unit of training is a step of diffusers' own scripts: noise, forward, mean squared error,
backward, clipping, fused AdamW, average of the parameters. A unit of sampling is a whole chain,
with both halves of guidance in one batch. Convolutions use the memory format that is faster on this
machine. This process does not import JAX.
"""

import math
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import nn
from torch.nn import functional

from benchmarks import interleaved, torch_step

Work = Callable[[], Any]
TRIALS = 2  # units per memory format, to select the faster
NUM_TIMESTEPS = 1000


class Prior(nn.Module):
    """PriorTransformer, on random captions."""

    def __init__(self, task: dict[str, Any]):
        super().__init__()
        settings = {k: v for k, v in task["settings"].items() if not k.startswith("_")}
        self.net = diffusers.PriorTransformer(**settings)
        self.z, self.context = settings["embedding_dim"], settings["num_embeddings"]

    def noise_shape(self, batch: int, *, whole: bool) -> tuple[int, ...]:
        """Returns the shape of x_t."""
        return (batch, self.z)

    def conditions(self, batch: int) -> dict[str, torch.Tensor]:
        """Returns z_txt, the caption's features and their mask."""
        return {
            "proj_embedding": torch.randn(batch, self.z),
            "encoder_hidden_states": torch.randn(batch, self.context, self.z),
            "attention_mask": torch.ones(batch, self.context, dtype=torch.bool),
        }

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, conditions: dict[str, torch.Tensor]):
        """Predicts x_0."""
        return self.net(x_t, t, **conditions).predicted_image_embedding


class Decoder(nn.Module):
    """UNet2DConditionModel behind the projections of z_img and of the caption's features."""

    def __init__(self, task: dict[str, Any]):
        super().__init__()
        settings = {k: v for k, v in task["settings"].items() if not k.startswith("_")}
        self.net = diffusers.UNet2DConditionModel(**settings)
        width, emb = settings["cross_attention_dim"], 4 * settings["block_out_channels"][0]
        self.side, self.channels = settings["sample_size"], settings["in_channels"]
        self.sizes = (task["z_dim"], task["context"], task["text_dim"])
        self.z_to_emb, self.text_to_emb = (nn.Linear(task["z_dim"], emb) for _ in range(2))
        self.z_to_tokens = nn.Linear(task["z_dim"], task["z_tokens"] * width)
        self.text_in = nn.Linear(task["text_dim"], width)

    def noise_shape(self, batch: int, *, whole: bool) -> tuple[int, ...]:
        """Returns the shape of x_t."""
        return (batch, self.channels, self.side, self.side)

    def conditions(self, batch: int) -> dict[str, torch.Tensor]:
        """Returns z_img, z_txt and the caption's features."""
        z, context, text = self.sizes
        return {
            "z_img": torch.randn(batch, z),
            "z_txt": torch.randn(batch, z),
            "text": torch.randn(batch, context, text),
        }

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, conditions: dict[str, torch.Tensor]):
        """Predicts eps, without a learned variance."""
        emb = self.z_to_emb(conditions["z_img"]) + self.text_to_emb(conditions["z_txt"])
        text = self.text_in(conditions["text"])
        extra = self.z_to_tokens(conditions["z_img"]).unflatten(1, (-1, text.shape[-1]))
        context = torch.cat([extra, text], dim=1)
        out = self.net(x_t, t, encoder_hidden_states=context, class_labels=emb).sample
        return out[:, : self.channels]


class Upsampler(nn.Module):
    """UNet2DModel on the noised image and the enlarged low-res one."""

    def __init__(self, task: dict[str, Any]):
        super().__init__()
        settings = {k: v for k, v in task["settings"].items() if not k.startswith("_")}
        self.net = diffusers.UNet2DModel(**settings)
        self.channels = settings["out_channels"]
        self.side = task["side"] * settings["sample_size"] // task["whole_side"]
        self.whole = settings["sample_size"]

    def noise_shape(self, batch: int, *, whole: bool) -> tuple[int, ...]:
        """Returns the shape of x_t: a crop in training, the whole image in sampling."""
        side = self.whole if whole else self.side
        return (batch, self.channels, side, side)

    def conditions(self, batch: int) -> dict[str, torch.Tensor]:
        """Returns {}: `forward` generates the low-res image."""
        return {}

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, conditions: dict[str, torch.Tensor]):
        """Predicts eps."""
        low_res = functional.interpolate(x_t[:, :, ::4, ::4], x_t.shape[2:], mode="bilinear")
        return self.net(torch.cat([x_t, low_res], dim=1), t).sample


CLASSES = {
    "PriorTransformer": Prior,
    "UNet2DConditionModel": Decoder,
    "UNet2DModel": Upsampler,
}


def prepare(task: dict[str, Any]) -> tuple[dict[str, Any], Work]:
    """Builds the network; returns facts about it and a function that runs one unit of work."""
    torch_step.configure()
    make = train if task["what"] == "train" else sample
    name = task["settings"]["_class_name"]
    formats = ["contiguous_format"]
    if name != "PriorTransformer":
        formats.append("channels_last")
    works = {}
    for layout in formats:
        work, parameters = make(CLASSES[name](task), task, layout)
        works[layout] = torch_step.complete(work, dtype=task["dtype"]), parameters
    seconds = {layout: _trial(work) for layout, work in works.items()} if len(works) > 1 else {}
    fastest = min(seconds, key=lambda layout: seconds[layout]) if seconds else formats[0]
    work, parameters = works[fastest]
    facts = {
        "class": name,
        "parameters": parameters,
        "memory_format": fastest,
        "peak_flops": torch_step.peak(),
        "torch": torch.__version__,
        "library": f"diffusers {diffusers.__version__}",
    }
    return facts, work


def train(model: nn.Module, task: dict[str, Any], layout: str) -> tuple[Work, int]:
    """Returns a function that takes one training step, and the number of parameters."""
    model = model.to(memory_format=getattr(torch, layout)).train()
    batch, alpha_bar = task["batch"], _alpha_bar()
    x_0 = torch.randn(model.noise_shape(batch, whole=False))
    conditions = model.conditions(batch)

    def loss() -> torch.Tensor:
        t, eps = torch.randint(0, NUM_TIMESTEPS, (batch,)), torch.randn_like(x_0)
        level = alpha_bar[t].view(-1, *[1] * (x_0.dim() - 1))
        x_t = level.sqrt() * x_0 + (1 - level).sqrt() * eps
        return functional.mse_loss(model(x_t, t, conditions), eps)

    return torch_step.train_step(model, loss, task), torch_step.count(model)


def sample(model: nn.Module, task: dict[str, Any], layout: str) -> tuple[Work, int]:
    """Returns a function that samples one chain, and the number of parameters."""
    model = model.to(memory_format=getattr(torch, layout)).eval()
    batch, alpha_bar = task["batch"], _alpha_bar()
    rows = batch * (2 if task["guided"] else 1)
    conditions = model.conditions(rows)
    indices = torch.linspace(NUM_TIMESTEPS - 1, 0, task["steps"]).long()

    @torch.inference_mode()
    def chain() -> float:
        x_t = torch.randn(model.noise_shape(batch, whole=True))
        for t in indices:
            both = torch.cat([x_t, x_t]) if task["guided"] else x_t
            eps = model(both, t.expand(rows), conditions)
            if task["guided"]:
                conditioned, free = eps.chunk(2)
                eps = free + 2.0 * (conditioned - free)
            level = alpha_bar[t]
            x_0 = ((x_t - (1 - level).sqrt() * eps) / level.sqrt()).clamp(-1, 1)
            x_t = level.sqrt() * x_0 + (1 - level).sqrt() * torch.randn_like(x_t)
        return x_t.sum().item()

    return chain, torch_step.count(model)


def _alpha_bar() -> torch.Tensor:
    """Returns alpha_bar of the cosine schedule."""
    t = torch.arange(NUM_TIMESTEPS + 1) / NUM_TIMESTEPS
    level = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (level[1:] / level[0]).clamp(min=1e-5)


def _trial(candidate: tuple[Work, int]) -> float:
    """Returns the shortest time of a unit (on CPUs, CPU time) after one warm-up."""
    work, _ = candidate
    work()
    clock = "cpu" if torch_step.device() == "cpu" else "wall"
    return min(getattr(interleaved.timed(work), clock) for _ in range(TRIALS))


if __name__ == "__main__":
    interleaved.serve(prepare)
