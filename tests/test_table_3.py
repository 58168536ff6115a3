"""The `paper` presets hold the numbers of Table 3 (Ramesh et al. 2022, appendix C).

The dash of a column is what the paper leaves out: no dropout, no weight decay.
"""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ADAM = {"optim.name": "adamw", "optim.b1": 0.9}
TEXT = {"context": 256, "width": 2048, "depth": 24, "heads": 32}
PRIOR = {
    "model.diffusion.num_timesteps": 1000,
    "model.diffusion.schedule": "cosine",
    "model.sampling.steps": "64",
    "model.sampling.variance": "table",  # analytic
    **{f"model.model.{name}": value for name, value in TEXT.items()},
    "optim.weight_decay": 6.0e-2,
    "train.batch_size": 4096,
    "train.steps": 600_000,
    "optim.learning_rate": 1.1e-4,
    "optim.b2": 0.96,
    "optim.eps": 1.0e-6,
    "train.ema_decay": 0.9999,
}
PRIOR_AR = {
    "model.model.codec.components": 319,  # and 1,024 buckets, section 2.2
    "model.model.codec.buckets": 1024,
    "model.model.context": 256,
    **{f"model.model.text_{name}": TEXT[name] for name in ("width", "depth", "heads")},
    "model.model.latent_context": 384,
    "model.model.width": 1664,
    "model.model.depth": 24,
    "model.model.heads": 26,
    "model.drop_text": 0.1,
    "optim.weight_decay": 4.0e-2,
    "train.batch_size": 4096,
    "train.steps": 1_000_000,
    "optim.learning_rate": 1.6e-4,
    "optim.b2": 0.91,
    "optim.eps": 1.0e-10,
    "train.ema_decay": 0.999,
}
DECODER = {
    "model.diffusion.num_timesteps": 1000,
    "model.diffusion.schedule": "cosine",
    "model.sampling.steps": "250",
    "model.sampling.variance": "learned_range",
    "model.diffusion.learned_variance": True,
    "model.model.unet.channels": 512,
    "model.model.unet.depth": 3,
    "model.model.unet.multiples": (1, 2, 3, 4),
    "model.model.unet.head_channels": 64,
    "model.model.unet.attention_at": (32, 16, 8),
    "model.model.context": 256,
    **{f"model.model.text_{name}": TEXT[name] for name in ("width", "depth", "heads")},
    "model.model.unet.dropout": 0.1,
    "optim.weight_decay": 0.0,
    "train.batch_size": 2048,
    "train.steps": 800_000,
    "optim.learning_rate": 1.2e-4,
    "optim.b2": 0.999,
    "optim.eps": 1.0e-8,
    "train.ema_decay": 0.9999,
}
UPSAMPLER_256 = {
    "model.diffusion.num_timesteps": 1000,
    "model.diffusion.schedule": "cosine",
    "model.sampling.steps": "fast27",
    "model.sampling.sampler": "ddim",
    "model.crop": 256 // 4,
    "model.model.unet.channels": 320,
    "model.model.unet.depth": 3,
    "model.model.unet.multiples": (1, 2, 3, 4),
    "model.model.unet.attention_at": (),
    "model.model.unet.dropout": 0.1,
    "optim.weight_decay": 0.0,
    "train.batch_size": 1024,
    "train.steps": 1_000_000,
    "optim.learning_rate": 1.2e-4,
    "optim.b2": 0.999,
    "optim.eps": 1.0e-8,
    "train.ema_decay": 0.9999,
}
UPSAMPLER_1024 = {
    **UPSAMPLER_256,
    "model.diffusion.schedule": "linear",
    "model.sampling.steps": "15",
    "model.crop": 1024 // 4,
    "model.model.unet.channels": 192,
    "model.model.unet.depth": 2,
    "model.model.unet.multiples": (1, 1, 2, 2, 4, 4),
    "model.model.unet.dropout": 0.0,
    "train.batch_size": 512,
    "optim.learning_rate": 1.0e-4,
}
COLUMNS = {
    "prior": PRIOR,
    "prior_ar": PRIOR_AR,
    "decoder": DECODER,
    "upsampler_256": UPSAMPLER_256,
    "upsampler_1024": UPSAMPLER_1024,
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_paper_preset_is_its_column_of_table_3(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("paper")
    for key, value in {**COLUMNS[name], **ADAM}.items():
        found = config
        for part in key.split("."):
            found = found[part]
        assert found == value, key
