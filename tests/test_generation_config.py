"""generation_config.json: what is done of it, what is said, and which tokens end an answer."""

import json

import numpy as np
import pytest
from fake_model import FakeModel, byte_tokenizer_folder
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lapinfer.options import SamplingParams
from lapinfer.text.generation_config import Bans, generation, read_generation
from lapinfer.text.language_model import from_model
from lapinfer.text.tokenizer import Tokenizer


def put(folder, **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"temperature": "hot"}, "temperature is 'hot', expected a number from 0; it is left out"),
        ({"top_k": -1}, "top_k is -1, expected a whole number from 0"),
        ({"top_p": True}, "top_p is True"),
        ({"do_sample": "no"}, "do_sample is 'no', expected true or false"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"stop_strings": [1]}, "stop_strings is [1], expected a list of texts"),
        ({"eos_token_id": [[1, 2]]}, "eos_token_id has [1, 2], expected ids from 0 to 9"),
        ({"eos_token_id": -1}, "eos_token_id has -1"),
        ({"eos_token_id": [3, 10]}, "eos_token_id has 10, expected ids from 0 to 9; it is left out"),
        ({"bos_token_id": 2.0}, "bos_token_id has 2.0"),
        ({"bad_words_ids": [[]]}, "bad_words_ids is [[]]"),
        ({"bad_words_ids": [[-1]]}, "bad_words_ids is [[-1]]"),
        ({"num_beams": 4}, "num_beams 4 is not done here"),
        ({"typical_p": 0.9}, "typical_p 0.9 is not done here"),
        ({"exponential_decay_length_penalty": [5, 1.1]}, "exponential_decay_length_penalty [5, 1.1] is not done"),
    ],
)
def test_what_is_not_done_or_cannot_be_read_is_said_once(values, note):
    (said,) = generation(values, "g.json", vocab=10).notes
    assert said.startswith(f"g.json: {note}")


def test_what_changes_nothing_is_not_mentioned():
    neutral = {"num_beams": 1, "typical_p": 1.0, "guidance_scale": None, "early_stopping": False, "use_cache": True}
    assert generation(neutral | {"transformers_version": "5", "eos_token_id": None, "pad_token_id": 0}).notes == ()


def test_an_older_folder_has_these_keys_in_its_config(tmp_path):
    dumped = {"do_sample": False, "max_length": 20, "temperature": 1.0, "top_k": 50}
    put(tmp_path, config={"eos_token_id": 5, "max_new_tokens": 7, "top_p": 0.5} | dumped)
    read = read_generation(tmp_path)
    assert (read.eos_ids, read.max_tokens, read.max_length) == ((5,), 7, None)
    assert read.params == SamplingParams(top_p=0.5)
    put(tmp_path, generation_config={"do_sample": False})
    read = read_generation(tmp_path)
    assert (read.eos_ids, read.max_tokens, read.params.temperature) == ((5,), None, 0)
    put(tmp_path, config={"text_config": {"eos_token_id": [1, 2], "bos_token_id": 0}})
    assert (read_generation(tmp_path).eos_ids, read_generation(tmp_path).bos_id) == ((1, 2), 0)


def test_makers_recommendations_are_taken_where_a_call_names_none(tmp_path):
    folder = byte_tokenizer_folder(tmp_path)
    recommended = {"do_sample": False, "max_new_tokens": 3, "stop_strings": "zz", "eos_token_id": 999}
    put(folder, generation_config=recommended)
    model = from_model(FakeModel(folder, script=[*b"abcdezz", 257]))  # pyright: ignore
    assert model.generate("xy").text == "abc"
    answer = model.generate("xy", max_tokens=20)
    assert (answer.text, answer.finish_reason) == ("abcde", "stop_string")
    assert "eos_token_id has 999, expected ids from 0 to 257" in model.recommended.notes[0]
    put(folder, generation_config={"max_length": 6})
    model = from_model(FakeModel(folder, script=[*b"abcdezz", 257]))  # pyright: ignore
    assert model.generate("xy").text == "abcd"


def test_bans():
    ends = frozenset([9])
    assert Bans(always=(1,), first=(2,)).after([5, 6], 2, ends) == [1, 2]
    assert Bans(always=(1,), first=(2,)).after([5, 6, 7], 2, ends) == [1]
    assert Bans(least=2).after([5, 6, 7], 2, ends) == [9]
    assert Bans(least_in_all=3).after([5, 6, 7], 2, ends) == []
    assert Bans(sequences=((4,), (6, 7, 8))).after([5, 6, 7], 1, ends) == [4, 8]
    assert Bans(ngram=2).after([5, 6, 5, 7, 5], 1, ends) == [6, 7]
    assert Bans(ngram=1).after([5, 6], 1, ends) == [5, 6]


@pytest.mark.parametrize(
    ("tokens", "config", "generation_config", "ends"),
    [
        (["<|end|>", "<|return|>", "<|call|>"], {}, {"eos_token_id": 259}, {"<|return|>", "<|call|>", "<|im_end|>"}),
        (["<|end|>"], {}, {}, {"<|end|>", "<|im_end|>"}),  # Phi's ends a turn
        (["<|end|>", "<|return|>"], {}, {"eos_token_id": [258]}, {"<|end|>", "<|return|>", "<|im_end|>"}),
        (["<|end_of_role|>"], {}, {}, {"<|im_end|>"}),  # Granite's ends a heading, not an answer
        (["<end_of_turn>", "[EOT]"], {}, {}, {"<end_of_turn>", "[EOT]", "<|im_end|>"}),
        (["</answer>"], {"eos_token": "</answer>"}, {}, {"</answer>", "<|im_end|>"}),
    ],
)
def test_tokens_that_end_an_answer(tmp_path, tokens, config, generation_config, ends):
    """As llama.cpp's list of end-of-generation tokens; <|end|> beside <|return|> ends a message of a turn."""
    folder = byte_tokenizer_folder(tmp_path, **config)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(text, special=True) for text in tokens])
    backend.save(str(folder / "tokenizer.json"))
    put(folder, generation_config=generation_config)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    assert {backend.id_to_token(id) for id in tokenizer.eos_ids} == ends


def test_a_text_that_looks_like_an_end_is_none(tmp_path):
    folder = byte_tokenizer_folder(tmp_path)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken("<|end|>", special=False)])
    backend.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_folder(folder).eos_ids == {257}  # pyright: ignore


def test_bans_hold_in_a_generation(tmp_path):
    folder = byte_tokenizer_folder(tmp_path)
    put(folder, generation_config={"suppress_tokens": [98], "min_new_tokens": 4, "do_sample": False})
    model = from_model(FakeModel(folder, script=[97, 98, 257]))  # pyright: ignore
    answer = model.generate("xy", max_tokens=9, logprobs=True)
    assert answer.tokens[0] == 97
    assert 98 not in answer.tokens
    assert 257 not in answer.tokens[:4]
    assert answer.tokens[4] == 257
    assert np.isfinite(answer.logprobs).all()
