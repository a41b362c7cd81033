"""Mutants of tokenizer.json: changed values, and parts that the library knows, put together at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from bench.fuzzing.mutate import PATHOLOGICAL, TEXTS, change_json, extreme

LETTERS = list("abcdefghijklmnopqrstuvwxyzA .,\n▁Ġé")


def change_tokenizer(value: dict[str, Any], rng: random.Random) -> Any:
    if rng.random() < 0.4:
        return change_json(value, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        part = rng.choice(
            ["normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "added_tokens", "truncation"]
        )
        value[part] = PARTS[part](rng)
    return change_json(value, rng) if rng.random() < 0.3 else value


def _pattern(rng: random.Random) -> Any:
    return {rng.choice(["String", "Regex"]): rng.choice([*PATHOLOGICAL, *TEXTS[:8]])}


def _text(rng: random.Random) -> str:
    return rng.choice([*TEXTS, "x" * rng.choice((1, 100, 100_000))])


def _behavior(rng: random.Random) -> str:
    return rng.choice(["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous", "Other"])


def _flag(rng: random.Random) -> Any:
    return rng.choice([True, False, True, False, None])


def _chosen(options: list[Callable[[random.Random], Any]], rng: random.Random, nest: str, depth: int = 3) -> Any:
    """One of these parts, or a sequence of them."""
    if depth and rng.random() < 0.3:
        return {
            "type": "Sequence",
            nest: [_chosen(options, rng, nest, depth - 1) for _ in range(rng.choice((0, 1, 2, 9)))],
        }
    return None if rng.random() < 0.05 else rng.choice(options)(rng)


def _kinds(*names: str) -> list[Callable[[random.Random], Any]]:
    return [lambda rng, name=name: {"type": name} for name in names]


NORMALIZERS = [
    *_kinds("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"),
    lambda rng: {"type": "Prepend", "prepend": _text(rng)},
    lambda rng: {"type": "Replace", "pattern": _pattern(rng), "content": _text(rng)},
    lambda rng: {"type": "Strip", "strip_left": _flag(rng), "strip_right": _flag(rng)},
    lambda rng: {"type": "BertNormalizer", "clean_text": _flag(rng), "handle_chinese_chars": _flag(rng),
                 "strip_accents": _flag(rng), "lowercase": _flag(rng)},
    lambda rng: {"type": "Precompiled", "precompiled_charsmap": rng.choice(["", "AAAA", "/" * 400, "QAAAA" * 9])},
]  # fmt: skip
PRE_TOKENIZERS = [
    *_kinds("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts"),
    lambda rng: {"type": "ByteLevel", "add_prefix_space": _flag(rng), "trim_offsets": _flag(rng),
                 "use_regex": _flag(rng)},
    lambda rng: {"type": "Metaspace", "replacement": rng.choice(["▁", "", "ab", "é"]), "split": _flag(rng),
                 "prepend_scheme": rng.choice(["always", "never", "first", "x"])},
    lambda rng: {"type": "Split", "pattern": _pattern(rng), "behavior": _behavior(rng), "invert": _flag(rng)},
    lambda rng: {"type": "Digits", "individual_digits": _flag(rng)},
    lambda rng: {"type": "Punctuation", "behavior": _behavior(rng)},
    lambda rng: {"type": "CharDelimiterSplit", "delimiter": rng.choice([" ", "ab", ""])},
    lambda rng: {"type": "FixedLength", "length": rng.choice([0, 1, 5, -1])},
]  # fmt: skip
DECODERS = [
    *_kinds("ByteLevel", "ByteFallback", "Fuse"),
    lambda rng: {"type": "Replace", "pattern": _pattern(rng), "content": _text(rng)},
    lambda rng: {"type": "Strip", "content": rng.choice([" ", "", "ab"]), "start": rng.choice([0, 1, 1 << 40]),
                 "stop": 0},
    lambda rng: {"type": "Metaspace", "replacement": rng.choice(["▁", "é"]), "prepend_scheme": "always", "split": True},
    lambda rng: {"type": "WordPiece", "prefix": _text(rng), "cleanup": _flag(rng)},
    lambda rng: {"type": "BPEDecoder", "suffix": _text(rng)},
    lambda rng: {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": _flag(rng)},
]  # fmt: skip


def _post(rng: random.Random) -> Any:
    name = rng.choice(["<s>", "</s>", "nothing", ""])
    single = [
        {"SpecialToken": {"id": name, "type_id": 0}},
        {"Sequence": {"id": rng.choice("AB"), "type_id": rng.choice((0, 9))}},
    ]
    return rng.choice([
        {"type": "TemplateProcessing", "single": single * rng.choice((0, 1, 1, 500)), "pair": single,
         "special_tokens": {name: {"id": name, "ids": [rng.choice((0, 1, 1 << 31, -1))], "tokens": [name]}}},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": _flag(rng), "use_regex": True},
        {"type": "BertProcessing", "sep": ["</s>", rng.choice((0, 1 << 40))], "cls": ["<s>", 1]},
        {"type": "RobertaProcessing", "sep": ["</s>", 0], "cls": ["<s>", 1], "trim_offsets": True,
         "add_prefix_space": True},
        {"type": "Sequence", "processors": []}, None,
    ])  # fmt: skip


def _model(rng: random.Random) -> Any:
    pieces = rng.sample(LETTERS, rng.randrange(1, len(LETTERS))) + [rng.choice(TEXTS) for _ in range(3)]
    ids = list(range(len(pieces)))
    if rng.random() < 0.3:
        ids[-1] = rng.choice([0, 1, 999, 1 << 31, 1 << 33, -1])
    vocab = dict(zip(pieces, ids, strict=True))
    merges = [rng.choice([f"{rng.choice(pieces)} {rng.choice(pieces)}", [rng.choice(pieces), rng.choice(pieces)]])
              for _ in range(rng.randrange(4))]  # fmt: skip
    unknown = rng.choice([None, pieces[0], "<unk>", ""])
    return rng.choice([
        {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": unknown, "fuse_unk": _flag(rng),
         "byte_fallback": _flag(rng), "dropout": rng.choice([None, 0.0, 0.5, 1.0, 2.0, -1]),
         "ignore_merges": _flag(rng),
         "continuing_subword_prefix": rng.choice([None, "##"]), "end_of_word_suffix": rng.choice([None, "</w>"])},
        {"type": "Unigram", "unk_id": rng.choice([None, 0, 1, 10_000]), "byte_fallback": _flag(rng),
         "vocab": [[piece, rng.choice([0.0, -1.0, -1e300, 1e300])] for piece in pieces]},
        {"type": "WordPiece", "vocab": vocab, "unk_token": unknown or "[UNK]", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": rng.choice([0, 5, 100, 1 << 40])},
        {"type": "WordLevel", "vocab": vocab, "unk_token": unknown or "[UNK]"},
        extreme(rng),
    ])  # fmt: skip


def _added(rng: random.Random) -> Any:
    return [
        {"id": rng.choice([i, i, 256 + i, 0, 1 << 31, -1, 1 << 40]), "content": rng.choice([*TEXTS[:20], "a" * 10_000,
                                                                                            f"<{i}>"]),
         "single_word": _flag(rng), "lstrip": _flag(rng), "rstrip": _flag(rng), "normalized": _flag(rng),
         "special": _flag(rng)}
        for i in range(rng.choice((0, 1, 3, 200)))
    ]  # fmt: skip


PARTS: dict[str, Callable[[random.Random], Any]] = {
    "normalizer": lambda rng: _chosen(NORMALIZERS, rng, "normalizers"),
    "pre_tokenizer": lambda rng: _chosen(PRE_TOKENIZERS, rng, "pretokenizers"),
    "decoder": lambda rng: _chosen(DECODERS, rng, "decoders"),
    "post_processor": _post, "model": _model, "added_tokens": _added,
    "truncation": lambda rng: rng.choice([None, {"max_length": rng.choice([0, 1, 1 << 40]), "strategy": "LongestFirst",
                                                 "stride": rng.choice([0, 5]), "direction": "Right"}]),
}  # fmt: skip

BESIDE: dict[str, list[Any]] = {
    "added_tokens_decoder": [
        {"0": {"content": "<s>", "special": True}}, {"999999": {"content": "x" * 1000}}, {"-1": {"content": ""}},
        {"a": {}}, {"5": "b"}, {"256": {"content": "<|im_start|>", "special": False, "lstrip": True,
                                        "normalized": True}},
    ],
    "bos_token": ["<s>", {"content": "<s>"}, None, 1, "new token"], "eos_token": ["</s>", {"content": 1}, "a"],
    "pad_token": ["<pad>", None], "unk_token": ["a", None], "add_bos_token": [True, False, None, "yes"],
    "add_eos_token": [True, 1], "tokenizer_class": ["LlamaTokenizer", "GPT2Tokenizer", "X", None,
                                                    "PreTrainedTokenizerFast"],
    "clean_up_tokenization_spaces": [True], "model_max_length": [10**30, -1, 0], "add_prefix_space": [True, None],
    "extra_special_tokens": [{"a": "b"}, ["a", "b"], "x"], "additional_special_tokens": [["a", ""], [{}], "x"],
    "chat_template": ["{{ messages }}", [{"name": "default", "template": "{{ 1 / 0 }}"}], {"a": "b"}, None, 1, ["x"]],
    "split_special_tokens": [True], "legacy": [True, False], "use_default_system_prompt": [1],
}  # fmt: skip
"""Keys of tokenizer_config.json."""
GENERATION: dict[str, list[Any]] = {
    "do_sample": [True, False, None, "no", 0], "temperature": [0, 0.0, 1e-30, -1, 1e30, "hot", float("nan"), None],
    "top_k": [0, 1, -1, 10**9, 1.5, None], "top_p": [0, 1, 1.5, -1, 1e-30, float("nan")], "min_p": [0, 1, 2, -1],
    "repetition_penalty": [0, 1, -1, 1e30, float("inf")], "eos_token_id": [1, [1, 2], [], -1, "a", [None], 10**12,
                                                                           [[1]]],
    "bos_token_id": [0, None, -5], "pad_token_id": [0], "max_new_tokens": [0, 10**12, -1], "max_length": [1, 0],
    "num_beams": [4], "stop_strings": ["a", ["a", ""], 1], "suppress_tokens": [[1, 2], [10**9]], "typical_p": [0.5],
    "bad_words_ids": [[[1]]], "forced_bos_token_id": [3], "no_repeat_ngram_size": [2], "seed": [1],
    "sequence_bias": [{"1": 2}], "penalty_alpha": [0.5], "temperature_last": [1], "transformers_version": ["4"],
}  # fmt: skip
"""Keys of generation_config.json."""
