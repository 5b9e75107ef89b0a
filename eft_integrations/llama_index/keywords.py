"""Keywords that LlamaIndex's components and users of its other LLMs give with a call, as those of `CallKeywords`.

Nothing that could change an answer is dropped: what has another name here gets it, what says nothing of an answer is left out, and
what cannot be done is an error that says what to write instead. A name that nobody knows stays, for `CallKeywords` to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools.types import BaseTool
from pydantic import BaseModel

from eft_engine import errors
from eft_integrations.call_options import NAMES_ELSEWHERE
from eft_integrations.class_schema import schema_of_class
from eft_integrations.llama_index.history import to_messages
from eft_integrations.llama_index.tools import tool_form
from eft_integrations.weights import HEADER, parse_weights
from eft_integrations.wire.openai import of_ollamas_format, schema_format, wrong

SAME = {
    **NAMES_ELSEWHERE,
    "allow_parallel_tool_calls": "parallel_tool_calls",
    "eos_token_id": "stop_token_ids",
    "max_tokens_to_sample": "max_tokens",
    "stopping_ids": "stop_token_ids",
    "think": "thinking",
    "thinking_dict": "thinking",
}
"""By the name in another LLM of LlamaIndex, the name here."""

OPEN = ("options", "extra_body")
"""Mappings of further keywords: Ollama's and OpenAI's."""

UNHEARD = frozenset(
    {
        "extra_query", "idempotency_key", "metadata", "pad_token_id", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "service_tier", "store", "stream_options", "use_cache", "user", "verbose",
    }
)  # fmt: skip
"""What says nothing of an answer: where a request goes and how it is counted, kept and filled up."""

ADVICE: dict[str, tuple[tuple[object, ...], str]] = {
    "audio": ((), "this model answers in text"),
    "best_of": ((1,), "a call has one answer"),
    "echo": ((False,), "put the prompt in front of the answer yourself"),
    "image_documents": (([], ()), "this model reads text only"),
    "modalities": ((["text"],), "this model answers in text"),
    "n": ((1,), "a call has one answer; for several ask again, with another seed each"),
    "num_beams": ((1,), "there is no beam search; temperature=0 takes the most probable token"),
    "num_ctx": ((), "it is an option of the LLM: EFTLLM(context_window=...)"),
    "num_return_sequences": ((1,), "a call has one answer; for several ask again, with another seed each"),
    "stream": ((), "the method says it: stream_chat, stream_complete"),
}
"""What is not there: values that say nothing (None always does), and what to do otherwise."""


def call_keywords(given: Mapping[str, object]) -> dict[str, object]:
    """The keywords of `CallKeywords` that a call's mean.

    >>> call_keywords({"num_predict": 9, "image_documents": None, "tool_required": True, "options": {"top_k": 3}})
    {'max_tokens': 9, 'top_k': 3, 'tool_choice': 'required'}

    Raises:
        InvalidOptionError: a keyword that cannot be done here, or two names of one that differ.
    """
    found: dict[str, object] = {}
    for name, value in _flat(given):
        own = SAME.get(name, name)
        if name in UNHEARD or (name in SAME and value is None):
            continue
        if name in ADVICE:
            neutral, advice = ADVICE[name]
            if value is not None and value not in neutral:
                raise wrong(name, f"{advice}; got {value!r}", value)
        elif own in found and found[own] is not None and value is not None and found[own] != value:
            raise wrong(name, f"{own}={found[own]!r} was given too, and means the same; give one of them", value)
        elif value is not None or found.get(own) is None:
            found[own] = value
    for name, meant in MEANT.items():
        if name in found and (value := found.pop(name)) is not None:
            _add(found, name, value, meant(value))
    return found


def _flat(given: Mapping[str, object]) -> list[tuple[str, object]]:
    """The keywords, and those in mappings of further ones."""
    flat: list[tuple[str, object]] = []
    for name, value in given.items():
        if name not in OPEN:
            flat.append((name, value))
        elif isinstance(value, Mapping):
            flat += [(str(key).removeprefix("eft_"), own) for key, own in value.items()]
        elif value is not None:
            raise wrong(name, f"must be a mapping, got {value!r}", value)
    return flat


def _add(found: dict[str, object], name: str, value: object, meant: Mapping[str, object]) -> None:
    """What a keyword means; what was given in so many words goes before it where both can hold."""
    for own, meaning in meant.items():
        if found.get(own) is None:
            found[own] = meaning
        elif found[own] != meaning and name not in ("tool_required", "extra_headers"):
            raise wrong(name, f"{value!r} means {own}={meaning!r}, and {own}={found[own]!r} was given too", value)


# ---- keywords that mean others -------------------------------------------------------------------------------------------


def reasoning_meant(value: object) -> dict[str, object]:
    """What Ollama's and Anthropic's `thinking` mean.

    >>> reasoning_meant(False), reasoning_meant({"type": "enabled", "budget_tokens": 512})
    ({'reasoning': False}, {'reasoning': True, 'reasoning_budget': 512})
    """
    match value:
        case bool() | str():
            return {"reasoning": value}
        case {"type": "enabled", **rest}:
            budget = rest.get("budget_tokens")
            return {"reasoning": True} if budget is None else {"reasoning": True, "reasoning_budget": budget}
        case {"type": "disabled"}:
            return {"reasoning": False}
        case {"type": "adaptive"}:
            return {"reasoning": "auto"}
    raise wrong(
        "thinking", f'must be True, False, an effort or {{"type": "enabled", "budget_tokens": ...}}, got {value!r}'
    )


def _headers_meant(value: object) -> dict[str, object]:
    """Of the headers that a client would send, the one that a server of trios reads. The others say nothing of the answer."""
    if not isinstance(value, Mapping):
        raise wrong("extra_headers", f"must be a mapping, got {value!r}", value)
    carried = next((own for name, own in value.items() if str(name).lower() == HEADER.lower()), None)
    if carried is None:
        return {}
    try:
        return {"reward_weights": parse_weights(str(carried))}
    except ValueError as error:
        raise wrong("extra_headers", f"{HEADER}: {error}", value) from None


def _format_meant(value: object) -> dict[str, object]:
    wanted = of_ollamas_format(value)
    return {} if wanted is None else {"response_format": wanted}


def _response_format_meant(value: object) -> dict[str, object]:
    """A class stands for its schema."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return {"response_format": schema_format(value.__name__, schema_of_class(value))}
    return {"response_format": value}


def _tools_meant(value: object) -> dict[str, object]:
    """Tools of LlamaIndex in OpenAI's form."""
    if not isinstance(value, list | tuple):
        return {"tools": value}
    return {"tools": [tool_form(tool.metadata) if isinstance(tool, BaseTool) else tool for tool in value]}


MEANT: dict[str, Callable[[object], dict[str, object]]] = {
    "do_sample": lambda value: {} if value else {"temperature": 0.0},
    "extra_headers": _headers_meant,
    "format": _format_meant,
    "prompt_pairs": lambda value: {"prompt_pairs": _with_plain_sides(value)},
    "json_mode": lambda value: {"response_format": {"type": "json_object"}} if value else {},
    "response_format": _response_format_meant,
    "stop_token_ids": lambda value: {"stop_token_ids": [value] if isinstance(value, int) else value},
    "thinking": reasoning_meant,
    "tool_required": lambda value: {"tool_choice": "required"} if value else {},
    "tools": _tools_meant,
}
"""What keywords mean in terms of others."""


SIDES = ("positive", "negative")


def _with_plain_sides(pairs: object) -> object:
    """Prompt pairs whose conversations are as OpenAI writes them: LlamaIndex' messages may stand there too."""
    if not isinstance(pairs, Mapping):
        return pairs
    return {name: _plain_pair(pair) for name, pair in pairs.items()}


def _plain_pair(pair: object) -> object:
    if not isinstance(pair, Mapping):
        return pair
    return {**pair, **{side: _plain(pair[side]) for side in SIDES if isinstance(pair.get(side), list | tuple)}}


def _plain(side: Sequence[object]) -> list[object]:
    found: list[object] = []
    for message in side:
        found += [own.as_openai() for own in to_messages([message])] if isinstance(message, ChatMessage) else [message]
    return found


def joined_pairs(further: Mapping[str, object], keywords: Mapping[str, object]) -> dict[str, object]:
    """Keywords of a call and further ones, which go behind them; prompt pairs of both hold."""
    joined = {**further, **keywords}
    first, then = further.get("prompt_pairs"), keywords.get("prompt_pairs")
    return (
        {**joined, "prompt_pairs": {**first, **then}}
        if isinstance(first, Mapping) and isinstance(then, Mapping)
        else joined
    )


def check_variables(prompt: BasePromptTemplate, given: Mapping[str, object]) -> None:
    """Keywords of `predict` and its kin, which LlamaIndex hands to the prompt and to nobody else.

    Raises:
        InvalidOptionError: weights are among them, and the prompt has no such variable: they would be lost.
    """
    known = {*prompt.template_vars, *(prompt.template_var_mappings or ()), *(prompt.function_mappings or ())}
    if given.get("reward_weights") is not None and "reward_weights" not in known:
        raise wrong(
            "reward_weights",
            "this method's keywords are variables of the prompt, which has none of this name, and the model would not get it; "
            "write `with weights(...):` around the call, ask llm.with_weights(...), or, for objects, give "
            'llm_kwargs={"reward_weights": ...}',
            given["reward_weights"],
        )


def continued_text(keywords: Mapping[str, object]) -> dict[str, object]:
    """The keywords of a call that continues a text as it stands.

    Raises:
        InvalidOptionError: one that only a chat template can carry out.
    """
    for name in ("tools", "documents", "chat_template_kwargs"):
        if keywords.get(name):
            raise errors.InvalidOptionError(
                f"{name}: a text is continued as it stands (formatted=True, messages_to_prompt, completion_to_prompt or "
                f"query_wrapper_prompt), and only the model's chat template writes {name}; leave out one or the other",
                option=name,
                value=keywords[name],
            )
    return dict(keywords)
