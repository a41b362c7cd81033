"""Texts as token ids: a byte-level BPE of their own, a held-out end of each, and batches by the number of the step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from lapinfer.errors import CheckpointError, InputError
from lapinfer.texts import read_text
from lapinfer.train.config import END, Config


def read_texts(paths: Sequence[str | Path]) -> list[str]:
    """The texts of files; InputError for one that is missing, empty or not UTF-8."""
    texts = []
    for path in map(Path, paths):
        if not path.is_file():
            what = "a folder, whose files are to be named (FOLDER/*.txt)" if path.is_dir() else "no such file"
            raise InputError(f"{path}: {what}; expected a text to train on")
        texts.append(read_text(path))
        if not texts[-1].strip():
            raise InputError(f"{path}: empty; expected a text to train on")
    return texts


def split(texts: Sequence[str], share: float) -> tuple[list[str], str]:
    """(what is trained on, what is held out): the last `share` of each text, from the beginning of a line on."""
    trained, held_out = [], []
    for text in texts:
        cut = text.rfind("\n", 0, int(len(text) * (1 - share))) + 1 or int(len(text) * (1 - share))
        trained.append(text[:cut])
        held_out.append(text[cut:])
    return trained, "\n".join(held_out)


def digest(texts: Sequence[str]) -> str:
    """By which a run knows its texts again."""
    sums = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of exactly `vocab_size` tokens, END first; InputError when the texts give fewer."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[AddedToken(END, special=True)], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    if (size := tokenizer.get_vocab_size()) != vocab_size:
        raise InputError(f"model.vocab_size: the texts give {size} tokens, {vocab_size} are asked for")
    return tokenizer


def load_tokenizer(path: Path, vocab_size: int) -> tokenizers.Tokenizer:
    """One that was written before."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises no other type
        raise CheckpointError(f"{path}: not a usable tokenizer ({error})") from error
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise InputError(f"model.vocab_size: {path} has {size} tokens, expected at most {vocab_size}")
    return tokenizer


@dataclass(frozen=True, slots=True)
class Corpus:
    """Token ids of all training texts [N], END after each; and of the held-out text, which has `held_out_bytes`."""

    ids: np.ndarray
    held_out: np.ndarray
    held_out_bytes: int


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str], held_out: str, config: Config) -> Corpus:
    """InputError when there are too few tokens for a batch or for a validation."""
    end = tokenizer.token_to_id(END)
    parts = [[*encoding.ids, end] for encoding in tokenizer.encode_batch(texts)]
    ids = np.concatenate([np.array(part, np.int64) for part in parts])
    corpus = Corpus(ids, np.array(tokenizer.encode(held_out).ids, np.int64), len(held_out.encode()))
    if len(ids) < (needed := 2 * config.length + 1):
        raise InputError(f"the texts have {len(ids)} tokens to train on; windows of {config.length} need {needed}")
    context = config.model.max_position_embeddings
    if len(corpus.held_out) < 2 * context:
        raise InputError(
            f"training.validation: the held-out text has {len(corpus.held_out)} tokens; a context of {context} needs "
            f"at least {2 * context}"
        )
    return corpus


def prepare(
    texts: Sequence[str], config: Config, tokenizer: tokenizers.Tokenizer | None = None
) -> tuple[tokenizers.Tokenizer, Corpus]:
    """The tokenizer of a run, trained on the texts unless it is given, and their tokens."""
    trained_on, held_out = split(texts, config.training.validation)
    if tokenizer is None:
        tokenizer = train_tokenizer(trained_on, config.model.vocab_size)
    return tokenizer, encode(tokenizer, trained_on, held_out, config)


class Batches:
    """Windows of length + 1 tokens in a new order each epoch, with borders at new places.

    What a step gets is a function of seed and step alone: going on at a step needs no other state.
    """

    def __init__(self, ids: np.ndarray, length: int, batch: int, seed: int) -> None:
        self.ids, self.length, self.batch, self.seed = ids, length, batch, seed
        self.windows = (len(ids) - 1) // length - 1  # one less than fit, since an epoch's borders are shifted
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def at(self, step: int) -> Tensor:
        """[batch, length + 1]."""
        rows = []
        for i in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(i, self.windows)
            if epoch != self._epoch:
                rng = np.random.default_rng([self.seed, epoch])
                shift = rng.integers(0, self.length)
                self._epoch, self._starts = epoch, shift + self.length * rng.permutation(self.windows)
            start = self._starts[place]
            rows.append(self.ids[start : start + self.length + 1])
        return torch.from_numpy(np.stack(rows))
