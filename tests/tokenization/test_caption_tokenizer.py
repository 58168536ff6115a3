import gzip
import json
import pathlib
import pickle
import shutil
from typing import NamedTuple

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.tokenization import caption_tokenizer

CAPTIONS = ["a red circle above a blue square", "three green stars", "a large purple heart"] * 4


@pytest.fixture(scope="module")
def bpe_tokenizer() -> caption_tokenizer.Tokenizer:
    return caption_tokenizer.train(CAPTIONS, vocab_size=700)


@pytest.fixture(scope="module")
def clip(shared: pathlib.Path) -> caption_tokenizer.Tokenizer:
    return caption_tokenizer.load(shared / "data" / "clip_bpe")


class Expected(NamedTuple):
    ids: np.ndarray
    mask: np.ndarray


def oracle(shared: pathlib.Path, name: str) -> tuple[list[str], Expected, pathlib.Path]:
    folder = shared / "oracles"
    cases = json.loads((folder / "index.json").read_text())["cases"]
    case = next(case for case in cases if case["id"] == name)
    with np.load(folder / case["npz"], allow_pickle=False) as arrays:
        texts = [str(caption) for caption in arrays["in_texts"]]
        want = Expected(arrays["out_input_ids"], arrays["out_attention_mask"].astype(bool))
    return texts, want, folder / (case["model"] or "")


def test_clip_vocabulary_is_numbered_as_published(clip: caption_tokenizer.Tokenizer):
    assert (clip.vocab_size, clip.start, clip.end) == (49408, 49406, 49407)
    # "a photo of a red cat" under CLIP's original tokenizer
    tokens, mask = clip.encode(["a photo of a red cat"], length=10)
    assert tokens[0].tolist() == [49406, 320, 1125, 539, 320, 736, 2368, 49407, 0, 0]
    assert mask[0].tolist() == [True] * 8 + [False] * 2


def test_clip_tokens_equal_the_reference(shared: pathlib.Path):
    texts, want, _ = oracle(shared, "tokens_clip49408")
    tokenizer = caption_tokenizer.load(
        shared / "data" / "clip_bpe", literal=("!",)
    )  # as Karlo saves it
    tokens, mask = tokenizer.encode(texts, length=77)
    np.testing.assert_array_equal(tokens, want.ids)
    np.testing.assert_array_equal(mask, want.mask)


def test_without_karlos_quirk_only_exclamation_marks_differ(
    shared: pathlib.Path, clip: caption_tokenizer.Tokenizer
):
    texts, want, _ = oracle(shared, "tokens_clip49408")
    tokens, _ = clip.encode(texts, length=77)
    for caption, ours, theirs in zip(texts, tokens, want.ids, strict=True):
        assert (ours.tolist() == theirs.tolist()) == ("!" not in caption)


@pytest.mark.parametrize("files", [("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_a_saved_tokenizer_of_others_is_read(
    shared: pathlib.Path, tmp_path: pathlib.Path, files: tuple[str, ...]
):
    texts, want, model = oracle(shared, "tokens_tiny")
    for name in files:
        shutil.copy(model / name, tmp_path)
    tokens, mask = caption_tokenizer.load(tmp_path, literal=("!",)).encode(texts, length=77)
    np.testing.assert_array_equal(tokens, want.ids)
    np.testing.assert_array_equal(mask, want.mask)


def test_bytes_of_words_add_up(bpe_tokenizer: caption_tokenizer.Tokenizer):
    # every id stands for a piece of text; the pieces of a caption spell it
    pieces = {i: piece for piece, i in bpe_tokenizer._engine.get_vocab().items()}
    tokens, mask = bpe_tokenizer.encode(["A  red\tcircle zzz"], length=30)
    spelt = "".join(pieces[i] for i in tokens[0][mask[0]].tolist()[1:-1])
    assert spelt.replace("</w>", " ").strip() == "a red circle zzz"


def test_words_seen_often_are_one_token(bpe_tokenizer: caption_tokenizer.Tokenizer):
    _, mask = bpe_tokenizer.encode(["a red circle", "three green stars"], length=16)
    assert mask.sum(axis=1).tolist() == [5, 5]


def test_any_text_can_be_encoded(bpe_tokenizer: caption_tokenizer.Tokenizer):
    strange = ["Zürich, 東京 😀!", "\x01\x7f", "ÀÉÎ"]
    tokens, mask = bpe_tokenizer.encode(strange, length=64)
    assert (mask.sum(axis=1) > 3).all()
    assert tokens.max() < bpe_tokenizer.vocab_size


def test_empty_captions_are_start_and_end(bpe_tokenizer: caption_tokenizer.Tokenizer):
    for caption in ("", "  \n"):
        tokens, mask = bpe_tokenizer.encode([caption], length=4)
        assert tokens[0].tolist() == [bpe_tokenizer.start, bpe_tokenizer.end, 0, 0]
        assert mask[0].tolist() == [True, True, False, False]


def test_long_captions_keep_their_head_and_the_end_token(
    bpe_tokenizer: caption_tokenizer.Tokenizer,
):
    caption = "three green stars " * 20
    short, mask = bpe_tokenizer.encode([caption], length=8)
    long, _ = bpe_tokenizer.encode([caption], length=100)
    assert mask.all()
    assert short[0, :7].tolist() == long[0, :7].tolist()
    assert short[0, 7] == bpe_tokenizer.end


def test_training_does_not_depend_on_the_order_of_captions(
    bpe_tokenizer: caption_tokenizer.Tokenizer,
):
    assert caption_tokenizer.train(CAPTIONS[::-1], vocab_size=700).hash == bpe_tokenizer.hash


def test_vocabulary_stays_within_its_size():
    assert (
        caption_tokenizer.train(CAPTIONS, vocab_size=caption_tokenizer.MIN_VOCAB).vocab_size
        == caption_tokenizer.MIN_VOCAB
    )
    assert caption_tokenizer.train(CAPTIONS, vocab_size=530).vocab_size == 530


def test_save_and_load_keep_hash_and_tokens(
    bpe_tokenizer: caption_tokenizer.Tokenizer, tmp_path: pathlib.Path
):
    bpe_tokenizer.save(tmp_path / "new")
    again = caption_tokenizer.load(tmp_path / "new")
    assert again.hash == bpe_tokenizer.hash
    np.testing.assert_array_equal(
        again.encode(CAPTIONS, length=12)[0], bpe_tokenizer.encode(CAPTIONS, length=12)[0]
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tokenizer.json"]


def test_hash_ignores_spacing_and_tells_tokenizers_apart(
    bpe_tokenizer: caption_tokenizer.Tokenizer, tmp_path: pathlib.Path
):
    bpe_tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    assert caption_tokenizer.load(tmp_path).hash == bpe_tokenizer.hash
    assert caption_tokenizer.load(tmp_path, literal=("!",)).hash != bpe_tokenizer.hash
    assert caption_tokenizer.train(["other words"] * 4, vocab_size=700).hash != bpe_tokenizer.hash


def test_tokenizers_survive_pickling(bpe_tokenizer: caption_tokenizer.Tokenizer):
    again = pickle.loads(pickle.dumps(bpe_tokenizer))
    assert again.hash == bpe_tokenizer.hash
    assert again.encode(["a red"], length=6)[0].tolist() == (
        bpe_tokenizer.encode(["a red"], length=6)[0].tolist()
    )


def test_folder_without_tokenizer(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="no tokenizer in .*merges.txt.*of a prepared data set"):
        caption_tokenizer.load(tmp_path / "openai" / "clip-vit")


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 3}'])
def test_damaged_tokenizer(tmp_path: pathlib.Path, content: str):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read.*copy it again"):
        caption_tokenizer.load(tmp_path)


def test_damaged_clip_file(tmp_path: pathlib.Path):
    whole = gzip.compress(b"version\n" + b"a b\n" * 1000)
    (tmp_path / caption_tokenizer.CLIP_FILES[0]).write_bytes(whole[:30])
    with pytest.raises(UserError, match="cannot be read"):
        caption_tokenizer.load(tmp_path)


def test_tokenizer_of_another_kind(
    bpe_tokenizer: caption_tokenizer.Tokenizer, tmp_path: pathlib.Path
):
    bpe_tokenizer.save(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text().replace("<|startoftext|>", "<s>")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"no token '<\|startoftext\|>'"):
        caption_tokenizer.load(tmp_path)


def test_length_needs_room_for_start_and_end(bpe_tokenizer: caption_tokenizer.Tokenizer):
    with pytest.raises(UserError, match="token length is 1"):
        bpe_tokenizer.encode(["a"], length=1)


def test_vocabulary_must_hold_all_bytes():
    with pytest.raises(UserError, match="vocab_size is 100.*514"):
        caption_tokenizer.train(CAPTIONS, vocab_size=100)


def from_merges(*merges: str) -> caption_tokenizer.Tokenizer:
    """CLIP's tokenizer with these merges alone."""
    pairs = [(a, b) for a, b in (merge.split() for merge in merges)]
    return caption_tokenizer.Tokenizer(json.loads(caption_tokenizer._assemble(pairs).to_str()))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("", ()),
        ("a x", ()),  # letters by themselves
        ("fg", ()),  # one piece
        ("ab", ("ab",)),  # a, b
        ("abfg", ("abfg",)),  # ab, fg: two letters each
        ("abcfg", ()),  # abc, fg
        ("abcab", ("abcab",)),  # abc, a, b
        ("abcabcfg", ()),  # abc, abc, fg
        ("ABFG abfg, zz!", ("abfg", "zz")),  # each once, in their order
        ("ab1abcfg_zz-fg", ("ab", "zz")),  # digits and signs divide words
        ("Zürich", ("zürich",)),
        ("abcé", ("abcé",)),  # abc and two bytes
    ],
)
def test_words_that_fall_apart_are_unfamiliar(caption: str, words: tuple[str, ...]):
    tokenizer = from_merges("f g</w>", "a b", "ab c")
    assert tokenizer.unfamiliar(caption) == words


def test_words_of_a_tokenizer_that_changes_no_text_are_taken_as_they_are():
    description = from_merges("f g</w>").description
    tokenizer = caption_tokenizer.Tokenizer({**description, "normalizer": None})
    assert tokenizer.unfamiliar("fg FG") == ("FG",)


@pytest.mark.parametrize(
    ("config", "special", "expected"),
    [
        (None, None, ()),
        ({}, None, ()),
        ({"pad_token": "!"}, None, ("!",)),
        ({"pad_token": {"content": "!", "lstrip": False}}, None, ("!",)),
        ({"pad_token": {"lstrip": False}}, None, ()),
        ({"pad_token": "<|endoftext|>"}, None, ()),
        ({"pad_token": "<|startoftext|>"}, None, ()),
        ({"pad_token": None}, {"pad_token": "?"}, ("?",)),
        ({"pad_token": "<|endoftext|>"}, {"pad_token": "?"}, ("?",)),
        ({"pad_token": "!"}, {"pad_token": "?"}, ("!",)),
        (None, {"pad_token": {"content": "?"}}, ("?",)),
    ],
)
def test_padding_that_settings_declare(tmp_path: pathlib.Path, config, special, expected):
    """Beside start and end, which are tokens of their own; of two files the first decides."""
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
        if content is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert caption_tokenizer.declared_padding(tmp_path) == expected


@pytest.mark.parametrize("content", ["{", "[]", '"!"'])
def test_damaged_settings(tmp_path: pathlib.Path, content: str):
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer_config.json cannot be read \(.*copy it again"):
        caption_tokenizer.declared_padding(tmp_path)


def test_the_last_byte_of_a_word_is_learned_as_another_symbol():
    marks = {symbol: symbol.upper() for symbol in caption_tokenizer._byte_symbols()}
    words = caption_tokenizer._marked_words(["It's  a red", "é"], marks)
    assert list(words) == ["iT 'S A reD", "Ã" + "©".upper()]


def test_symbols_of_bytes_are_those_of_gpt_2():
    """Printable ones stand for themselves, in order; the space is the 33rd of the others."""
    symbols = caption_tokenizer._byte_symbols()
    assert len(set(symbols)) == 256 and all(symbol.isprintable() for symbol in symbols)
    assert symbols[:3] == ["!", '"', "#"] and symbols[93:95] == ["~", "¡"]
    assert symbols[105:107] == ["¬", "®"] and symbols[187:189] == ["ÿ", "Ā"]
    assert symbols[188 + 32] == "Ġ" and symbols[-1] == "Ń"
