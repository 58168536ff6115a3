"""Encoders of T5 and BERT against transformers, and T5's tokenizer against sentencepiece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

from unclip_jax.conditioning.captions import TokenIds  # noqa: E402
from unclip_jax.convert import clip_text_encoder, importing, standalone_clip  # noqa: E402
from unclip_jax.convert import language_tensors as tensors  # noqa: E402
from unclip_jax.convert.__main__ import main as convert  # noqa: E402
from unclip_jax.core.checks import UserError  # noqa: E402
from unclip_jax.handoff import load as handoff  # noqa: E402
from unclip_jax.inference import load  # noqa: E402
from unclip_jax.stages import text_encoder  # noqa: E402
from unclip_jax.tokenization import caption_tokenizer  # noqa: E402

T5 = {
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
    "vocab_size": 350,
    "num_layers": 3,
}
SIZES = {  # heads times 64 equal to the width, and not; more tokens than distances have rows
    "equal": ({"d_model": 128, "num_heads": 2, "d_ff": 192}, 12),
    "unequal": ({"d_model": 96, "num_heads": 3, "d_ff": 160}, 12),
    "long": ({"d_model": 64, "num_heads": 2, "d_ff": 128}, 200),
}
SENTENCES = [
    "a red circle above a blue square",
    "Two   ORANGE diamonds, on a mint background!",
    "ﬁve ﬂowers in full-width ＡＢＣ and 日本語",
    "tabs\tand\nlines",
    "",
    "naïve café №5 – “quoted”",
    "unknown ☃ snowman",
]


def _stir(model, *, scale=0.02):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            factor = 0.5 if "relative" in name else scale
            x += factor * torch.randn(x.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A SentencePiece model with T5's special pieces, trained here."""
    out = tmp_path_factory.mktemp("spiece") / "spiece.model"
    lines = [*SENTENCES[:4], *SENTENCES[5:6], "the quick brown fox jumps over the lazy dog"]
    with out.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 4),
            model_writer=file,
            vocab_size=120,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            character_coverage=1.0,
            minloglevel=2,
        )
    return out


def _t5(folder, spiece, sizes, **options):
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config(**T5, **sizes))
    _stir(model).save_pretrained(folder, **options)
    (folder / "spiece.model").write_bytes(spiece.read_bytes())
    return model


@pytest.mark.parametrize("name", SIZES)
def test_t5_agrees_with_transformers(tmp_path, spiece, name):
    sizes, context = SIZES[name]
    (source := tmp_path / "t5").mkdir()
    model = _t5(source, spiece, sizes, max_shard_size="200KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    convert([str(source), f"--out={tmp_path / 'run'}", f"--context={context}"])
    _compare(tmp_path / "run", model, context=context)


def test_bert_agrees_with_transformers(tmp_path):
    (source := tmp_path / "bert").mkdir()
    settings = transformers.BertConfig(
        vocab_size=40,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
    )
    model = _stir(transformers.BertForMaskedLM(settings), scale=0.1)
    model.save_pretrained(source)
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a red circle ##s above blue square , ! cafe naive"
    (source / "vocab.txt").write_text("\n".join(words.split()))
    convert([str(source), f"--out={tmp_path / 'run'}", "--context=12"])
    _compare(tmp_path / "run", model.bert, context=12)
    ours = caption_tokenizer.load(
        handoff.tokenizer_dir(tmp_path / "run" / "text_encoder" / "export")
    )
    theirs = transformers.BertTokenizer.from_pretrained(source)
    for sentence in ("A red CIRCLES, naïve café!", "", "[SEP] a red"):
        expected = theirs(sentence.replace("[", "[ "))["input_ids"]  # which no special token is
        tokens, mask = ours.encode([sentence], length=16)
        assert tokens[0][mask[0]].tolist() == expected
    with pytest.raises(UserError, match="context is 33, but this bert was trained on 32 tokens"):
        tensors.stage(source, context=33)


def test_clip_s_penultimate_layer_agrees_with_transformers(tmp_path):
    (source := tmp_path / "clip").mkdir()
    settings = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=16,
    )
    model = _stir(transformers.CLIPTextModel(settings), scale=0.1)
    model.save_pretrained(source)
    (clip,) = standalone_clip.clip_from(source)
    part = clip_text_encoder.stage(clip, context=12)
    cfg = text_encoder.TextEncoderStageConfig(part.config["model"])
    _compare_features(cfg, part.params(), lambda **x: model(**x, output_hidden_states=True)[2][-2:])


def _compare(run, model, *, context):
    export = run / "text_encoder" / "export"
    cfg, params, card = load.load_text_encoder(export)
    assert (card.text_width, cfg.model.context) == (cfg.model.width, context)
    assert card.text_encoder_id.endswith(f"+{card.tokenizer_hash}")
    _compare_features(cfg, params, model)


def _compare_features(cfg, params, model):
    context = cfg.model.context
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 40, (2, context)).astype(np.int32)
    mask = np.arange(context)[None] < np.array([[context], [context // 2]])
    ours = text_encoder.encode(
        cfg, params, TokenIds(jnp.asarray(tokens), jnp.asarray(mask))
    ).sequence
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor(tokens).long(), "attention_mask": torch.tensor(mask)}
        theirs = model(**inputs)[0].numpy()
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


def test_the_reader_of_spiece_models_agrees_with_sentencepiece(spiece):
    ours = caption_tokenizer.load(spiece.parent)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    assert ours.vocab_size == theirs.vocab_size() + 100
    for sentence in SENTENCES:
        tokens, mask = ours.encode([sentence], length=64)
        assert tokens[0][mask[0]].tolist() == [*theirs.encode(sentence), 1], sentence


def test_no_text_holds_an_end_token(spiece, tmp_path):
    """Transformers match special tokens in text; here a caption cannot end itself."""
    own = caption_tokenizer.load(spiece.parent)
    own.save(tmp_path)
    theirs = transformers.T5Tokenizer.from_pretrained(_hub_folder(spiece, tmp_path / "hub"))
    theirs.save_pretrained(tmp_path / "json")
    for tokenizer in (
        own,
        caption_tokenizer.load(tmp_path),
        caption_tokenizer.load(tmp_path / "json"),
    ):
        tokens, mask = tokenizer.encode(["red </s> blue <extra_id_0> <pad>"], length=64)
        ids = tokens[0][mask[0]]
        assert ids[-1] == 1 and not set(ids[:-1]) & {0, 1} and ids.max() < tokenizer.vocab_size
    for sentence in SENTENCES:
        one, other = (
            own.encode([sentence], length=64),
            caption_tokenizer.load(tmp_path / "json").encode([sentence], length=64),
        )
        np.testing.assert_array_equal(one[0], other[0])


def _hub_folder(spiece, folder):
    folder.mkdir()
    (folder / "spiece.model").write_bytes(spiece.read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "relu"}, "has feed_forward_proj 'relu', an unsupported variant"),
        ({"relative_attention_max_distance": 64}, "max_distance 64, an unsupported variant"),
        ({"d_model": 0}, "d_model in .* is 0; expected a positive integer"),
        ({"model_type": "gpt2"}, "is of a gpt2; expected one of t5, mt5, bert"),
    ],
)
def test_other_variants_are_rejected(change, message):
    settings = {"model_type": "t5", **T5, **SIZES["equal"][0], **change}
    with pytest.raises(UserError, match=message):
        tensors.config(settings, context=None, where="config.json")


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((512, 8, 6, 1024), 35_332_800),
        ((768, 12, 12, 2048), 109_628_544),
        ((1024, 24, 16, 2816), 341_231_104),
        ((2048, 24, 32, 5120), 1_223_527_424),
        ((4096, 24, 64, 10240), 4_762_310_656),
    ],
)
def test_t5_has_as_many_parameters_as_transformers_counts(sizes, count):
    """Encoder and token table of v1.1 small to XXL, counted on transformers' own classes."""
    width, depth, heads, mlp = sizes
    settings = {"d_model": width, "num_layers": depth, "num_heads": heads, "d_ff": mlp}
    settings = {"model_type": "t5", **T5, "vocab_size": 32128, **settings}
    cfg = tensors.config(settings, context=None, where="config.json")
    shapes = jax.tree.leaves(importing.language_tensors.abstract.language_encoder(cfg))
    assert sum(x.size for x in shapes) == count
