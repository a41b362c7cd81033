"""What the files of a tokenizer say, read as transformers' AutoTokenizer reads them (5.24).

tokenizer.json is the tokenizer. Beside it, tokenizer_config.json names special tokens and flags, and, in older
folders, special_tokens_map.json and added_tokens.json do. `text/tokenizer_rules.py` has what follows from them.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from lapinfer.checkpoint.json_files import read_json
from lapinfer.errors import CheckpointError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that every tokenizer may have, in the order in which new ones get their ids."""

EXTRA = ("extra_special_tokens", "additional_special_tokens")
"""Keys of special tokens without a name, as they are called now and as they were."""

FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")

CHARSMAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)"')

MOST_ADDED = 200_000
"""Tokens that a file may add to a vocabulary: each takes ten microseconds. A published model of speech has 65,536."""

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What stands in the files, before any class of tokenizers has had its say.

    classes: names of the class, as tokenizer_config.json and as config.json have it; model_type: that of config.json.
    named: special tokens by name, None where the files say that there is none. extra: special tokens without a name.
    added: the tokens by id that tokenizer_config.json (or added_tokens.json) adds; complete: whether they stand for
    those of tokenizer.json, too. flags: what else the configuration has.
    """

    classes: tuple[str | None, str | None]
    model_type: str | None
    named: Mapping[str, AddedToken | None]
    extra: tuple[AddedToken, ...]
    added: Mapping[int, AddedToken]
    complete: bool
    flags: Mapping[str, Any]

    def flag(self, name: str, default: bool | None = False) -> bool | None:
        """A flag of tokenizer_config.json; null is as good as none."""
        value = self.flags.get(name)
        return value if isinstance(value, bool) else default


def optional_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} when there is no such file; CheckpointError when it is something else."""
    return read_json(path) if path.exists() else {}


def read_files(folder: Path) -> TokenizerFiles:
    """What a folder says of its tokenizer; CheckpointError names the file and the key that is wrong."""
    config, model = optional_json(folder / CONFIG), optional_json(folder / "config.json")
    reader = _Reader(str(folder / CONFIG))
    own = [name for name, value in config.items() if name.endswith("_token") and name not in NAMED and _is_token(value)]
    reader.check_count(own, "…_token")
    own.sort(key=lambda name: isinstance(config[name], str))
    named = {name: reader.optional(config[name], name) for name in (*NAMED, *own) if name in config}
    key = next((key for key in EXTRA if config.get(key)), EXTRA[0])
    extra = config.get(key)
    if isinstance(extra, Mapping):
        reader.check_count(extra, key)
        named |= {name: reader.token(value, f"{key}.{name}") for name, value in extra.items()}
        extra = None
    unnamed = reader.tokens(extra, key)
    complete = "added_tokens_decoder" in config
    if complete:
        added = reader.by_id(config["added_tokens_decoder"], "added_tokens_decoder")
    else:
        before = dict(named)
        unnamed, special = _older_map(folder / "special_tokens_map.json", named, None if extra is None else unnamed)
        # As transformers has it: an object in tokenizer_config.json does not make a token of added_tokens.json special.
        written = [*(config.get(name) for name in NAMED if named.get(name) is before.get(name)), *(extra or ())]
        special |= {text for text in written if isinstance(text, str)}
        added = _older_added(folder / "added_tokens.json", special)
    classes = (_text(config.get("tokenizer_class")), _text(model.get("tokenizer_class")))
    return TokenizerFiles(classes, _text(model.get("model_type")), named, tuple(unnamed), added, complete, config)


def _older_map(
    path: Path, named: dict[str, AddedToken | None], extra: list[AddedToken] | None
) -> tuple[list[AddedToken], set[str]]:
    """special_tokens_map.json: (tokens without a name, texts of those with one, which go into `named`).

    extra: the tokens without a name of tokenizer_config.json, None where it says nothing of them.
    """
    reader, values = _Reader(str(path), special=True), optional_json(path)
    reader.check_count(values, "the object")
    special = set()
    for name, value in values.items():
        if name in EXTRA:
            if isinstance(value, Mapping):
                reader.check_count(value, name)
                named |= {own: reader.token(token, f"{name}.{own}") for own, token in value.items()}
            elif name == EXTRA[0]:
                found = {token.content: token for token in (*(extra or ()), *reader.tokens(value, name))}
                extra = list(found.values())
            elif extra is None and EXTRA[0] not in values:
                extra = reader.tokens(value, name)
        elif name in NAMED or (name.endswith("_token") and _is_token(value)):
            named[name] = token = reader.optional(value, name)
            special |= set() if token is None else {token.content}
    return extra or [], special


def _older_added(path: Path, special: set[str]) -> dict[int, AddedToken]:
    added, values, reader = {}, optional_json(path), _Reader(str(path))
    reader.check_count(values, "the object")
    for text, id in values.items():
        if type(id) is not int:
            raise CheckpointError(f"{path}: {text!r} has {_shown(id)}, expected a token id")
        added[id] = reader.made(text, str(id), special=text in special, normalized=text not in special)
    return added


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads tokens of one file. special: what an object means that does not say so."""

    where: str
    special: bool = False

    def check_count(self, values: Sized, key: str) -> None:
        if len(values) > MOST_ADDED:
            raise CheckpointError(
                f"{self.where}: {key} has {len(values):,} tokens, expected at most {MOST_ADDED:,}; is it this model's?"
            )

    def optional(self, value: Any, key: str) -> AddedToken | None:
        return None if value is None else self.token(value, key)

    def token(self, value: Any, key: str) -> AddedToken:
        """'<s>', or {'content': '<s>', 'lstrip': false, …}."""
        if isinstance(value, str):
            return self.made(value, key, special=True, normalized=False)
        if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
            raise CheckpointError(f"{self.where}: {key} is {_shown(value)}, expected a token as text or an object")
        flags = {name: value[name] for name in FLAGS if value.get(name) is not None}
        if wrong := [name for name, flag in flags.items() if not isinstance(flag, bool)]:
            raise CheckpointError(
                f"{self.where}: {key}.{wrong[0]} is {_shown(flags[wrong[0]])}, expected true or false"
            )
        return self.made(value["content"], key, **(flags | {"special": True} if self.special else flags))

    def made(self, text: str, key: str, **flags: Any) -> AddedToken:
        try:
            return AddedToken(text, **flags)
        except UnicodeEncodeError:  # JSON can say "\\ud800"
            raise CheckpointError(f"{self.where}: {key} is {text[:40]!a}, which has half of a surrogate pair") from None

    def tokens(self, value: Any, key: str) -> list[AddedToken]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise CheckpointError(f"{self.where}: {key} is {_shown(value)}, expected a list of tokens")
        self.check_count(value, key)
        return [self.token(token, f"{key}[{i}]") for i, token in enumerate(value)]

    def by_id(self, value: Any, key: str) -> dict[int, AddedToken]:
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self.where}: {key} is {_shown(value)}, expected an object of tokens by id")
        self.check_count(value, key)
        added = {}
        for id, token in value.items():
            if not (id.isascii() and id.isdigit()):
                raise CheckpointError(f"{self.where}: {key} has {id[:40]!r}, expected a token id")
            if not isinstance(token, Mapping):
                raise CheckpointError(f"{self.where}: {key}.{id} is {_shown(token)}, expected an object")
            added[int(id)] = self.token(token, f"{key}.{id}")
        return added


def check_charsmaps(data: bytes, where: str) -> None:
    """CheckpointError for a SentencePiece normalizer whose table is not as large as it says, in a tokenizer.json.

    The library would set up to 16 GB aside for it, and end the process where these cannot be had.
    """
    for found in CHARSMAP.finditer(data):
        try:
            table = b64decode(found[1].replace(b"\\/", b"/"), validate=True)
        except ValueError:
            table = b""
        size = int.from_bytes(table[:4], "little")
        if not 4 <= size + 4 <= len(table) or size % 4:
            raise CheckpointError(f"{where}: precompiled_charsmap is not SentencePiece's, or cut off; download again")


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and isinstance(value.get("content"), str))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
