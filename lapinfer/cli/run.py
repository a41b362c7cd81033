"""lapinfer run: answer a prompt, or chat."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapinfer.cli.answers import Answer
from lapinfer.cli.console import note, note_replaced, print_json
from lapinfer.cli.models import CHAT_MODEL, SMALL_MODEL, default_model, open_model
from lapinfer.cli.options import MODEL_NAMES, Force, Json, Loading, Sampling, Verbose, with_groups
from lapinfer.cli.prompts import prompt_of
from lapinfer.errors import InputError
from lapinfer.interrupts import KEYBOARD, check
from lapinfer.options import LoadOptions

if TYPE_CHECKING:
    from lapinfer.text.generation import Token
    from lapinfer.text.language_model import LanguageModel

LONG_PROMPT = 1 << 16
"""Characters from which it is worth a look whether a prompt can fit at all."""


@with_groups
def run(
    prompt: Annotated[
        str | None, typer.Argument(help="What to say, after what is piped in; -: that alone. None: a chat.")
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", help=MODEL_NAMES, show_default=f"{CHAT_MODEL} if it was pulled, else {SMALL_MODEL}"
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("-n", "--max-tokens", min=1, help="Longest answer.")] = None,
    sampling: Sampling,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text (repeatable).")] = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="The system message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt, without the chat template.")] = False,
    thinking: Annotated[
        bool, typer.Option("--thinking", help="Show what the model thinks before its answer, too.")
    ] = False,
    template_kwargs: Annotated[
        str | None,
        typer.Option("--template-kwargs", help="What else the chat template knows: '{\"enable_thinking\": false}'."),
    ] = None,
    speculation: Annotated[
        bool,
        typer.Option(
            "--speculation/--no-speculation", help="Guess tokens, and check several at once: the same answer."
        ),
    ] = True,
    loading: Loading,
    experts_report: Annotated[
        Path | None, typer.Option("--experts-report", help="Write which experts were used: .html, .json or .npz.")
    ] = None,
    force: Force = False,
    json: Json = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is complete.")] = False,
    verbose: Verbose = False,
) -> None:
    """Answer a prompt, or chat when there is none and stdin is a terminal.

    Sampling options that are not given are those that the model's makers recommend, else the defaults shown.
    """
    for_template = {"--system": system, "--template-kwargs": template_kwargs}
    needing = next((option for option, value in for_template.items() if value is not None), None)
    if raw and needing is not None:
        raise typer.BadParameter(f"{needing} needs the chat template that --raw turns off")
    variables = None if template_kwargs is None else _variables(template_kwargs)
    prompt = prompt_of(prompt)
    chatting = prompt is None
    if not (prompt or chatting or raw):
        raise InputError("the prompt is empty")
    if chatting and json:
        raise typer.BadParameter("--json needs a prompt")
    if experts_report is not None:
        from lapinfer.report.experts import check_path

        note_replaced(check_path(experts_report, force=force))
    name = default_model() if model is None else model
    if prompt is not None and len(prompt) > LONG_PROMPT:
        _check_prompt(name, loading, prompt)
    with (
        open_model(name, loading, verbose) as loaded,
        nullcontext() if experts_report is None else _experts_written(loaded, experts_report, force),
    ):
        if not raw and loaded.template is None:
            note("note: this model has no chat template; the prompt is continued as plain text")
            raw = True
        if raw and needing is not None:
            raise InputError(f"this model has no chat template, which {needing} needs")
        options = {"max_tokens": max_tokens, "stop": stop or [], "speculate": speculation, **sampling}
        if not raw and loaded.template is not None:
            loaded.template.check()
            options["template_kwargs"] = variables
        messages = [] if system is None else [{"role": "system", "content": system}]
        if chatting:
            _chat(loaded, messages, options, raw, thinking, verbose)
            return
        messages.append({"role": "user", "content": prompt or ""})
        with KEYBOARD.stops():
            events = _answer(loaded, messages, options, raw)
            if json:
                print_json({"model": loaded.model.name} | _completion(events))
                return
            answer = Answer(show_thinking=thinking, streaming=not no_stream)
            _print_answer(loaded, events, answer, limit=max_tokens, verbose=verbose)


def _variables(text: str) -> dict[str, Any]:
    """The JSON of --template-kwargs."""
    from json import loads

    try:
        value = loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"--template-kwargs: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise typer.BadParameter('--template-kwargs: expected a JSON object, {"name": value}')
    return value


def _check_prompt(name: str, options: LoadOptions, prompt: str) -> None:
    """Refuse a prompt that is too long before anything is paid for it."""
    from lapinfer.checkpoint.hub import is_local
    from lapinfer.loading import check_prompt

    if is_local(name):
        check_prompt(name, options, prompt)


@contextmanager
def _experts_written(model: "LanguageModel", path: Path, force: bool) -> Iterator[None]:
    """Records which experts tokens get, and writes that at the end, however the block ends."""
    from lapinfer.report.experts import write

    with model.watch_experts() as routing:
        try:
            yield
        finally:
            if routing.tokens:
                write(path, routing, model.model.name, force=force)
                note(f"wrote {path}")
            else:
                note(f"{path}: not written, no tokens were run")


def _completion(events: Iterator["Token"]) -> dict[str, Any]:
    from dataclasses import asdict

    from lapinfer.text.language_model import completed

    return asdict(completed(events))


def _answer(
    model: "LanguageModel", messages: list[dict[str, str]], options: dict[str, Any], raw: bool
) -> Iterator["Token"]:
    return model.stream(messages[-1]["content"], **options) if raw else model.stream_chat(messages, **options)


def _print_answer(
    model: "LanguageModel", events: Iterator["Token"], answer: Answer, *, limit: int | None, verbose: bool
) -> None:
    """Write the answer to stdout as it grows, then to stderr what should be known of it, and a line of figures.

    `answer` gets its pieces, so that the caller has those of an answer that Ctrl-C has stopped. limit: -n.
    """
    last, prompt_bytes, count = None, 0, 0
    try:
        for last in events:
            check()
            if not count:
                prompt_bytes = model.usage.totals()["bytes"]
                _note_room(model, last, limit)
            count += 1
            answer.add(last)
        answer.finish()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if last is not None:
        _note_end(model, last, answer, count, limit)
    if last is not None and (verbose or sys.stderr.isatty()):
        t, read = last.timings, last.timings.prompt_tokens - last.timings.reused_tokens
        touched = (model.usage.totals()["bytes"] - prompt_bytes) / max(count - 1, 1)
        note(
            f"prompt {read} tokens, {t.prompt_per_second:.1f} tok/s, first token {t.ttft_ms:.0f} ms; "
            f"answer {count} tokens, {t.tokens_per_second:.1f} tok/s; {touched / 1e6:.1f} MB touched per token"
        )
        if t.drafted_tokens:
            note(f"{t.steps} steps; {t.drafted_tokens} tokens were guessed, {t.kept_tokens} of them right")
        if (pool := getattr(model.model, "pool", None)) is not None:
            note(pool.line(last.timings.prompt_tokens + count))


def _room(model: "LanguageModel", token: "Token") -> int:
    """Tokens of an answer that the context has room for; nothing is read after the last."""
    return model.model.ctx - token.timings.prompt_tokens + 1


def _note_room(model: "LanguageModel", first: "Token", limit: int | None) -> None:
    """Say before the answer that it cannot be as long as -n lets it."""
    if limit is not None and limit > (room := _room(model, first)):
        note(f"note: the context of {model.model.ctx:,} has room for {room:,} tokens, not {limit:,}: -c gives it more")


def _note_end(model: "LanguageModel", last: "Token", answer: Answer, count: int, limit: int | None) -> None:
    """Say why there is no answer, or no more of it, where that cannot be seen."""
    full, makers = last.finish_reason == "length", model.recommended
    if answer.thinking and not answer.text:
        more = "give it more with -n" if full else "ask again"
        seen = "" if answer.show_thinking else ", or see it with --thinking"
        note(f"note: after {count} tokens of thinking there is no answer: {more}{seen}")
    elif full and limit is None and (makers.max_tokens == count or makers.max_length is not None):
        note(f"note: the answer ends after {count} tokens, as generation_config.json has it: -n gives it more")
    elif full and limit is None and count == _room(model, last):
        full_context = f"the context of {model.model.ctx:,} is full"
        note(f"note: the answer ends after {count} tokens, where {full_context}: -c gives it more")


def _chat(
    model: "LanguageModel",
    messages: list[dict[str, str]],
    options: dict[str, Any],
    raw: bool,
    thinking: bool,
    verbose: bool,
) -> None:
    """A conversation until /exit or Ctrl-D; Ctrl-C stops an answer, and at the prompt ends the chat."""
    with suppress(ImportError):  # line editing, where the platform has it
        import readline  # noqa: F401
    note("Ctrl-C stops an answer; /exit or Ctrl-D ends the chat.")
    while True:
        if not sys.stdout.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            with KEYBOARD.wakes():
                line = input("> " if sys.stdout.isatty() else "")
        except EOFError:
            note("")
            return
        if line.strip() == "/exit":
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        answer = Answer(show_thinking=thinking)
        try:
            with KEYBOARD.stops():
                events = _answer(model, messages, options, raw)
                _print_answer(model, events, answer, limit=options["max_tokens"], verbose=verbose)
        except KeyboardInterrupt:
            pass
        except InputError as error:  # the context is full, say: the conversation is still there
            note(f"error: {error}")
            messages.pop()
            continue
        # Templates leave thinking of earlier turns out, or keep it, as the model was trained.
        thought = {"reasoning_content": answer.thinking} if answer.thinking else {}
        messages.append({"role": "assistant", "content": answer.text} | thought)
