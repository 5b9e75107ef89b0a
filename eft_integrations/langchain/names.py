"""Names of options that users of other chat models bring: what they are called here, what says nothing, and what to write instead.

Nothing is dropped that could change an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from eft_engine import errors
from eft_integrations.call_options import NAMES_ELSEWHERE
from eft_integrations.named_trio import named_trio
from eft_integrations.wire.openai import of_ollamas_format

SAME = {**NAMES_ELSEWHERE, "max_completion_tokens": "max_tokens", "think": "reasoning"}
"""By the name in other chat models, the name here: of a model and of a call."""

SAME_OF_A_MODEL = {
    "endpoint_url": "base_url",
    "model_id": "model",
    "model_name": "model",
    "openai_api_base": "base_url",
    "openai_api_key": "api_key",
}
"""The same, of a model alone."""

OPEN = ("model_kwargs", "extra_body")
"""Mappings of further options."""

UNHEARD = frozenset(
    {
        "cache_control", "default_headers", "http_async_client", "http_client", "ls_structured_output_format", "max_retries",
        "openai_organization", "openai_proxy", "organization", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
        "service_tier", "store", "stream", "stream_options", "stream_usage", "tiktoken_model_name", "user",
    }
)  # fmt: skip
"""What says nothing of an answer: where a request is sent and counted, how its price is bargained, whether it is streamed."""

OF_A_CONNECTION = (
    "default_headers",
    "http_client",
    "http_async_client",
    "openai_proxy",
    "organization",
    "openai_organization",
)
"""Those of them that mean something where a server is asked."""

ADVICE = {
    "num_ctx": 'the context is as long as the models have it; shorten it with engine_config={"max_context_len": ...}',
    "context_window": 'the context is as long as the models have it; shorten it with engine_config={"max_context_len": ...}',
    "format": 'bind response_format={"type": "json_object"}, or use with_structured_output(schema)',
    "n": "a call has one answer; for several: llm.batch([prompt] * n), at a temperature above 0",
    "best_of": "a call has one answer; for several: llm.batch([prompt] * n), at a temperature above 0",
    "functions": "use llm.bind_tools(functions)",
    "function_call": "use llm.bind_tools(functions, tool_choice=name)",
    "use_responses_api": "answers come from models here, not from an API of OpenAI; leave it out",
    "output_version": "it is an option of the model: EFTChatModel(..., output_version=...)",
    "verbosity": "say it in the system message, or weigh a pair that was tuned for it: reward_weights",
    "truncation": "nothing is cut from a prompt; use trim_messages or SummarizationMiddleware",
    "device_map": 'say it as engine_config={"device": "cuda"}',
    "device": 'say it as engine_config={"device": ...}',
    "torch_dtype": 'say it as engine_config={"dtype": ...}',
    "dtype": 'say it as engine_config={"dtype": ...}',
    "num_gpu": 'say it as engine_config={"device": ...} or engine_config={"llama_cpp": {...}}',
    "num_thread": 'say it as engine_config={"llama_cpp": {...}}, or set OMP_NUM_THREADS',
    "do_sample": "temperature=0 takes the most probable token, anything above draws",
    "llm": "name the trio itself: preset, or base with tuned and reference",
    "thinking": "write reasoning=True, False or an effort, and reasoning_budget=... for most tokens of a thought",
}
"""What to write in place of what is not here. Without a value (None, or its neutral one) it says nothing."""
ADVICE_OF_A_MODEL = {
    "response_format": "bind it, llm.bind(response_format=...), or use with_structured_output(schema)",
    "tools": "bind them: llm.bind_tools(tools)",
    "tool_choice": "bind it: llm.bind_tools(tools, tool_choice=...)",
}
"""The same, of a model alone."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "use_responses_api": (False,),
    "format": ("",),
    "truncation": ("disabled",),
}


def model_fields(given: Mapping[str, object]) -> dict[str, object]:
    """The fields of `EFTChatModel` that a constructor's keywords mean.

    >>> model_fields({"model": "atlas@assistant=0.5", "num_predict": 20, "n": 1})
    {'max_tokens': 20, 'preset': 'atlas', 'reward_weights': {'assistant': 0.5}}

    Raises:
        InvalidOptionError: an option that cannot be meant, or two names of one that differ.
    """
    same, advice = {**SAME, **SAME_OF_A_MODEL}, {**ADVICE, **ADVICE_OF_A_MODEL}
    renamed = _renamed(given, same, advice, kept=frozenset({"max_retries", "output_version"}))
    for name in OF_A_CONNECTION:
        if renamed.get("base_url") is not None and given.get(name) is not None:
            raise _wrong(name, given[name], "a server is sent api_key and no other header, by a client of our own")
    model = renamed.pop("model", None)
    return renamed if model is None else {**renamed, **named_trio(model, renamed)}


def call_keywords(given: Mapping[str, object]) -> dict[str, object]:
    """The keywords of `CallKeywords` that a call's mean; a `format` is one, as of ChatOllama's calls.

    >>> call_keywords({"num_predict": 20, "stream_usage": True, "extra_body": {"min_p": 0.1}, "format": "json"})
    {'max_tokens': 20, 'min_p': 0.1, 'response_format': {'type': 'json_object'}}

    Raises:
        InvalidOptionError: as for `model_fields`.
    """
    wanted = of_ollamas_format(given.get("format"))
    if wanted is None:
        return _renamed(given, SAME, ADVICE)
    rest = {name: value for name, value in given.items() if name not in ("format", "response_format")}
    if given.get("response_format") is not None:
        raise _wrong("format", given["format"], "response_format was given too; give one of them")
    return {**_renamed(rest, SAME, ADVICE), "response_format": wanted}


def _renamed(
    given: Mapping[str, object],
    same: Mapping[str, str],
    advice: Mapping[str, str],
    *,
    kept: frozenset[str] = frozenset(),
) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in _flat(given):
        if name in kept:
            found[name] = value
        elif name in same and value is None:
            continue
        elif (own := same.get(name, name)) in found and found[own] is not None and found[own] != value:
            raise _wrong(name, value, f"{own}={found[own]!r} was given too, and means the same; give one of them")
        elif name in UNHEARD or (name in advice and value in (None, *NEUTRAL.get(name, ()))):
            continue
        elif name in advice:
            raise _wrong(name, value, advice[name])
        else:
            found[own] = value
    return found


def _flat(given: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The options, those in open mappings behind the others; weights in such a mapping are given with it."""
    opened = {name: given[name] for name in OPEN if given.get(name) is not None}
    inner: dict[str, object] = {}
    for name, mapping in opened.items():
        if not isinstance(mapping, Mapping):
            raise _wrong(name, mapping, "must be a mapping of options")
        inner |= mapping
    for name, value in given.items():
        if name not in OPEN and not (name == "reward_weights" and inner.get(name) is not None):
            yield name, value
    yield from inner.items()


def _wrong(option: str, value: object, advice: str) -> errors.InvalidOptionError:
    return errors.InvalidOptionError(f"{option}={value!r}: {advice}", option=option, value=value)
