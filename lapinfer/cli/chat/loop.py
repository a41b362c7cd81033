"""The loop of a chat: read a message, answer it, keep both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lapinfer.cli.answers import Answer, Pen, PlainPen, answer_to, print_answer
from lapinfer.cli.chat import commands
from lapinfer.cli.chat.readers import is_screen, reader
from lapinfer.cli.chat.talk import Talk
from lapinfer.cli.console import note
from lapinfer.errors import LapinferError
from lapinfer.interrupts import KEYBOARD

if TYPE_CHECKING:
    from lapinfer.text.language_model import LanguageModel


def chat(
    model: LanguageModel, system: str | None, options: dict[str, Any], *, raw: bool, thinking: bool, verbose: bool
) -> None:
    """A conversation until /bye or Ctrl-D. Ctrl-C stops an answer, of which what was said stays, or clears the line.

    options: of `LanguageModel.stream_chat`; raw: each message is continued as it stands.
    """
    state = commands.Chat(model, Talk(system), options, has_template=not raw)
    lines = reader()
    note(f"This is {model.model.name}. Ctrl-C stops an answer; /bye or Ctrl-D ends the chat; /help lists commands.")
    while True:
        try:
            text = lines.read()
            if commands.is_command(text):
                commands.run(state, text)
            elif text.strip():
                _exchange(state, commands.unblocked(text), raw, thinking, verbose)
        except EOFError:
            return
        except KeyboardInterrupt:  # at the prompt: the line is given up
            note("")
        except LapinferError as error:  # the conversation is still there
            note(f"error: {error}")


def _exchange(state: commands.Chat, text: str, raw: bool, thinking: bool, verbose: bool) -> None:
    """A message and its answer; without an answer, the message is not kept."""
    model, talk, options = state.model, state.talk, state.options
    talk.messages.append({"role": "user", "content": text})
    answer = Answer(show_thinking=thinking, pen=_pen(raw))
    try:
        if not raw and (count := talk.shorten(model, options)):
            full = f"the context of {model.model.ctx:,} is full"
            note(f"note: {full}: the {count} oldest messages are left out; -c gives it more")
        with KEYBOARD.stops():
            events = answer_to(model, talk.told(), options, raw)
            print_answer(model, events, answer, options=options, verbose=verbose)
    except KeyboardInterrupt:
        pass
    except LapinferError:
        talk.messages.pop()
        raise
    # Templates leave thinking of earlier turns out, or keep it, as the model was trained.
    thought = {"reasoning_content": answer.thinking} if answer.thinking else {}
    talk.messages.append({"role": "assistant", "content": answer.text} | thought)


def _pen(raw: bool) -> Pen:
    """Markdown on a screen; text that is only continued, and what goes to a file, stays as it is."""
    if raw or not is_screen():
        return PlainPen()
    from lapinfer.cli.chat.markdown import MarkdownPen

    return MarkdownPen()
