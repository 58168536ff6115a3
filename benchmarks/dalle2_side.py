"""The other PyTorch side of a comparison: training of DALLE2-pytorch's prior and decoder.

    (a task of `benchmarks.baselines` as JSON on stdin, see `benchmarks.interleaved`)

The networks and losses are those of the library: a prior with causal attention and rotary
embeddings over the same tokens, and a decoder of residual blocks with cross attention, with the
same widths, depths and sides.
"""

import importlib.metadata
from typing import Any

import torch
from dalle2_pytorch import Decoder, DiffusionPrior, DiffusionPriorNetwork, Unet
from torch import nn

from benchmarks import interleaved, torch_step
from benchmarks.torch_step import Work


def prepare(task: dict[str, Any]) -> tuple[dict[str, Any], Work]:
    """Builds the network; returns facts about it and a function that takes one training step."""
    torch_step.configure()
    model, inputs = NETWORKS[task["network"]](task)
    model = model.train()
    facts = {
        "class": type(model).__name__,
        "parameters": torch_step.count(model),
        "memory_format": "contiguous_format",
        "peak_flops": torch_step.peak(),
        "torch": torch.__version__,
        "library": f"dalle2-pytorch {importlib.metadata.version('dalle2-pytorch')}",
    }
    # the model scales embeddings in place
    copies = {name: value.clone() for name, value in inputs.items()}

    def loss() -> torch.Tensor:
        for name, value in inputs.items():
            copies[name].copy_(value)
        return model(**copies)

    return facts, torch_step.train_step(model, loss, task)


def prior(task: dict[str, Any]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Builds a DiffusionPrior and a batch of random embeddings, with captions if it reads any."""
    sizes, batch = task["settings"], task["batch"]
    net = DiffusionPriorNetwork(**sizes, num_timesteps=task["timesteps"])
    model = DiffusionPrior(
        net,
        image_embed_dim=sizes["dim"],
        timesteps=task["timesteps"],
        cond_drop_prob=0.1,
        condition_on_text_encodings=sizes["max_text_len"] > 0,
    )
    z = (batch, sizes["dim"])
    inputs = {"text_embed": torch.randn(z), "image_embed": torch.randn(z)}
    if sizes["max_text_len"]:
        inputs["text_encodings"] = torch.randn(batch, sizes["max_text_len"], sizes["dim"])
    return model, inputs


def decoder(task: dict[str, Any]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Builds a Decoder around one Unet, and a batch of random images and conditions."""
    sizes, batch, side = task["settings"], task["batch"], task["side"]
    model = Decoder(
        Unet(**sizes),
        image_size=side,
        channels=sizes["channels"],
        timesteps=task["timesteps"],
        learned_variance=task["learned_variance"],
    )
    text = (batch, sizes["max_text_len"], sizes["text_embed_dim"])
    return model, {
        "image": torch.rand(batch, sizes["channels"], side, side),
        "image_embed": torch.randn(batch, sizes["image_embed_dim"]),
        "text_encodings": torch.randn(text),
    }


NETWORKS = {"prior": prior, "decoder": decoder}

if __name__ == "__main__":
    interleaved.serve(prepare)
