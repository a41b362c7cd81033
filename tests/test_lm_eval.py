"""lm-eval against a server that runs: its accuracies and log-likelihoods are the library's, to the bit."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_model import byte_tokenizer_folder
from test_determinism import build, decoder

pytest.importorskip("uvicorn")
from serving import NAME, running, state_of

from lapinfer.text.language_model import LanguageModel
from lapinfer.text.tokenizer import Tokenizer

BENCH = Path(__file__).parent.parent / "bench"


def model_of(folder: Path) -> LanguageModel:
    """One of real kernels and random weights, with a token for each byte."""
    return LanguageModel(build(spec=decoder(None), slots=4), Tokenizer.from_folder(byte_tokenizer_folder(folder)))


@pytest.mark.slow
def test_a_task_has_the_numbers_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.syspath_prepend(str(BENCH))
    task: Any = importlib.import_module("lm_eval_task")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "1")  # set back at the end
    model = model_of(tmp_path / "model")
    with running(state_of({NAME: lambda: model}, api_key=task.KEY)) as (url, _):
        result = task.evaluated(url, NAME, tmp_path)
    told = task.compared(model_of(tmp_path / "again"), result)
    assert (told["items"], told["log-likelihoods"], told["differ"]) == (20, 80, 0)
    assert told["lm-eval"] == pytest.approx(told["library"])
    assert "lm_eval" in sys.modules


def test_lm_evals_way_of_asking(tmp_path: Path) -> None:
    """Its request for token ids (echo, one token, log-probabilities), where the token that follows ends the answer."""
    httpx = pytest.importorskip("httpx")
    model = model_of(tmp_path)
    ids = [*b"The dog wagged its tail."]
    [follows] = model.generate(ids, max_tokens=1, temperature=0).tokens
    assert model.tokenizer is not None
    [scored] = model.score([ids], top=1)
    for ends in (False, True):
        if ends:
            model.tokenizer.eos_ids = frozenset({follows})
        served = model if not ends else LanguageModel(build(spec=decoder(None), slots=4), model.tokenizer)
        with running(state_of({NAME: lambda served=served: served})) as (url, _):
            body = {
                "model": NAME, "prompt": [ids, ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
                "echo": True,
            }  # fmt: skip
            key = {"Authorization": "Bearer secret-of-tests"}
            answer = httpx.post(f"{url}/v1/completions", json=body, headers=key, timeout=30).json()
        for choice in answer["choices"]:
            told = choice["logprobs"]
            assert told["token_logprobs"][:-1] == list(scored.logprobs)
            assert len(told["token_logprobs"]) == len(ids) + 1
            assert [max(top.values()) for top in told["top_logprobs"][1:-1]] == [top[0][1] for top in scored.top[1:]]
            assert choice["finish_reason"] == ("stop" if ends else "length")
