"""The bytes that tokens stand for, by the decoder of a tokenizer: byte-level BPE, and SentencePiece's pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers

from lapinfer.errors import UnsupportedError

CHANGES_NOTHING = {"Fuse", "Strip"}
"""Steps that join tokens, or strip a space before the first one."""
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def reader_of_bytes(backend: tokenizers.Tokenizer, where: str) -> Callable[[str], bytes]:
    """A function from a token, as the vocabulary has it, to its bytes in the middle of a text.

    UnsupportedError for a decoder whose tokens have no bytes of their own (WordPiece, say).
    """
    told = None if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps = [] if told is None else _steps(told)
    kinds = [step["type"] for step in steps]
    if kinds and set(kinds) <= {"ByteLevel"} | CHANGES_NOTHING:
        return _byte_level(_byte_of_character())
    replaced: list[tuple[str, str]] = []
    for step in steps:
        if step["type"] == "Metaspace":
            replaced.append((step["replacement"], " "))
        elif step["type"] == "Replace" and "String" in step["pattern"]:
            replaced.append((step["pattern"]["String"], step["content"]))
        elif step["type"] not in {"ByteFallback"} | CHANGES_NOTHING:
            raise _unsupported(where, kinds)
    if not steps:
        raise _unsupported(where, kinds)
    return _pieces(replaced, "ByteFallback" in kinds)


def _unsupported(where: str, kinds: list[str]) -> UnsupportedError:
    return UnsupportedError(
        f"{where}: its decoder ({', '.join(kinds) or 'none'}) gives tokens no bytes of their own, which answers by a "
        "grammar need: ask without schema, regex and lark"
    )


def _steps(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if told["type"] == "Sequence":
        return [step for inner in told["decoders"] for step in _steps(inner)]
    return [told]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones of Latin-1 are themselves, others follow from U+0100 on."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(themselves))
    return {chr(b): b for b in themselves} | {chr(256 + i): b for i, b in enumerate(others)}


def _byte_level(byte_of: Mapping[str, int]) -> Callable[[str], bytes]:
    def read(token: str) -> bytes:
        try:
            return bytes([byte_of[character] for character in token])
        except KeyError:  # an added token, written as it is
            return token.encode()

    return read


def _pieces(replaced: list[tuple[str, str]], bytes_too: bool) -> Callable[[str], bytes]:
    def read(token: str) -> bytes:
        if bytes_too and (match := BYTE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return read
