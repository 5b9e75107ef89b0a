"""How a request becomes a prompt, a grammar and options of the engine, and how its answer is to be read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, TypeVar
from weakref import WeakKeyDictionary

from eft_engine import (
    CallDecision,
    ChatTemplate,
    CompositionOptions,
    JsonSchema,
    Lark,
    PromptOptions,
    SamplingParams,
    SpeculationOptions,
    TokenIds,
    neutralise,
)
from eft_engine.config import Grammar, RewardWeights
from eft_engine.errors import InvalidOptionError
from eft_engine.weights import Weight
from eft_integrations.chat.conversation import arranged, as_mappings, with_documents
from eft_integrations.chat.grammar import answer_grammar, held_answer, words_grammar
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations import notation_of
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.openings import call_openings
from eft_integrations.chat.reading import Reading
from eft_integrations.chat.request import DEFAULT_MAX_TOKENS, ChatRequest
from eft_integrations.chat.schema import held, unenforced
from eft_integrations.chat.schemas.display import inlined
from eft_integrations.chat.steering import first_thought, pairs_of, shown_sides, weights_by_part
from eft_integrations.chat.tags import Tags, tags_of
from eft_integrations.chat.template import NO_TEMPLATE, TemplateTraits, traits_of
from eft_integrations.chat.thoughts import Thoughts, split_thought, switched, thoughts_of
from eft_integrations.json_types import Json, JsonObject

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
    composition: CompositionOptions | None
    speculation: SpeculationOptions | None
    request_id: str | None


@dataclass(frozen=True)
class Asked:
    """A request in the engine's terms, and how its answer is to be read.

    Attributes:
        prompt: a text, tokens, or the messages as mappings.
        options: keywords of a call to the engine.
        thoughts: how the answer may begin; None: nothing is known of thoughts.
        reading: how calls are read; None: there are none.
        removed: control tokens that stay in the engine's text so that it can be read, and are no part of the answer.
        reasoning_budget: most tokens of a thought; None: no bound.
        response_schema: what the answer must be, if it is no call.
        metadata: what the report of the answer has to say of the request.
    """

    prompt: str | TokenIds | list[JsonObject]
    options: EngineOptions
    thoughts: Thoughts | None = None
    reading: Reading | None = None
    removed: frozenset[str] = frozenset()
    reasoning_budget: int | None = None
    response_schema: Mapping[str, object] | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def of_engine(cls, request: ChatRequest, engine: Engine) -> Asked:
        """A request to an engine."""
        template = engine.template_text(request.prompt_options.chat_template)
        control_tokens = ControlTokens.of_engine(engine)
        return cls.of(request, chat_template=template, control_tokens=control_tokens, own_weights=engine.weights)

    @classmethod
    def of(
        cls,
        request: ChatRequest,
        *,
        chat_template: str | None,
        control_tokens: ControlTokens,
        own_weights: Mapping[str, Weight] | None = None,
    ) -> Asked:
        """A request to a model with this chat template and these control tokens. `own_weights`: of its pairs; None: whoever answers
        takes no weights by part of an answer.

        Raises:
            InvalidOptionError: a sampling field is unknown or out of range, there is no notation of the name that is given, a
                schema that must be held in full cannot be, or a prompt pair's side cannot be made.
            UnknownPairError, InvalidWeightError: `call_weight` or `reasoning_weight` are none of the engine's.
        """
        if request.prompt_ids is not None:
            return cls._of_text(request, TokenIds(ids=request.prompt_ids))
        if request.prompt is not None:
            return cls._of_text(request, request.prompt)
        _check_one_answer(request)
        held_in_part = _unenforced(request)
        options = request.prompt_options
        own = request.chat_template
        template = own or chat_template
        notation = notation_of(template, request.tool_notation)
        traits = traits_of(template) if template else NO_TEMPLATE
        tags = Tags(*request.reasoning_tags) if request.reasoning_tags is not None else tags_of(template)
        structure = () if options.control_tokens == "parse" else control_tokens.structure
        safe = _harmless(request, structure, tags)
        tools = safe.tools if request.tool_choice.mode != "none" else ()
        told = switched(request.reasoning, request.reasoning_budget, traits, in_channels=notation.has_headers)
        variables: JsonObject = {**told.variables, **safe.template_variables}
        if tools and traits.shows_tools:
            variables["tools"] = [_shown(tool, traits) for tool in tools]
        pairs = pairs_of(request)
        # Variables of a template are the same for all sides of prompt pairs, which may lack the documents.
        by_template = "documents" in (template or "") and not pairs
        if safe.documents and by_template:
            variables["documents"] = [dict(document) for document in safe.documents]

        def shown(own: ChatRequest) -> list[JsonObject]:
            turns = arranged(own.messages, tools, traits, notation)
            if own.documents and not by_template:
                turns = with_documents(turns, own.documents)
            return as_mappings(turns, traits, tags)

        prompt = shown(safe)
        sides = shown_sides(pairs, request, lambda own: shown(_harmless(own, structure, tags)))
        budget = _budget(request) if tags is not None or notation.has_headers else None
        thoughts = thoughts_of(
            template,
            prompt,
            variables,
            tags=tags,
            known_tokens=control_tokens.by_id,
            budget=budget,
        )
        has_calls = bool(tools) or notation.has_headers
        written = notation.written_with() if has_calls else ""
        if thoughts is not None:
            written += f" {thoughts.tags.opening} {thoughts.tags.closing}"
        removed = control_tokens.special if any(token in written for token in control_tokens.special) else frozenset()
        is_open_ended = budget is None or (request.reasoning == "off" and told.is_told)
        grammar = _grammar(request, notation, control_tokens, thoughts, budget, is_held=not is_open_ended)
        ignored = ["reasoning"] if request.reasoning not in ("auto", "off") and not told.is_told else []
        ignored += traits.unread(request.template_variables)
        thought = first_thought(notation, thoughts)
        if request.reasoning_weight is not None and thought is None and not (thoughts and thoughts.state == "over"):
            ignored.append("reasoning_weight")
        weights, decided = weights_by_part(request, own_weights, pairs, thought)
        decision = None
        if decided is not None and not _cannot_call(request, notation):
            words = words_grammar(
                request.tools,
                notation,
                control_tokens.by_id,
                response_schema=request.response_schema,
                lenient=request.lenient_tool_calls,
                thoughts=thoughts,
                reasoning_budget=budget,
            )
            decision = CallDecision(
                weights=decided,
                openings=call_openings(request.tools, notation, lenient=request.lenient_tool_calls),
                otherwise=Lark(grammar=words),
                thought=thought,
                **({} if request.call_lookahead is None else {"num_tokens": request.call_lookahead}),
            )
        return cls(
            prompt=prompt,
            options={
                "sampling": _sampling(request, grammar, skip_special_tokens=not removed),
                "reward_weights": weights,
                "prompt_options": options.model_copy(
                    update={
                        "chat_template": options.chat_template if own is None else ChatTemplate(jinja=own),
                        "template_variables": variables,
                        "control_tokens": "parse",  # those of others are broken up already; ours show how calls are written
                    }
                ),
                "composition": _composition(request, prompt_pairs=sides, call_decision=decision),
                "speculation": request.speculation,
                "request_id": request.request_id,
            },
            thoughts=thoughts,
            reading=_reading(request, notation) if has_calls else None,
            removed=removed,
            reasoning_budget=budget,
            response_schema=request.response_schema,
            metadata={**held_in_part, **({"ignored": ignored} if ignored else {})},
        )

    @classmethod
    def _of_text(cls, request: ChatRequest, prompt: str | TokenIds) -> Asked:
        """A raw text, or tokens: no template, no tools, no thoughts."""
        options: EngineOptions = {
            "sampling": _sampling(request, request.response_grammar or _format(request)),
            "reward_weights": request.reward_weights,
            "prompt_options": request.prompt_options,
            "composition": _composition(request, prompt_pairs=pairs_of(request)),
            "speculation": request.speculation,
            "request_id": request.request_id,
        }
        return cls(prompt, options, response_schema=request.response_schema, metadata=_unenforced(request))


def _harmless(request: ChatRequest, structure: Sequence[str], tags: Tags | None) -> ChatRequest:
    """The request as it is shown: without these control tokens in what the caller, tools or the model itself have written."""

    def broken(value: Value) -> Value:
        return neutralise(value, structure)

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
                content=broken(message.content),
                reasoning=broken(message.reasoning),
                tool_calls=tuple(call(own) for own in message.tool_calls),
                tool_call_id=broken(message.tool_call_id),
                name=broken(message.name),
            )
            for message in (split_thought(message, tags) for message in request.messages)
        ),
        tools=tuple(
            dataclasses.replace(
                tool,
                name=broken(tool.name),
                description=broken(tool.description),
                parameters=broken(dict(tool.parameters)),
            )
            for tool in request.tools
        ),
        template_variables=broken({**request.prompt_options.template_variables, **request.template_variables}),
        documents=tuple(broken(dict(document)) for document in request.documents),
    )


def _shown(tool: Tool, traits: TemplateTraits) -> JsonObject:
    """A tool as the template gets it: with the parts of its schema in their places where the template shows no definitions."""
    shown = tool if traits.shows_definitions else dataclasses.replace(tool, parameters=inlined(tool.parameters))
    return shown.as_openai()


def _check_one_answer(request: ChatRequest) -> None:
    """Raises InvalidOptionError where an expression or a grammar and something else say what the answer is."""
    if request.response_grammar is None:
        return
    calls = bool(request.tools) and request.tool_choice.mode != "none"
    if calls or request.response_schema is not None:
        raise InvalidOptionError(
            f"response_grammar: a {request.response_grammar.kind} holds the whole answer, so that "
            + ("no tool can be called" if calls else "no schema can")
            + "; leave one of them out",
            option="tools" if calls else "response_format",
        )


def _budget(request: ChatRequest) -> int | None:
    """Most tokens of a thought. Where something must follow it and nobody says, half of all: room has to be left."""
    if request.reasoning == "off":
        return 0
    if request.reasoning_budget is not None:
        return request.reasoning_budget
    is_free = request.response_schema is None and request.response_grammar is None
    if is_free and request.tool_choice.mode in ("auto", "none"):
        return None
    max_tokens = request.sampling.get("max_tokens") or DEFAULT_MAX_TOKENS
    return max(max_tokens // 2, 1)


def _sampling(request: ChatRequest, grammar: Grammar | None, *, skip_special_tokens: bool = True) -> SamplingParams:
    """A call is never brought to an end: half of its arguments would look like all of them."""
    fields = dict(request.sampling)
    if request.response_schema is None and request.response_grammar is None:
        fields.pop("close_within_budget", None)
    return SamplingParams(**fields, grammar=grammar, skip_special_tokens=skip_special_tokens)


def _unenforced(request: ChatRequest) -> JsonObject:
    """What masks do not hold of the schemas of a request."""
    tools = request.tools if request.tool_choice.mode != "none" else ()
    found = unenforced(tools, request.response_schema, strict_response=request.strict_response)
    return {"unenforced": found} if found else {}


def _has_results(request: ChatRequest) -> bool:
    return bool(request.messages) and request.messages[-1].role == "tool"


def _cannot_call(request: ChatRequest, notation: Notation) -> bool:
    """Whether no call can come although the choice is free: without a marker, JSON is the answer once results are in."""
    return notation.is_bare and request.response_schema is not None and _has_results(request)


def _composition(request: ChatRequest, **further: object) -> CompositionOptions | None:
    """The request's composition with what is given besides."""
    update = {name: value for name, value in further.items() if value}
    return (request.composition or CompositionOptions()).model_copy(update=update) if update else request.composition


def _reading(request: ChatRequest, notation: Notation) -> Reading:
    """Once results are in and a response format is asked for, JSON is the answer and no call."""
    lenient = request.lenient_tool_calls and not (request.response_schema is not None and _has_results(request))
    return Reading(
        notation,
        request.tools if request.tool_choice.mode != "none" else (),
        lenient=lenient,
        demanded=request.tool_choice.mode in ("required", "named"),
    )


def _grammar(
    request: ChatRequest,
    notation: Notation,
    control_tokens: ControlTokens,
    thoughts: Thoughts | None,
    budget: int | None,
    *,
    is_held: bool,
) -> Grammar | None:
    if request.response_grammar is not None:
        return held_answer(
            request.response_grammar, notation, control_tokens.by_id, thoughts=thoughts, reasoning_budget=budget
        )
    grammar = answer_grammar(
        request.tools,
        request.tool_choice,
        notation,
        control_tokens.by_id,
        response_schema=request.response_schema,
        has_results=_has_results(request),
        lenient=request.lenient_tool_calls,
        thoughts=thoughts,
        reasoning_budget=budget,
        is_held=is_held and (thoughts is None or thoughts.state != "over"),
    )
    return _format(request) if grammar is None else Lark(grammar=grammar)


def _format(request: ChatRequest) -> JsonSchema | None:
    return None if request.response_schema is None else JsonSchema(json_schema=held(request.response_schema).schema)
