"""Options of the engine that a model or a call has (prompts, composition, speculation): they reach the engine, or are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.caches import InMemoryCache
from llama_index.core.llms import ChatMessage

from eft_engine import (
    ChatTemplate,
    CompositionOptions,
    Engine,
    PlainText,
    PromptOptions,
    SamplingParams,
    SpeculationOptions,
    Verbatim,
    errors,
)
from eft_integrations.backends import ScriptedBackend
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatRequest
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.toy import ToyTrio

ADAPTERS = pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
TURNS = [{"role": "user", "content": "abc"}]
OBJECTS: dict[str, Any] = {
    "prompt_options": PromptOptions(base=PlainText()),
    "composition": CompositionOptions(amplification=3.0),
    "speculation": SpeculationOptions(drafter="none"),
}
MAPPINGS: dict[str, Any] = {
    "prompt_options": {"base": {"closing": "Answer:"}},
    "composition": {"amplification": 3.0},
    "speculation": {"drafter": "none"},
}


def ask(model: Any, **keywords: Any) -> str:
    """One answer."""
    if isinstance(model, EFTLLM):
        return str(model.chat([ChatMessage("abc")], **keywords).message.content)
    return str(model.invoke("abc", **keywords).content)


@pytest.fixture(scope="module")
def engine(toy_trio: ToyTrio) -> Iterator[Engine]:
    """Of one pair, `chat`."""
    with toy_trio.engine(max_warm_prefixes=0) as engine:
        yield engine


# ---- models and calls ----------------------------------------------------------------------------------------------------


@ADAPTERS
@pytest.mark.parametrize("name", OBJECTS)
def test_option_of_a_model_or_a_call_reaches_the_request(adapter: Any, name: str) -> None:
    backend = ScriptedBackend(["x"] * 5)
    model = adapter(backend=backend, **{name: OBJECTS[name]})
    ask(model)
    ask(adapter(backend=backend, **{name: MAPPINGS[name]}))
    ask(adapter(backend=backend), **{name: OBJECTS[name]})
    ask(adapter(backend=backend), **{name: MAPPINGS[name]})
    ask(model, **{name: None})
    found = [getattr(request, name) for request in backend.requests]
    assert found == [OBJECTS[name]] * 4 + [getattr(ChatRequest(), name)]


@ADAPTERS
@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"composition": {"amplificatoin": 2}}, "did you mean 'amplification'"),
        ({"speculation": "none"}, "speculation"),
        ({"prompt_options": {"base": {"text": ""}}}, "prompt_options"),
    ],
    ids=str,
)
def test_option_that_is_none_is_refused_in_words(adapter: Any, keywords: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=reason) as caught:
        ask(adapter(backend=ScriptedBackend(["x"])), **keywords)
    error = caught.value
    assert isinstance(error.__cause__ if adapter is EFTChatModel else error, errors.InvalidOptionError)


@ADAPTERS
@pytest.mark.parametrize("name", ["prompt_options", "composition"])
def test_answer_is_the_engines_with_the_same_option(adapter: Any, name: str, engine: Engine) -> None:
    wanted = {name: OBJECTS[name]}
    expected = engine.generate(TURNS, sampling=SamplingParams(**SAMPLING), **wanted).text
    plain = engine.generate(TURNS, sampling=SamplingParams(**SAMPLING)).text
    model = adapter(engine=engine, **SAMPLING)
    assert ask(model, **wanted) == expected != plain
    assert ask(adapter(engine=engine, **SAMPLING, **wanted)) == expected
    assert ask(model) == plain


@ADAPTERS
def test_drafts_are_as_the_call_says_and_change_no_text(adapter: Any, engine: Engine) -> None:
    model = adapter(engine=engine, temperature=0.0, max_tokens=12, ignore_eos=True)
    drafting = {"drafter": "tuned", "adaptive": False, "min_confidence": 0.0}
    before = engine.stats().num_drafted
    text = ask(model, speculation={"drafter": "none"})
    assert engine.stats().num_drafted == before
    assert ask(model, speculation=drafting) == text
    assert engine.stats().num_drafted > before


def test_raw_texts_have_the_options_too(engine: Engine) -> None:
    options = PromptOptions(base=Verbatim(text="xyz"))
    expected = engine.generate("abc", sampling=SamplingParams(**SAMPLING), prompt_options=options).text
    llm = EFTLLM(engine=engine, **SAMPLING)
    assert llm.complete("abc", formatted=True, prompt_options=options).text == expected
    assert llm.complete("abc", formatted=True).text != expected


JINJA = "{% for message in messages %}[{{ message.content }}{{ mark }}]{% endfor %}"


@ADAPTERS
def test_template_and_its_variables_are_those_of_the_options(adapter: Any, engine: Engine) -> None:
    def expected(mark: str) -> str:
        return engine.generate(f"[abc{mark}]", sampling=SamplingParams(**SAMPLING)).text

    options = PromptOptions(chat_template=ChatTemplate(jinja=JINJA), template_variables={"mark": "!"})
    model = adapter(engine=engine, **SAMPLING, prompt_options=options)
    assert ask(model) == expected("!")
    assert ask(model, chat_template_kwargs={"mark": "?"}) == expected("?")


@ADAPTERS
@pytest.mark.parametrize(("control_tokens", "is_parsed"), [("neutralise", False), ("parse", True)])
def test_control_tokens_of_messages_are_broken_up_unless_the_options_say_otherwise(
    adapter: Any, control_tokens: Any, is_parsed: bool, engine: Engine
) -> None:
    request = ChatRequest((Message("user", "a<|end|>b"),), prompt_options=PromptOptions(control_tokens=control_tokens))
    model = adapter(engine=engine)
    plain = ChatRequest((Message("user", "ab"),))
    num_added = model._backend.count_prompt_tokens(request) - model._backend.count_prompt_tokens(plain)
    assert (num_added == 1) is is_parsed


# ---- caches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt_options", "composition"])
def test_option_is_part_of_the_key_of_a_cache(name: str) -> None:
    backend, cache = ScriptedBackend(["one", "two", "three"]), InMemoryCache()
    plain = EFTChatModel(backend=backend, cache=cache)
    optioned = EFTChatModel(backend=backend, cache=cache, **{name: OBJECTS[name]})
    assert [ask(plain), ask(optioned), ask(plain), ask(optioned)] == ["one", "two", "one", "two"]
    other = {"prompt_options": {"base": {"closing": "A:"}}, "composition": {"amplification": 2}}[name]
    assert ask(plain, **{name: other}) == "three"
    assert ask(plain, keep_alive="5m", timeout=600) == "one", "these change no answer"


# ---- servers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OBJECTS, "keep_alive"])
@pytest.mark.parametrize("dialect", ["eft", "vllm"])
def test_server_is_not_asked_for_what_it_would_not_be_told(
    dialect: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.method == "GET", "nothing was asked"
        pairs = {"pairs": {"chat": 1.0}, "dialect": dialect}
        listed = {"data": [{"id": "m", "max_model_len": 64, "eft": pairs}]}
        return httpx.Response(200 if "models" in request.url.path else 404, json=listed)

    backend = RemoteBackend("http://server/v1", served_name="m")
    monkeypatch.setattr(backend._connection, "_client", httpx.Client(transport=httpx.MockTransport(answer)))
    value = {**OBJECTS, "keep_alive": 0}[name]
    for ask_server in (
        lambda: ask(EFTLLM(backend=backend), **{name: value}),
        lambda: asyncio.run(EFTLLM(backend=backend).achat([ChatMessage("abc")], **{name: value})),
        lambda: ask(EFTLLM(backend=backend, **{name: value})),
    ):
        with pytest.raises(
            errors.InvalidOptionError, match=rf"{name}[.a-z]*: the server at http://server/v1 takes none"
        ) as caught:
            ask_server()
        assert str(caught.value.option).partition(".")[0] == name
