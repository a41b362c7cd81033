"""Token ids from text and back: Hugging Face's fast tokenizers, and text that grows token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import tokenizers

from lapinfer.arguments import described, whole_numbers
from lapinfer.checkpoint.ends import END_OF_TURN
from lapinfer.checkpoint.magic import of_start
from lapinfer.errors import CheckpointError, ContextError, InputError
from lapinfer.text.generation_config import Generation, read_generation
from lapinfer.text.tokenizer_bounds import MOST_BYTES, SHORT, check_size, check_steps, unknown_patterns, within_time
from lapinfer.text.tokenizer_bytes import reader_of_bytes
from lapinfer.text.tokenizer_files import FILE, check_charsmaps, read_files
from lapinfer.text.tokenizer_rules import TIDIED, SetUp, from_vocabulary, set_up

HARMONY_END = "<|return|>"
"""Where there is this token, <|end|> ends a message of a turn (gpt-oss thinks in one, and answers in another)."""
USUAL = 16
"""Characters of a token; few are longer."""

T = TypeVar("T")


def _guarded(what: str, call: Callable[[], T]) -> T:
    """call(), with every failure of the Rust library as a CheckpointError of one line."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError, CheckpointError):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException
        raise CheckpointError(f"{what}: {' '.join(str(error).split())[:300]}") from error


def _vocab_size(backend: tokenizers.Tokenizer) -> int:
    """One more than the largest id."""
    count = backend.get_vocab_size(with_added_tokens=True)
    if all(map(backend.id_to_token, range(count))):  # no holes, so `count` ids are these: known five times sooner
        return count
    return max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1


class Tokenizer:
    """The tokenizer of a checkpoint folder: what `transformers` reads, without it.

    `special_tokens` are names and texts of the special tokens ("bos_token": "<s>", …), as chat templates get them;
    `bos_token`, `eos_token` are the texts of two of them, None where there is none; `bos_id` likewise;
    `eos_ids` are all ids that end an answer; `special_ids` are left out of decoded text.
    """

    def __init__(self, made: SetUp, generation: Generation, where: str = "the tokenizer") -> None:
        backend, self._where = made.backend, where
        self._patterns_are_known = not unknown_patterns(backend)
        self._backend, self._tidy = backend, made.tidy
        self.special_ids = made.special
        self.vocab_size = _vocab_size(backend)
        self.special_tokens = dict(made.named)
        self.bos_token = self.special_tokens.get("bos_token")
        self.eos_token = self.special_tokens.get("eos_token")
        self.bos_id = generation.bos_id if self.bos_token is None else backend.token_to_id(self.bos_token)
        named = None if self.eos_token is None else backend.token_to_id(self.eos_token)
        usual = {id for text in END_OF_TURN if (id := backend.token_to_id(text)) in self.special_ids}
        if backend.token_to_id(HARMONY_END) in usual:
            usual -= {backend.token_to_id("<|end|>")}
        self.eos_ids = frozenset(id for id in (*generation.eos_ids, named, *usual) if id is not None)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer | None:
        """Read tokenizer.json (or vocab.json and merges.txt) and the configs beside it; None when there is neither."""
        folder = Path(folder)
        path = folder / FILE
        vocab, merges = folder / "vocab.json", folder / "merges.txt"
        if path.is_file():
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
            if known := of_start(data[:64]):
                raise CheckpointError(f"{path}: {known}")
            check_size(data, str(path))
            check_charsmaps(data, str(path))
            files = read_files(folder)

            def build() -> SetUp | None:
                parsed = tokenizers.Tokenizer.from_buffer(data)
                check_steps(parsed, str(path))
                return set_up(parsed, files, b'"ByteLevel"' in data)
        elif vocab.is_file() and merges.is_file():
            path, files = vocab, read_files(folder)

            def build() -> SetUp | None:
                return from_vocabulary(vocab, merges, files)
        else:
            return None
        made = _guarded(f"{path}: not a usable tokenizer", build)
        return None if made is None else cls(made, read_generation(folder), str(path))

    @property
    def adds_bos(self) -> bool:
        """Whether `encode` puts BOS in front of a text."""
        return self.bos_id is not None and self.encode("a")[:1] == [self.bos_id]

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token, special and added ones included."""
        return self._backend.get_vocab(with_added_tokens=True)

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.vocabulary), default=1)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id adds to a text, without what `decode` tidies or strips; b"" for special and unknown ones.

        UnsupportedError for tokenizers whose tokens have no bytes of their own.
        """
        read, found = reader_of_bytes(self._backend, self._where), [b""] * self.vocab_size
        for token, id in self.vocabulary.items():
            if self.is_text(id):
                found[id] = read(token)
        return found

    def check_length(self, text: str, positions: int) -> None:
        """InputError for a text that would not fit so many positions if it were made of the longest tokens alone."""
        if len(text) > USUAL * positions and len(text) > self.longest * positions:
            raise ContextError(
                f"the prompt has {len(text):,} characters, which is more than {len(text) // self.longest:,} tokens, "
                f"but the context holds {positions:,}: shorten the prompt, or ask for a larger context with -c (ctx=)"
            )

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text. `special` adds what the model expects around a text (often BOS, often nothing).

        Special tokens written out in the text are recognized either way, as chat templates need it.
        """
        if not isinstance(text, str):
            raise InputError(f"text: expected text, got {described(text)}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode: {error}") from error
        if len(text) <= SHORT:
            return _guarded("the tokenizer failed", lambda: self._backend.encode(text, add_special_tokens=special).ids)

        def encoded() -> list[int]:
            # Of a batch, the library lets go of Python's lock: other threads go on, and it can be waited for.
            return self._backend.encode_batch([text], add_special_tokens=special)[0].ids

        known, size = self._patterns_are_known, len(text)
        return _guarded("the tokenizer failed", encoded if known else lambda: within_time(encoded, size, self._where))

    def special_among(self, texts: Iterable[str]) -> dict[int, str]:
        """Those of some texts that are special tokens, by their ids."""
        ids = {self._backend.token_to_id(text): text for text in texts}
        return {id: text for id, text in ids.items() if id in self.special_ids}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special and unknown ones left out."""
        return self.text_of(whole_numbers("ids", ids))

    def text_of(self, ids: Sequence[int]) -> str:
        """The same, of ids that are known to be whole numbers: checking them takes as long as decoding a few."""
        text_ids = [id for id in ids if self.is_text(id)]
        text = _guarded("the tokenizer failed", lambda: self._backend.decode(text_ids, skip_special_tokens=False))
        if self._tidy:
            for untidy, tidy in TIDIED.items():
                text = text.replace(untidy, tidy)
        return text

    def is_text(self, id: int) -> bool:
        """Whether a token id stands for text: known, and not special."""
        return 0 <= id < self.vocab_size and id not in self.special_ids


def why_none(folder: Path | None) -> str:
    """What is missing where `Tokenizer.from_folder` finds no tokenizer, and what to do."""
    saved = "AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers writes it"
    if folder is not None and (folder / "tokenizer.model").is_file():
        return f"has a tokenizer.model and no tokenizer.json, which is needed: {saved}; or give the prompt as token ids"
    return f"has no tokenizer.json: add that file ({saved}), or give the prompt as token ids"


class StreamDecoder:
    """Text of a growing sequence of tokens, never a part of a character.

    Only a short window is decoded at each push: the tokens whose text was last given out, which keep
    SentencePiece from stripping the space before a word, and the new ones. `context` are tokens that came
    before (the end of the prompt); their text is not given out. `shown` are texts of special tokens that are not
    left out.
    """

    LONGEST = 16
    """Tokens held back at most: a character has 4 bytes, so more are not the beginning of one."""

    def __init__(
        self, tokenizer: Tokenizer, context: Sequence[int] = (), shown: Mapping[int, str] | None = None
    ) -> None:
        self._tokenizer, self._shown = tokenizer, shown or {}
        self._window = [id for id in context[-self.LONGEST :] if tokenizer.is_text(id)]
        self._given = len(self._window)  # tokens of the window whose text was given out …
        self._text = tokenizer.text_of(self._window)  # … and that text

    def push(self, id: int) -> str:
        """Add a token; the text that is certain now, often that of this token, sometimes ''."""
        if id in self._shown:
            return self.flush() + self._shown[id]
        if not self._tokenizer.is_text(id):
            return ""
        self._window.append(id)
        text = self._tokenizer.text_of(self._window)
        if text.endswith("\ufffd") and len(self._window) - self._given < self.LONGEST:
            return ""
        return self._give(text)

    def flush(self) -> str:
        """What was held back, at the end; incomplete characters as U+FFFD."""
        return self._give(self._tokenizer.text_of(self._window)) if len(self._window) > self._given else ""

    def _give(self, text: str) -> str:
        # A prompt may end inside a character: then the text before has changed, not only grown.
        given = self._text if text.startswith(self._text) else self._text.rstrip("\ufffd")
        new = text[len(given) :]
        if not text.startswith(given):  # bytes that are no character spoiled those before, already given out
            new = self._tokenizer.text_of(self._window[self._given :])
        if new:
            self._window = self._window[self._given :]
            self._text = self._tokenizer.text_of(self._window)
        else:
            self._text = text
        self._given = len(self._window)
        return new
