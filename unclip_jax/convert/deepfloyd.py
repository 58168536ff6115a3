"""Reader of DeepFloyd IF in the layout of diffusers: Imagen's open form.

    IFPipeline                    tokenizer, text_encoder, unet, scheduler          stage I
    IFSuperResolutionPipeline     the same, with image_noising_scheduler            stage II

The two folders are given together. Stage III was never released; any upsampler from 256 pixels can
replace it. The safety checker and the watermarker are not read: the licence asks for filters of
images that are shown to others.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.backbones.unet_plan import UNetConfig, plan
from unclip_jax.convert import abstract, karlo, language_tensors, unet_tensors
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.core.checks import UserError, short
from unclip_jax.models.text_base import TextBaseConfig
from unclip_jax.models.text_condition import TextConditionConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.weight_files import configs
from unclip_jax.weight_files.tensor_source import open_tensors, read_json
from unclip_jax.weight_files.tensor_table import Entry, linear, norm

INDEX = karlo.INDEX
BASE, SUPER_RES = "IFPipeline", "IFSuperResolutionPipeline"
STAGES = ("text_encoder", "imagen_base", "upsampler_256")
CONTEXT = 77  # slots of T5, padding included, that the U-Nets see
BASE_SIZE = 64
NOISE_LEVEL = 0.25  # of the enlarged image: timestep 250 of 1000
LICENCE = (
    "DeepFloyd IF License: research and non-commercial use; read the licence that came with the "
    "weights"
)
# Part of the terms in every manifest, also those of fine-tuned stages, whatever licence is named.
SAFETY = (
    "the safety checker and the watermarker of DeepFloyd IF's pipelines are not applied here, and "
    "its licence asks for filters where images are shown to others"
)
# Steps and guidance that the pipelines use by default.
USUAL = {BASE: ("ddim100", 7.0), SUPER_RES: ("ddim50", 4.0)}
SCHEDULER = "DDPMScheduler"
FIXED_SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "variance_type": "learned_range",
    "thresholding": True,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "steps_offset": 0,
}
NOISING_SCHEDULER = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
# Settings of a U-Net that Karlo's lack: those that are always stated, and choices.
STATED = {"act_fn": "gelu", "cross_attention_norm": "group_norm", "addition_embed_type": "text"}
CHOICES = {
    "encoder_hid_dim_type": (None, "text_proj"),
    "time_embedding_act_fn": (None, "gelu"),
    "class_embed_type": (None, "timestep"),  # stage I, stage II
}
READ = (
    *STATED,
    *CHOICES,
    "layers_per_block",
    "only_cross_attention",
    "mid_block_only_cross_attention",
    "resnet_skip_time_act",
    "resnet_out_scale_factor",
    "mid_block_scale_factor",
    "addition_embed_type_num_heads",
    "encoder_hid_dim",
    "time_embedding_dim",
)


def is_pipeline(folder: pathlib.Path) -> bool:
    """True if `folder` is a pipeline directory of stage I or II."""
    return name_of(folder) in (BASE, SUPER_RES)


def name_of(folder: pathlib.Path) -> Any:
    """Returns the class of a pipeline directory; None for other folders."""
    return read_json(folder / INDEX).get("_class_name") if karlo.is_pipeline(folder) else None


def read_stages(
    folders: Sequence[pathlib.Path], *, stages: Sequence[str] = STAGES
) -> tuple[list[ConvertedStage], pathlib.Path]:
    """Returns the stages of pipeline directories in the order of the chain, and the tokenizer.

    Raises:
        UserError: a pipeline of another kind, a component that is missing, another architecture.
    """
    pipelines: dict[str, pathlib.Path] = {}
    for folder in folders:
        if not is_pipeline(folder):
            raise UserError(
                f"{folder} is not a stage of DeepFloyd IF; give its stages I and II alone."
            )
        if pipelines.setdefault(name_of(folder), folder) != folder:
            raise UserError(
                f"{pipelines[name_of(folder)]} and {folder} are both {name_of(folder)}; give one "
                "of each stage."
            )
    converted, text = [], _component(folders, "text_encoder")
    if "text_encoder" in stages:
        converted.append(language_tensors.stage(text, context=CONTEXT))
    base = _base(pipelines[BASE]) if BASE in pipelines else None
    if base is not None and "imagen_base" in stages:
        converted.append(base)
    if SUPER_RES in pipelines and "upsampler_256" in stages:
        base_size = base.facts["image_size"] if base else BASE_SIZE
        converted.append(_upsampler(pipelines[SUPER_RES], base_size=base_size))
    return converted, _component(folders, "tokenizer")


def missing_stage(folders: Sequence[pathlib.Path], written: Sequence[str]) -> str:
    """Returns a note on the stage of IF that a conversion left out, and how to add it; or "".

    Args:
        folders: the pipeline directories.
        written: names of the stages that were written.
    """
    if ("imagen_base" in written) == ("upsampler_256" in written):
        return ""
    if "imagen_base" in written:
        command = together(folders[0], "IF-II-L-v1.0")
        lacks = f"images have {BASE_SIZE} px, as stage II is not converted"
    else:
        command = together("IF-I-XL-v1.0", folders[0])
        lacks = "only `sample upscale` works, as stage I is not converted"
    return f"{lacks}; `{command}` converts both"


def together(first: pathlib.Path | str, second: pathlib.Path | str) -> str:
    """Returns the command that converts both stages of IF."""
    return f"python -m unclip_jax.convert {first} {second} --out=RUN --dtype=bfloat16"


def chain_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folder of stage I and, if one is beside it, that of stage II, in this order.

    Of several folders of stage II the first by name is taken: L before M.

    Raises:
        UserError: `folder` is stage II.
    """
    beside = [path for path in sorted(folder.parent.iterdir()) if is_pipeline(path)]
    if name_of(folder) == SUPER_RES:
        first = next((path for path in beside if name_of(path) == BASE), "IF-I-XL-v1.0")
        raise UserError(
            f"{folder} is stage II of DeepFloyd IF, which enlarges the images of stage I; convert "
            f"both with `{together(first, folder)}` and give --models=RUN."
        )
    return [folder, *[path for path in beside if name_of(path) == SUPER_RES][:1]]


def _component(folders: Sequence[pathlib.Path], name: str) -> pathlib.Path:
    """Returns the folder of a component that may be in either pipeline."""
    for folder in folders:
        if (folder / name).is_dir():
            return folder / name
    raise UserError(f"the component {name} is missing in {folders[0]}; copy its folder.")


def base_config(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the config of the stage `text_base` for a pipeline directory of stage I.

    Raises:
        UserError: a component is missing, or has another architecture.
    """
    path = _component([folder], "unet") / "config.json"
    network, text = unet_config(read_json(path), where=str(path))
    diffusion, sampling = scheduler(folder, pipeline=BASE)
    model = TextBaseConfig(network, text)
    return {"model": model, "diffusion": diffusion, "sampling": sampling, "drop_text": 0.0}


def _base(folder: pathlib.Path) -> ConvertedStage:
    config = base_config(folder)
    cfg: TextBaseConfig = config["model"]
    return ConvertedStage(
        name="imagen_base",
        stage="text_base",
        config=config,
        facts={"image_size": cfg.unet.image_size, "text_width": cfg.text.width},
        source=open_tensors(folder / "unet"),
        entries=entries(cfg.unet),
        abstract=configs.described(
            lambda: abstract.text_base(cfg), where=str(folder / "unet" / "config.json")
        ),
    )


def upsampler_config(folder: pathlib.Path, *, base_size: int) -> dict[str, Any]:
    """Returns the config of the stage `upsampler` for a pipeline directory of stage II.

    Args:
        folder: the pipeline directory.
        base_size: side of the images of stage I, in pixels.

    Raises:
        UserError: a component is missing or has another architecture, or its size is not a multiple
            of `base_size`.
    """
    path = _component([folder], "unet") / "config.json"
    network, text = unet_config(read_json(path), where=str(path))
    size = network.image_size
    if size % base_size or size == base_size:
        raise UserError(
            f"{path} has sample_size {size}, no multiple of the {base_size} pixels of stage I."
        )
    factor = size // base_size
    cfg = UpsamplerConfig(network, factor=factor, interpolation="bilinear_corners", text=text)
    diffusion, sampling = scheduler(folder, pipeline=SUPER_RES)
    augment = {"most": 1.0, "level": NOISE_LEVEL, "at": "enlarged"}
    return {
        "model": cfg,
        "crop": size,
        "diffusion": diffusion,
        "sampling": sampling,
        "augment": {**augment, "schedule": _noise_schedule(folder)},
        "quantise": False,
    }


def _upsampler(folder: pathlib.Path, *, base_size: int) -> ConvertedStage:
    config = upsampler_config(folder, base_size=base_size)
    cfg: UpsamplerConfig = config["model"]
    size, text = cfg.unet.image_size, cfg.text
    assert text is not None
    shapes = configs.described(
        lambda: abstract.upsampler(cfg, noised=True),
        where=str(folder / "unet" / "config.json"),
    )
    return ConvertedStage(
        name="upsampler_256",
        stage="upsampler",
        config=config,
        facts={
            "image_size": size,
            "low_res_size": size // cfg.factor,
            "text_width": text.width,
        },
        source=open_tensors(folder / "unet"),
        entries=entries(cfg.unet, low_res=True),
        abstract=shapes,
    )


def unet_config(
    settings: Mapping[str, Any], *, where: str
) -> tuple[UNetConfig, TextConditionConfig]:
    """Returns our configs for a U-Net of stage I or II, and for its text condition.

    Raises:
        UserError: the class or variant is not supported, or a size is missing.
    """
    configs.check_fixed({name: settings.get(name) for name in STATED}, STATED, where=where)
    for name, choices in CHOICES.items():
        if settings.get(name) not in choices:
            raise UserError(
                f"{where} has {name} {short(settings[name])}, an unsupported variant; expected "
                f"{choices[1]!r} or none."
            )
    names = ("encoder_hid_dim", "addition_embed_type_num_heads", "cross_attention_dim")
    width, heads, project = configs.required_sizes(settings, names, where=where)
    cross = _agreeing(settings, "only_cross_attention", "mid_block_only_cross_attention", where)
    factor = _agreeing(settings, "resnet_out_scale_factor", "mid_block_scale_factor", where)
    skips, activated = settings.get("resnet_skip_time_act"), settings.get("time_embedding_act_fn")
    if bool(skips) != bool(activated):  # activated once or in every block are equivalent
        raise UserError(
            f"{where} has resnet_skip_time_act {skips!r} but time_embedding_act_fn {activated!r}; "
            "expected both or none."
        )
    plain = {n: v for n, v in settings.items() if n not in READ}
    depth = settings.get("layers_per_block", 2)
    network = unet_tensors.config({**plain, "layers_per_block": 1}, where=where)
    emb = settings.get("time_embedding_dim")
    changes = {
        "depth": tuple(depth) if isinstance(depth, list | tuple) else depth,
        "activation": "gelu",
        "attention": "cross" if cross else "joint",
        "context_norm": "group",
        "residual_scale": 1.0 / float(factor or 1),
        "emb_channels": None
        if emb is None
        else configs.integer(emb, f"time_embedding_dim in {where}"),
    }
    values = {**dataclasses.asdict(network), **changes}
    network = configs.sized(UNetConfig, values, where=where)
    configs.described(lambda: plan(network), where=where)
    text = TextConditionConfig(
        width=width,
        context=CONTEXT,
        project=project,
        pool_heads=heads,
        pool_query="mean",
        padding="seen",
        null="empty",
    )
    return network, text


def _agreeing(settings: Mapping[str, Any], name: str, other: str, where: str) -> Any:
    """Returns a setting of the blocks, which must equal that of the middle."""
    one, two = settings.get(name), settings.get(other)
    if (one or 0) != (two or 0) and not {one, two} <= {None, 1}:
        raise UserError(f"{where} has {name} {one!r} but {other} {two!r}; expected one for both.")
    return one


def scheduler(folder: pathlib.Path, *, pipeline: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (diffusion, sampling) for a pipeline's DDPMScheduler, whose arithmetic is float32.

    Raises:
        UserError: the scheduler or its variant is not supported.
    """
    path = _component([folder], "scheduler") / "scheduler_config.json"
    settings, where = read_json(path), str(path)
    configs.check_class(settings, SCHEDULER, where=where)
    configs.check_fixed(settings, FIXED_SCHEDULER, where=where)
    names = ("num_train_timesteps", "dynamic_thresholding_ratio", "sample_max_value")
    count, ratio, cap = configs.required_values(settings, names, where=where)
    steps, guidance = USUAL[pipeline]
    diffusion = {
        "schedule": "cosine",
        "num_timesteps": configs.integer(count, f"num_train_timesteps in {where}"),
        "target": "eps",
        "learned_variance": True,
        "tables": "float32_exact",
    }
    sampling = {
        "steps": steps,
        "sampler": "ancestral",
        "variance": "learned_range",
        "guidance_scale": guidance,
        "threshold": "dynamic",
        "percentile": 100.0 * float(ratio),
        "cap": float(cap),  # 1 is static clipping
    }
    return diffusion, sampling


def _noise_schedule(folder: pathlib.Path) -> str:
    """Returns the noise schedule of the enlarged image."""
    path = _component([folder], "image_noising_scheduler") / "scheduler_config.json"
    settings = read_json(path)
    configs.check_fixed(settings, {"beta_schedule": "squaredcos_cap_v2"}, where=str(path))
    return "cosine"


def entries(network: UNetConfig, *, low_res: bool = False) -> list[Entry]:
    """Returns the table of a U-Net with its text condition."""
    table = [
        *unet_tensors.entries(network),
        *linear("text/project", "encoder_hid_proj"),
        *norm("text/pool_norm", "add_embedding.norm1"),
        *norm("text/pooled_norm", "add_embedding.norm2"),
        *linear("text/pooled", "add_embedding.proj"),
        Entry("text/pool/position", "add_embedding.pool.positional_embedding"),
    ]
    for name in "qkv":
        table += linear(f"text/pool/{name}", f"add_embedding.pool.{name}_proj")
    if low_res:
        for name in ("linear_1", "linear_2"):
            table += linear(f"low_res_time/{name}", f"class_embedding.{name}")
    return table
