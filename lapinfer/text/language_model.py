"""LanguageModel: a model with its tokenizer and chat template, from text to text."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from lapinfer.arguments import check_options, described, flag, texts, whole, whole_numbers
from lapinfer.errors import InputError, UnsupportedError
from lapinfer.options import LoadKeywords, LoadOptions, SamplingParams, declared
from lapinfer.text.batch import stream_batch
from lapinfer.text.channels import CHANNEL, MESSAGE, Splitter
from lapinfer.text.completion import Completion, completed, gathered
from lapinfer.text.decoding import Conversation
from lapinfer.text.draft_model import DraftModel, check_draft
from lapinfer.text.embedding import EmbeddingRequest, Pooling, embedding_request, stacked
from lapinfer.text.generation import Request, Token, checked_ids
from lapinfer.text.generation import request as made_request
from lapinfer.text.generation_config import Generation, read_generation
from lapinfer.text.grammar import Grammars, grammar_of
from lapinfer.text.keywords import (
    BatchKeywords,
    ChatBatchKeywords,
    ChatKeywords,
    GenerationKeywords,
    TemplateKeywords,
)
from lapinfer.text.messages import Messages, tool_schemas
from lapinfer.text.prefixes import open_prefixes
from lapinfer.text.reuse import Reuse
from lapinfer.text.scoring import Scored, scored
from lapinfer.text.speculation import Speculation
from lapinfer.text.template import ChatTemplate
from lapinfer.text.tokenizer import Tokenizer, why_none
from lapinfer.text.tool_formats import call_format
from lapinfer.text.tool_splitter import splitter

if TYPE_CHECKING:
    from lapinfer.model import Model
    from lapinfer.progress import Progress
    from lapinfer.runtime.routing import Routing
    from lapinfer.spec import ModelSpec


FOR_TEMPLATES = tuple(name for name in TemplateKeywords.__annotations__ if name != "template_kwargs")


class LanguageModel:
    """Generates text. Safe from several threads; give each its own slot when they run at once.

    `tokenizer` and `template` are None when the checkpoint has none: then prompts must be token ids.
    `recommended` is what the model's makers recommend (generation_config.json): its sampling parameters, longest
    answer and stop strings are used where a call names none.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
        recommended: Generation | None = None,
    ) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.recommended = recommended or Generation()
        self.prefixes = Reuse(model)
        self.conversations: Sequence[Conversation] = self.prefixes.conversations
        self.speculation, self._draft = Speculation(model), None
        self._grammars: Grammars | None = None
        self._making_grammars = threading.Lock()

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def defaults(self) -> SamplingParams:
        """The sampling parameters used where a call names none."""
        return self.recommended.params

    @property
    def usage(self) -> Any:
        """The meter: bytes touched, time and calls of everything that ran."""
        return self.model.usage

    def use_draft(self, draft: LanguageModel) -> None:
        """Let a smaller model with the same tokens guess what comes next; it is closed with this one.

        InputError for one with other tokens or fewer slots, UnsupportedError for one with layers other than attention.
        """
        check_draft(self.model, self.tokenizer, draft.model, draft.tokenizer)
        self._draft, self.speculation = draft, Speculation(self.model, DraftModel(draft.model))

    @contextmanager
    def watch_experts(self) -> Iterator[Routing]:
        """Record which experts the tokens get that are run within the block, in any slot and by any thread.

            with model.watch_experts() as routing:
                model.generate("…")
            routing.summary()  # entropy, load, reuse … of each layer; routing.arrays() are the counts
            lapinfer.report.experts.write(Path("experts.html"), routing, "a name")

        InputError for a model without routed layers. Within another block, only the inner one records.
        """
        from lapinfer.runtime.routing import Routing

        routing = Routing(self.spec)
        with self.model.lock:
            outer, self.model.routing = self.model.routing, routing
        try:
            yield routing
        finally:
            with self.model.lock:
                self.model.routing = outer

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V] after every token of a fresh sequence."""
        with self.model.lock:
            self.forget()
            return self.model.forward(checked_ids(ids, self.spec.vocab))

    def forget(self) -> None:
        """Reuse nothing of the KV cache: needed after `model` was stepped directly."""
        with self.model.lock:
            for conversation in self.conversations:
                conversation.ids, conversation.writer = [], None

    def encode(self, prompt: str | Sequence[int], special: bool = True) -> list[int]:
        """Token ids of a prompt; ids pass as they are."""
        if not isinstance(prompt, str):
            if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], str):
                got = f"got {described(prompt[0])}; several texts at once: generate_batch"
                raise InputError(f"prompt[0]: expected a whole number, {got}")
            return whole_numbers("prompt", prompt)
        if self.tokenizer is None:
            raise InputError(f"this checkpoint {why_none(getattr(self.model, 'texts', None))}")
        return self.tokenizer.encode(prompt, special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens have none."""
        if self.tokenizer is None:
            raise InputError(f"this checkpoint {why_none(getattr(self.model, 'texts', None))}")
        return self.tokenizer.decode(ids)

    def _asked(self, prompt: str | Sequence[int], special: bool = True) -> list[int]:
        """Token ids of a prompt; what no context of this size holds is refused before it is made into tokens."""
        if isinstance(prompt, str) and self.tokenizer is not None:
            self.tokenizer.check_length(prompt, self.model.ctx)
        return self.encode(prompt, special)

    def stream(self, prompt: str | Sequence[int], **options: Unpack[GenerationKeywords]) -> Iterator[Token]:
        """A `Token` for each generated token, continuing the prompt as it stands (no chat template)."""
        check_options(options, GenerationKeywords.__annotations__, "generation")
        return self._stream(self._asked(prompt), **options)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerationKeywords]) -> Completion:
        """The whole continuation of a prompt."""
        return completed(self.stream(prompt, **options))

    def stream_batch(
        self, prompts: Sequence[str | Sequence[int]], **options: Unpack[BatchKeywords]
    ) -> Iterator[tuple[int, Token]]:
        """(index of the prompt, `Token`) for each token of several continuations, which share the model's steps.

        As many run at once as the model has slots (`load(…, slots=8)`), the others wait. Each gets the tokens that it
        would get alone, whatever the others are; a `seed` is that of each.
        """
        check_options(options, BatchKeywords.__annotations__, "batch")
        requests = [self._request(self._asked(prompt), **options) for prompt in _several("prompts", prompts)]
        return stream_batch(self.model, requests, self.conversations, self.speculation)

    def generate_batch(
        self, prompts: Sequence[str | Sequence[int]], **options: Unpack[BatchKeywords]
    ) -> list[Completion]:
        """The whole continuations of several prompts, in their order; see `stream_batch`."""
        return gathered(self.stream_batch(prompts, **options), len(prompts))

    def score(self, texts: Sequence[str | Sequence[int]], *, top: int = 0) -> list[Scored]:
        """How likely the tokens of texts, or lists of token ids, are: each after those before it, in its text.

        top: how many of the most likely tokens are told in each place, 0 to 20. Texts share steps, as many at once as
        the model has slots; the numbers are those of `forward`, whatever the company. One text beside others that are
        being served: `request(text, prompt_logprobs=top, max_tokens=1)`, whose first event has them as `prompt`.
        """
        if isinstance(top, bool):
            raise InputError(f"top: expected a whole number, got {described(top)}")
        answers = self.generate_batch(texts, prompt_logprobs=top, max_tokens=1, temperature=0)
        return [scored(answer.prompt) for answer in answers]

    def embed(
        self, texts: Sequence[str | Sequence[int]], *, pooling: Pooling = "mean", normalize: bool = True
    ) -> np.ndarray:
        """A vector for each of several texts, or lists of token ids: float32 [N, D].

        pooling: "mean" of the hidden states after the last norm at all positions, or those of the "last" one; what a
        model was trained for, its card says. normalize: to a length of 1. Texts share steps, as many at once as the
        model has slots; the vectors have the same bits in any company. InputError for a text that does not fit the
        context.
        """
        asked = [
            self.embedding_request(text, pooling=pooling, normalize=normalize) for text in _several("texts", texts)
        ]
        found = dict(stream_batch(self.model, asked, self.conversations))
        return stacked([found[index] for index in range(len(asked))], self.spec.hidden)

    def embedding_request(
        self, text: str | Sequence[int], *, pooling: Pooling = "mean", normalize: bool = True
    ) -> EmbeddingRequest:
        """What `embed` would do with one text, checked, for a `Scheduler`, whose ticket then has one `Embedding`."""
        ids = self._asked(text)
        if not ids and self.tokenizer is not None and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        return embedding_request(self.model, checked_ids(ids, self.spec.vocab), pooling, normalize)

    def request(self, prompt: str | Sequence[int], **options: Unpack[BatchKeywords]) -> Request:
        """What `generate` would do, checked, for a `Scheduler`; each runs once."""
        check_options(options, BatchKeywords.__annotations__, "request")
        return self._request(self._asked(prompt), **options)

    def chat_request(self, messages: Messages, **options: Unpack[ChatBatchKeywords]) -> Request:
        """What `chat` would do, checked, for a `Scheduler`."""
        check_options(options, ChatBatchKeywords.__annotations__, "request")
        ids, given = self._chat(messages, options)
        return self._request(ids, **given)

    def stream_chat(self, messages: Messages, **options: Unpack[ChatKeywords]) -> Iterator[Token]:
        """A `Token` for each token of the assistant's answer to a conversation; see `chat`."""
        check_options(options, ChatKeywords.__annotations__, "chat")
        ids, given = self._chat(messages, options)
        return self._stream(ids, **given)

    def chat(self, messages: Messages, **options: Unpack[ChatKeywords]) -> Completion:
        """The assistant's whole answer to {'role': 'user', 'content': '…'} and so on, or to the text of a user.

        tools, documents, continue_final_message: as in `ChatTemplate.render`; what of the answer calls tools, becomes
        `tool_calls`. template_kwargs: what else the template knows, {"enable_thinking": False}, say.
        """
        return completed(self.stream_chat(messages, **options))

    def chat_batch(self, chats: Sequence[Messages], **options: Unpack[ChatBatchKeywords]) -> list[Completion]:
        """The whole answers to several conversations, in their order; see `chat` and `stream_batch`."""
        check_options(options, ChatBatchKeywords.__annotations__, "batch")
        if isinstance(chats, str) or not isinstance(chats, Sequence):
            raise InputError(f"chats: expected a list of conversations, got {described(chats)}")
        requests = [self.chat_request(messages, **options) for messages in chats]
        return gathered(stream_batch(self.model, requests, self.conversations, self.speculation), len(requests))

    def _chat(self, messages: Messages, options: Mapping[str, Any]) -> tuple[list[int], dict[str, Any]]:
        """The token ids of a conversation, and what else is asked for it."""
        if self.template is None:
            raise UnsupportedError("this checkpoint has no chat template: use generate() or stream() with plain text")
        given = dict(options)
        variables = _variables(given.pop("template_kwargs", None))
        variables |= {name: given.pop(name) for name in FOR_TEMPLATES if name in given}
        prompt = self.template.render(messages, **variables)
        harmony = self.tokenizer is not None and len(self.tokenizer.special_among((CHANNEL, MESSAGE))) == 2
        tools = tool_schemas(variables.get("tools"))
        format = call_format(self.template.source(tools, variables.get("template"))) if tools else None
        return self._asked(prompt, special=False), given | {"thinks": splitter(prompt, harmony, format, tools)}

    def _stream(self, ids: list[int], slot: int = 0, speculate: bool = True, **asked: Any) -> Iterator[Token]:
        request = self._request(ids, **asked)
        speculation = self.speculation if flag("speculate", speculate) else None
        slot = whole("slot", slot, 0, len(self.conversations) - 1)
        return request.begin(slot, self.conversations[slot], speculation).events()

    def _request(
        self,
        ids: list[int],
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        logprobs: bool | int = False,
        params: SamplingParams | None = None,
        thinks: Splitter | None = None,
        schema: Mapping[str, Any] | str | bool | None = None,
        regex: str | None = None,
        lark: str | None = None,
        prompt_logprobs: bool | int = False,
        **sampling: Any,
    ) -> Request:
        if not isinstance(params, SamplingParams | None):
            raise InputError(f"params: expected SamplingParams, got {described(params)}")
        makers = self.recommended
        params = replace(params or makers.params, **sampling)
        if max_tokens is None:
            max_tokens = makers.max_tokens
            if max_tokens is None and makers.max_length is not None:
                max_tokens = max(makers.max_length - len(ids), 1)
        stop = [*texts("stop", stop), *(makers.stop if self.tokenizer is not None else ())]
        grammar = grammar_of(schema=schema, regex=regex, lark=lark)
        return made_request(
            self.model, self.tokenizer, ids, params, max_tokens, stop, makers.bans, thinks, logprobs,
            None if grammar is None else (self._known_grammars(), grammar), prompt_logprobs,
        )  # fmt: skip

    def _known_grammars(self) -> Grammars:
        """Grammars over this model's tokens: its trie is made once."""
        if self.tokenizer is None:
            raise InputError(f"schema, regex and lark need a tokenizer: this checkpoint {why_none(self.model.texts)}")
        with self._making_grammars:  # not the model's lock: others go on generating
            if self._grammars is None:
                self._grammars = Grammars(self.tokenizer, self.spec.vocab)
            return self._grammars

    def close(self) -> None:
        """Stop the threads and unmap the weights; nothing can be generated any more."""
        self.prefixes.close()
        self.model.close()
        if self._draft is not None:
            self._draft.close()

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _several(name: str, given: Any) -> Sequence[Any]:
    """A list of prompts, or of texts."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputError(f"{name}: expected a list of {name}, got {described(given)}")
    return given


def _variables(given: Any) -> dict[str, Any]:
    """What a template is given by names that it knows."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise InputError(
            f"template_kwargs: expected names and values, {{'enable_thinking': False}}, got {described(given)}"
        )
    if "messages" in given:
        raise InputError("template_kwargs: the messages are given already")
    return dict(given)


def load(
    path_or_name: str | Path, *, progress: Progress | None = None, **options: Unpack[LoadKeywords]
) -> LanguageModel:
    """Load a checkpoint folder, a .gguf file or a hub name (org/name), packing its weights the first time.

    The options are those of `LoadOptions`, all with defaults: quant, the format of the weights; threads; ctx, the
    positions that a slot holds; slots, the sequences that are kept at once; kv, the format of the KV cache;
    activations, what quantized weights are multiplied with; experts, how many a token gets; memory, the GB that the
    process may take, for a mixture of experts that is larger (`model.pool.stats()` counts); policy, which experts it
    keeps; draft, a smaller model with the same tokens, which guesses them; prefix_cache, the GB of beginnings of texts
    that are kept, in memory and on disk (`model.prefixes.stats()` counts); expert_nodes, processes on a cluster of Ray
    that have the experts (`model.model.exchange.traffic.stats()` counts). progress(phase, done, total) is told of
    long work, progress(line) of what should be noticed (lapinfer/progress.py). Errors are `LapinferError`s.
    """
    check_options(options, declared(LoadOptions), "load")
    if progress is not None and not callable(progress):
        raise InputError(f"progress: expected a function, got {described(progress)}")
    return open_model(path_or_name, LoadOptions(**options), progress)


def open_model(path_or_name: str | Path, options: LoadOptions, progress: Progress | None = None) -> LanguageModel:
    """What `load` does, for callers that have LoadOptions."""
    from lapinfer.loading import load_model

    with ExitStack() as undo:
        model = load_model(path_or_name, options, progress=progress)
        undo.callback(model.close)
        loaded = from_model(model)
        if options.draft is not None:
            alike = LoadOptions(threads=options.threads, ctx=model.ctx, slots=model.slots, kv=options.kv)
            draft = load_model(options.draft, alike, progress=progress, beside=model)
            undo.callback(draft.close)
            loaded.use_draft(from_model(draft))
        if options.prefix_cache is not None:
            notice = progress or (lambda line: None)
            loaded.prefixes.store = open_prefixes(model, options.prefix_cache, notice)
        if progress is not None:
            for note in loaded.recommended.notes:
                progress(note)
        undo.pop_all()
        return loaded


def from_model(model: Model) -> LanguageModel:
    """A loaded model with the tokenizer, chat template and sampling defaults that its checkpoint has now."""
    folder = model.texts
    tokenizer = None if folder is None else Tokenizer.from_folder(folder)
    if folder is None or tokenizer is None:
        return LanguageModel(model)
    template = ChatTemplate.from_folder(folder, tokenizer.special_tokens)
    return LanguageModel(model, tokenizer, template, read_generation(folder, model.spec.vocab))
