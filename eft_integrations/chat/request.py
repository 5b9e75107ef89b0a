"""What is asked of a backend, and what it answers: plain frozen data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eft_engine.config import (
    CompositionOptions,
    Lark,
    PromptOptions,
    PromptPair,
    Regex,
    RewardWeights,
    SamplingParams,
    SpeculationOptions,
)
from eft_engine.errors import InvalidOptionError
from eft_engine.outputs import Progress, TokenLogprobs, Usage
from eft_integrations.chat.messages import InvalidToolCall, Message, Tool, ToolCall

DEFAULT_MAX_TOKENS = int(SamplingParams.model_fields["max_tokens"].default)
"""Most tokens of an answer to a request that does not say."""


@dataclass(frozen=True)
class ToolChoice:
    """What the caller allows: `none`, `auto`, `required`, or one tool by `name`; one call or several."""

    mode: str = "auto"
    name: str | None = None
    parallel: bool = True

    @classmethod
    def parse(cls, value: Any, tools: Sequence[Tool], *, parallel: bool = True) -> ToolChoice:
        """From what callers write: auto, none, any, required, True, a tool's name, or OpenAI's mapping.

        Raises:
            InvalidOptionError: it names no tool that was given, or is none of these forms.
        """
        name: str | None = None
        match value:
            case None | "auto" | False:
                return cls("auto", parallel=parallel)
            case "none":
                return cls("none")
            case "any" | "required" | True:
                mode = "required"
            case {"type": "function", "function": {"name": str(name)}} | {"name": str(name)}:
                mode = "named"
            case {"type": str(kind)} if kind in ("auto", "none", "any", "required"):
                return cls.parse(kind, tools, parallel=parallel)
            case str(name):
                mode = "named"
            case _:
                raise _wrong(value, f"tool_choice must be auto, none, any, required or a tool's name, got {value!r}")
        known = [tool.name for tool in tools]
        if not known:
            raise _wrong(value, f"tool_choice {value!r} asks for a tool call, but no tools were given")
        if name is not None and name not in known:
            raise _wrong(value, f"tool_choice names {name!r}; the tools are {', '.join(known)}")
        return cls(mode, name, parallel and mode != "named")


def _wrong(tool_choice: object, message: str) -> InvalidOptionError:
    return InvalidOptionError(message, option="tool_choice", value=tool_choice)


@dataclass(frozen=True)
class ChatRequest:
    """One question to a backend.

    `response_schema` makes the answer a JSON value of that schema; `strict_response`: one of which a mask cannot hold every keyword
    is refused. `response_grammar` holds the answer to an expression or a grammar in its place; tools cannot be called then.
    `reasoning` says whether the model thinks first: auto (as its chat template has it), off, or an effort (low, medium,
    high, ...); `reasoning_budget`: most tokens of a thought; `reasoning_tags`: the texts around a thought where the chat template
    does not show them. `sampling` holds fields of `SamplingParams`. A `prompt` is a
    raw text to continue; it stands in place of the messages, and tools have no meaning then. `prompt_ids` is the same as tokens,
    which only an engine of this process takes. `chat_template` (Jinja) replaces the
    backend's own. `lenient_tool_calls`: calls of bound tools count also where the model writes them in another form than its
    template's. `tool_notation` names how the model writes calls (`chat.notations.NOTATIONS`); None: as its template says.

    `call_weight`: weights for whether and what is called, where tools may be called; `call_lookahead`: tokens within which a call
    must begin (None: 64). `reasoning_weight`: weights inside a thought. None: those of the request. `prompt_pairs` join those of
    `composition`; texts of their sides are messages like any others.

    `prompt_options`, `composition` and `speculation` are the engine's own (`Engine.generate`), None: its defaults; variables of
    templates join `template_variables`, which go first. `keep_alive_s`: how long the engine stays loaded after this request, if no
    other follows. Only an engine of this process takes these four.

    `member_logprobs`: log-probabilities are to come with those of every member; `progress`: pieces are to tell how far the answer
    is. An engine of this process does both anyway, a server has to be asked, and one that cannot tell members refuses.

    `request_id` is what logs and the result's metadata call the request; None: one is made up.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    response_schema: Mapping[str, Any] | None = None
    strict_response: bool = False
    response_grammar: Regex | Lark | None = None
    reasoning: str = "auto"
    reasoning_budget: int | None = None
    reasoning_tags: tuple[str, str] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    reward_weights: RewardWeights = None
    call_weight: RewardWeights = None
    call_lookahead: int | None = None
    reasoning_weight: RewardWeights = None
    prompt_pairs: Mapping[str, PromptPair] = field(default_factory=dict)
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    documents: tuple[Mapping[str, str], ...] = ()
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    chat_template: str | None = None
    lenient_tool_calls: bool = True
    tool_notation: str | None = None
    prompt_options: PromptOptions = field(default_factory=PromptOptions)
    composition: CompositionOptions | None = None
    speculation: SpeculationOptions | None = None
    keep_alive_s: float = math.inf
    member_logprobs: bool = False
    progress: bool = False
    request_id: str | None = None


@dataclass(frozen=True)
class ChatResult:
    """The whole answer. `metadata` is plain JSON: the weights in effect and the share of tokens that were drawn with some
    (`intervention_rate`), what the request cost, and what has to be known of the answer: `num_redrawn` (tokens that were thrown
    away because they began no call, see `ChatRequest.call_weight`), `unenforced` (keywords of schemas that no mask held),
    `format_error` (the content is not what `response_schema` says), `closed_within_budget`, `reasoning_budget_reached`,
    `stop_sequence` (the text that ended it), `ignored` (options that this model has no use for).
    """

    content: str
    tool_calls: tuple[ToolCall, ...]
    invalid_tool_calls: tuple[InvalidToolCall, ...]
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] | None
    metadata: Mapping[str, Any]
    reasoning: str = ""


@dataclass(frozen=True)
class CallDelta:
    """A piece of the call at `index`: its id and name come once and first, arguments follow in pieces."""

    index: int
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class ChatDelta:
    """A piece of an answer: of its thought, text, a piece of a tool call, or, last, the whole `result`.

    `logprobs` are those of the tokens that came with it, where they were asked for (a piece may have nothing else). `progress` is
    how far the answer is with it; None where the backend does not tell.
    """

    text: str = ""
    call: CallDelta | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    reasoning: str = ""
    result: ChatResult | None = None
    progress: Progress | None = None
