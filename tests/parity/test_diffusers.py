"""What we write loads in diffusers and transformers and gives the numbers that ours gives."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert import walks
from tests.convert.test_karlo import Loaded, prior_forward, run
from unclip_jax import weights
from unclip_jax.convert import diffusers as ours
from unclip_jax.convert import karlo
from unclip_jax.models.clip import Clip
from unclip_jax.models.unet import UNet
from unclip_jax.models.upsampler import Upsampler

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def written(recordings, tmp_path_factory):
    """A pipeline directory written by us, from the recorded one."""
    folder = tmp_path_factory.mktemp("written")
    weights.convert([recordings.model("karlo_tiny")], folder / "run")
    ours.write(folder / "run", folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="module")
def stages(written):
    return {part.name: Loaded(part) for part in karlo.parts(karlo.components([written]))}


def tensor(array):
    return torch.from_numpy(np.array(array))


def relative(got, wanted):
    wanted = wanted.detach().numpy()
    return np.abs(np.asarray(got) - wanted).max() / np.abs(wanted).max()


def test_prior(recordings, written, stages):
    case = recordings.case("prior_forward")
    theirs = diffusers.PriorTransformer.from_pretrained(written, subfolder="prior")
    with torch.no_grad():
        wanted = theirs(
            tensor(case.given("x")),
            timestep=tensor(case.given("t")),
            proj_embedding=tensor(case.given("text_emb")),
            encoder_hidden_states=tensor(case.given("text_enc")),
            attention_mask=tensor(case.given("mask")),
        ).predicted_image_embedding
    assert relative(prior_forward(stages["prior"], case), wanted) <= 1e-4


@pytest.mark.parametrize("masked", [True, False])
def test_decoder(recordings, written, stages, masked):
    case, loaded = recordings.case("decoder_forward"), stages["decoder"]
    theirs = diffusers.UNet2DConditionModel.from_pretrained(written, subfolder="decoder")
    mask = case.given("mask") if masked else None
    emb = walks.time_embedding(loaded, case.given("t")) + case.given("additive_time")
    given = {"context": case.given("tokens"), "context_mask": mask}
    got = run(UNet(loaded.cfg.model.unet), loaded.params["unet"], case.images("x"), emb, **given)
    with torch.no_grad():
        wanted = theirs(
            tensor(case.given("x")),
            tensor(case.given("t")),
            encoder_hidden_states=tensor(case.given("tokens")),
            class_labels=tensor(case.given("additive_time")),
            attention_mask=None if mask is None else tensor(mask),
        ).sample
    assert relative(jnp.moveaxis(got, -1, 1), wanted) <= 1e-4


def test_super_resolution(recordings, written, stages):
    case, loaded = recordings.case("super_res"), stages["upsampler_256"]
    theirs = diffusers.UNet2DModel.from_pretrained(written, subfolder="super_res_last")
    low_res, x_T = case.images("low_res"), case.images("x_T")
    t = jnp.zeros(1, jnp.int32)
    got = run(Upsampler(loaded.cfg.model), loaded.params["last"], x_T, t, low_res=low_res)
    with torch.no_grad():
        enlarged = torch.nn.functional.interpolate(
            tensor(case.given("low_res")),
            size=x_T.shape[1:3],
            mode="bicubic",
            align_corners=False,
            antialias=True,
        )
        wanted = theirs(torch.cat([tensor(case.given("x_T")), enlarged], 1), tensor(t)).sample
    assert relative(jnp.moveaxis(got, -1, 1), wanted) <= 1e-4


def test_text_encoder_and_tokenizer(recordings, written, stages):
    case, loaded = recordings.case("pipeline_t2i"), stages["clip"]
    model = transformers.CLIPTextModelWithProjection.from_pretrained(written / "text_encoder")
    words = transformers.CLIPTokenizer.from_pretrained(written / "tokenizer")
    prompts = [str(p) for p in case.arrays["in_prompts"]]
    told = words(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    np.testing.assert_array_equal(told.input_ids.numpy(), case.arrays["in_input_ids"])
    with torch.no_grad():
        wanted = model(told.input_ids)
    pair = (case.given("input_ids"), case.given("text_mask").astype(bool))
    got = run(Clip(loaded.cfg.model), loaded.params, *pair, method=Clip.encode_text)
    assert relative(got.pooled, wanted.text_embeds) <= 1e-5
    assert relative(got.sequence, wanted.last_hidden_state) <= 1e-5


def test_the_pipeline_loads_whole(written):
    pipelines = pytest.importorskip("diffusers.pipelines")
    unclip = pytest.importorskip("diffusers.pipelines.deprecated.unclip")
    pipelines.unclip = unclip
    pipe = unclip.UnCLIPPipeline.from_pretrained(written)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        "a red circle",
        prior_num_inference_steps=2,
        decoder_num_inference_steps=2,
        super_res_num_inference_steps=2,
        output_type="np",
    )
    assert out.images.shape == (1, 64, 64, 3) and np.isfinite(out.images).all()
