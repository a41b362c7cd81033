"""Token ids from text and back: Hugging Face's fast tokenizers, and text that grows token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from lapinfer.checkpoint.json_files import read_json
from lapinfer.errors import CheckpointError, InputError
from lapinfer.text.tokenizer_files import special_tokens

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_role|>")
"""Special tokens that end an answer in the usual chat formats: some checkpoints name another one as eos."""


T = TypeVar("T")


def _guarded(what: str, call: Callable[[], T]) -> T:
    """call(), with every failure of the Rust library as a CheckpointError of one line."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException
        raise CheckpointError(f"{what}: {' '.join(str(error).split())[:300]}") from error


def optional_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} when there is no such file; CheckpointError when it is something else."""
    return read_json(path) if path.is_file() else {}


def _ids(value: Any) -> list[int]:
    """A token id or a list of them, as in generation_config.json."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


class Tokenizer:
    """The tokenizer of a checkpoint folder: what `transformers` reads, without it.

    `special_tokens` are names and texts of the special tokens ("bos_token": "<s>", …), as chat templates get them;
    `bos_token`, `eos_token` are the texts of two of them, None where there is none; `bos_id` likewise;
    `eos_ids` are all ids that end an answer; `special_ids` are left out of decoded text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any], generation: dict[str, Any]) -> None:
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.special_tokens = special_tokens(config)
        self.bos_token = self.special_tokens.get("bos_token")
        self.eos_token = self.special_tokens.get("eos_token")
        self.bos_id = None if self.bos_token is None else backend.token_to_id(self.bos_token)
        if self.bos_id is None:
            self.bos_id = next(iter(_ids(generation.get("bos_token_id"))), None)
        named = [backend.token_to_id(text) for text in (self.eos_token, *END_OF_TURN) if text is not None]
        ends = [id for id in named if id is not None and (id in self.special_ids or id == named[0])]
        self.eos_ids = frozenset([*_ids(generation.get("eos_token_id")), *ends])
        self._add_bos = config.get("add_bos_token")

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer | None:
        """Read tokenizer.json and the configs beside it; None when the folder has no tokenizer."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        config = optional_json(folder / "special_tokens_map.json") | optional_json(folder / "tokenizer_config.json")
        generation = optional_json(folder / "config.json") | optional_json(folder / "generation_config.json")
        data = path.read_bytes()
        return _guarded(
            f"{path}: not a usable tokenizer",
            lambda: cls(tokenizers.Tokenizer.from_buffer(data), config, generation),
        )

    @property
    def adds_bos(self) -> bool:
        """Whether `encode` puts BOS in front of a text."""
        return self.bos_id is not None and self.encode("a")[:1] == [self.bos_id]

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text. `special` adds what the model expects around a text (often BOS, often nothing).

        Special tokens written out in the text are recognized either way, as chat templates need it.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode: {error}") from error
        ids = _guarded("the tokenizer failed", lambda: self._backend.encode(text, add_special_tokens=special).ids)
        if special and self.bos_id is not None and self._add_bos is not None:
            # add_bos_token overrules tokenizer.json, as it does in transformers.
            begins_with_bos = ids[:1] == [self.bos_id]
            if self._add_bos and not begins_with_bos:
                return [self.bos_id, *ids]
            if not self._add_bos and begins_with_bos and not (self.bos_token and text.startswith(self.bos_token)):
                return ids[1:]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special and unknown ones left out."""
        text_ids = [int(id) for id in ids if self.is_text(id)]
        return _guarded("the tokenizer failed", lambda: self._backend.decode(text_ids, skip_special_tokens=False))

    def is_text(self, id: int) -> bool:
        """Whether a token id stands for text: known, and not special."""
        return 0 <= id < self.vocab_size and id not in self.special_ids


class StreamDecoder:
    """Text of a growing sequence of tokens, never a part of a character.

    Only a short window is decoded at each push: the tokens whose text was last given out, which keep
    SentencePiece from stripping the space before a word, and the new ones. `context` are tokens that came
    before (the end of the prompt); their text is not given out.
    """

    LONGEST = 16
    """Tokens held back at most: a character has 4 bytes, so more are not the beginning of one."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = [id for id in context[-self.LONGEST :] if tokenizer.is_text(id)]
        self._given = len(self._window)  # tokens of the window whose text was given out …
        self._text = tokenizer.decode(self._window)  # … and that text

    def push(self, id: int) -> str:
        """Add a token; the text that is certain now, often that of this token, sometimes ''."""
        if not self._tokenizer.is_text(id):
            return ""
        self._window.append(id)
        text = self._tokenizer.decode(self._window)
        if text.endswith("\ufffd") and len(self._window) - self._given < self.LONGEST:
            return ""
        return self._give(text)

    def flush(self) -> str:
        """What was held back, at the end; incomplete characters as U+FFFD."""
        return self._give(self._tokenizer.decode(self._window)) if len(self._window) > self._given else ""

    def _give(self, text: str) -> str:
        # A prompt may end inside a character: then the text before has changed, not only grown.
        given = self._text if text.startswith(self._text) else self._text.rstrip("\ufffd")
        new = text[len(given) :]
        if not text.startswith(given):  # bytes that are no character spoiled those before, already given out
            new = self._tokenizer.decode(self._window[self._given :])
        if new:
            self._window = self._window[self._given :]
            self._text = self._tokenizer.decode(self._window)
        else:
            self._text = text
        self._given = len(self._window)
        return new
