"""PyTorch's own files: the same tensors, and nothing but tensors."""

import os
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests.convert.test_karlo import Loaded, prior_forward
from unclip_jax import weights
from unclip_jax.convert import clip, openai_clip, original, source, torch_files
from unclip_jax.core.checks import UserError
from unclip_jax.stages import prior

torch = pytest.importorskip("torch")


def test_state_dicts_of_every_precision(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5]).bfloat16()}
    for name, value in (("bare.bin", state), ("nested.ckpt", {"state_dict": state, "epoch": 3})):
        torch.save(value, tmp_path / name)
        tensors = source.open_source(tmp_path / name)
        assert tensors.shapes == {"a": (2, 3), "b": (1,)}
        np.testing.assert_array_equal(tensors.read("a"), np.arange(6.0).reshape(2, 3))
        assert tensors.read("b").dtype == ml_dtypes.bfloat16


class Payload:
    def __reduce__(self):
        return os.system, ("echo executed > /tmp/unclip_payload",)


def test_a_payload_is_refused_and_not_run(tmp_path):
    torch.save({"a": Payload()}, tmp_path / "m.pt")
    with pytest.raises(UserError, match="its pickle holds more than tensors"):
        source.open_source(tmp_path / "m.pt")
    assert not os.path.exists("/tmp/unclip_payload")


def test_damaged_files_and_other_contents(tmp_path):
    torch.save({"a": torch.ones(500)}, tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged or incomplete|was refused"):
        source.open_source(tmp_path / "half.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list; expected tensors by name"):
        source.open_source(tmp_path / "list.pt")
    torch.save({"a": torch.ones(1), "lr": 0.1}, tmp_path / "mixed.pt")
    with pytest.raises(UserError, match="entries that are not tensors: lr"):
        source.open_source(tmp_path / "mixed.pt")


def test_openais_archives_are_torchscript(recordings, tmp_path):
    tensors = source.open_source(recordings.model("clip_qg_openai"))

    class Holder(torch.nn.Module):
        def forward(self, x):
            return x

    holder = Holder()
    for name in tensors.shapes:
        module = holder
        *path, last = name.split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, Holder())
            module = getattr(module, part)
        module.register_buffer(last, torch.from_numpy(tensors.read(name).copy()))
    torch.jit.script(holder).save(str(tmp_path / "clip.pt"))
    assert zipfile.is_zipfile(tmp_path / "clip.pt")
    again = source.open_source(tmp_path / "clip.pt")
    assert openai_clip.is_openai(again) and again.shapes == tensors.shapes
    views = openai_clip.as_transformers(again)
    name = clip.entries(clip.config({"model_type": "clip_text_model"}, where=""))[0].name
    np.testing.assert_array_equal(views.read(name), tensors.read("token_embedding.weight"))


def test_karlos_own_prior_gives_the_recorded_forward(recordings):
    folder = recordings.model("karlo_tiny_original")
    assert original.is_original(folder)
    (part,) = original.parts(folder, stages=("prior",), vocab_size=650)
    case, loaded = recordings.case("prior_forward"), Loaded(part)
    out = prior_forward(loaded, case)
    case.check("pred", out)
    case.check("post_processed", prior.from_latent(loaded.cfg, out))
    mean, std = torch_files.read_value(folder / "ViT-L-14_stats.th")
    assert mean.shape == std.shape == (32,)


def test_karlos_own_files_become_a_run(recordings, tmp_path):
    folder = recordings.model("karlo_tiny_original")
    tokenizer = recordings.model("karlo_tiny") / "tokenizer"
    with pytest.raises(UserError, match="comes without its CLIP"):
        weights.convert([folder], tmp_path, options=weights.ImportOptions(tokenizer=tokenizer))
