"""tokenizer.json and tokenizer_config.json rebuilt from the metadata of a GGUF file.

Two kinds exist in the supported architectures: `gpt2`, byte-level BPE with its merges stored, and `llama`,
SentencePiece BPE, whose merges follow from the scores of its pieces.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lapinfer.checkpoint.gguf_file import GGUFFile
from lapinfer.checkpoint.home import home
from lapinfer.errors import CheckpointError, UnsupportedError

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Of tokenizer.ggml.token_type; the others are unknown, unused and byte pieces."""

RULES = 1
"""To be raised when a tokenizer is rebuilt in another way: files made before are not used then."""

LONGEST_MERGED = 256
"""Characters of a piece that merges are looked for in: real ones have up to 93, all being spaces or dashes."""

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"

LLAMA3 = _ENDINGS + "|" + _WORDS + r"|\p{N}{1,3}" + _REST
QWEN2 = _ENDINGS + "|" + _WORDS + r"|\p{N}" + _REST
TEKKEN = f"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _REST_WITH_SLASH
GPT4O = (
    f"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?" + r"|\p{N}{1,3}" + _REST_WITH_SLASH
)

SPLITS = {
    **dict.fromkeys(("default", "gpt-2", "olmo", "mpt", "phi-2", "granite-docling"), "gpt2"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r", "minerva-7b"), "digits"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2),
    "tekken": TEKKEN,
    "gpt-4o": GPT4O,
}
"""tokenizer.ggml.pre -> how text is cut before merging: GPT-2's rule, that after single digits, or a pattern."""

WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}
"""Whose words that are tokens are not merged from parts (`ignore_merges`); these also begin with BOS."""


def write_folder(file: GGUFFile, config: dict[str, Any]) -> Path:
    """The folder with config.json and tokenizer files of a GGUF file; made once for a header, atomically."""
    digest = hashlib.sha256(file.header)
    digest.update(json.dumps(config, sort_keys=True).encode())
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in file.path.stem)[:80]
    folder = home() / "gguf" / f"{stem}-{digest.hexdigest()[:16]}-{RULES}"
    if folder.is_dir():
        return folder
    files = {"config.json": json.dumps(config, indent=2)}
    if "tokenizer.ggml.model" in file.metadata:
        files |= tokenizer_files(file)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            for name, text in files.items():
                (partial / name).write_text(text, encoding="utf-8")
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():  # else another process made it meanwhile
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written: {error.strerror or error}; set LAPINFER_HOME to a writable folder"
        ) from error
    return folder


def tokenizer_files(file: GGUFFile) -> dict[str, str]:
    """Names and texts of tokenizer.json and tokenizer_config.json."""
    metadata = file.metadata
    kind = metadata["tokenizer.ggml.model"]
    if kind not in ("gpt2", "llama"):
        raise UnsupportedError(f"{file.path}: has a tokenizer of kind {str(kind)[:40]!r}, supported are gpt2, llama")
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and (not isinstance(pre, str) or pre not in SPLITS):
        raise UnsupportedError(
            f"{file.path}: has the pre-tokenizer {str(pre)[:40]!r}, supported are {', '.join(SPLITS)}"
        )
    tokens = _strings(file, "tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    types = types.tolist() if isinstance(types, np.ndarray) else [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"{file.path}: has {len(tokens)} tokens, but {len(types)} types of tokens")
    named = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        i = metadata.get(f"tokenizer.ggml.{key}_token_id")
        named[f"{name}_token"] = tokens[i] if type(i) is int and 0 <= i < len(tokens) else None
    add_bos = metadata.get("tokenizer.ggml.add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = kind == "llama" or pre in WHOLE_WORDS_FIRST
    try:
        if kind == "gpt2":
            backend = _byte_level(tokens, _strings(file, "merges"), pre)
        else:
            backend = _sentencepiece(file, tokens, types, named["unk_token"])
        _add_tokens(backend, tokens, types)
        bos = named["bos_token"]
        if add_bos and bos is not None and (bos_id := backend.token_to_id(bos)) is not None:
            # As AddBOS in transformers; a quote of the token would need escaping, an id does not.
            backend.post_processor = processors.TemplateProcessing(
                single=["<bos>", "$A"], pair=["<bos>", "$A", "$B"], special_tokens=[("<bos>", bos_id)]
            )
        text = backend.to_str()
    except (KeyboardInterrupt, SystemExit, MemoryError, CheckpointError):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException
        raise CheckpointError(f"{file.path}: its tokenizer is not usable: {str(error)[:200]}") from error
    config = {**named, "add_bos_token": add_bos, "clean_up_tokenization_spaces": False}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return {"tokenizer.json": text, "tokenizer_config.json": json.dumps(config, indent=2)}


def _strings(file: GGUFFile, key: str) -> list[str]:
    """A list of strings of the tokenizer; those that are not Unicode are replaced, their places kept."""
    values = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{key} is missing or no list of strings")
    return [v if v.isascii() or not _has_surrogates(v) else f"[invalid {i}]" for i, v in enumerate(values)]


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _byte_level(tokens: list[str], merges: list[str], pre: str) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [(a, b) for a, _, b in (merge.partition(" ") for merge in merges)]
    backend = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre in WHOLE_WORDS_FIRST))
    if (split := SPLITS[pre]) in ("gpt2", "digits"):
        digits = [pre_tokenizers.Digits(individual_digits=True)] if split == "digits" else []
        steps = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        steps = [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if split == QWEN2:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GGUFFile, tokens: list[str], types: list[int], unknown: str | None) -> Tokenizer:
    """As transformers converts a SentencePiece BPE model: spaces are ▁, unknown characters become bytes."""
    # llama.cpp writes pieces of several spaces as they look in text; inside the model they are ▁ too.
    tokens = [t.replace(" ", "▁") if t.isspace() else t for t in tokens]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    gemma = str(file.metadata.get("general.architecture")).startswith("gemma")
    scores = file.metadata.get("tokenizer.ggml.scores")
    if gemma or not isinstance(scores, np.ndarray):
        scores = -np.arange(
            len(tokens), dtype=np.float64
        )  # Gemma's pieces stand in the order in which they were merged
    if len(scores) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, but {len(scores)} scores")
    merges = _merges(tokens, types, [float(s) for s in scores], vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", not gemma) is not False
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    if gemma:
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return backend


def _merges(
    tokens: list[str], types: list[int], scores: list[float], vocabulary: dict[str, int]
) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first."""
    parts = {t for t, kind in zip(tokens, types, strict=True) if kind in (NORMAL, USER_DEFINED)}
    found: list[tuple[float, int, int, int, int, str, str]] = []
    for token, kind, score in zip(tokens, types, scores, strict=True):
        if kind not in (NORMAL, USER_DEFINED) or len(token) > LONGEST_MERGED:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in parts and right in parts:
                found.append((-score, -cut, cut - len(token), vocabulary[left], vocabulary[right], left, right))
    return [pair[-2:] for pair in sorted(found)]


def _add_tokens(backend: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tokens that are matched in the text as a whole: control ones are special, user-defined ones are text."""
    for kind in (CONTROL, USER_DEFINED):
        added = [
            AddedToken(token, normalized=False, special=kind == CONTROL)
            for token, t in zip(tokens, types, strict=True)
            if t == kind and token and backend.token_to_id(token) is not None
        ]
        adder = backend.add_special_tokens if kind == CONTROL else backend.add_tokens
        adder(added)
