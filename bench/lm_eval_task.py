"""A multiple-choice task of our own for lm-eval, and the same numbers from the library.

    python bench/lm_eval_task.py MODEL [-o OUT.json]

lm-eval's `local-completions` asks a server that this starts on a port of its own, by /v1/completions with echo and
log-probabilities, and by /tokenize. `LanguageModel.score` is asked for the same texts. Accuracies and all
log-likelihoods are compared: they are equal to the bit, or this says how many are not.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import argument_parser, print_result, write_result

from lapinfer.options import LoadOptions, ServeOptions
from lapinfer.text.language_model import LanguageModel, load

ITEMS = json.loads((Path(__file__).parent / "lm_eval_items.json").read_text())
"""Questions, choices and the place of the right one."""
KEY = "key-of-this-run"


def task(folder: Path) -> dict[str, Any]:
    """The task as lm-eval's configurations have it; its data go to a file in `folder`."""
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return {
        "task": "lapinfer_tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def evaluated(url: str, name: str, folder: Path, *, concurrent: int = 2) -> dict[str, Any]:
    """lm-eval's results and samples. It reads no hub: all there is are the server and `folder`."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "OPENAI_API_KEY": KEY}
    lm_eval: Any = import_module("lm_eval")  # not installed where types are checked
    tasks: Any = import_module("lm_eval.tasks")

    arguments = {
        "model": name, "base_url": f"{url}/v1/completions", "tokenizer_backend": "remote", "auth_token": KEY,
        "num_concurrent": concurrent, "max_retries": 1, "max_length": 512,
    }  # fmt: skip
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=[task(folder)],
        log_samples=True,
        bootstrap_iters=0,
        task_manager=tasks.TaskManager(include_defaults=False),  # an index of its own tasks would take half a minute
    )


def scored(model: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """For each (context, continuation): its log-likelihood, and whether each of its tokens is the likeliest."""
    contexts = [len(model.encode(context, special=False)) for context, _ in pairs]
    ids = [model.encode(context + continuation, special=False) for context, continuation in pairs]
    answers = []
    for begin, each in zip(contexts, model.score(ids, top=1), strict=True):
        logprobs = [logprob for logprob in each.logprobs[begin:] if logprob is not None]
        likeliest = [top[0][1] for top in each.top[begin:]]
        answers.append((sum(logprobs), logprobs == likeliest))
    return answers


def compared(model: LanguageModel, result: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of both, and how many of all log-likelihoods differ."""
    [samples] = result["samples"].values()
    [accuracy] = [{name.split(",")[0]: value for name, value in each.items()} for each in result["results"].values()]
    differ, right, right_by_length, count = 0, 0, 0, 0
    for sample in samples:
        told = [(float(score), bool(greedy)) for score, greedy in sample["filtered_resps"]]
        own = scored(model, [(context, continuation) for context, continuation in sample["arguments"]])
        differ += sum(a != b for a, b in zip(told, own, strict=True))
        count += len(own)
        answer, choices = sample["doc"]["answer"], sample["doc"]["choices"]
        scores = [score for score, _ in own]
        right += scores.index(max(scores)) == answer
        by_length = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        right_by_length += by_length.index(max(by_length)) == answer
    return {
        "items": len(samples), "log-likelihoods": count, "differ": differ,
        "lm-eval": {"acc": accuracy["acc"], "acc_norm": accuracy["acc_norm"]},
        "library": {"acc": right / len(samples), "acc_norm": right_by_length / len(samples)},
    }  # fmt: skip


@contextmanager
def serving(path: str, model: LanguageModel) -> Iterator[str]:
    """The address of a server that has this model under the name of its path."""
    from lapinfer.serve.app import application
    from lapinfer.serve.models import Models
    from lapinfer.serve.server import address_of, listening, server_of
    from lapinfer.serve.state import State

    options = ServeOptions(port=0, api_key=KEY)
    models = Models(
        {path: path}, LoadOptions(), open=lambda path, given: model, size=lambda path, given: 1, memory=None,
        queue=options.queue,
    )  # fmt: skip
    state = State(options, models)
    listener, server = listening("127.0.0.1", 0), server_of(state, application(state))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield address_of(listener)
    finally:
        server.drain()
        thread.join(30)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("model")
    options = parser.parse_args()
    name = Path(options.model).name
    with load(options.model, threads=options.threads, slots=4) as model, TemporaryDirectory() as folder:
        with serving(name, model) as url:
            result = evaluated(url, name, Path(folder))
        with load(options.model, threads=options.threads, slots=4) as again:  # the server has closed its own
            told = {"model": name} | compared(again, result)
    print_result(told)
    write_result(told, options.output)


if __name__ == "__main__":
    main()
