"""lapinfer run: answer a prompt, or chat."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapinfer.cli.answers import Answer, answer_to, print_answer
from lapinfer.cli.console import note, note_replaced, print_json
from lapinfer.cli.models import DefaultedModel, default_model, open_model
from lapinfer.cli.options import Force, Json, Loading, Sampling, Verbose, with_groups
from lapinfer.cli.prompts import prompt_of
from lapinfer.cli.schemas import read_schema
from lapinfer.errors import InputError
from lapinfer.interrupts import KEYBOARD
from lapinfer.options import LoadOptions

if TYPE_CHECKING:
    from lapinfer.text.generation import Token
    from lapinfer.text.language_model import LanguageModel

_of_prompt = partial(typer.Option, rich_help_panel="Prompt")
_of_answer = partial(typer.Option, rich_help_panel="Answer")
_of_output = partial(typer.Option, rich_help_panel="Output")
LONG_PROMPT = 1 << 16
"""Characters from which it is worth a look whether a prompt can fit at all."""


@with_groups
def run(
    prompt: Annotated[
        str | None, typer.Argument(help="What to say, after what is piped in; -: that alone. None: a chat.")
    ] = None,
    *,
    model: DefaultedModel = None,
    max_tokens: Annotated[
        int | None,
        _of_answer("-n", "--max-tokens", min=1, help="Tokens of an answer at most.", show_default="until it ends"),
    ] = None,
    sampling: Sampling,
    stop: Annotated[list[str] | None, _of_answer("--stop", help="End before this text (repeatable).")] = None,
    system: Annotated[str | None, _of_prompt("-s", "--system", help="The system message.")] = None,
    raw: Annotated[bool, _of_prompt("--raw", help="Continue the prompt, without the chat template.")] = False,
    thinking: Annotated[
        bool,
        _of_output("--thinking", help="Show what the model thinks before its answer, too."),
    ] = False,
    template_kwargs: Annotated[
        str | None,
        _of_prompt(
            "--template-kwargs",
            help="What else the chat template knows: '{\"enable_thinking\": false}'.",
        ),
    ] = None,
    speculation: Annotated[
        bool,
        _of_answer(
            "--speculation/--no-speculation",
            help="Guess tokens, and check several at once: the same answer.",
        ),
    ] = True,
    schema: Annotated[
        Path | None,
        _of_answer("--schema", help="Answer in JSON that keeps to the JSON schema in this file."),
    ] = None,
    loading: Loading,
    experts_report: Annotated[
        Path | None,
        _of_output("--experts-report", help="Write which experts were used: .html, .json or .npz."),
    ] = None,
    force: Force = False,
    json: Json = False,
    no_stream: Annotated[bool, _of_output("--no-stream", help="Print the answer when it is complete.")] = False,
    verbose: Verbose = False,
) -> None:
    """Answer a prompt, or chat when there is none and stdin is a terminal.

    Sampling options that are not given are those that the model's makers recommend, else the defaults shown. A chat
    has a history and line editing where prompt_toolkit is installed: pip install "lapinfer[chat]".
    """
    for_template = {"--system": system, "--template-kwargs": template_kwargs}
    needing = next((option for option, value in for_template.items() if value is not None), None)
    if raw and needing is not None:
        raise typer.BadParameter(f"{needing} needs the chat template that --raw turns off")
    wanted = None if schema is None else read_schema(schema)
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
        options = {"max_tokens": max_tokens, "stop": stop or [], "speculate": speculation, "schema": wanted, **sampling}
        if not raw and loaded.template is not None:
            loaded.template.check()
            options["template_kwargs"] = variables
        if chatting:
            from lapinfer.cli.chat.loop import chat

            chat(loaded, system, options, raw=raw, thinking=thinking, verbose=verbose)
            return
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt or ""})
        with KEYBOARD.stops():
            events = answer_to(loaded, messages, options, raw)
            if json:
                print_json({"model": loaded.model.name} | _completion(events))
                return
            answer = Answer(show_thinking=thinking, streaming=not no_stream)
            print_answer(loaded, events, answer, options=options, verbose=verbose)


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

    from lapinfer.text.completion import completed

    return asdict(completed(events))
