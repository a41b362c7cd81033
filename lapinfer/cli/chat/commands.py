"""What lines that begin with / do in a chat."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lapinfer.cli.chat.talk import Talk
from lapinfer.cli.console import note
from lapinfer.cli.options import FLAGS
from lapinfer.errors import InputError
from lapinfer.options import SamplingParams, declared

if TYPE_CHECKING:
    from lapinfer.text.language_model import LanguageModel

SETTINGS = tuple(declared(SamplingParams))
"""What /set knows."""
FLAGGED = {flag.lstrip("-").replace("-", "_"): name for name in SETTINGS for flag in FLAGS.get(name, ())}
"""Settings by the names of their options, where these differ."""
DEFAULT = "default"
"""The value by which /set goes back to what the model's makers recommend."""
BLOCK = '"""'
"""Begins and ends a message of several lines."""


@dataclass(slots=True)
class Chat:
    """What commands act on. options: how answers are made, the given sampling parameters among them."""

    model: LanguageModel
    talk: Talk
    options: dict[str, Any]
    has_template: bool = True


@dataclass(frozen=True, slots=True)
class Command:
    """arguments: in words, for /help; run(chat, rest of the line)."""

    arguments: str
    help: str
    run: Callable[[Chat, str], None]


def is_command(line: str) -> bool:
    """Whether a line is one: a text of several lines only where it begins with one that we know."""
    return line.startswith("/") and ("\n" not in line.strip() or line.split()[0] in COMMANDS)


def run(chat: Chat, line: str) -> None:
    """Do what a line says; InputError, in one line, where it says nothing that we know; EOFError ends the chat."""
    name, *rest = line.strip().split(None, 1)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else "/help lists all"
        raise InputError(f"no command {name[:40]}: {hint} (a space before it makes it a message)")
    COMMANDS[name].run(chat, rest[0] if rest else "")


def _help(chat: Chat, rest: str) -> None:
    rows = [(f"{name} {command.arguments}".rstrip(), command.help) for name, command in COMMANDS.items()]
    rows.append((f"{BLOCK} … {BLOCK}", "A message of several lines."))
    rows.append(("Ctrl-C, Ctrl-D", "Clear the line or stop the answer; end the chat."))
    width = max(len(left) for left, _ in rows)
    for left, right in rows:
        note(f"{left:{width}}  {right}")


def _system(chat: Chat, rest: str) -> None:
    if not chat.has_template:
        raise InputError("a system message needs a chat template, which is not used here")
    text = unblocked(rest.strip())
    if text:
        chat.talk.system = text
    note("no system message" if chat.talk.system is None else f"system message: {chat.talk.system}")


def _set(chat: Chat, rest: str) -> None:
    name, value = [*rest.replace("=", " ", 1).split(None, 1), "", ""][:2]
    name = name.removeprefix("--").replace("-", "_")
    name = FLAGGED.get(name, name)
    if name and name not in SETTINGS:
        close = difflib.get_close_matches(name, SETTINGS, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(SETTINGS)}"
        raise InputError(f"no setting {name[:40]}: {hint}")
    if value.strip() == DEFAULT:
        chat.options.pop(name, None)
    elif value:
        number = _number(value.strip())
        declared(SamplingParams)[name][1].check(name, number)
        chat.options[name] = number
    given = {each: chat.options[each] for each in SETTINGS if each in chat.options}
    now = replace(chat.model.defaults, **given)
    shown = [(each, getattr(now, each), declared(SamplingParams)[each][1]) for each in ([name] if name else SETTINGS)]
    values = [str(option.unset) if current is None else f"{current:g}" for _, current, option in shown]
    wide, wider = max(len(each) for each, _, _ in shown), max(map(len, values))
    for (each, _, option), now_is in zip(shown, values, strict=True):
        note(f"{each:{wide}}  {now_is}" if value else f"{each:{wide}}  {now_is:{wider}}  {option.help}")


def _number(text: str) -> int | float | str:
    """What a value means; text that is no number is left for the option's own check to refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text[:80]


def _clear(chat: Chat, rest: str) -> None:
    chat.talk.clear()
    note("the conversation begins anew" + ("" if chat.talk.system is None else "; the system message stays"))


def _save(chat: Chat, rest: str) -> None:
    from lapinfer.cli.chat.saved import save

    path = save(_file("/save", rest), chat.talk)
    note(f"saved {len(chat.talk.whole())} messages to {path}")


def _load(chat: Chat, rest: str) -> None:
    from lapinfer.cli.chat.saved import load

    talk = load(_file("/load", rest))
    if talk.system is not None and not chat.has_template:
        raise InputError("this chat has a system message, which needs a chat template that is not used here")
    instead = ", instead of what was said here" if chat.talk.messages else ""
    chat.talk = talk
    note(f"loaded {len(talk.whole())} messages{instead}")


def _file(command: str, rest: str) -> str:
    if not rest.strip():
        raise InputError(f"{command}: expected the name of a file")
    return rest.strip()


def _bye(chat: Chat, rest: str) -> None:
    raise EOFError


COMMANDS = {
    "/help": Command("", "This list.", _help),
    "/?": Command("", "The same.", _help),
    "/system": Command("[TEXT]", "Show the system message, or set it.", _system),
    "/set": Command("[NAME VALUE]", f"Show or set sampling; {DEFAULT}: as the model has it.", _set),
    "/clear": Command("", "Forget what was said.", _clear),
    "/save": Command("FILE", "Write the conversation to a file, as JSON.", _save),
    "/load": Command("FILE", "Go on from a saved conversation.", _load),
    "/bye": Command("", "End the chat.", _bye),
    "/exit": Command("", "The same.", _bye),
    "/quit": Command("", "The same.", _bye),
}


def is_open(text: str) -> bool:
    """Whether a block was begun and not ended."""
    begun = text.lstrip()
    if begun.startswith("/system"):
        begun = begun.removeprefix("/system").lstrip()
    return begun.startswith(BLOCK) and not (begun.rstrip().endswith(BLOCK) and len(begun.rstrip()) >= 2 * len(BLOCK))


def unblocked(text: str) -> str:
    """A message without the marks of a block around it."""
    inner = text.strip()
    if not inner.startswith(BLOCK) or is_open(inner):
        return text
    return inner[len(BLOCK) : -len(BLOCK)].strip("\n")
