"""Texts that models are measured with, as token ids."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from lapinfer.errors import InputError
from lapinfer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lapinfer.text.language_model import LanguageModel

RANDOM_IDS = 2048


def passage() -> str:
    """The text that comes with the package."""
    return (files("lapinfer.report") / "passage.txt").read_text(encoding="utf-8")


def sample_ids(tokenizer: Tokenizer | None, vocab: int, text: str) -> tuple[np.ndarray, str]:
    """int32 token ids of a text that the model knows, and "real"; of a model without a tokenizer random ones, and
    "random": they are routed and cached unlike text."""
    if tokenizer is None:
        return np.random.default_rng(0).integers(0, vocab, RANDOM_IDS, dtype=np.int32), "random"
    ids = np.array([id for id in tokenizer.encode(text) if id < vocab], np.int32)
    if not len(ids):
        raise InputError("the text is empty: at least one token is needed")
    return ids, "real"


def text_ids(model: LanguageModel, text: str) -> np.ndarray:
    """int32 token ids; InputError when the model lacks one of them."""
    ids = np.array(model.encode(text), np.int32)
    if len(ids) and int(ids.max()) >= model.spec.vocab:
        raise InputError(f"the tokenizer gives ids up to {ids.max()}, but the model has {model.spec.vocab}")
    return ids


def chunk(model: LanguageModel, ids: np.ndarray, start: int, ctx: int) -> np.ndarray:
    """A fresh sequence of at most ctx ids; where the tokenizer begins texts with BOS, that replaces the first."""
    piece = ids[start : start + ctx].copy()
    if model.tokenizer is not None and model.tokenizer.adds_bos and model.tokenizer.bos_id is not None:
        piece[0] = model.tokenizer.bos_id
    return piece
