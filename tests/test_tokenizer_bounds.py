"""What a tokenizer's file can cost: time and memory have bounds, whoever wrote it."""

import json
import threading
import time

import pytest
from fake_model import byte_tokenizer_folder
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from lapinfer.errors import CheckpointError
from lapinfer.text import tokenizer_bounds
from lapinfer.text.tokenizer import Tokenizer

DOUBLED = [normalizers.Replace("a", "aa")] * 30
ATTACKS = {
    "growth": ("normalizer", normalizers.Sequence(DOUBLED), "normalizer can make a text 1.07e\\+09 times as long"),
    "insertion": ("normalizer", normalizers.Replace(Regex("x*"), "y" * 200), "normalizer can make a text 201 times"),
    "prefix": ("normalizer", normalizers.Prepend("y" * 5000), "normalizer can make a text"),
    "steps": ("normalizer", normalizers.Sequence([normalizers.NFC()] * 500), "normalizer has more than 64 parts"),
    "cuts": (
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Sequence([pre_tokenizers.Whitespace()] * 9)] * 9),
        "pre_tokenizer has more than 64 parts",
    ),
    "decoder": (
        "decoder",
        decoders.Sequence([decoders.Replace("a", "aaaa")] * 9),
        "decoder can make a text 2.62e\\+05 times",
    ),
    "template": (
        "post_processor",
        processors.TemplateProcessing(single=["B"] * 300 + ["$A"], special_tokens=[("B", 1)]),
        "post_processor has more than 64 parts",
    ),
    "copies": (
        "post_processor",
        processors.Sequence([processors.TemplateProcessing(single=["$A"] * 9, special_tokens=[])] * 3),
        "post_processor can make a text 729 times",
    ),
}


def changed(folder, **parts):
    byte_tokenizer_folder(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", ATTACKS)
def test_steps_that_make_a_text_endless_are_refused(tmp_path, name):
    part, value, message = ATTACKS[name]
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=f"tokenizer.json: its {message}"):
        Tokenizer.from_folder(changed(tmp_path, **{part: value}))
    assert time.monotonic() - began < 5


def test_files_are_bounded_before_they_are_parsed(tmp_path, monkeypatch):
    folder = byte_tokenizer_folder(tmp_path)
    monkeypatch.setattr("lapinfer.text.tokenizer_bounds.MOST", {b",": 100})
    with pytest.raises(CheckpointError, match="values, expected at most 100 of their kind"):
        Tokenizer.from_folder(folder)
    monkeypatch.setattr("lapinfer.text.tokenizer.MOST_BYTES", 1000)
    monkeypatch.setattr("lapinfer.text.tokenizer_bounds.MOST_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has more than"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {str(id): {"content": f"<{id}>"} for id in range(9)}}),
        ("tokenizer_config.json", {"extra_special_tokens": [f"<{id}>" for id in range(9)]}),
        ("tokenizer_config.json", {"extra_special_tokens": {f"t{id}": f"<{id}>" for id in range(9)}}),
        ("tokenizer_config.json", {f"t{id}_token": f"<{id}>" for id in range(9)}),
        ("special_tokens_map.json", {"additional_special_tokens": [f"<{id}>" for id in range(9)]}),
        ("added_tokens.json", {f"<{id}>": id for id in range(9)}),
    ],
)
def test_added_tokens_are_counted_before_they_are_made(tmp_path, monkeypatch, file, said):
    """A million of them takes the library half a minute."""
    folder = byte_tokenizer_folder(tmp_path)
    (folder / file).write_text(json.dumps(said))
    assert Tokenizer.from_folder(folder)
    monkeypatch.setattr("lapinfer.text.tokenizer_files.MOST_ADDED", 8)
    with pytest.raises(CheckpointError, match=f"{file}: .* has 9 tokens, expected at most 8; is it this model's"):
        Tokenizer.from_folder(folder)


def test_nesting_is_bounded(tmp_path):
    folder = byte_tokenizer_folder(tmp_path)
    data = json.loads((folder / "tokenizer.json").read_text())
    deep = '{"type":"Sequence","normalizers":[' * 5000 + "]}" * 5000
    text = json.dumps(data | {"normalizer": "HERE"}).replace('"HERE"', deep)
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a usable tokenizer"):
        Tokenizer.from_folder(folder)


def test_patterns_of_strangers_have_a_time(tmp_path, monkeypatch):
    slow = pre_tokenizers.Split(Regex("(?:[ab]*)[^ab]"), "isolated")  # quadratic: from each place to the end
    folder = changed(tmp_path, pre_tokenizer=pre_tokenizers.Sequence([slow, pre_tokenizers.ByteLevel(False)]))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("ab" * 1500)[:2] == [97, 98]  # a long text, but not too long
    monkeypatch.setattr(tokenizer_bounds, "MOST_SECONDS", 0.05)
    monkeypatch.setattr(tokenizer_bounds, "SECONDS_PER_CHARACTER", 0)
    with pytest.raises(CheckpointError, match="encoding 20,000 characters takes more than 0 s: its patterns are too"):
        tokenizer.encode("a" * 20_000)


def test_known_patterns_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("lapinfer.text.tokenizer.within_time", None)
    assert len(Tokenizer.from_folder(byte_tokenizer_folder(tmp_path)).encode("ab" * 3000)) == 6000


def test_others_go_on_while_a_long_text_is_read(tmp_path):
    tokenizer, ended, moments = Tokenizer.from_folder(byte_tokenizer_folder(tmp_path)), threading.Event(), []

    def live():
        while not ended.wait(0.002):
            moments.append(time.monotonic())

    living = threading.Thread(target=live)
    living.start()
    try:
        began = time.monotonic()
        tokenizer.encode("x y " * 100_000)
        end = time.monotonic()
    finally:
        ended.set()
        living.join()
    assert len([moment for moment in moments if began < moment < end]) > 5


def test_a_pattern_that_is_exponential_is_one_line(tmp_path):
    folder = changed(tmp_path, pre_tokenizer=pre_tokenizers.Split(Regex("(a+)+$"), "isolated"))
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"the tokenizer failed: .*retry"):
        Tokenizer.from_folder(folder).encode("a" * 30 + "b")
    assert time.monotonic() - began < 10


def test_a_sentencepiece_model_alone_says_what_to_do(tmp_path):
    from lapinfer.text.tokenizer import why_none

    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    assert Tokenizer.from_folder(tmp_path) is None
    assert "tokenizer.model and no tokenizer.json" in why_none(tmp_path)
    assert "save_pretrained" in why_none(None)
