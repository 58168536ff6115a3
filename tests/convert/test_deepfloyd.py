"""DeepFloyd IF out and in again: every bit, and what its pipelines have no setting for.

tests/parity compares the folders with diffusers.
"""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from tests.stages import tiny
from tests.tokenization.test_language_tokenizers import PIECES, spiece
from unclip_jax.backbones.unet_plan import UNetConfig
from unclip_jax.conditioning.low_res_noise import AugmentConfig
from unclip_jax.convert import deepfloyd, diffusers, importing, nested_pipelines
from unclip_jax.convert.__main__ import main as convert_command
from unclip_jax.convert.importing import ImportOptions
from unclip_jax.core import config as typed
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import export, load
from unclip_jax.handoff.export import replace_manifest
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.models.language_encoder import LanguageEncoderConfig
from unclip_jax.models.text_base import TextBaseConfig
from unclip_jax.models.text_condition import TextConditionConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig
from unclip_jax.stages.distillation import DistillConfig, student_config
from unclip_jax.stages.registry import folder_entry
from unclip_jax.stages.text_base import TextBaseStageConfig
from unclip_jax.stages.text_encoder import TextEncoderStageConfig
from unclip_jax.stages.upsampler import UpsamplerStageConfig
from unclip_jax.tokenization import caption_tokenizer

TEXT = TextConditionConfig(
    width=16,
    context=77,
    project=32,
    pool_heads=4,
    pool_query="mean",
    padding="seen",
    null="empty",
)
UNET = UNetConfig(
    in_channels=3,
    out_channels=6,
    channels=8,
    multiples=(1, 2),
    depth=1,
    image_size=8,
    attention_at=(4,),
    head_channels=4,
    context_width=32,
    norm_groups=4,
    activation="gelu",
    context_norm="group",
    scale_shift=True,
)
DIFFUSION = DiffusionConfig(learned_variance=True, tables="float32_exact")
SAMPLING = SamplingConfig(
    steps="ddim100",
    variance="learned_range",
    guidance_scale=7.0,
    threshold="dynamic",
    percentile=95.0,
    cap=1.5,
)
LARGER = dataclasses.replace(
    UNET,
    image_size=16,
    in_channels=6,
    depth=(1, 2),
    attention_at=(8,),
    attention="cross",
    residual_scale=1.0 / 1.41423,
    emb_channels=20,
)
ENCODER = LanguageEncoderConfig(
    family="t5",
    width=16,
    depth=2,
    heads=2,
    head_width=6,
    mlp=24,
    vocab_size=len(PIECES) + 100,
    context=77,
)
CONFIGS = {
    "text_encoder": TextEncoderStageConfig(ENCODER),
    "imagen_base": TextBaseStageConfig(TextBaseConfig(UNET, TEXT), DIFFUSION, SAMPLING, 0.0),
    "upsampler_256": UpsamplerStageConfig(
        UpsamplerConfig(LARGER, factor=2, interpolation="bilinear_corners", text=TEXT),
        crop=16,
        diffusion=DIFFUSION,
        sampling=dataclasses.replace(SAMPLING, steps="ddim50", guidance_scale=4.0, cap=1.0),
        augment=AugmentConfig(most=1.0, level=0.25, at="enlarged", schedule="cosine"),
        quantise=False,
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the three stages with random parameters and T5's kind of tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "spiece.model").write_bytes(spiece(PIECES))
    words = caption_tokenizer.load(folder, lower=True)
    words.save(folder / "tokenizer")
    encoder_id = None
    for name, cfg in CONFIGS.items():
        entry = folder_entry(name)
        stage = entry.make(cfg)
        card = Manifest(
            stage=stage.name,
            size="tiny",
            step=3,
            tokenizer_hash=words.hash if name == "text_encoder" else None,
            text_encoder_id=encoder_id,
            **stage.describe,
        )
        manifest = export.write_export(
            folder / name / "export",
            params=tiny.random_params(stage),
            manifest=card,
            tokenizer_dir=folder / "tokenizer" if name == "text_encoder" else None,
            identity=entry.identity,
        )
        encoder_id = manifest.text_encoder_id or encoder_id
    return folder


@pytest.fixture(scope="module")
def pipelines(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "if"
    assert diffusers.write(run, out) == ["stage_1", "stage_2"]
    return out


def settings(pipelines, *path):
    return json.loads(pipelines.joinpath(*path).read_text("utf-8"))


def test_the_chain_comes_back_bit_for_bit(run, pipelines, tmp_path):
    names = importing.convert([pipelines / "stage_1", pipelines / "stage_2"], tmp_path / "run")
    assert names == list(CONFIGS)
    for name in names:
        ours, theirs = run / name / "export", tmp_path / "run" / name / "export"
        trees = [load.read_params(p, abstract=load.stored_shapes(p)) for p in (ours, theirs)]
        jax.tree.map(np.testing.assert_array_equal, *trees)
        cards = [load.read_manifest(path) for path in (ours, theirs)]
        assert cards[0].text_encoder_id == cards[1].text_encoder_id is not None
        model = [card.config["model"] for card in cards]
        assert model[0] == model[1]
        assert cards[0].config.get("sampling") == cards[1].config.get("sampling")
    words = [
        caption_tokenizer.load(load.tokenizer_dir(p / "text_encoder" / "export"))
        for p in (run, tmp_path / "run")
    ]
    assert words[0].hash == words[1].hash
    diffusers.write(tmp_path / "run", tmp_path / "again")
    for path in sorted(pipelines.rglob("*")):
        if path.suffix in (".json", ".safetensors"):
            other = tmp_path / "again" / path.relative_to(pipelines)
            assert other.read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("licence", ["", "ours alone"])
def test_what_is_not_applied_is_said_wherever_the_weights_go(pipelines, tmp_path, licence):
    """Whatever licence is named: in manifests, from which every later card takes it, and README."""
    sources = [pipelines / "stage_1", pipelines / "stage_2"]
    importing.convert(sources, tmp_path / "run", options=ImportOptions(licence=licence))
    own = licence or "DeepFloyd IF License: research and non-commercial use"
    for name in CONFIGS:
        terms = load.read_manifest(tmp_path / "run" / name / "export").licence
        assert terms.startswith(own) and ("DeepFloyd IF License" in terms) == (not licence)
        assert "safety checker and the watermarker" in terms and "asks for filters" in terms
    card = " ".join((tmp_path / "run" / "README.md").read_text("utf-8").split())
    assert "`safety_checker` and `watermarker` are not converted and not applied" in card
    assert f"Licence of the weights: {own}" in card and "stage_1, stage_2" in card
    diffusers.write(tmp_path / "run", tmp_path / "back")
    card = " ".join((tmp_path / "back" / "README.md").read_text("utf-8").split())
    assert "no safety checker and no watermarker" in card and "neither filtered nor marked" in card
    assert f"Licence of the weights: {own}" in card


def test_a_readme_that_is_there_already_is_kept(pipelines, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    options = ImportOptions(stages=("text_encoder",))
    importing.convert([pipelines / "stage_1"], tmp_path, options=options)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["stage_1"], {"stages": ("decoder",)}, "has no decoder, .* it has text_encoder, imagen_b"),
        (["stage_1"], {"stages": ("imagen_base", "upsampler_256")}, "has no upsampler_256, which"),
        (["stage_1"], {"context": 32}, "--context is 32, the caption length of a T5 or BERT, but"),
        (["stage_1/text_encoder", "stage_2"], {}, "is converted alone, but .*/stage_2 was given"),
    ],
)
def test_requests_that_would_have_no_effect_are_rejected(
    pipelines, tmp_path, names, options, message
):
    sources = [pipelines / name for name in names]
    with pytest.raises(UserError, match=message):
        importing.convert(sources, tmp_path / "run", options=ImportOptions(**options))
    assert not (tmp_path / "run").exists()


def test_settings_are_those_of_the_released_pipelines(pipelines):
    first, second = (settings(pipelines, f"stage_{i}", "unet", "config.json") for i in (1, 2))
    assert first["layers_per_block"] == 1 and second["layers_per_block"] == [1, 2]
    assert (first["class_embed_type"], second["class_embed_type"]) == (None, "timestep")
    assert (first["resnet_out_scale_factor"], second["resnet_out_scale_factor"]) == (1.0, 1.41423)
    assert (first["only_cross_attention"], second["only_cross_attention"]) == (False, True)
    assert (first["encoder_hid_dim"], first["cross_attention_dim"]) == (16, 32)
    assert second["time_embedding_dim"] == 20 and first["time_embedding_dim"] is None
    steps = settings(pipelines, "stage_1", "scheduler", "scheduler_config.json")
    assert (steps["dynamic_thresholding_ratio"], steps["sample_max_value"]) == (0.95, 1.5)
    index = settings(pipelines, "stage_2", "model_index.json")
    assert index["image_noising_scheduler"] == ["diffusers", "DDPMScheduler"]
    card = (pipelines / "README.md").read_text("utf-8")
    assert "num_inference_steps=100, guidance_scale=7.0" in card
    assert "num_inference_steps=50" in card


def test_special_tokens_have_their_names_and_captions_their_case(pipelines):
    description = settings(pipelines, "stage_1", "tokenizer", "tokenizer.json")
    pieces = [piece for piece, _ in description["model"]["vocab"]]
    assert pieces[:4] == ["<pad>", "</s>", "<unk>", "▁red"]
    assert pieces[-100] == "<extra_id_99>" and pieces[-1] == "<extra_id_0>"
    added_tokens = {token["content"]: token["id"] for token in description["added_tokens"]}
    assert added_tokens["</s>"] == 1 and added_tokens["<extra_id_0>"] == len(pieces) - 1
    assert "Lowercase" not in json.dumps(description["normalizer"])


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("imagen_base", "sampling.percentile", 99.5, None),
        ("imagen_base", "sampling.steps", "fast27", None),
        ("imagen_base", "diffusion.weighting.name", "snr_clip", None),
        ("upsampler_256", "augment.most", 0.5, None),
        ("imagen_base", "model.text.padding", "mask", 'model.text.padding "mask" .not "seen".'),
        ("imagen_base", "model.unet.context_norm", "none", 'context_norm "none" .not "group".'),
        ("imagen_base", "sampling.threshold", "static", 'threshold "static" .not "dynamic".'),
        ("imagen_base", "diffusion.schedule", "linear", 'schedule "linear" .not "cosine".'),
        ("upsampler_256", "model.interpolation", "cubic", 'interpolation "cubic" .not "bilinear'),
        ("upsampler_256", "augment.level", 0.1, "augment.level 0.1 .not 0.25."),
        ("upsampler_256", "quantise", True, "quantise true .not false."),
    ],
)
def test_options_without_a_setting_are_named(run, tmp_path, name, path, value, message):
    folder = run / name / "export"
    before = (folder / "manifest.json").read_text("utf-8")
    card = load.read_manifest(folder)
    config = json.loads(json.dumps(typed.as_dict(card.config)))
    *groups, last = path.split(".")
    group = config
    for each in groups:
        group = group[each]
    group[last] = value
    if value == "mask":  # "group", over hidden slots, is no choice at all
        config["model"]["unet"]["context_norm"] = "layer"
    replace_manifest(folder, dataclasses.replace(card, config=config))
    try:
        if message is None:
            diffusers.write(run, tmp_path / "out")
            steps = 27 if value == "fast27" else 100
            card = (tmp_path / "out" / "README.md").read_text("utf-8")
            assert f"num_inference_steps={steps}, guidance_scale=7.0" in card
            return
        with pytest.raises(UserError, match=message):
            diffusers.write(run, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    finally:
        (folder / "manifest.json").write_text(before, "utf-8")


def test_a_distilled_stage_is_rejected(run, tmp_path):
    """A pipeline samples with any steps and guidance, which a student must not be."""
    folder = run / "imagen_base" / "export"
    before = (folder / "manifest.json").read_text("utf-8")
    card = load.read_manifest(folder)
    cfg = typed.build(TextBaseStageConfig, card.config, where="x")
    student = student_config(cfg, DistillConfig(steps=4, guidance_scale=1.0))
    replace_manifest(folder, dataclasses.replace(card, config=typed.as_dict(student)))
    try:
        with pytest.raises(UserError, match=r"imagen_base has diffusion.distillation"):
            diffusers.write(run, tmp_path / "out")
    finally:
        (folder / "manifest.json").write_text(before, "utf-8")


def test_a_run_with_other_stages_is_rejected(run, tmp_path):
    for name in ("imagen_base", "upsampler_256"):
        (tmp_path / name).symlink_to(run / name)
    with pytest.raises(UserError, match="the run has no text_encoder; the pipelines of DeepFloyd"):
        diffusers.write(tmp_path, tmp_path / "out")


def test_the_sizes_of_deepfloyd_s_configs_survive():
    """A scale that the layout states with five digits, and one that it does not."""
    from unclip_jax.convert.deepfloyd_writer import unet_settings

    for scale in (1.0, 1 / 1.41423, math.sqrt(0.5)):
        network = dataclasses.replace(UNET, residual_scale=scale)
        config = unet_settings(network, TEXT, upsamples=False)
        again, condition = deepfloyd.unet_config(config, where="x")
        assert again.residual_scale == pytest.approx(scale, rel=1e-15) and condition == TEXT


def test_a_folder_of_stage_i_is_converted_with_its_neighbour_in_bfloat16(
    pipelines, tmp_path, capsys
):
    for name in ("stage_1", "stage_2"):
        shutil.copytree(pipelines / name, tmp_path / name)
    converted = importing.run_directory(tmp_path / "stage_1")
    assert converted == tmp_path / "stage_1.unclip_jax"
    printed = capsys.readouterr().err
    assert f"{tmp_path}/stage_1 with {tmp_path}/stage_2 is converted once, in bfloat16, " in printed
    assert "note:" not in printed
    for name in CONFIGS:
        stored = load.stored_shapes(converted / name / "export")
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(stored)} == {"bfloat16"}, name
    assert importing.run_directory(tmp_path / "stage_1") == converted
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "stage_2")
    importing.run_directory(tmp_path / "stage_1")
    assert not (converted / "upsampler_256").exists()  # of a stage II that is gone
    line = "note: images have 64 px, as stage II is not converted; `python -m unclip_jax.convert "
    assert f"{line}{tmp_path}/stage_1 IF-II-L-v1.0 --out=RUN" in capsys.readouterr().err


def test_stage_ii_alone_says_how_to_convert_both(pipelines, tmp_path, capsys, monkeypatch):
    shutil.copytree(pipelines / "stage_2", tmp_path / "stage_2")
    command = "convert IF-I-XL-v1.0 .*stage_2 --out=RUN --dtype=bfloat16` and give --models=RUN"
    with pytest.raises(UserError, match=f"stage_2 is stage II of DeepFloyd IF.*{command}"):
        importing.run_directory(tmp_path / "stage_2")
    shutil.copytree(pipelines / "stage_1", tmp_path / "stage_1")
    with pytest.raises(UserError, match="convert .*stage_1 .*stage_2 --out=RUN"):
        importing.run_directory(tmp_path / "stage_2")
    for name in ("text_encoder", "tokenizer"):  # which the released folders of stage II have too
        shutil.copytree(
            tmp_path / "stage_1" / name, tmp_path / "stage_2" / name, dirs_exist_ok=True
        )
    monkeypatch.setattr(deepfloyd, "BASE_SIZE", 8)
    importing.convert([tmp_path / "stage_2"], tmp_path / "run")
    line = "note: only `sample upscale` works, as stage I is not converted; `python -m unclip_jax."
    assert line in capsys.readouterr().err


def _released(pipelines, parent, **folders):
    """Copies the pipelines to a folder under names of releases."""
    for name, stage in folders.items():
        shutil.copytree(pipelines / stage, parent / name.replace("_", "-"))
    return parent


def test_a_folder_that_holds_both_stages_stands_for_them(pipelines, tmp_path, capsys):
    parent = _released(pipelines, tmp_path / "if", IF_I_M="stage_1", IF_II_M="stage_2")
    (parent / "README.md").write_text("mine")
    convert_command([str(parent), f"--out={tmp_path / 'run'}"])
    assert f"{parent} holds IF-I-M and IF-II-M" in capsys.readouterr().err
    assert sorted(p.parent.name for p in (tmp_path / "run").glob("*/export")) == sorted(CONFIGS)
    assert "from IF-I-M, IF-II-M" in load.read_manifest(tmp_path / "run/imagen_base/export").data
    converted = importing.run_directory(parent)
    assert converted == parent / "IF-I-M.unclip_jax" == importing.run_directory(parent / "IF-I-M")
    assert (converted / "upsampler_256").exists()
    assert importing.run_directory(parent) == converted  # whose exports are no pipelines
    assert importing.run_directory(converted) == converted


def test_other_folders_that_hold_pipelines_name_those_to_give(pipelines, tmp_path):
    two = _released(pipelines, tmp_path / "two", IF_I_L="stage_1", IF_I_M="stage_1")
    alone = _released(pipelines, tmp_path / "alone", IF_II_M="stage_2")
    cache = tmp_path / "models--DeepFloyd--IF-I-M-v1.0"
    cached = _released(pipelines, cache / "snapshots", a1b2="stage_1").joinpath("a1b2")
    mixed = _released(pipelines, tmp_path / "mixed", IF_I_M="stage_1", karlo="stage_2")
    index = mixed / "karlo" / "model_index.json"
    index.write_text(index.read_text().replace("IFSuperResolution", "UnCLIP"))
    several = "give one of these folders, or both stages of one DeepFloyd IF to `convert`"
    for parent, message in (
        (two, f"two is no pipeline directory, but {two}/IF-I-L, {two}/IF-I-M are; {several}"),
        (mixed, f"but {mixed}/IF-I-M, {mixed}/karlo are; {several}"),
        (alone, f"but {alone}/IF-II-M is one; give that folder\\.$"),
        (cache, f"but {cached} is one; give that folder\\.$"),
    ):
        with pytest.raises(UserError, match=message):
            importing.run_directory(parent)
        with pytest.raises(UserError, match=message):
            importing.convert([parent], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = tmp_path / "own" / "decoder" / "export"  # beside pipelines: a run is what it holds
    run.mkdir(parents=True)
    _released(pipelines, tmp_path / "own", IF_I_L="stage_1", IF_I_M="stage_1")
    assert importing.run_directory(tmp_path / "own") == tmp_path / "own"
    (mixed / "clip.safetensors").touch()  # weights of its own
    assert nested_pipelines.sources_of(mixed) == [mixed]
