"""Karlo as a whole: converted, sampled from recorded noise, written back, converted again."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.convert import walks
from unclip_jax import sample
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.convert import __main__ as command
from unclip_jax.convert import diffusers, importing
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff.export import replace_manifest
from unclip_jax.inference import chain_selection, load, text_to_image
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.objectives import gaussian
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.weight_files import tensor_source

COMPONENTS = (
    "text_encoder",
    "prior",
    "text_proj",
    "decoder",
    "super_res_first",
    "super_res_last",
    "image_encoder",
)


@pytest.fixture(scope="module")
def tiny(recordings):
    return recordings.model("karlo_tiny")


@pytest.fixture(scope="module")
def both(recordings, tiny):
    return [tiny, recordings.model("karlo_tiny_variation")]


@pytest.fixture(scope="module")
def run(both, tmp_path_factory):
    out = tmp_path_factory.mktemp("karlo") / "run"
    assert importing.convert(both, out) == ["clip", "prior", "decoder", "upsampler_256"]
    return out


def recorded_noise(case, *stages):
    def last(x, stage):
        return x if stage == "prior" else jnp.moveaxis(x, -3, -1)

    tensors = [(case.argument(f"{s}_latents"), case.argument(f"{s}_noises")) for s in stages]
    pairs = zip(stages, tensors, strict=True)
    return walks.Recorded(*((last(x, s), last(n, s)) for s, (x, n) in pairs))


def options(cascade, steps, **scales):
    """The exported settings with a case's steps and guidance."""
    *first, decoder, super_res = (str(n) for n in steps)
    replace = dataclasses.replace
    prior = cascade.prior.sampling
    if first:
        prior = replace(prior, steps=first[0], guidance_scale=scales["prior"])
    base = replace(cascade.decoder.sampling, steps=decoder, guidance_scale=scales["decoder"])
    last = replace(cascade.upsamplers[0].sampling, steps=super_res)
    return SampleOptions(prior=prior, decoder=base, upsamplers=(last,))


def for_all(pair):
    """The same ids and mask for every stage."""
    return dict.fromkeys(("clip", "prior", "decoder"), TokenIds(*pair))


def draw(loaded, captions, sample_options, **more):
    count = captions["clip"].tokens.shape[0]
    keys = text_to_image.keys_for(0, jnp.arange(count))
    with jax.default_matmul_precision("highest"):
        return jax.jit(
            lambda params: text_to_image.sample(
                loaded.cascade, params, captions, keys, options=sample_options, **more
            )
        )(loaded.params)


@pytest.mark.parametrize("name", ["pipeline_t2i", "pipeline_t2i_2per_short"])
def test_text_to_image_agrees_with_the_pipeline_of_diffusers(recordings, run, monkeypatch, name):
    case, loaded = recordings.case(name), load.load_cascade(run)
    pair = (case.argument("input_ids"), case.argument("text_mask").astype(bool))
    text_out = text_to_image.clip_text(loaded.cascade, loaded.params, captions=TokenIds(*pair))
    case.check("text_embeds", text_out.z_txt)
    case.check("text_last_hidden", text_out.sequence)
    each = case.config["num_images_per_prompt"]
    captions = for_all(jnp.repeat(x, each, axis=0) for x in pair)
    noise = recorded_noise(case, "prior", "decoder", "super_res")
    monkeypatch.setattr(gaussian.samplers, "run", noise)
    scales = {s: case.config[f"{s}_guidance_scale"] for s in ("prior", "decoder")}
    output = draw(loaded, captions, options(loaded.cascade, case.config["steps"], **scales))
    case.check("image_embeddings", output.z_img)
    case.check("image_small", output.base, image=True)
    case.check("images", jnp.clip(output.images * 0.5 + 0.5, 0.0, 1.0))


def test_image_variation_agrees_with_the_pipeline_of_diffusers(recordings, run, monkeypatch):
    case, loaded = recordings.case("pipeline_variation"), load.load_cascade(run)
    cfg = loaded.cascade.clip.model
    std, mean = (jnp.array(v)[None, None, None] for v in (cfg.image_std, cfg.image_mean))
    images = (case.images("pixel_values") * std + mean) * 2.0 - 1.0
    z_img = text_to_image.image_embedding(loaded.cascade, loaded.params, images=images)
    case.check("image_embeds", z_img)
    pair = (case.argument("empty_ids"), case.argument("empty_mask").astype(bool))
    captions = for_all(jnp.repeat(x, 2, axis=0) for x in pair)
    monkeypatch.setattr(gaussian.samplers, "run", recorded_noise(case, "decoder", "super_res"))
    scale = case.config["decoder_guidance_scale"]
    sample_options = options(loaded.cascade, case.config["steps"], decoder=scale)
    sample_options = dataclasses.replace(sample_options, condition="z_img")
    output = draw(loaded, captions, sample_options, z_img=z_img)
    case.check("image_small", output.base, image=True)
    case.check("images", jnp.clip(output.images * 0.5 + 0.5, 0.0, 1.0))


def test_the_tokenizer_reads_as_karlo_read(recordings, run):
    case = recordings.case("tokens_tiny")
    tokenizer = caption_tokenizer.load(handoff.tokenizer_dir(run / "clip" / "export"))
    tokens, mask = tokenizer.encode([str(t) for t in case.arrays["in_texts"]], length=77)
    np.testing.assert_array_equal(tokens, case.arrays["out_input_ids"])
    np.testing.assert_array_equal(mask, case.arrays["out_attention_mask"])


def test_import_export_import_is_exact(both, run, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    diffusers.write(run, out)
    for name in COMPONENTS:
        folder = next(f / name for f in both if (f / name).is_dir())
        theirs, ours = tensor_source.open_tensors(folder), tensor_source.open_tensors(out / name)
        assert ours.shapes == theirs.shapes, name
        for tensor in theirs.shapes:
            np.testing.assert_array_equal(ours.read(tensor), theirs.read(tensor), tensor)
    importing.convert([out], again)
    for name in ("clip", "prior", "decoder", "upsampler_256"):
        first, second = (folder / name / "export" for folder in (run, again))
        assert handoff.read_manifest(first).config == handoff.read_manifest(second).config, name
        shapes = handoff.stored_shapes(first)
        a, b = (handoff.read_params(path, abstract=shapes) for path in (first, second))
        assert not trees.shape_differences(a, b)
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_written_pipeline_says_what_it_is(both, run, tmp_path):
    out = tmp_path / "out"
    command.main([str(run), f"--out={out}", "--to=diffusers"])
    expected, actual = (
        json.loads((folder / "model_index.json").read_text()) for folder in (both[0], out)
    )
    assert {**actual, "_diffusers_version": expected["_diffusers_version"]} == expected
    for name in ("prior", "decoder", "super_res_first", "text_proj", "prior_scheduler"):
        file = "scheduler_config.json" if "scheduler" in name else "config.json"
        theirs, ours = (json.loads((f / name / file).read_text()) for f in (both[0], out))
        differing = {k: (v, theirs.get(k)) for k, v in ours.items() if theirs.get(k) != v}
        assert not differing, name
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: other\nlibrary_name: diffusers\n")
    assert "Open RAIL-M" in card
    with pytest.raises(UserError, match="exists and is not empty"):
        diffusers.write(run, out)


def test_plain_safetensors_hold_every_leaf(run, tmp_path):
    out = tmp_path / "plain"
    command.main([str(run), f"--out={out}", "--to=safetensors", "--dtype=bfloat16"])
    tensors = tensor_source.open_tensors(out / "prior.safetensors")
    path = run / "prior" / "export"
    tree = handoff.read_params(path, abstract=handoff.stored_shapes(path))
    leaves = trees.flatten_paths(tree)
    assert tensors.shapes == {name: leaf.shape for name, leaf in leaves.items()}
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(tensors.read(name), leaf.astype(jnp.bfloat16))
    assert json.loads((out / "prior.json").read_text())["stage"] == "prior"
    card = (out / "README.md").read_text()
    assert "library_name: unclip_jax\npipeline_tag: text-to-image\n" in card
    assert "Open RAIL-M" in card and "| upsampler_256 |" in card


def test_sample_takes_a_pipeline_directory_and_converts_it_once(tiny, tmp_path, capsys):
    folder = tmp_path / "karlo"
    shutil.copytree(tiny, folder, copy_function=shutil.copyfile)
    run = importing.run_directory(folder)
    assert run == tmp_path / "karlo.unclip_jax"
    stderr = capsys.readouterr().err
    assert "karlo is converted once, into" in stderr and "converting upsampler_256 ..." in stderr
    mtime = (run / "source.json").stat().st_mtime_ns
    argv = ["a red circle", f"--models={folder}", f"--out={tmp_path / 'x.png'}"]
    sample.main([*argv, "--prior-steps=2", "--steps=2"])
    assert (tmp_path / "x" / "0000.png").is_file()
    assert (run / "source.json").stat().st_mtime_ns == mtime
    (folder / "prior_scheduler" / "scheduler_config.json").touch()
    assert importing.run_directory(folder) == run
    assert (run / "source.json").stat().st_mtime_ns > mtime
    assert importing.run_directory(run) == run


def test_one_stage_belongs_to_its_clip(tiny, run, tmp_path):
    argv = [str(tiny), f"--out={tmp_path / 'p'}", "--stages=prior"]
    with pytest.raises(UserError, match="the prior comes without its CLIP"):
        command.main(argv)
    command.main([*argv, f"--clip={run / 'clip' / 'export'}", "--dtype=bfloat16"])
    card = handoff.read_manifest(tmp_path / "p" / "prior" / "export")
    assert card.clip_id == handoff.read_manifest(run / "clip" / "export").clip_id
    assert card.embedding == "raw"
    assert card.config["model"]["dtype"] == "bfloat16"


def test_bfloat16_stays_so_on_the_device(tiny, tmp_path):
    importing.convert([tiny], tmp_path, options=importing.ImportOptions(dtype="bfloat16"))
    loaded = load.load_cascade(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype("bfloat16")}
    captions = for_all((jnp.array([[648, 5, 649] + 74 * [0]]), jnp.arange(77)[None] < 3))
    with pytest.MonkeyPatch.context() as patch:  # shapes alone
        patch.setattr(jax, "jit", lambda f: lambda *a: jax.eval_shape(f, *a))
        output = draw(loaded, captions, SampleOptions())
    assert output.images.shape == (1, 64, 64, 3) and output.images.dtype == jnp.float32


def copy_folder(folder, out):
    shutil.copytree(folder, out, copy_function=shutil.copyfile)
    return out


def test_of_a_source_that_does_not_fit_everything_is_listed_and_nothing_written(tiny, tmp_path):
    folder = copy_folder(tiny, tmp_path / "karlo")
    path = folder / "super_res_last" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"] = tensors["conv_in.bias"][:-1]
    tensors["strange"] = tensors.pop("conv_out.bias")
    save_file(tensors, path)
    message = "in 3 tensors: missing .*conv_out.bias.*; extra .*strange.*; .*conv_in.bias: expected"
    with pytest.raises(UserError, match=message):
        importing.convert([folder], tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged or incomplete"):
        importing.convert([folder], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stages_of_another_clip_are_not_written(run, tmp_path):
    broken = copy_folder(run, tmp_path / "run")
    path = broken / "prior" / "export"
    replace_manifest(path, dataclasses.replace(handoff.read_manifest(path), clip_id="f" * 64))
    for write in (diffusers.write, diffusers.write_plain):
        with pytest.raises(UserError, match="the clip and the prior do not fit: clip_id"):
            write(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stage_is_not_given_to_a_clip_that_it_cannot_belong_to(recordings, tiny, run, tmp_path):
    words = f"--tokenizer={tiny / 'tokenizer'}"
    command.main([str(recordings.model("clip_gelu")), f"--out={tmp_path / 'other'}", words])
    argv = [str(tiny), f"--out={tmp_path / 'p'}", "--stages=prior"]
    with pytest.raises(UserError, match="the prior takes embeddings of 32 numbers, the CLIP in"):
        command.main([*argv, f"--clip={tmp_path / 'other' / 'clip' / 'export'}"])
    with pytest.raises(UserError, match="is a decoder; give the export of a CLIP"):
        command.main([*argv, f"--clip={run / 'decoder' / 'export'}"])
    caption_tokenizer.train(["other words"], vocab_size=600).save(tmp_path / "words")
    argv += [f"--clip={run / 'clip' / 'export'}", f"--tokenizer={tmp_path / 'words'}"]
    with pytest.raises(UserError, match="reads with another tokenizer"):
        command.main(argv)
    assert not (tmp_path / "p").exists()


def test_every_manifest_states_the_licence(tiny, run, tmp_path):
    for name in ("clip", "prior", "decoder", "upsampler_256"):
        assert "Open RAIL-M" in handoff.read_manifest(run / name / "export").licence
    command.main([str(tiny), f"--out={tmp_path}", "--stages=clip", "--licence=ours alone"])
    assert handoff.read_manifest(tmp_path / "clip" / "export").licence == "ours alone"


def test_a_stage_that_was_not_converted_is_not_said_to_be_trained(tiny, tmp_path):
    command.main([str(tiny), f"--out={tmp_path}", "--stages=clip,decoder"])
    message = r"no export of the prior \(it has clip, decoder\); copy RUN/prior of the cascade that"
    with pytest.raises(UserError, match=message):
        chain_selection.find_stages(tmp_path, required=("clip", "prior", "decoder"))


def test_stages_that_are_there_already_are_not_replaced(tiny, tmp_path):
    command.main([str(tiny), f"--out={tmp_path}", "--stages=clip,decoder"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=r"has clip, decoder already, .* give another --out"):
        command.main([str(tiny), f"--out={tmp_path}", "--dtype=bfloat16"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    clip = f"--clip={tmp_path / 'clip' / 'export'}"
    command.main([str(tiny), f"--out={tmp_path}", "--stages=prior", clip])  # one that is not


def test_pixels_are_standardised_as_the_files_say(both, tmp_path):
    folder = copy_folder(both[1], tmp_path / "variation")
    settings = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.75]}
    path = folder / "feature_extractor" / "preprocessor_config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(settings))
    importing.convert([both[0], folder], tmp_path / "run")
    model = handoff.read_manifest(tmp_path / "run" / "clip" / "export").config["model"]
    assert {name: list(model[name]) for name in settings} == settings


def test_a_clip_alone_survives_a_round_trip(recordings, tiny, tmp_path):
    folder = recordings.model("clip_gelu")
    argv = [str(folder), f"--out={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="has no tokenizer beside it"):
        command.main(argv)
    command.main([*argv, f"--tokenizer={tiny / 'tokenizer'}"])
    command.main([str(tmp_path / "run"), f"--out={tmp_path / 'back'}", "--to=diffusers"])
    theirs, ours = tensor_source.open_tensors(folder), tensor_source.open_tensors(tmp_path / "back")
    assert ours.shapes == theirs.shapes
    for name in theirs.shapes:
        np.testing.assert_array_equal(ours.read(name), theirs.read(name), name)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["/nowhere", "--out=x"], "there is no /nowhere"),
        (["x", "--out=x", "--dtype=float16"], "unknown --dtype 'float16'"),
        (["x", "--out=x", "--stages=prio"], "Did you mean 'prior'"),
        (["x", "y", "--out=x", "--to=diffusers"], "takes one run directory"),
        (
            ["x", "--out=x", "--to=diffusers", "--licence=y"],
            "--licence=y has no effect with --to=d",
        ),
        (
            ["x", "--out=x", "--to=compact", "--stages=clip"],
            "--stages=clip has no effect with --to",
        ),
        (
            ["x", "--out=x", "--to=diffusers", "--sampling=decoder.steps=8"],
            "--sampling=decoder.steps=8 has no effect with --to=diffusers",
        ),
        (
            ["x", "--out=x", "--sampling=decoder.steps=8"],
            "--sampling=decoder.steps=8 has an effect only with --to=compact",
        ),
    ],
)
def test_what_the_command_rejects(argv, message):
    with pytest.raises(UserError, match=message):
        command.main(argv)
