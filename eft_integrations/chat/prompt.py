"""How a request becomes a prompt, a grammar and options of the engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_engine import ChatTemplate, JsonSchema, Lark, PromptOptions, SamplingParams
from eft_integrations.chat.messages import Message, Tool, ToolCall, merge_turns
from eft_integrations.chat.request import ChatRequest
from eft_integrations.chat.schema import close_schema
from eft_integrations.chat.tool_calls import announce, call_grammar, knows_tools, notation_of


@dataclass(frozen=True)
class Asked:
    """A request in the engine's terms.

    `prompt` is a text or the messages as mappings, `options` are the engine's keywords; `reads_calls` says whether the answer
    may hold calls, which are written as `template` shows them.
    """

    prompt: str | list[dict[str, Any]]
    options: dict[str, Any]
    reads_calls: bool
    template: str | None

    @classmethod
    def of_engine(cls, request: ChatRequest, engine: Any) -> Asked:
        """A request to an engine."""
        added = {token.content for token in engine.tokenizer.added_tokens_decoder.values()}
        return cls.of(request, chat_template=engine.chat_template, added_tokens=added)

    @classmethod
    def of(cls, request: ChatRequest, *, chat_template: str | None, added_tokens: set[str]) -> Asked:
        """A request to a model with this chat template, whose tokenizer writes `added_tokens` as one token each.

        Raises:
            InvalidOptionError: a sampling field is unknown or out of range.
        """
        if request.prompt is not None:
            return cls._of_text(request, request.prompt)
        template: str | None = request.chat_template or chat_template
        tools = request.tools if request.tool_choice.mode != "none" else ()
        variables: dict[str, Any] = dict(request.template_variables)
        messages: Sequence[Message] = merge_turns(request.messages)
        if knows_tools(template):
            if tools:
                variables["tools"] = [tool.as_openai() for tool in tools]
        else:
            messages = merge_turns(announce(messages, tools, notation_of(template)))
        if request.documents:
            messages = _with_documents(messages, request.documents, template, variables)
        sampling = SamplingParams(**request.sampling, grammar=_grammar(request, tools, added_tokens, template))
        return cls(
            prompt=[_as_mapping(message) for message in messages],
            options={
                "sampling": sampling,
                "reward_weights": request.reward_weights,
                "prompt_options": PromptOptions(
                    chat_template=ChatTemplate(jinja=request.chat_template), template_variables=variables
                ),
            },
            reads_calls=bool(tools),
            template=template,
        )

    @classmethod
    def _of_text(cls, request: ChatRequest, prompt: str) -> Asked:
        """A raw text: no template, no tools."""
        schema = request.response_schema
        grammar = None if schema is None else JsonSchema(json_schema=close_schema(schema))
        options = {
            "sampling": SamplingParams(**request.sampling, grammar=grammar),
            "reward_weights": request.reward_weights,
            "prompt_options": PromptOptions(),
        }
        return cls(prompt=prompt, options=options, reads_calls=False, template=None)


def _with_documents(
    messages: Sequence[Message], documents: Sequence[Mapping[str, str]], template: str | None, variables: dict[str, Any]
) -> Sequence[Message]:
    """Documents go to templates that render them, else in front of the last user turn."""
    if "documents" in (template or ""):
        variables["documents"] = [dict(document) for document in documents]
        return messages
    listed = "\n\n".join("\n".join(document.values()) for document in documents)
    last = max((index for index, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        return [*messages, Message("user", listed)]
    question = messages[last]
    return [
        *messages[:last],
        dataclasses.replace(question, content=f"{listed}\n\n{question.content}"),
        *messages[last + 1 :],
    ]


def _grammar(
    request: ChatRequest, tools: Sequence[Tool], added: set[str], template: str | None
) -> JsonSchema | Lark | None:
    calls = call_grammar(
        tools, request.tool_choice, notation_of(template), added, response_schema=request.response_schema
    )
    if calls is not None:
        return Lark(grammar=calls)
    if request.response_schema is None:
        return None
    return JsonSchema(json_schema=close_schema(request.response_schema))


def _as_mapping(message: Message) -> dict[str, Any]:
    """OpenAI's form, with arguments as an object where they are one (chat templates print them)."""
    mapping: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        mapping["name"] = message.name
    if message.tool_call_id is not None:
        mapping["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        mapping["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": _object(call)}}
            for call in message.tool_calls
        ]
    return mapping


def _object(call: ToolCall) -> Any:
    try:
        return json.loads(call.arguments)
    except ValueError:
        return call.arguments
