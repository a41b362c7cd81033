"""The official openai client's completions, and llama-server's /tokenize, against a server that runs."""

import numpy as np
import pytest
from fake_model import FakeModel, byte_tokenizer_folder

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
from pydantic import ValidationError  # noqa: E402
from serving import KEY, served  # noqa: E402

from lapinfer.serve import state  # noqa: E402
from lapinfer.serve.completions import CompletionBody  # noqa: E402
from lapinfer.serve.errors import ApiError  # noqa: E402
from lapinfer.text.language_model import from_model  # noqa: E402


class Repeating(FakeModel):
    """Says the alphabet; what is likely besides depends on the last token."""

    def _logits(self, ids, pos):
        values = np.random.default_rng(int(ids[-1])).standard_normal(self.spec.vocab).astype(np.float32)
        values[(ids[-1] - 97 + 1) % 26 + 97] += 20
        return values


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return from_model(Repeating(byte_tokenizer_folder(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    with served(None, {}, model=model) as url:
        yield url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


def ask(prompt, **options):
    return {"model": "fake", "prompt": prompt, "max_tokens": 3, "temperature": 0} | options


def test_texts_and_ids_are_continued(client):
    for prompt in ("abc", [97, 98, 99]):
        answer = client.completions.create(**ask(prompt))
        assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
            "text_completion", "def", "length",
        )  # fmt: skip
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)
    assert len(client.completions.create(model="fake", prompt="a").choices[0].text) == 16


@pytest.mark.parametrize("prompts", [["abc", "x"], [[97, 98, 99], [120]]])
def test_lists_of_prompts(client, prompts):
    answer = client.completions.create(**ask(prompts, n=2, seed=1))
    assert [(choice.index, choice.text) for choice in answer.choices] == [*enumerate(["def", "def", "yza", "yza"])]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 12)
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**ask(prompts, n=2, stream=True)):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["def", "def", "yza", "yza"]


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
@pytest.mark.parametrize("limit", [0, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_echo_tells_of_the_prompt_what_the_library_does(client, model, prompt, limit, stream):
    answer = client.completions.create(**ask(prompt, echo=True, logprobs=2, max_tokens=limit, stream=stream))
    chunks = [*answer] if stream else [answer]
    text = "".join(chunk.choices[0].text for chunk in chunks)
    told = {
        name: [value for chunk in chunks for value in getattr(chunk.choices[0].logprobs, name)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    assert text == "abcde"[: 3 + limit]
    assert (told["tokens"], told["text_offset"]) == ([*text], [*range(len(text))])
    (scored,) = model.score([[*text.encode()]])
    assert told["token_logprobs"] == list(scored.logprobs)
    assert told["top_logprobs"][0] is None
    for token, likely in zip(told["tokens"][1:], told["top_logprobs"][1:], strict=True):
        assert token in likely
        assert len(likely) in (2, 3)


def test_echo_alone(client):
    answer = client.completions.create(**ask("abc", echo=True, logprobs=0))
    assert answer.choices[0].text == "abcdef"
    assert [len(likely or ()) for likely in answer.choices[0].logprobs.top_logprobs] == [0, 1, 1, 1, 1, 1]
    assert client.completions.create(**ask("abc", echo=True)).choices[0].logprobs is None


def test_of_the_prompt_alone_nothing_was_made(client):
    assert client.completions.create(**ask("abc", echo=True, max_tokens=0)).usage.total_tokens == 3


def test_more_prompts_than_may_wait_are_not_even_read(client, model, monkeypatch):
    monkeypatch.setattr(type(model), "request", lambda *args, **options: pytest.fail("a prompt was read"))
    with pytest.raises(openai.BadRequestError, match="16000 answers at once"):
        client.completions.create(**ask(["a"] * 1000, n=16))


@pytest.mark.parametrize("field", ["prompt", "stop"])
def test_of_many_wrong_items_the_first_is_told(field):
    with pytest.raises(ValidationError) as caught:
        CompletionBody.model_validate({"prompt": "a"} | {field: [None] * 1000})
    assert len(caught.value.errors()) <= 4  # one of each type that the field may have


def test_a_long_name_of_a_field_is_not_compared(monkeypatch):
    compared = []
    monkeypatch.setattr(state, "get_close_matches", lambda name, *rest: compared.append(len(name)) or [])
    with pytest.raises(ApiError):
        CompletionBody.model_validate({"prompt": "a", "x" * 10_000: 1})
    assert compared == [100]


def test_bytes_that_are_no_text_have_names(client):
    answer = client.completions.create(**ask("é", echo=True, logprobs=0, max_tokens=0))
    assert answer.choices[0].logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa9"]
    assert answer.choices[0].logprobs.text_offset == [0, 0]


@pytest.mark.parametrize("stream", [False, True])
def test_why_it_ends(client, stream):
    answer = client.completions.create(**ask("abc", stop="f", stream=stream, max_tokens=9))
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert ("".join(choice.text for choice in choices), choices[-1].finish_reason) == ("de", "stop")


def test_the_last_chunk_has_numbers(client):
    *_, last = client.completions.create(**ask("abc", stream=True, stream_options={"include_usage": True}))
    assert (last.choices, last.usage.total_tokens) == ([], 6)
    assert last.lapinfer["sharing"] == 1


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": [[97], "a"]}, "prompt"),
        ({"prompt": [999]}, None),
        ({"prompt": [-1]}, None),
        ({"prompt": "a" * 100}, None),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": 0}, None),
        ({"logprobs": 21}, None),
        ({"logprobs": -1}, None),
        ({"stop": ["x"] * 65}, "stop"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"stream": 1}, "stream"),
    ],
)
def test_what_is_wrong_is_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**ask("a") | options)
    assert caught.value.param == param


def test_tokens_and_texts(client):
    post = lambda path, **body: client.post(f"../{path}", body=body, cast_to=object)  # noqa: E731
    assert post("tokenize", content="héllo") == {"tokens": [*"héllo".encode()]}
    assert post("tokenize", content="é<|im_end|>", with_pieces=True)["tokens"] == [
        {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}, {"id": 257, "piece": "<|im_end|>"},
    ]  # fmt: skip
    assert post("detokenize", tokens=[*"héllo".encode()]) == {"content": "héllo", "prompt": "héllo"}
    about = {"count": 2, "max_model_len": 64}
    assert post("tokenize", prompt="hi", add_special_tokens=False) == {"tokens": [104, 105]} | about
    for path, body in (("tokenize", {"content": 5}), ("detokenize", {"tokens": [999]}), ("detokenize", {})):
        with pytest.raises(openai.BadRequestError):
            post(path, **body)


@pytest.mark.parametrize("texts", ["abc", ["abc", "é"], [97, 98], [[97], [98, 99]]])
def test_embeddings_are_those_of_the_library(client, model, texts):
    answer = client.embeddings.create(model="fake", input=texts)
    as_numbers = client.embeddings.create(model="fake", input=texts, encoding_format="float")
    alone = [texts] if isinstance(texts, str) or isinstance(texts[0], int) else texts
    vectors = model.embed(alone)
    for i, (entry, other) in enumerate(zip(answer.data, as_numbers.data, strict=True)):
        assert (entry.index, entry.object) == (i, "embedding")
        assert np.array_equal(np.float32(entry.embedding), vectors[i])
        assert np.array_equal(np.float32(other.embedding), vectors[i])
    assert answer.usage.prompt_tokens == sum(len(model.encode(text)) for text in alone)


def test_more_texts_than_may_wait(client, model):
    answer = client.embeddings.create(model="fake", input=["a"] * 400)
    assert [entry.index for entry in answer.data] == [*range(400)]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"dimensions": 3}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"input": []}, "input"),
        ({"input": {"text": "x"}}, "input"),
        ({"input": "a" * 65}, None),
        ({"extra_body": {"pooling": "max"}}, "pooling"),
    ],
)
def test_embeddings_that_are_refused(client, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": "fake", "input": "x", "encoding_format": "float"} | options)
    assert caught.value.param == param
