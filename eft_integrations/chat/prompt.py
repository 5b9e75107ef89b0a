"""How a request becomes a prompt, a grammar and options of the engine, and how its answer is to be read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, TypeVar
from weakref import WeakKeyDictionary

from eft_engine import ChatTemplate, JsonSchema, Lark, PromptOptions, SamplingParams, neutralise
from eft_engine.config import RewardWeights
from eft_integrations.chat.conversation import THOUGHT, arranged, as_mapping, with_documents
from eft_integrations.chat.grammar import call_grammar
from eft_integrations.chat.messages import Message, Tool, ToolCall
from eft_integrations.chat.notations import notation_of
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.reading import Reading
from eft_integrations.chat.request import ChatRequest
from eft_integrations.chat.schema import close_schema
from eft_integrations.chat.template import NO_TEMPLATE, traits_of
from eft_integrations.json_types import JsonObject

if TYPE_CHECKING:
    from eft_engine import Engine

Value = TypeVar("Value")


@dataclass(frozen=True)
class ControlTokens:
    """Control tokens of a tokenizer, by text.

    `by_id` are those that a grammar names by id: flagged as special, or written `<...>`, which llguidance takes for special.
    `special` are those that are left out of a text unless they are asked for. `structure` are those that build a conversation, the
    longest first: text of others must not hold them.
    """

    by_id: Mapping[str, int]
    special: frozenset[str]
    structure: tuple[str, ...]

    @classmethod
    def of(cls, added: Mapping[int, tuple[str, bool]], structure: Sequence[str]) -> ControlTokens:
        """From a tokenizer's added tokens (text and flag by id), and those of them that build a conversation."""
        special = frozenset(text for text, is_special in added.values() if is_special)
        by_id = {
            text: token_id
            for token_id, (text, is_special) in added.items()
            if is_special or (text.startswith("<") and text.endswith(">"))
        }
        return cls(by_id, special, tuple(structure))

    @classmethod
    def of_engine(cls, engine: Engine) -> ControlTokens:
        """Of an engine's tokenizer; gathered once."""
        if engine not in _OF_ENGINES:
            _OF_ENGINES[engine] = cls._gathered(engine)
        return _OF_ENGINES[engine]

    @classmethod
    def _gathered(cls, engine: Engine) -> ControlTokens:
        added = engine.tokenizer.added_tokens_decoder.items()
        return cls.of({token_id: (token.content, token.special) for token_id, token in added}, engine.control_tokens)


_OF_ENGINES: WeakKeyDictionary[Engine, ControlTokens] = WeakKeyDictionary()


class EngineOptions(TypedDict):
    """Keywords of a call to an engine."""

    sampling: SamplingParams
    reward_weights: RewardWeights
    prompt_options: PromptOptions


@dataclass(frozen=True)
class Asked:
    """A request in the engine's terms.

    `prompt` is a text or the messages as mappings, `options` are the engine's keywords, `reading` says how the answer is read;
    None: all of it is text.
    """

    prompt: str | list[JsonObject]
    options: EngineOptions
    reading: Reading | None

    @classmethod
    def of_engine(cls, request: ChatRequest, engine: Engine) -> Asked:
        """A request to an engine."""
        return cls.of(request, chat_template=engine.chat_template, control_tokens=ControlTokens.of_engine(engine))

    @classmethod
    def of(cls, request: ChatRequest, *, chat_template: str | None, control_tokens: ControlTokens) -> Asked:
        """A request to a model with this chat template and these control tokens.

        Raises:
            InvalidOptionError: a sampling field is unknown or out of range, or there is no notation of the name that is given.
        """
        if request.prompt is not None:
            return cls._of_text(request, request.prompt)
        template = request.chat_template or chat_template
        notation = notation_of(template, request.tool_notation)
        traits = traits_of(template) if template else NO_TEMPLATE
        safe = _harmless(request, control_tokens, template)
        tools = safe.tools if request.tool_choice.mode != "none" else ()
        turns = arranged(safe.messages, tools, traits, notation)
        variables: JsonObject = dict(safe.template_variables)
        if tools and traits.shows_tools:
            variables["tools"] = [tool.as_openai() for tool in tools]
        if safe.documents and "documents" in (template or ""):
            variables["documents"] = [dict(document) for document in safe.documents]
        elif safe.documents:
            turns = with_documents(turns, safe.documents)
        is_read = bool(tools) or notation.has_headers
        shown = is_read and any(token in notation.written_with() for token in control_tokens.special)
        sampling = SamplingParams(
            **request.sampling, grammar=_grammar(request, notation, control_tokens), skip_special_tokens=not shown
        )
        return cls(
            prompt=[as_mapping(turn, traits, template) for turn in turns],
            options={
                "sampling": sampling,
                "reward_weights": request.reward_weights,
                "prompt_options": PromptOptions(
                    chat_template=ChatTemplate(jinja=request.chat_template),
                    template_variables=variables,
                    control_tokens="parse",  # those of others are broken up already; ours show how calls are written
                ),
            },
            reading=_reading(request, notation, control_tokens, shown=shown) if is_read else None,
        )

    @classmethod
    def _of_text(cls, request: ChatRequest, prompt: str) -> Asked:
        """A raw text: no template, no tools."""
        options: EngineOptions = {
            "sampling": SamplingParams(**request.sampling, grammar=_format(request)),
            "reward_weights": request.reward_weights,
            "prompt_options": PromptOptions(),
        }
        return cls(prompt=prompt, options=options, reading=None)


def _harmless(request: ChatRequest, control_tokens: ControlTokens, template: str | None) -> ChatRequest:
    """The request as it is shown: without control tokens in what the caller, tools or the model itself have written."""

    def broken(value: Value) -> Value:
        return neutralise(value, control_tokens.structure)

    def words(message: Message) -> str:
        thought = (
            THOUGHT.match(message.content) if message.role == "assistant" and "</think>" in (template or "") else None
        )
        if thought is None:
            return broken(message.content)
        return f"<think>{broken(thought['thought'])}</think>{broken(message.content[thought.end() :])}"

    def call(own: ToolCall) -> ToolCall:
        try:
            arguments = json.dumps(broken(json.loads(own.arguments, strict=False)), ensure_ascii=False)
        except (ValueError, RecursionError):
            arguments = broken(own.arguments)
        return ToolCall(broken(own.call_id), broken(own.name), arguments)

    return dataclasses.replace(
        request,
        messages=tuple(
            dataclasses.replace(
                message,
                content=words(message),
                tool_calls=tuple(call(own) for own in message.tool_calls),
                tool_call_id=broken(message.tool_call_id),
                name=broken(message.name),
            )
            for message in request.messages
        ),
        tools=tuple(
            Tool(broken(tool.name), broken(tool.description), broken(dict(tool.parameters))) for tool in request.tools
        ),
        template_variables=broken(dict(request.template_variables)),
        documents=tuple(broken(dict(document)) for document in request.documents),
    )


def _has_results(request: ChatRequest) -> bool:
    return bool(request.messages) and request.messages[-1].role == "tool"


def _reading(request: ChatRequest, notation: Notation, control_tokens: ControlTokens, *, shown: bool) -> Reading:
    """Once results are in and a response format is asked for, JSON is the answer and no call."""
    lenient = request.lenient_tool_calls and not (request.response_schema is not None and _has_results(request))
    return Reading(
        notation,
        request.tools if request.tool_choice.mode != "none" else (),
        lenient=lenient,
        demanded=request.tool_choice.mode in ("required", "named"),
        removed=control_tokens.special if shown else frozenset(),
    )


def _grammar(request: ChatRequest, notation: Notation, control_tokens: ControlTokens) -> JsonSchema | Lark | None:
    calls = call_grammar(
        request.tools,
        request.tool_choice,
        notation,
        control_tokens.by_id,
        response_schema=request.response_schema,
        has_results=_has_results(request),
        lenient=request.lenient_tool_calls,
    )
    return _format(request) if calls is None else Lark(grammar=calls)


def _format(request: ChatRequest) -> JsonSchema | None:
    return None if request.response_schema is None else JsonSchema(json_schema=close_schema(request.response_schema))
