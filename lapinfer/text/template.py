"""Chat templates: messages to the text a model was trained on, as transformers' `apply_chat_template` renders them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lapinfer.errors import CheckpointError, InputError, TemplateError
from lapinfer.text.messages import REASONING, Messages, conversation, document_list, plain, tool_schemas
from lapinfer.text.template_files import DEFAULT, TOOL_USE, Source, template_sources

if TYPE_CHECKING:
    import jinja2

LONGEST_SOURCE = 100_000
"""Characters; the longest published templates have a fifth of it. Compiling takes up to 2 KB for each."""
TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands at the end of a message that is to be continued, to be found in the text."""
INSTEAD = "mend it, or do without: --raw, or generate(), takes plain text"


class ChatTemplate:
    """A checkpoint's chat template, or several with names; rendering is safe from threads.

    `where` names its file in error messages. A template is compiled when it is first used: a broken one keeps nothing
    else from working.
    """

    def __init__(
        self,
        source: str,
        where: str = "chat template",
        bos_token: str = "",
        eos_token: str = "",
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        """tokens: texts of all special tokens by their names, as in `Tokenizer.special_tokens`."""
        if not isinstance(source, str):
            raise InputError(f"source: expected the chat template as text, got {type(source).__name__}")
        named = {"bos_token": bos_token, "eos_token": eos_token}
        self._set({DEFAULT: Source(source, where)}, {k: v for k, v in named.items() if v} | dict(tokens or {}))

    def _set(self, sources: Mapping[str, Source], tokens: Mapping[str, str]) -> None:
        self._tokens = tokens
        self._templates = {name: _Template(source) for name, source in sources.items()}

    @classmethod
    def from_folder(cls, folder: str | Path, tokens: Mapping[str, str] | None = None) -> ChatTemplate | None:
        """The templates of a checkpoint's folder; None when it has none. What is wrong with one is told by `render`."""
        sources = template_sources(Path(folder))
        if not sources:
            return None
        template = cls.__new__(cls)
        template._set(sources, dict(tokens or {}))
        return template

    @property
    def names(self) -> tuple[str, ...]:
        """'default', and the names of others that there are."""
        return tuple(self._templates)

    @property
    def where(self) -> str:
        """The file of the template."""
        return (self._templates.get(DEFAULT) or next(iter(self._templates.values()))).where

    _where = where

    def check(self) -> None:
        """CheckpointError when chat is not possible: the template is none."""
        self._chosen(None, None).compiled()

    def problem(self) -> str | None:
        """What `check` raises; None where the template can be used."""
        try:
            self.check()
        except CheckpointError as error:
            return str(error)
        return None

    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool | None = None,
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, ending where the assistant's answer begins.

        add_generation_prompt: whether that beginning is written; by default, unless the last message is continued.
        tools: JSON schemas, or functions with annotations and docstrings. documents: what an answer may draw on.
        continue_final_message: leave the last message open (or the field of it that is named), to go on in it.
        template: the name of one of several. variables: what else the template knows (enable_thinking=False, say).

        CheckpointError: the template is wrong or does too much work. InputError: it refuses these messages, or an
        argument is none that it can take.
        """
        if add_generation_prompt and continue_final_message:
            raise InputError("add_generation_prompt: the last message is continued, so no answer begins; leave out one")
        prompt = not continue_final_message if add_generation_prompt is None else bool(add_generation_prompt)
        chat = conversation(messages)
        values = {"tools": tool_schemas(tools), "documents": document_list(documents)}
        values = {**self._tokens, **plain("variables", variables), **values, "add_generation_prompt": prompt}
        chosen = self._chosen(template, tools)
        if not continue_final_message:
            return chosen.render({**values, "messages": chat})
        field = "content" if continue_final_message is True else continue_final_message
        ending = _leave_open(chat[-1], field)
        return _cut(chosen.render({**values, "messages": chat}), ending)

    def source(self, tools: Sequence[Any] | None = None, template: str | None = None) -> str:
        """The text of the template that `render` takes for these."""
        return self._chosen(template, tools).source.text

    def _chosen(self, name: str | None, tools: Any) -> _Template:
        if name is None:
            name = TOOL_USE if tools is not None and TOOL_USE in self._templates else DEFAULT
            if name not in self._templates:
                raise CheckpointError(
                    f"{self.where}: has chat templates for {', '.join(self.names)}, none called {DEFAULT}: name one"
                )
        if name not in self._templates:
            raise InputError(f"template: expected one of {', '.join(self.names)}, got {name!r}")
        return self._templates[name]


class _Template:
    """One template, compiled when it is first needed."""

    def __init__(self, source: Source) -> None:
        self.where, self.source = source.where, source
        self._lock = threading.Lock()
        self._compiled: jinja2.Template | None = None

    def compiled(self) -> jinja2.Template:
        """CheckpointError when it is no template."""
        if (problem := self.source.problem) is not None:
            raise CheckpointError(f"{self.where}: {problem}; {INSTEAD}")
        if len(self.source.text) > LONGEST_SOURCE:
            length = f"{len(self.source.text):,} characters"
            raise CheckpointError(f"{self.where}: {length} are no chat template; {INSTEAD}")
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
            return self._compiled

    def _compile(self) -> jinja2.Template:
        import jinja2

        from lapinfer.text.sandbox import BoundedEnvironment, shortened

        try:
            with warnings.catch_warnings():  # Python's compiler warns of 1[0], which fails when it is reached
                warnings.simplefilter("ignore", SyntaxWarning)
                return BoundedEnvironment().from_string(self.source.text)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"{self.where}:{error.lineno}: the chat template is broken: {shortened(error.message)}; {INSTEAD}"
            ) from error
        except Exception as error:  # RecursionError, MemoryError, whatever Python's compiler raises
            reason = shortened(error) or type(error).__name__
            raise CheckpointError(f"{self.where}: the chat template is broken: {reason}; {INSTEAD}") from error

    def render(self, values: Mapping[str, Any]) -> str:
        from lapinfer.text.budget import Budget
        from lapinfer.text.sandbox import RefusalError, shortened

        template = self.compiled()
        with self._lock:
            budget = template.environment.budget = Budget()  # pyright: ignore[reportAttributeAccessIssue]
            try:
                budget.allow(values)
                return template.render(values)
            except RefusalError as error:
                raise InputError(f"the chat template refuses these messages: {error}") from error
            except Exception as error:  # a template can raise anything: TypeError, RecursionError, MemoryError, …
                reason = shortened(error) or type(error).__name__
                raise TemplateError(f"{self.where}{_line(error)}: the chat template failed: {reason}") from error


def _line(error: BaseException) -> str:
    """':' and the line of the template where an error came up, if it can be told."""
    line, frame = 0, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return f":{line}" if line else ""


def _leave_open(message: dict[str, Any], field: str) -> str:
    """Put the tag at the end of a field of the last message; returns the text that was there."""
    where = "continue_final_message"
    value = message.get(field)
    if not value:
        raise InputError(f"{where}: the last message has no {field!r} to go on in")
    if isinstance(value, str):
        names = [name for name in REASONING if message.get(name) == value] if field in REASONING else [field]
        for name in names:
            message[name] = value + TAG
        return value
    for part in reversed(value):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text = part["text"]
            part["text"] = text + TAG
            return text
    raise InputError(f"{where}: the last message has no text to go on in")


def _cut(text: str, ending: str) -> str:
    """The text up to the tag; without the spaces before it where the template has stripped those after it."""
    at = text.rfind(TAG.strip())
    if at < 0 or ending.strip() not in text:
        raise InputError("continue_final_message: this chat template does not write the last message as it is")
    return text[:at] if text[at : at + len(TAG)] == TAG else text[:at].rstrip()
