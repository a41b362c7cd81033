"""Tokenizers read as transformers reads them: ids and texts over a matrix of what the files can say."""

import json

import pytest
from fake_model import byte_names, byte_tokenizer_folder
from tokenizer_cases import CASES, TEXTS, VALUES, digest, put, write_case

from lapinfer.errors import CheckpointError
from lapinfer.text.tokenizer import Tokenizer


def ours(folder):
    t = Tokenizer.from_folder(folder)
    ids = [[t.encode(text), t.encode(text, special=False)] for text in TEXTS]
    return {"ids": ids, "decoded": [t.decode(with_special) for with_special, _ in ids], "special": t.special_tokens}


@pytest.mark.parametrize("seed", range(CASES))
def test_ids_and_texts_are_those_of_transformers(seed, tmp_path):
    """The right values are stored; `tokenizer_cases` makes them with transformers."""
    expected = json.loads(VALUES.read_text()).get(str(seed))
    write_case(seed, tmp_path)
    if expected is not None:  # else transformers does not load it
        assert digest(ours(tmp_path)) == expected


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config", {"bos_token": 7}, "bos_token is int '7', expected a token"),
        ("tokenizer_config", {"eos_token": {"lstrip": True}}, "eos_token is dict"),
        ("tokenizer_config", {"eos_token": {"content": "x", "lstrip": "yes"}}, "eos_token.lstrip is str 'yes'"),
        ("tokenizer_config", {"extra_special_tokens": "x"}, "extra_special_tokens is str 'x', expected a list"),
        ("tokenizer_config", {"additional_special_tokens": [1]}, r"additional_special_tokens\[0\] is int"),
        ("tokenizer_config", {"added_tokens_decoder": []}, "added_tokens_decoder is list"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder has 'x'"),
        ("tokenizer_config", {"added_tokens_decoder": {"7": "a"}}, "added_tokens_decoder.7 is str 'a'"),
        ("special_tokens_map", {"bos_token": []}, "bos_token is list"),
        ("added_tokens", {"<x>": "7"}, "'<x>' has str '7', expected a token id"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, file, content, message):
    byte_tokenizer_folder(tmp_path)
    put(tmp_path, file, content)
    with pytest.raises(CheckpointError, match=f"{file}.json: {message}"):
        Tokenizer.from_folder(tmp_path)


def test_vocabulary_and_merges_alone_are_a_tokenizer(tmp_path):
    vocabulary = {name: i for i, name in enumerate([*byte_names(), "ab", "<|endoftext|>"])}
    put(tmp_path, "vocab", vocabulary)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    put(tmp_path, "config", {"model_type": "gpt2"})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("abc<|endoftext|>") == [256, ord("c"), 257]
    assert tokenizer.special_tokens == dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    put(tmp_path, "tokenizer_config", {"add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"})
    assert Tokenizer.from_folder(tmp_path).encode("ab") == [257, 256]
    put(tmp_path, "config", {"model_type": "llama"})
    put(tmp_path, "tokenizer_config", {"tokenizer_class": "LlamaTokenizer"})
    assert Tokenizer.from_folder(tmp_path) is None  # that class has its pieces in tokenizer.model
