"""Names that users of HuggingFaceLLM, LlamaCPP, OpenAILike and Ollama bring to a constructor, as the fields of `EFTLLM`.

What has another name here gets it, what says nothing is left out, and what cannot be done is an error that says what to write
instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from eft_engine import EngineConfig, MemberConfig, errors
from eft_engine.config import LlamaCppOptions
from eft_integrations.call_options import CallKeywords
from eft_integrations.llama_index.keywords import MEANT, SAME, UNHEARD, call_keywords
from eft_integrations.named_trio import named_trio
from eft_integrations.wire.openai import wrong

SAME_OF_A_MODEL = {
    "api_base": "base_url",
    "model_name": "model",
    "model_path": "model",
    "num_output": "max_tokens",
    "tokenizer_name": "tokenizer",
    "default_headers": "headers",
}
"""By the name in another LLM, the name here, or the one of this file."""

OPTIONS_OF_CALLS = ("generate_kwargs", "additional_kwargs")
"""Mappings of keywords that all calls of a model have, if they say nothing else."""

ADVICE: dict[str, tuple[tuple[object, ...], str]] = {
    "api_version": ((), "servers of trios have no versions; leave it out"),
    "async_client": ((), "give the server's base_url and api_key"),
    "async_http_client": ((), "give the server's base_url and api_key"),
    "audio_config": ((), "this model answers in text"),
    "client": ((), "give the server's base_url and api_key"),
    "http_client": ((), "give the server's base_url and api_key"),
    "max_retries": (
        tuple(range(101)),
        "must be a small number; calls are not retried, since an engine does not fail by chance",
    ),
    "modalities": ((["text"],), "this model answers in text"),
    "model_url": ((), "download the file and write its path as base=..."),
    "prompt_key": (("prompt",), "servers of trios read OpenAI's form; leave it out"),
    "reuse_client": ((True, False), "must be True or False"),
    "should_use_structured_outputs": (
        (True, False),
        "must be True or False; objects are always decoded under their schema",
    ),
    "tokenizer_kwargs": (({},), 'say what tokenizer it is: base=MemberConfig(source=..., tokenizer="...")'),
}
"""What is not there: values that say nothing (None always does), and what to do otherwise."""

UNHEARD_OF_A_MODEL = UNHEARD | {"tokenizer_outputs_to_remove"}

OF_A_MEMBER = {
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "quantization_config": "quantization_config",
}
"""`model_kwargs` that are fields of a `MemberConfig`."""
OF_THE_ENGINE = {"attn_implementation": "attention", "dtype": "dtype", "torch_dtype": "dtype"}
"""`model_kwargs` that are fields of `EngineConfig`."""


def model_fields(given: Mapping[str, object], known: Collection[str]) -> dict[str, object]:
    """The fields of `EFTLLM` that a constructor's keywords mean.

    >>> model_fields({"model_name": "large", "tuned": "t", "max_new_tokens": 9}, CallKeywords.model_fields)
    {'tuned': 't', 'max_tokens': 9, 'base': 'large'}

    Args:
        given: the keywords.
        known: names of the fields.

    Raises:
        InvalidOptionError: an option that cannot be meant, or two names of one that differ.
    """
    fields = _renamed(given)
    _take_options_of_calls(fields, known)
    if (model := fields.pop("model", None)) is not None:
        fields |= named_trio(model, fields)
    _take_placement(fields)
    _take_headers(fields)
    if fields.get("context_window") == -1:  # Ollama's "as the model has it"
        del fields["context_window"]
    return fields


def _renamed(given: Mapping[str, object]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in given.items():
        own = SAME_OF_A_MODEL.get(name, name)
        if name in ADVICE:
            neutral, advice = ADVICE[name]
            if value is not None and value not in neutral:
                raise wrong(name, f"{advice}; got {value!r}", value)
        elif name in UNHEARD_OF_A_MODEL or (own != name and value is None):
            continue
        elif own in fields and fields[own] not in (None, value):
            raise wrong(name, f"{own}={fields[own]!r} was given too, and means the same; give one of them", value)
        else:
            fields[own] = value
    return fields


def _take_options_of_calls(fields: dict[str, object], known: Collection[str]) -> None:
    """Keywords of calls under other names, and those in open mappings, which go first; what is no field waits for the calls."""
    foreign = {
        name: fields.pop(name) for name in list(fields) if name in {*SAME, *MEANT} - {*CallKeywords.model_fields}
    }
    asked = call_keywords({**{name: fields[name] for name in fields if name in CallKeywords.model_fields}, **foreign})
    fields |= {name: value for name, value in asked.items() if name in known}
    waiting = {name: value for name, value in asked.items() if name not in known and name != "model"}
    for name in waiting:
        fields.pop(name, None)
    for name in OPTIONS_OF_CALLS:
        mapping = fields.pop(name, None)
        if mapping is not None and not isinstance(mapping, Mapping):
            raise wrong(name, f"must be a mapping of keywords of calls, got {mapping!r}", mapping)
        meant = call_keywords(mapping or {})
        CallKeywords.read(meant)
        fields |= {own: value for own, value in meant.items() if own in known}
        waiting |= {own: value for own, value in meant.items() if own not in known}
    if waiting:
        CallKeywords.read(waiting)
        fields["additional_kwargs"] = waiting


# ---- where and how the base is held --------------------------------------------------------------------------------------


def _take_placement(fields: dict[str, object]) -> None:
    """`tokenizer`, `device_map` and `model_kwargs`, which in a trio are matters of the base or of the whole engine."""
    member: dict[str, object] = {}
    engine: dict[str, object] = {}
    base = fields.get("base")
    source = base.source if isinstance(base, MemberConfig) else base
    tokenizer = fields.pop("tokenizer", None)
    if tokenizer is not None and not isinstance(tokenizer, str):
        raise wrong("tokenizer", f"is named by hub id or folder, got a {type(tokenizer).__name__}", tokenizer)
    if tokenizer not in (None, source):
        member["tokenizer"] = tokenizer
    match fields.pop("device_map", None):
        case None | "auto":
            pass
        case str(device) if device.partition(":")[0] in ("cpu", "cuda", "mps"):
            engine["device"] = device
        case spread:
            member["device_map"] = spread
    _sort_model_kwargs(fields.pop("model_kwargs", None), member, engine)
    if not member and not engine:
        return
    if base is None:
        name = next(iter({**member, **engine}))
        raise errors.InvalidOptionError(
            f"{name}: only models that are named here can be told how to be held: base=... with tuned=... and reference=...",
            option=name,
        )
    if member:
        own = base.model_dump(exclude_unset=True) if isinstance(base, MemberConfig) else base
        fields["base"] = MemberConfig(**{**(own if isinstance(own, Mapping) else {"source": own}), **member})
    if engine:
        given = fields.get("engine_config") or {}
        own = given.model_dump(exclude_unset=True) if isinstance(given, EngineConfig) else given
        fields["engine_config"] = {**engine, **own} if isinstance(own, Mapping) else own


def _sort_model_kwargs(given: object, member: dict[str, object], engine: dict[str, object]) -> None:
    """Which of the options of `from_pretrained`, or of llama.cpp, belong to the base and which to the engine."""
    if not isinstance(given, Mapping | None):
        raise wrong("model_kwargs", f"must be a mapping, got {given!r}", given)
    for name, value in (given or {}).items():
        if name in OF_A_MEMBER:
            member[OF_A_MEMBER[name]] = value
        elif name in OF_THE_ENGINE:
            engine[OF_THE_ENGINE[name]] = str(value).removeprefix("torch.")
        elif name in LlamaCppOptions.model_fields:
            llama_cpp = engine.setdefault("llama_cpp", {})
            assert isinstance(llama_cpp, dict), "made here"
            llama_cpp[name] = value
        else:
            raise wrong(
                f"model_kwargs.{name}",
                "is no option of how a trio is held; write base=MemberConfig(...) for one model, engine_config=EngineConfig(...) "
                f"for all, got {value!r}",
                value,
            )


def _take_headers(fields: dict[str, object]) -> None:
    """Headers that a server of trios reads are fields here: weights, and the key."""
    headers = fields.pop("headers", None)
    if headers is None:
        return
    if not isinstance(headers, Mapping):
        raise wrong("headers", f"must be a mapping, got {headers!r}", headers)
    for name, value in headers.items():
        scheme, _, key = str(value).partition(" ")
        if name.lower() == "authorization" and scheme.lower() == "bearer":
            fields.setdefault("api_key", key)
        elif meant := MEANT["extra_headers"]({name: value}):
            fields |= {own: carried for own, carried in meant.items() if fields.get(own) is None}
        elif fields.get("base_url") is not None:
            raise wrong("headers", f"{name} is not sent to a server; only its api_key is", headers)
