"""Thinking told apart from answers, however the text is cut into pieces."""

import dataclasses
import json

import pytest
from fake_model import FakeModel, byte_tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lapinfer.text.channels import BLOCKS, HARMONY, of_kind
from lapinfer.text.language_model import from_model
from lapinfer.text.tool_splitter import splitter

TALK = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json"
    "<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>Hi <there>"
)
CASES = [
    # prompt's end, harmony, text, thinking, answer
    ("<|im_start|>assistant\n", False, "<think>\nHm.\n</think>\n\nHi", "Hm.\n", "Hi"),
    ("assistant\n<think>\n", False, "Hm.\n</think>\n\nHi", "Hm.\n", "Hi"),
    ("assistant\n<think>", False, "Hm.", "Hm.", ""),
    ("<think>\n\n</think>\n\n", False, "Hi <think>", "", "Hi <think>"),
    ("", False, "\n  Hi", "", "\n  Hi"),
    ("", False, "[THINK]Hm.[/THINK]Hi [THINK]", "Hm.", "Hi [THINK]"),
    ("", False, "<think></think>Hi", "", "Hi"),
    ("", False, "<think>a < b</thin", "a < b</thin", ""),
    ("", False, "<thin", "", "<thin"),
    ("", False, "What <think> does: </think>", "", "What <think> does: </think>"),
    ("", False, "\n\n<think>a</think>\n<think>b</think>\n c", "ab", " c"),
    ("<|start|>assistant", True, TALK, "Hm.{}", "Hi <there>"),
    ("<|start|>assistant<|channel|>final<|message|>", True, "Hi", "", "Hi"),
    ("<|start|>assistant<|channel|>analysis<|message|>", True, "Hm.<|end|>", "Hm.", ""),
    ("<|start|>assistant", True, "<|message|>Hi", "", "Hi"),
    ("<|start|>assistant", True, " to=functions.f<|channel|>commentary<|message|>{}<|call|>", "{}", ""),
    ("", True, "plain", "", "plain"),
]


@pytest.mark.parametrize(("prompt", "harmony", "text", "thinking", "answer"), CASES)
def test_thinking_and_answer_are_told_apart(prompt, harmony, text, thinking, answer):
    for size in (1, 2, 3, 5, 7, len(text)):
        split = splitter(prompt, harmony)
        parts = [part for i in range(0, len(text), size) for part in split.push(text[i : i + size])] + split.flush()
        assert "".join(part.text for part in parts) == text
        assert (of_kind(parts, "thinking"), of_kind(parts, "answer")) == (thinking, answer)


OTHERS = ["a", "final", "analysis", " to=", "\n", " ", "<", "<|", "[", "</th", "ink>"]
PIECES = st.lists(st.sampled_from([*BLOCKS, *BLOCKS.values(), *HARMONY, *OTHERS]))


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES, cuts=st.lists(st.integers(1, 9), max_size=60), prompt=PIECES, harmony=st.booleans())
def test_all_parts_together_are_the_text_wherever_it_is_cut(pieces, cuts, prompt, harmony):
    text, at = "".join(pieces), 0
    whole, split = splitter("".join(prompt), harmony), splitter("".join(prompt), harmony)
    parts = []
    for cut in cuts:
        parts += split.push(text[at : at + cut])
        at += cut
    parts += split.push(text[at:]) + split.flush()
    at_once = whole.push(text) + whole.flush()
    assert "".join(part.text for part in parts) == text
    for kind in ("thinking", "answer", "markup"):
        assert of_kind(parts, kind) == of_kind(at_once, kind)


def chat_model(folder, text, template="{{ messages[0].content }}", tokens=(), ctx=64, **generation_config):
    """A model that says a text, of bytes and of special tokens."""
    byte_tokenizer_folder(folder, chat=template)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False} | generation_config))
    model = FakeModel(folder, script=[*backend.encode(text).ids, 257], ctx=ctx)
    model.spec = dataclasses.replace(model.spec, vocab=backend.get_vocab_size())
    return from_model(model)  # pyright: ignore


def test_a_chat_has_thinking_and_answer_and_raw_text_has_all(tmp_path):
    model = chat_model(tmp_path, "<think>é?</think>\n\nYes.")
    answer = model.chat([{"role": "user", "content": "Well"}], max_tokens=60)
    assert (answer.thinking, answer.text, answer.finish_reason) == ("é?", "Yes.", "stop")
    events = list(model.stream_chat("Well", max_tokens=60))
    assert "".join(event.thinking for event in events) == "é?"
    assert "".join(event.text for event in events) == "Yes."
    raw = model.generate("Well", max_tokens=60)
    assert (raw.thinking, raw.text) == ("", "<think>é?</think>\n\nYes.")


def test_only_the_final_channel_is_the_answer(tmp_path):
    tokens = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>"]
    template = "<|start|>user<|message|>{{ messages[0].content }}<|end|><|start|>assistant"
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>"
    model = chat_model(tmp_path, said, template, tokens)
    answer = model.chat("Well", max_tokens=200)
    assert (answer.thinking, answer.text, answer.finish_reason) == ("Hm.", "Hi", "stop")
    assert "<|" not in model.generate("Well", max_tokens=200).text  # special tokens have no text of their own


def test_special_tokens_around_thinking_are_found(tmp_path):
    model = chat_model(tmp_path, "[THINK]Hm.[/THINK]Yes", tokens=["[THINK]", "[/THINK]"])
    answer = model.chat("Well", max_tokens=60)
    assert (answer.thinking, answer.text) == ("Hm.", "Yes")


def test_stop_strings_end_answers_and_not_thinking(tmp_path):
    model = chat_model(tmp_path, "<think>a STOP b</think>c STOP d")
    answer = model.chat("Well", max_tokens=60, stop=["STOP"])
    assert (answer.thinking, answer.text, answer.finish_reason) == ("a STOP b", "c ", "stop_string")


def test_thinking_that_does_not_end_is_no_answer(tmp_path):
    model = chat_model(tmp_path, "Hm, hm </thi", template="{{ messages[0].content }}<think>\n")
    answer = model.chat("Well", max_tokens=12)
    assert (answer.thinking, answer.text, answer.finish_reason) == ("Hm, hm </thi", "", "length")
