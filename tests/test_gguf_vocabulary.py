"""Vocabularies of GGUF files are those that llama.cpp loads: types, ids, end tokens, cuts before merging.

The right ids were printed by llama.cpp itself (of October 2026, llama_tokenize and llama_vocab_is_eog).
"""

import json

import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

gguf = pytest.importorskip("gguf")

import gguf_files  # noqa: E402

from lapinfer.checkpoint import gguf_tokenizer  # noqa: E402
from lapinfer.checkpoint.gguf import GGUFCheckpoint  # noqa: E402
from lapinfer.checkpoint.pretokenizers import CUTS  # noqa: E402
from lapinfer.errors import CheckpointError, UnsupportedError  # noqa: E402
from lapinfer.text.tokenizer import Tokenizer  # noqa: E402

KINDS = {
    bool: gguf.GGUFValueType.BOOL,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    str: gguf.GGUFValueType.STRING,
    list: gguf.GGUFValueType.ARRAY,
}
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
END = ("<|endoftext|>", CONTROL)  # 259, behind 256 bytes and three merges


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


def opened(folder, **keys):
    extra = {k if "." in k else f"tokenizer.ggml.{k}": (v, KINDS[type(v)]) for k, v in keys.items() if v is not None}
    return GGUFCheckpoint(gguf_files.write(folder / "m.gguf", tokenizer=False, extra=extra))


def bytes_and(folder, *more, **keys):
    """Byte-level: 256 bytes, ab, abc, Ġa, and `more` from 259 on."""
    usual = {"pre": "qwen2", "eos_token_id": 259, "merges": ["a b", "ab c", "Ġ a"]}
    tokens, types = [*BYTES, "ab", "abc", "Ġa"], [NORMAL] * 259
    return opened(folder, **{"model": "gpt2", "tokens": tokens + [t for t, _ in more],
                             "token_type": types + [k for _, k in more], **usual, **keys})  # fmt: skip


def pieces_and(folder, *more, **keys):
    """SentencePiece: the fixture's pieces, and `more` in front of its last one, <|end|>."""
    tokens, scores, types = gguf_files.sentencepiece_vocabulary()
    tokens, scores, types = tokens[:-1], scores[:-1], types[:-1]
    tokens, types = tokens + [t for t, _ in more], types + [k for _, k in more]
    scores = scores + [0.0] * len(more)
    return opened(folder, **{"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, **keys})


def tokenizer(checkpoint):
    found = Tokenizer.from_folder(checkpoint.folder)
    assert found is not None
    return found


@pytest.mark.parametrize("text", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|eom_id|>", "[EOS]", "</s>", "[EOT]"])
@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER])
def test_control_looking_tokens_end_answers(tmp_path, text, kind):
    checkpoint = bytes_and(tmp_path, END, (text, kind))
    ours = tokenizer(checkpoint)
    assert ours.encode(f"a{text}b", special=False) == [64, 260, 65]
    assert ours.eos_ids == {259, 260}
    assert ours.decode([64, 260]) == "a"
    assert any("taken as control tokens" in line for line in checkpoint.notices) == (kind != CONTROL)


@pytest.mark.parametrize(
    ("more", "ends"),
    [
        (["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>", "<|fim_suffix|>"], {260, 261, 262}),
        (["<|return|>", "<|call|>", "<|end|>", "<|channel|>", "<|start|>"], {260, 261}),  # gpt-oss
        (["<|calls|>", "<|flush|>", "<|end|>"], {260, 261}),
        (["<|end|>", "<|call|>"], {260, 261}),
        (["<|tool_response>", "</s>", "<turn|>"], {260, 262}),
        (["<|user|>", "<think>"], set()),
    ],
)
def test_which_tokens_end_answers(tmp_path, more, ends):
    checkpoint = bytes_and(tmp_path, END, *((text, CONTROL) for text in more))
    assert set(np.atleast_1d(checkpoint.config["eos_token_id"])) == {259} | ends
    assert tokenizer(checkpoint).eos_ids == {259} | ends


def test_types(tmp_path):
    more = [
        END,
        ("[tool]", USER),
        ("<x>", CONTROL),
        ("<|x|>", NORMAL),
        ("<unk>", UNKNOWN),
        ("[PAD]", UNUSED),
        ("<0>", 0),
    ]
    ours = tokenizer(bytes_and(tmp_path, *more))
    assert ours.encode("[tool]a<x>", special=False) == [260, 64, 261]
    assert ours.encode("<|x|>", special=False) == [27, 91, 87, 91, 29]
    assert ours.encode("<unk>[PAD]<0>", special=False) == [263, 264, 27, 15, 29]  # [PAD] fills code in, as fim_pad
    assert ours.special_ids == {259, 261, 263, 264}
    with pytest.raises(UnsupportedError, match="tokens of the type byte"):
        bytes_and(tmp_path, END, ("<0x0A>", BYTE))


def test_ids_that_are_none(tmp_path):
    """ggml-org/llama.cpp#3635: ids beyond the vocabulary are left aside, not looked up."""
    checkpoint = bytes_and(tmp_path, END, eos_token_id=999_999, padding_token_id=2**32 - 1)
    assert tokenizer(checkpoint).eos_ids == {259}
    assert sum("eos_token_id is 999999, which is none of 260 tokens" in line for line in checkpoint.notices) == 1
    checkpoint = opened(tmp_path, model="gpt2", pre="gpt-2", tokens=[*BYTES, "ab"], merges=["a b"])
    assert tokenizer(checkpoint).eos_ids == frozenset()
    assert any("no token that ends an answer" in line for line in checkpoint.notices)


def test_sentencepiece_ids_without_keys(tmp_path):
    checkpoint = pieces_and(tmp_path)
    assert (checkpoint.config["bos_token_id"], checkpoint.config["eos_token_id"]) == (1, 2)
    assert tokenizer(checkpoint).encode("hello")[0] == 1


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({}, [64]),
        ({"pre": "llama-bpe", "bos_token_id": 260}, [260, 64]),
        ({"pre": "llama-bpe", "bos_token_id": 260, "add_bos_token": False}, [64]),
        ({"bos_token_id": 260, "add_bos_token": True, "add_eos_token": True}, [260, 64, 259]),
        ({"add_eos_token": True}, [64, 259]),
    ],
)
def test_what_stands_around_a_text(tmp_path, keys, ids):
    assert tokenizer(bytes_and(tmp_path, END, ("<s>", CONTROL), **keys)).encode("a") == ids


def test_a_space_in_front(tmp_path):
    with_space = tokenizer(pieces_and(tmp_path)).encode("hello")
    without = tokenizer(pieces_and(tmp_path, add_space_prefix=False)).encode("hello")
    names = gguf_files.sentencepiece_vocabulary()[0]
    assert [names[i] for i in with_space] == ["<s>", "▁hello"]
    assert [names[i] for i in without] == ["<s>", "hello"]


def test_runs_of_spaces_are_matched_before_anything_is_merged(tmp_path):
    """Gemma's are user-defined tokens with the worst of scores: " hello" must not take one space away from them."""
    ours = tokenizer(pieces_and(tmp_path, ("  ", USER), ("   ", USER), add_space_prefix=False))
    assert [ours.encode(text, special=False)[1:-1] for text in ("hello  hello", "hello   hello")] == [[277], [278]]
    assert ours.decode(ours.encode("hello   hello world")) == "hello   hello world"


def test_special_tokens_of_phi3_take_the_space_behind_them(tmp_path):
    """ggml-org/llama.cpp#7938"""
    more = [("<|user|>", CONTROL), ("<|end|>", CONTROL)]
    named = tokenizer(pieces_and(tmp_path, *more, **{"general.name": "Phi-3 mini"}))
    other = tokenizer(pieces_and(tmp_path, *more))
    assert named.encode("<|user|>\nhello<|end|>\n", special=False) == named.encode(
        "<|user|>hello<|end|>", special=False
    )
    assert len(other.encode("<|user|>\nhello", special=False)) > len(named.encode("<|user|>\nhello", special=False))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tokens": [*BYTES, "ab", "a"]}, "has the token 'a' twice"),  # ggml-org/llama.cpp#25739
        (
            {"tokens": [*BYTES, "ab", *(f"[{i}]" for i in range(99))]},
            "has 356 tokens, but token_embd.weight has 300 rows",
        ),
        ({"token_type": [1] * 3}, "token_type is 3 values, expected a number for each of 257 tokens"),
        ({"merges": None}, "merges is missing"),
        ({"add_bos_token": True}, "bos_token_id is missing"),
        ({"pre": "llama-bpe"}, "bos_token_id is missing"),
        ({"add_bos_token": "yes"}, "add_bos_token is yes, expected true or false"),
        ({"tokens": None}, "tokens is missing"),
    ],
)
def test_what_cannot_be_true(tmp_path, keys, words):
    with pytest.raises(CheckpointError, match=words):
        opened(tmp_path, **{"model": "gpt2", "pre": "gpt-2", "tokens": [*BYTES, "ab"], "merges": ["a b"]} | keys)


@pytest.mark.parametrize("keys", [{"scores": None}, {"scores": [0.0] * 3}, {"scores": [float("nan")] * 280}])
def test_pieces_need_their_scores(tmp_path, keys):
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.scores is .*, expected a number for each"):
        pieces_and(tmp_path, **keys)


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        ("MOST_TOKENS", "has 278 tokens, expected at most 3"),
        ("MOST_MERGED", "its pieces have more than 3 characters"),
        ("MOST_PAIRS", "over 3 pairs of its pieces make another one"),
        ("MOST_ADDED", "over 3 of its tokens are special or user-defined"),
    ],
)
def test_bounds_of_vocabularies(tmp_path, monkeypatch, bound, words):
    monkeypatch.setattr(gguf_tokenizer, bound, 3)
    with pytest.raises(CheckpointError, match=words):
        pieces_and(tmp_path, ("<x>", CONTROL))


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2", "of-tomorrow"])
def test_kinds_that_are_not_known(tmp_path, kind):
    with pytest.raises(UnsupportedError, match=f"a tokenizer of kind '{kind}', supported are gpt2, llama"):
        opened(tmp_path, model=kind)
    assert opened(tmp_path, model="none").config["eos_token_id"] is None


def test_empty_tokens_and_repeated_merges(tmp_path):
    ours = tokenizer(bytes_and(tmp_path, END, ("", NORMAL), ("", CONTROL), merges=["Ġ a", "a b", "ab c", "Ġ a"]))
    assert ours.encode("[EMPTY_261] ab", special=False) == [261, 258, 65]


def test_a_missing_pre_tokenizer_is_told(tmp_path):
    for pre in (None, ""):
        checkpoint = bytes_and(tmp_path, END, pre=pre)
        assert any("does not say how text is cut into words" in line for line in checkpoint.notices)


def test_how_to_sample_and_several_templates(tmp_path):
    floats = {f"general.sampling.{k}": v for k, v in {"temp": 0.6, "top_k": 20, "min_p": 0.0}.items()}
    names = {"tokenizer.chat_template": "{{ 1 }}", "tokenizer.chat_template.tool_use": "{{ 2 }}",
             "tokenizer.chat_templates": ["tool_use"]}  # fmt: skip
    checkpoint = bytes_and(tmp_path, END, **floats, **names)
    config, generation = (json.loads((checkpoint.folder / f"{name}_config.json").read_text())
                          for name in ("tokenizer", "generation"))  # fmt: skip
    assert generation == {"temperature": 0.6, "top_k": 20, "min_p": 0.0, "do_sample": True}
    assert {t["name"]: t["template"] for t in config["chat_template"]} == {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    assert tokenizer(checkpoint).eos_ids == {259}


CUT = "Hello  World's 12345 x_1…\n\n  $a.b+=2 日本語"
PIECES = {
    "default": "Hello¦ ¦ World¦'¦s¦ ¦123¦45¦ x¦_¦1¦…¦\n\n  ¦$¦a¦.¦b¦+=¦2¦ 日本語",
    "gpt-2": "Hello¦ ¦ World¦'s¦ 12345¦ x¦_¦1¦…¦\n\n ¦ $¦a¦.¦b¦+=¦2¦ 日本語",
    "smollm": "Hello¦ ¦ World¦'s¦ ¦1¦2¦3¦4¦5¦ x¦_¦1¦…¦\n\n ¦ $¦a¦.¦b¦+=¦2¦ 日本語",
    "llama-bpe": "Hello¦ ¦ World¦'s¦ ¦123¦45¦ x¦_¦1¦…\n\n¦ ¦ $¦a¦.b¦+=¦2¦ 日本語",
    "qwen2": "Hello¦ ¦ World¦'s¦ ¦1¦2¦3¦4¦5¦ x¦_¦1¦…\n\n¦ ¦ $¦a¦.b¦+=¦2¦ 日本語",
    "tekken": "Hello¦ ¦ World¦'s¦ ¦1¦2¦3¦4¦5¦ x¦_¦1¦…\n\n¦ ¦ $¦a¦.b¦+=¦2¦ 日本語",
    "deepseek-v3": "Hello¦ ¦ World¦'s¦ ¦123¦45¦ x¦_¦1¦…\n\n¦ ¦ $¦a¦.b¦+=¦2¦ ¦日本語",
    "falcon": "Hello¦ ¦ World¦'¦s¦ ¦123¦45¦ x¦_¦1¦…¦\n\n  ¦$¦a¦.¦b¦+=¦2¦ 日本語",
}
"""¦ stands between pieces."""


@pytest.mark.parametrize("name", PIECES)
def test_how_text_is_cut(name):
    splits = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in CUTS[name].patterns])
    assert [piece for piece, _ in splits.pre_tokenize_str(CUT)] == PIECES[name].split("¦")


def test_every_pattern_is_one(tmp_path):
    for name, cut in CUTS.items():
        splits = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in cut.patterns])
        assert "".join(piece for piece, _ in splits.pre_tokenize_str(CUT)) == CUT, name
