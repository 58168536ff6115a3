"""minDALL-E in PyTorch, by its public description, converted, compared and sampled."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers.implementations.char_level_bpe import CharBPETokenizer

from tests.parity.test_vqgan import CODES, Vqgan
from unclip_jax.convert import importing, mindalle
from unclip_jax.core.checks import UserError
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.inference.load import load_cascade
from unclip_jax.models.dalle import Dalle
from unclip_jax.tokenization import caption_tokenizer

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
WIDTH, DEPTH, HEADS, CONTEXT, GRID = 48, 2, 3, 6, 4
VOCAB = ["[PAD]", "[UNK]", *"abcder", *(f"{c}</w>" for c in "abcder"), "re", "red</w>"]
MERGES = ["r e", "re d</w>"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.Module()
        for name in ("key", "query", "value", "proj"):
            setattr(self.attn, name, nn.Linear(WIDTH, WIDTH))
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.0)
        )

    def forward(self, x):
        y = self.ln1(x)
        maps = (self.attn.query, self.attn.key, self.attn.value)
        q, k, v = (m(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for m in maps)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln2(x))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok_emb_img = nn.Embedding(CODES, WIDTH)
        self.tok_emb_txt = nn.Embedding(len(VOCAB), WIDTH)
        self.pos_emb_img = nn.Embedding(GRID**2, WIDTH)
        self.pos_emb_txt = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.head_img = nn.Linear(WIDTH, CODES, bias=False)
        self.head_txt = nn.Linear(WIDTH, len(VOCAB), bias=False)

    def forward(self, texts, codes):
        texts = self.tok_emb_txt(texts) + self.pos_emb_txt.weight
        codes = self.tok_emb_img(codes) + self.pos_emb_img.weight
        x = self.ln_f(self.blocks(torch.cat([texts, codes], dim=1)))
        return self.head_txt(x[:, : CONTEXT - 1]), self.head_img(x[:, CONTEXT - 1 : -1])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Its folder with random weights, and the transformer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("1.3B")
    network = Transformer().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    torch.save({"state_dict": network.state_dict()}, folder / "stage2_last.ckpt")
    vqgan = Vqgan((1, 1, 1, 1, 1, 1, 1), (), gumbel=False)  # 4 x 4 codes of 256 pixels
    torch.save({"state_dict": vqgan.state_dict()}, folder / "stage1_last.ckpt")
    (folder / "config.yaml").write_text("stage2:\n  hparams:\n    n_heads: 3  # of 16\n")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    numbers = {token: i for i, token in enumerate(VOCAB)}
    (tokenizer / "bpe-16k-vocab.json").write_text(json.dumps(numbers))
    (tokenizer / "bpe-16k-merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return folder, network


@pytest.fixture(scope="module")
def run(original, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert importing.convert([original[0]], out) == ["dvae", "dalle"]
    return out


def test_captions_are_tokenised_as_the_original_does(original):
    folder = original[0] / "tokenizer"
    paths = (str(folder / name) for name in ("bpe-16k-vocab.json", "bpe-16k-merges.txt"))
    theirs = CharBPETokenizer.from_file(*paths, unk_token="[UNK]", lowercase=True)
    theirs.add_special_tokens(["[PAD]"])
    theirs.enable_padding(length=CONTEXT, pad_id=0)
    captions = ["A red", "bad, c", "", "[PAD] a"]
    ours, mask = caption_tokenizer.load(folder).encode(captions, length=CONTEXT)
    for i in range(3):
        assert np.where(mask, ours, 0)[i].tolist() == theirs.encode(captions[i]).ids
    assert 0 not in ours[3][: mask[3].sum() - 1]  # no caption can hold the padding token


def test_logits_are_those_of_the_original_at_once_and_step_by_step(original, run):
    network = original[1]
    loaded = load_cascade(run, prior_name="dalle")
    cfg, params = loaded.cascade.prior, loaded.params["dalle"]
    assert (cfg.model.heads, cfg.model.pad_token, cfg.sampling.top_k) == (3, 0, CODES)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (2, GRID**2))
    tokens = rng.integers(1, len(VOCAB), (2, CONTEXT))
    mask = np.arange(CONTEXT)[None] < np.array([[3], [6]])
    with torch.no_grad():
        texts = torch.tensor(np.where(mask, tokens, 0))
        theirs = [x.numpy() for x in network(texts, torch.tensor(codes))]
    plan = cfg.attention_plan()
    inputs = tuple(map(jnp.asarray, (tokens, mask, codes)))
    module = Dalle(cfg.model)

    @jax.jit
    def both(params):
        run = lambda *x, **options: module.apply({"params": params}, *x, patterns=plan, **options)  # noqa: E731
        first, cache = run(*inputs[:2], method=Dalle.start)
        logits = [first]
        for index in range(GRID**2 - 1):
            code = inputs[2][:, index]
            step, cache = run(code, cache, index=jnp.int32(index), method=Dalle.step)
            logits.append(step)
        return run(*inputs), jnp.stack(logits, axis=1)

    whole, cached = both(params)
    for ours, expected in ((whole.text, theirs[0]), (whole.codes, theirs[1]), (cached, theirs[1])):
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_the_run_samples_captions(run):
    engine = InferenceEngine.open(run, batch=2)
    with pytest.raises(UserError, match="drop_text"):
        engine.sample("a red", guidance=2.0)
    result = engine.sample("a red", prior_top_k=5, seed=1)
    assert result.images.shape == (1, 256, 256, 3)


def test_missing_parts_are_named(original, tmp_path):
    folder, network = original
    for name in ("stage1_last.ckpt", "config.yaml"):
        (tmp_path / name).symlink_to(folder / name)
    state = network.state_dict()
    torch.save({"state_dict": state}, tmp_path / "stage2_last.ckpt")
    with pytest.raises(UserError, match="has no tokenizer .bpe-16k-vocab.json, bpe-16k-merges"):
        importing.convert([tmp_path], tmp_path / "out")
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    del state["pos_emb_img.weight"]
    torch.save({"state_dict": state}, tmp_path / "stage2_last.ckpt")
    with pytest.raises(UserError, match="does not hold the tensors of minDALL-E's transformer"):
        importing.convert([tmp_path], tmp_path / "out")
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").write_text("gelu_use_approx: True\n")
    with pytest.raises(UserError, match="was trained with gelu_use_approx, which is not supported"):
        mindalle.stages(tmp_path, tmp_path / "tokenizer")
    assert not (tmp_path / "out").exists()
