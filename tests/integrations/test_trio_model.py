"""What the adapters have in common: the trio's names, one engine, one text, one list of options; the server has them too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage, MessageRole
from pydantic import ValidationError

from eft_engine import SamplingParams, Usage, errors
from eft_integrations.agents.smolagents import EFTModel
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.call_options import CallKeywords
from eft_integrations.chat.request import ChatResult
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from eft_integrations.sampling import SAMPLING_FIELDS, SamplingFields, sampling_form
from tests.integrations.llama_index.trained import GREETING, trained_engine
from tests.integrations.server.serving import in_process

NAMES = {"base": "a", "tuned": "t", "reference": "r"}
ADAPTERS = pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])


@ADAPTERS
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "name the large model"),
        ({"base": "a", "tuned": "b"}, "belong together"),
        ({"preset": "smollm2-json", "base": "a"}, "preset names a whole trio"),
        ({"engine": ..., "base": "a"}, "one of"),
        ({"base": "a", "pairs": {"x": 3}}, "must be a TunedPair"),
        ({"base": "a", "temprature": 1.0}, "temprature"),
        ({"base": "a", "engine_config": {"max_num_seq": 3}}, "max_num_seqs"),
    ],
    ids=str,
)
def test_wrong_construction_says_what_is_wrong(fields: dict[str, Any], reason: str, adapter: Any) -> None:
    with pytest.raises(ValidationError if "temprature" in fields else errors.InvalidOptionError, match=reason):
        adapter(**fields)


@ADAPTERS
def test_models_of_one_trio_share_one_engine_whatever_their_framework(adapter: Any) -> None:
    model = adapter(**NAMES)
    assert model._backend is EFTLLM(**NAMES)._backend
    assert model._backend is EFTChatModel(**NAMES)._backend
    assert model._backend is model.with_weights(0.5)._backend
    assert model._backend is not adapter(**{**NAMES, "base": "b"})._backend
    assert adapter(engine=trained_engine())._backend is EFTLLM(engine=trained_engine())._backend


CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "greeting": [("user", "Hello")],
    "with a system turn": [("system", "Be kind."), ("user", "Hello")],
    "second turn": [("user", "Hello"), ("assistant", GREETING), ("user", "Which pier?")],
    "any script": [("user", "¿Dónde está el faro? 灯台")],
}


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, {"chat": 1.7}], ids=str)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_text_of_every_adapter_is_the_engines(name: str, weight: Any) -> None:
    turns, engine = CONVERSATIONS[name], trained_engine()
    sampling = {"temperature": 0.0, "max_tokens": 24}
    expected = engine.generate(
        [{"role": role, "content": content} for role, content in turns],
        sampling=SamplingParams(**sampling),
        reward_weights=weight,
    ).text
    chat_model, llm = EFTChatModel(engine=engine, **sampling), EFTLLM(engine=engine, **sampling)
    assert chat_model.invoke(turns, reward_weights=weight).content == expected
    conversation = [ChatMessage(role=MessageRole(role), content=content) for role, content in turns]
    assert llm.chat(conversation, reward_weights=weight).message.content == expected


# ---- options -------------------------------------------------------------------------------------------------------------

USER = [ChatMessage(role=MessageRole.USER, content="hi")]


def post(backend: Any, path: str, **body: Any) -> dict[str, Any]:
    """The server's reply to a body."""

    async def answered() -> dict[str, Any]:
        async with in_process({"m": backend}) as client:
            response = await client.post(path, json={"model": "m", **body})
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        return reply

    return asyncio.run(answered())


Asker = Callable[..., Any]
IN_PROCESS: dict[str, tuple[Asker, Asker]] = {
    "EFTChatModel": (EFTChatModel, lambda model, **keywords: model.invoke("hi", **keywords)),
    "EFTChatModel, streamed": (EFTChatModel, lambda model, **keywords: list(model.stream("hi", **keywords))),
    "EFTLLM": (EFTLLM, lambda model, **keywords: model.chat(USER, **keywords)),
    "EFTLLM, completion": (EFTLLM, lambda model, **keywords: model.complete("hi", **keywords)),
    "EFTModel": (EFTModel, lambda model, **keywords: model.generate([{"role": "user", "content": "hi"}], **keywords)),
}
"""By name: a class of models, and how one of them is asked."""

SERVED: dict[str, Asker] = {
    "chat": lambda backend, **body: post(
        backend, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], **body
    ),
    "completions": lambda backend, **body: post(backend, "/v1/completions", prompt="hi", **body),
    "responses": lambda backend, **body: post(backend, "/v1/responses", input="hi", **body),
}

VALUES: dict[str, Any] = {
    "max_tokens": 7, "temperature": 0.4, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1,
    "presence_penalty": 0.2, "frequency_penalty": 0.3, "logit_bias": {3: 1.0}, "seed": 5, "stop": ["x"], "stop_token_ids": [4],
    "ignore_eos": True, "close_within_budget": True,
}  # fmt: skip
"""A value of every sampling field, other than its default."""


def test_list_of_sampling_fields_is_the_engines() -> None:
    assert set(SamplingFields.model_fields) == SAMPLING_FIELDS - {"logprobs"}
    assert set(VALUES) == set(SamplingFields.model_fields)
    sampling = SamplingParams(**VALUES)
    assert SamplingParams(**SamplingFields(**VALUES).model_dump()) == sampling
    assert SamplingParams(**sampling_form(sampling)) == sampling
    for name, field in SamplingParams.model_fields.items():
        assert name not in VALUES or getattr(sampling, name) != field.get_default(call_default_factory=True)


@pytest.mark.parametrize("name", IN_PROCESS)
def test_every_sampling_field_is_a_field_and_a_keyword_everywhere(name: str) -> None:
    make, ask = IN_PROCESS[name]
    backend = ScriptedBackend(["ok", "ok"])
    ask(make(backend=backend, **VALUES))
    ask(make(backend=backend), **VALUES)
    assert [request.sampling for request in backend.requests] == [VALUES, VALUES]


@pytest.mark.parametrize("name", SERVED)
def test_every_sampling_field_reaches_the_engine_through_the_server(name: str) -> None:
    backend = ScriptedBackend(["ok"])
    reply = SERVED[name](backend, **VALUES)
    assert backend.requests[0].sampling == VALUES
    assert "ignored" not in reply["eft"]


def test_keywords_of_the_wrong_type_are_refused_by_name() -> None:
    with pytest.raises(errors.InvalidOptionError, match=r"top_k: .* got 'many'") as caught:
        CallKeywords.read({"top_k": "many"})
    assert caught.value.option == "top_k"
    with pytest.raises(errors.InvalidOptionError, match="unknown keyword mirostat; a call takes call_lookahead"):
        CallKeywords.read({"mirostat": 1})


@pytest.mark.parametrize("name", IN_PROCESS)
def test_lenient_tool_calls_are_on_unless_model_or_call_turn_them_off(name: str) -> None:
    make, ask = IN_PROCESS[name]
    backend = ScriptedBackend(["ok"] * 4)
    ask(make(backend=backend))
    ask(make(backend=backend), lenient_tool_calls=False)
    ask(make(backend=backend, lenient_tool_calls=False))
    ask(make(backend=backend, lenient_tool_calls=False), lenient_tool_calls=True)
    assert [request.lenient_tool_calls for request in backend.requests] == [True, False, False, True]


@pytest.mark.parametrize("name", ["chat", "responses"])
def test_lenient_tool_calls_can_be_turned_off_through_the_server(name: str) -> None:
    backend = ScriptedBackend(["ok"] * 3)
    SERVED[name](backend)
    SERVED[name](backend, eft_lenient_tool_calls=None)
    SERVED[name](backend, eft_lenient_tool_calls=False)
    assert [request.lenient_tool_calls for request in backend.requests] == [True, True, False]


def test_unrecognised_calls_are_reported_everywhere() -> None:
    found = [{"text": '{"name": "fly"}', "reason": "no tool is called fly"}]
    answer = ChatResult("ok", (), (), "stop", Usage(1, 1), None, {"unrecognised_calls": found})
    backend = ScriptedBackend(otherwise=answer)
    model = EFTChatModel(backend=backend)
    reports = [
        model.invoke("hi").response_metadata["eft"],
        list(model.stream("hi"))[-1].response_metadata["eft"],
        EFTLLM(backend=backend).chat(USER).raw["eft"],
        EFTModel(backend=backend).generate([{"role": "user", "content": "hi"}]).raw["eft"],
        *(SERVED[name](backend)["eft"]["choices"][0] for name in ("chat", "responses")),
    ]
    assert [report["unrecognised_calls"] for report in reports] == [found] * 6
