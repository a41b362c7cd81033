"""tokenizer.json and tokenizer_config.json rebuilt from the metadata of a GGUF file.

Two kinds exist in the supported architectures: `gpt2`, byte-level BPE with its merges stored, and `llama`,
SentencePiece BPE, whose merges follow from the scores of its pieces.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lapinfer.checkpoint.gguf_parts import GGUFParts
from lapinfer.checkpoint.gguf_special import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SpecialTokens,
    special_tokens,
)
from lapinfer.checkpoint.pretokenizers import CUTS, DEFAULT, Cut
from lapinfer.checkpoint.sealed import sealed_folder
from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.home import home
from lapinfer.private import make_folders

RULES = 4
"""To be raised when a tokenizer is rebuilt in another way: files made before are not used then."""
FOLDER = "gguf"
"""In LAPINFER_HOME: of texts made from GGUF files, by name, header and RULES."""

KINDS = ("gpt2", "llama")

SAMPLING = {
    "sampling.temp": "temperature", "sampling.top_k": "top_k", "sampling.top_p": "top_p", "sampling.min_p": "min_p",
    "sampling.penalty_repeat": "repetition_penalty",
}  # fmt: skip
"""Under general.: what the model's makers recommend -> its name in generation_config.json."""

MOST_TOKENS, MOST_ADDED = 1 << 19, 1 << 16
"""Of a vocabulary, and of those that are matched as a whole: Gemma has 262,144, and 6,414."""

MOST_MERGED, MOST_PAIRS = 4_000_000, 1_000_000
"""Characters of all pieces that merges are looked for in, and merges: Gemma's have 2 million, and half a million."""

NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")
"""Of Phi-3's special tokens, those that leave the white space after them."""

LONGEST_MERGED = 256
"""Characters of a piece that merges are looked for in: real ones have up to 93, all being spaces or dashes."""


def write_folder(file: GGUFParts, config: dict[str, Any], special: SpecialTokens | None) -> Path:
    """The folder with config.json and tokenizer files of a GGUF file; made once for a header, again if damaged."""
    digest = hashlib.sha256(file.header)
    digest.update(json.dumps(config, sort_keys=True).encode())
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in file.path.stem)[:80]
    folder = home() / FOLDER / f"{stem}-{digest.hexdigest()[:16]}-{RULES}"

    def files() -> dict[str, str]:
        texts = {"config.json": json.dumps(config, indent=2)} | _sampling(file)
        return texts if special is None else texts | tokenizer_files(file, special)

    try:
        make_folders(folder.parent)
        return sealed_folder(folder, files)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written: {error.strerror or error}; set LAPINFER_HOME to a writable folder"
        ) from error


def read_special(file: GGUFParts) -> SpecialTokens | None:
    """The special tokens of the file's vocabulary; None when it has none, which llama.cpp lets pass, too.

    UnsupportedError for a vocabulary of another kind, or a pre-tokenizer, that is not known.
    """
    kind = file.metadata.get("tokenizer.ggml.model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in KINDS:
        raise UnsupportedError(
            f"{file.path}: has a tokenizer of kind {str(kind)[:40]!r}, supported are {', '.join(KINDS)}"
        )
    notices = ()
    if kind == "gpt2":
        _cut(file)
        if not file.metadata.get("tokenizer.ggml.pre"):
            notices = (
                f"note: {file.path}: does not say how text is cut into words (tokenizer.ggml.pre); taken as llama.cpp "
                f"does then, which may be wrong for this model: convert it again",
            )
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.tokens is missing or no list of strings")
    special = special_tokens(str(file.path), file.metadata, tokens)
    return replace(special, notices=(*notices, *special.notices))


def tokenizer_files(file: GGUFParts, special: SpecialTokens) -> dict[str, str]:
    """Names and texts of tokenizer.json and tokenizer_config.json."""
    metadata, where = file.metadata, str(file.path)
    tokens = [text or f"[EMPTY_{id}]" for id, text in enumerate(_strings(file, "tokens"))]  # llama.cpp's name for it
    if len(tokens) > MOST_TOKENS:
        raise CheckpointError(f"{where}: has {len(tokens)} tokens, expected at most {MOST_TOKENS}")
    if len(set(tokens)) < len(tokens):
        text = next(text for text, count in Counter(tokens).most_common(1) if count > 1)
        raise CheckpointError(f"{where}: tokenizer.ggml.tokens has the token {text[:80]!r} twice, expected it once")
    byte_level = metadata["tokenizer.ggml.model"] == "gpt2"
    cut = _cut(file) if byte_level else None
    types = _types(file, len(tokens))
    for id, kind in special.types.items():
        types[id] = kind
    if byte_level and BYTE in types:
        raise UnsupportedError(f"{where}: has tokens of the type byte in a vocabulary of kind gpt2, which is not known")
    add_bos = _flag(file, "add_bos_token", cut is None or cut.bos)
    add_eos = _flag(file, "add_eos_token", False)
    named = {f"{name}_token": tokens[special.ids[name]] for name in ("bos", "eos", "unk", "pad") if name in special.ids}
    for wanted, name in ((add_bos, "bos"), (add_eos, "eos")):
        if wanted and name not in special.ids:
            raise CheckpointError(
                f"{where}: text has {name.upper()} around it, but tokenizer.ggml.{name}_token_id is missing"
            )
    try:
        if cut is not None:
            backend = _byte_level(tokens, _strings(file, "merges"), cut)
        else:
            backend = _sentencepiece(file, tokens, types, named.get("unk_token"))
        _add_tokens(backend, tokens, types, _stripping(file))
        _surround(backend, special.ids["bos"] if add_bos else None, special.ids["eos"] if add_eos else None)
        text = backend.to_str()
    except (KeyboardInterrupt, SystemExit, MemoryError, CheckpointError):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException
        raise CheckpointError(f"{where}: its tokenizer is not usable: {str(error)[:200]}") from error
    config = {**named, "add_bos_token": add_bos, "add_eos_token": add_eos, "clean_up_tokenization_spaces": False}
    if (templates := _templates(metadata)) is not None:
        config["chat_template"] = templates
    config["tokenizer_class"] = "tokenizer.json"  # taken as it stands, whatever the type of the model is
    return {"tokenizer.json": text, "tokenizer_config.json": json.dumps(config, indent=2)}


def _sampling(file: GGUFParts) -> dict[str, str]:
    """generation_config.json where the file recommends how to sample."""
    stated = {name: file.metadata.get(f"general.{key}") for key, name in SAMPLING.items()}
    found: dict[str, Any] = {
        n: v for n, v in stated.items() if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    }
    if not found:
        return {}
    found |= {name: float(str(np.float32(v))) for name, v in found.items() if type(v) is float}  # 0.6, not 0.60000002
    if "temperature" in found:
        found["do_sample"] = found["temperature"] != 0
    return {"generation_config.json": json.dumps(found, indent=2)}


def _templates(metadata: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """The chat template, or all of them by their names, as tokenizer_config.json has them."""
    begin = "tokenizer.chat_template"
    found = {
        key[len(begin) + 1 :] or "default": text
        for key, text in metadata.items()
        if (key == begin or key.startswith(f"{begin}.")) and isinstance(text, str)
    }
    if len(found) > 1:
        return [{"name": name, "template": text} for name, text in found.items()]
    return next(iter(found.values()), None)


def _cut(file: GGUFParts) -> Cut:
    """How text is cut before merging; without a name, as llama.cpp does then."""
    pre = file.metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or (pre and pre not in CUTS):
        raise UnsupportedError(
            f"{file.path}: has the pre-tokenizer {str(pre)[:40]!r}, which is not known here; if it is one of "
            f"llama.cpp's under another name, write that one (gguf_new_metadata.py --pre-tokenizer)"
        )
    return CUTS[pre] if pre else DEFAULT


def _flag(file: GGUFParts, key: str, default: bool) -> bool:
    value = file.metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{key} is {str(value)[:40]}, expected true or false")
    return value


def _types(file: GGUFParts, count: int) -> list[int]:
    types = file.metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return [NORMAL] * count
    return _numbers(file, "token_type", count).astype(np.int64).tolist()


def _numbers(file: GGUFParts, key: str, count: int) -> np.ndarray:
    """One number for each token; llama.cpp lets more stand there."""
    values = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, np.ndarray) or len(values) < count or not np.isfinite(values[:count]).all():
        got = f"{len(values)} values" if isinstance(values, np.ndarray | list) else "missing or no list"
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.{key} is {got}, expected a number for each of {count} tokens"
        )
    return values[:count]


def _strings(file: GGUFParts, key: str) -> list[str]:
    """A list of strings of the tokenizer; those that are not Unicode are replaced, their places kept."""
    values = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{key} is missing or no list of strings")
    return [v if v.isascii() or not _has_surrogates(v) else f"[invalid {i}]" for i, v in enumerate(values)]


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _byte_level(tokens: list[str], merges: list[str], cut: Cut) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = dict.fromkeys((m[:at], m[at + 1 :]) for m in merges if (at := m.find(" ", 1)) > 0)  # the first one counts
    backend = Tokenizer(models.BPE(vocabulary, list(pairs), ignore_merges=cut.whole_words))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if cut.nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GGUFParts, tokens: list[str], types: list[int], unknown: str | None) -> Tokenizer:
    """As transformers converts a SentencePiece BPE model: spaces are ▁, unknown characters become bytes."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    scores = _numbers(file, "scores", len(tokens))
    merges = _merges(tokens, types, [float(s) for s in scores], vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    gemma = str(file.metadata.get("general.architecture")).startswith("gemma")
    prefix = _flag(file, "add_space_prefix", not gemma)
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
    if sum(min(len(t), LONGEST_MERGED) for t in parts) > MOST_MERGED:
        raise ValueError(f"its pieces have more than {MOST_MERGED:,} characters together")
    found: list[tuple[float, int, int, int, int, str, str]] = []
    for token, kind, score in zip(tokens, types, scores, strict=True):
        if kind not in (NORMAL, USER_DEFINED) or len(token) > LONGEST_MERGED:
            continue
        if len(found) > MOST_PAIRS:
            raise ValueError(f"over {MOST_PAIRS:,} pairs of its pieces make another one")
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in parts and right in parts:
                found.append((-score, -cut, cut - len(token), vocabulary[left], vocabulary[right], left, right))
    return [pair[-2:] for pair in sorted(found)]


def _stripping(file: GGUFParts) -> bool:
    """Whether special tokens take the white space after them, as Phi-3's do: llama.cpp goes by the model's name."""
    name = str(file.metadata.get("general.name")).lower()
    return "phi-3" in name or "phi3" in name


def _add_tokens(backend: Tokenizer, tokens: list[str], types: list[int], stripping: bool) -> None:
    """Tokens that are matched in the text as a whole: unknown and control ones are special, user-defined are text."""
    if sum(t in (CONTROL, UNKNOWN, USER_DEFINED) for t in types) > MOST_ADDED:
        raise ValueError(f"over {MOST_ADDED:,} of its tokens are special or user-defined")
    for kinds in ((CONTROL, UNKNOWN), (USER_DEFINED,)):
        added = [
            AddedToken(
                token, normalized=False, special=CONTROL in kinds, rstrip=stripping and token not in NOT_STRIPPING
            )
            for token, t in zip(tokens, types, strict=True)
            if t in kinds and backend.token_to_id(token) is not None
        ]
        adder = backend.add_special_tokens if CONTROL in kinds else backend.add_tokens
        adder(added)


def _surround(backend: Tokenizer, bos: int | None, eos: int | None) -> None:
    """Put BOS and EOS around a text. A quote of a token would need escaping; an id does not."""
    if bos is None and eos is None:
        return
    around = [["<bos>"] if bos is not None else [], ["<eos>"] if eos is not None else []]
    named = [(name, id) for name, id in (("<bos>", bos), ("<eos>", eos)) if id is not None]
    one = [*around[0], "$A", *around[1]]
    backend.post_processor = processors.TemplateProcessing(
        single=one, pair=[*one, *(part.replace("$A", "$B") for part in one)], special_tokens=named
    )
