"""A model that says what its script has for the last thing it was told, in any slot and in whatever steps."""

from pathlib import Path

import numpy as np
from fake_model import FakeModel, byte_tokenizer_folder

from lapinfer.text.language_model import LanguageModel, from_model

IM_START, IM_END = 256, 257
BEGINNING = b"assistant\n"
NO_THINKING = b"<think>\n\n</think>\n\n"
TEMPLATES = Path(__file__).parent / "templates"


class TalkingModel(FakeModel):
    """script: of an answer, by a text that the last turn before it has; the first that is found counts."""

    def __init__(self, folder, script, **options):
        super().__init__(folder, **{"ctx": 4096, "slots": 4} | options)
        self.answers = {key.encode(): answer.encode() for key, answer in script.items()}

    def _logits(self, ids, pos):
        values = np.zeros(self.spec.vocab, np.float32)
        starts = np.flatnonzero(ids == IM_START)
        turn = ids[starts[-2] + 1 : starts[-1]] if len(starts) > 1 else ids[:0]
        last = bytes(turn[turn < 256].astype(np.uint8))
        begun = starts[-1] + 1 if len(starts) else 0
        said = bytes(ids[begun:].astype(np.uint8)).removeprefix(BEGINNING)
        answer = next((answer for key, answer in self.answers.items() if key in last), b"Hello.")
        if said.startswith(NO_THINKING):
            said, answer = said.removeprefix(NO_THINKING), answer.rpartition(b"</think>\n\n")[2]
        values[[*answer, IM_END][min(len(said), len(answer))]] = 100
        return values


def talking_model(folder: Path, script: dict[str, str], **options) -> LanguageModel:
    """It has a tokenizer of bytes, and Qwen 3's template: with thinking, and calls as Hermes has them."""
    template = (TEMPLATES / "qwen-3.jinja").read_text(encoding="utf-8")
    return from_model(TalkingModel(byte_tokenizer_folder(folder, chat=template), script, **options))
