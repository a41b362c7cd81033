"""Tokenizer, streamed text, chat templates, generation, and what is public."""

import importlib.util
import subprocess
import sys
import threading

import numpy as np
import pytest
from fake_model import CHAT, FakeModel, byte_tokenizer_folder, sentencepiece_folder
from hypothesis import given, settings
from hypothesis import strategies as st

import lapinfer
from lapinfer.errors import CheckpointError, InputError, LapinferError, UnsupportedError
from lapinfer.text.generation import stream
from lapinfer.text.language_model import LanguageModel, from_model
from lapinfer.text.sampling import SamplingParams
from lapinfer.text.template import ChatTemplate
from lapinfer.text.tokenizer import StreamDecoder, Tokenizer

EOS = 257
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return byte_tokenizer_folder(root / "bytes"), sentencepiece_folder(root / "sentencepiece")


@pytest.fixture(scope="module")
def byte_tokenizer(folders):
    return Tokenizer.from_folder(folders[0])


@pytest.fixture(scope="module")
def sentencepiece(folders):
    return Tokenizer.from_folder(folders[1])


# Tokenizer


def test_reads_ids_and_special_tokens(byte_tokenizer, sentencepiece):
    assert byte_tokenizer.encode("hé<|im_end|>") == [104, 0xC3, 0xA9, EOS]
    assert byte_tokenizer.decode([104, 0xC3, 0xA9, EOS, 99_999]) == "hé"
    assert (byte_tokenizer.bos_id, byte_tokenizer.eos_ids, byte_tokenizer.vocab_size) == (256, {EOS}, 258)
    assert not byte_tokenizer.adds_bos
    assert sentencepiece.adds_bos
    assert sentencepiece.encode("a")[0] == sentencepiece.bos_id == 1
    assert sentencepiece.encode("a", special=False)[0] != 1


def test_special_tokens_have_the_names_that_templates_know(tmp_path):
    config = {"pad_token": {"content": "<pad>"}, "image_token": "<image>", "extra_special_tokens": {"boi": "<boi>"}}
    tokenizer = Tokenizer.from_folder(byte_tokenizer_folder(tmp_path, mask_token=None, **config))
    assert tokenizer is not None
    assert tokenizer.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "image_token": "<image>",
        "boi": "<boi>",
    }


def test_eos_may_be_a_list(tmp_path):
    folder = byte_tokenizer_folder(tmp_path, eos_token="<|im_start|>")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9], "bos_token_id": 3}')
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    assert tokenizer.eos_ids == {7, 9, 256, 257}  # <|im_end|> ends a turn, whatever eos is


def test_no_tokenizer_is_none_and_a_bad_one_is_one_line(tmp_path):
    assert Tokenizer.from_folder(tmp_path) is None
    for bad in [
        "",
        "{}",
        "[1]",
        '{"version":"1.0"}',
        "\x00" * 100,
        '{"model":{"type":"BPE","vocab":{},"merges":["a"]}}',
    ]:
        (tmp_path / "tokenizer.json").write_text(bad)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
            Tokenizer.from_folder(tmp_path)
        assert "\n" not in str(caught.value)
    byte_tokenizer_folder(tmp_path)
    for bad in ["{", "[]", "\udcff"]:
        (tmp_path / "tokenizer_config.json").write_bytes(bad.encode("utf-8", "surrogatepass"))
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
            Tokenizer.from_folder(tmp_path)


def test_a_panic_of_the_library_is_caught(folders, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(data):
        raise PanicException("index out of\nbounds")

    monkeypatch.setattr("tokenizers.Tokenizer.from_buffer", panic, raising=False)
    monkeypatch.setattr("lapinfer.text.tokenizer.tokenizers.Tokenizer", type("T", (), {"from_buffer": panic}))
    with pytest.raises(CheckpointError, match="index out of bounds"):
        Tokenizer.from_folder(folders[0])


def test_text_that_is_not_unicode_is_refused(byte_tokenizer):
    with pytest.raises(InputError, match="Unicode"):
        byte_tokenizer.encode("\ud800")


# Streamed text


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40), cut=st.integers(0, 60))
def test_streamed_pieces_make_the_text_and_never_split_a_character(byte_tokenizer, text, cut):
    ids = byte_tokenizer.encode(text)
    while 0 < cut < len(ids) and ids[cut] & 0xC0 == 0x80:
        cut -= 1
    decoder = StreamDecoder(byte_tokenizer, ids[:cut])
    pieces = [decoder.push(id) for id in ids[cut:]] + [decoder.flush()]
    assert byte_tokenizer.decode(ids[:cut]) + "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_sentencepiece_spaces_and_bytes(sentencepiece):
    vocab = {"Hello": 260, "world": 261, "space": 259, "a": 262}
    earth = [3 + b for b in "🌍é".encode()]
    ids = [vocab["Hello"], vocab["world"], *earth, vocab["world"], 2, vocab["world"]]
    decoder = StreamDecoder(sentencepiece)
    pieces = [decoder.push(id) for id in ids] + [decoder.flush()]
    assert pieces == ["Hello", " world", "", "", "", "🌍", "", "é", " world", "", " world", ""]
    after = StreamDecoder(sentencepiece, [vocab["Hello"]])  # a prompt before: the space belongs to the answer
    assert after.push(vocab["world"]) == " world"


@pytest.mark.parametrize("which", ["bytes", "sentencepiece"])
def test_bytes_that_are_no_text_do_not_hold_the_rest_back(which, byte_tokenizer, sentencepiece):
    tokenizer, ff, a = (byte_tokenizer, 0xFF, 97) if which == "bytes" else (sentencepiece, 3 + 0xFF, 262)
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(id) for id in [a, *[ff] * 100, a]]
    assert sum(map(len, pieces)) >= 100
    assert pieces[-1].endswith("a")
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(ff) == ""
    assert decoder.flush() == "\ufffd"


def test_only_a_short_window_is_decoded(byte_tokenizer, monkeypatch):
    longest = 0
    decode = byte_tokenizer.decode

    def counting(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    monkeypatch.setattr(byte_tokenizer, "decode", counting)
    decoder = StreamDecoder(byte_tokenizer)
    for id in byte_tokenizer.encode("añ" * 500):
        decoder.push(id)
    assert longest <= 2 * StreamDecoder.LONGEST


USER = [{"role": "user", "content": "hi"}]


# Generation


def spoken(model, tokenizer, text, **options):
    """Events when the model says `text` (and then eos)."""
    model.script = [*text.encode(), EOS]
    return list(stream(model, tokenizer, [1, 2, 3], GREEDY, **options))


def test_one_event_a_token(byte_tokenizer):
    events = spoken(FakeModel(), byte_tokenizer, "aé!")
    assert [e.text for e in events] == ["a", "", "é", "!", ""]
    assert [e.finish_reason for e in events] == [None, None, None, None, "stop"]
    assert events[-1].token == EOS
    assert all(e.logprob is None for e in events)
    last = events[-1].timings
    assert (last.prompt_tokens, last.reused_tokens) == (3, 0)
    assert last.ttft_ms > 0
    assert last.tokens_per_second > 0


def test_the_length_limit_gives_out_what_was_held_back(byte_tokenizer):
    events = spoken(FakeModel(), byte_tokenizer, "aé", max_tokens=2)
    assert [e.text for e in events] == ["a", "\ufffd"]
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("text", "stop", "expected", "met"),
    [
        ("hello END world", ["END"], "hello ", "END"),
        ("hello EN", ["END"], "hello EN", None),
        ("xxabab!", ["ababc", "b!"], "xxaba", "b!"),
        ("aab", ["aab", "ab"], "", "aab"),
        ("abc", ["c", "bc"], "a", "bc"),
        ("über é stop", ["é"], "über ", "é"),
        ("abaa", ["a" * 300_000], "abaa", None),  # not compared beyond the text
    ],
)
def test_stop_strings_never_leak(byte_tokenizer, text, stop, expected, met):
    events = spoken(FakeModel(), byte_tokenizer, text, stop=stop)
    assert "".join(e.text for e in events) == expected
    assert events[-1].finish_reason == ("stop" if met is None else "stop_string")
    assert [e.stop_string for e in events] == [None] * (len(events) - 1) + [met]


def test_the_context_fills_up_to_the_last_position(byte_tokenizer):
    model = FakeModel(ctx=10)
    events = spoken(model, byte_tokenizer, "a" * 100)
    assert len(events) == 8  # positions 3 … 9 hold 7 of them; the last one needs no position
    assert events[-1].finish_reason == "length"
    assert (model.cache[0] >= 0).all()


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([1] * 65, {}, r"65 tokens.*64.*-c"),
        ([], {}, "empty"),
        ([1, 258], {}, "token 1 of the prompt is 258"),
        ([-1], {}, "is -1"),
        ([1], {"max_tokens": 0}, "max_tokens"),
        ([1], {"stop": [""]}, "stop"),
        ([1], {"stop": ["a"]}, "tokenizer"),
        ([1], {"slot": 2}, "slot"),
    ],
)
def test_bad_requests_are_refused_at_the_call(ids, options, message):
    with pytest.raises(InputError, match=message):
        stream(FakeModel(), None, ids, **options)  # not even begun


def test_an_empty_prompt_begins_with_bos(byte_tokenizer):
    model = FakeModel()
    next(iter(stream(model, byte_tokenizer, [], GREEDY)))
    assert model.cache[0, 0] == 256


def test_without_a_tokenizer_ids_are_enough():
    events = list(stream(FakeModel(), None, [5], GREEDY, max_tokens=4))
    assert [e.text for e in events] == [""] * 4
    assert events[-1].finish_reason == "length"


def fresh(ids, n=5, **model):
    return [(e.token, e.logprob) for e in stream(FakeModel(**model), None, ids, GREEDY, n)]


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=6),
    window=st.sampled_from([None, 4]),
)
def test_reusing_the_cache_changes_nothing(prompts, window):
    model = LanguageModel(FakeModel(window=window))  # pyright: ignore
    for ids in prompts:
        events = list(model.stream(ids, temperature=0, max_tokens=5))
        assert [(e.token, e.logprob) for e in events] == fresh(ids)


def test_a_chat_turn_reads_only_what_is_new(byte_tokenizer):
    fake = FakeModel(ctx=400)
    model = LanguageModel(fake, byte_tokenizer, ChatTemplate(CHAT))  # pyright: ignore
    fake.script = [*b"yes", EOS]
    talk = [{"role": "user", "content": "really?"}]
    first = model.chat(talk, temperature=0)
    assert (first.text, first.tokens, first.finish_reason) == ("yes", (*b"yes", EOS), "stop")
    talk += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "why?"}]
    fake.script = [*b"no", EOS]
    second = model.chat(talk, temperature=0)
    assert second.text == "no"
    assert second.timings.reused_tokens == first.timings.prompt_tokens + len("yes")
    model.forward([1, 2])
    assert model.chat(talk, temperature=0).timings.reused_tokens == 0  # forward wrote over the cache


def test_an_interrupted_prompt_is_not_taken_for_read():
    fake = FakeModel()
    model = LanguageModel(fake)  # pyright: ignore
    ids = list(range(40))
    step, calls = fake.step, 0

    def interrupted(*args, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return step(*args, **options)

    fake.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(model.stream(ids, temperature=0, max_tokens=5))
    assert [(e.token, e.logprob) for e in model.stream(ids, temperature=0, max_tokens=5)] == fresh(ids)


def test_generations_that_take_turns_in_one_slot_stay_right():
    model = LanguageModel(FakeModel())  # pyright: ignore
    a, b = model.stream([1, 2, 3], temperature=0, max_tokens=5), model.stream([1, 2], temperature=0, max_tokens=5)
    pairs = list(zip(a, b, strict=True))
    assert [(e.token, e.logprob) for e, _ in pairs] == fresh([1, 2, 3])
    assert [(e.token, e.logprob) for _, e in pairs] == fresh([1, 2])


def test_threads_share_a_model():
    model = LanguageModel(FakeModel())  # pyright: ignore
    results = {}

    def work(i):
        events = model.stream([i, 1], temperature=0, max_tokens=20, slot=i % 2)
        results[i] = [(e.token, e.logprob) for e in events]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: fresh([i, 1], 20) for i in range(6)}


# The library


def test_a_folder_makes_a_language_model(tmp_path):
    folder = byte_tokenizer_folder(tmp_path)
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    fake = FakeModel(folder)
    with from_model(fake) as model:  # pyright: ignore
        assert model.defaults == SamplingParams(temperature=0.6, top_k=20)
        same = [model.generate("hello", max_tokens=5, seed=1).tokens for _ in range(2)]
        assert same[0] == same[1]
        assert model.forward([1, 2, 3]).shape == (3, 258)
        with pytest.raises(TypeError, match="temprature"):
            model.generate("x", temprature=1)  # pyright: ignore
    assert fake.closed


def test_text_without_a_tokenizer_says_what_is_missing():
    model = LanguageModel(FakeModel())  # pyright: ignore
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        model.generate("hi")
    with pytest.raises(UnsupportedError, match="chat template"):
        model.chat(USER)
    with pytest.raises(InputError, match="ids go from 0 to 257"):
        model.forward([300])


def test_public_names_exist():
    for name in lapinfer.__all__:
        assert getattr(lapinfer, name)
    assert issubclass(lapinfer.InputError, LapinferError)
    with pytest.raises(AttributeError, match="nonsense"):
        lapinfer.nonsense  # noqa: B018


def test_no_module_hides_a_public_name():
    # Importing lapinfer.x sets lapinfer's attribute x: it would take the place of a lazily found name.
    for name in lapinfer.__all__:
        assert importlib.util.find_spec(f"lapinfer.{name}") is None, name


def test_importing_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import lapinfer; t = time.perf_counter() - t;"
        "heavy = {'numba', 'numpy', 'tokenizers', 'jinja2', 'typer'} & set(sys.modules); assert not heavy, heavy;"
        "assert t < 0.15, t; lapinfer.SamplingParams; lapinfer.LanguageModel"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_greedy_logprobs_are_those_of_the_logits():
    model = LanguageModel(FakeModel())  # pyright: ignore
    logits = model.forward([1, 2, 3])[-1].astype(np.float64)
    event = next(model.stream([1, 2, 3], temperature=0, logprobs=True))
    assert event.token == logits.argmax()
    assert event.logprob == pytest.approx(logits.max() - np.log(np.exp(logits).sum()), abs=1e-5)
    assert event.top == ()
    (event,) = model.stream([1, 2, 3], temperature=0, logprobs=3, max_tokens=1)
    assert [id for id, _ in event.top] == np.argsort(-logits)[:3].tolist()
    assert event.top[0] == (event.token, event.logprob)
    answer = model.generate([1, 2, 3], logprobs=2, max_tokens=4)
    assert [len(each) for each in answer.top] == [2] * 4
    assert len(answer.logprobs) == 4
    assert model.generate([1, 2, 3], logprobs=0, max_tokens=2).top == ()
