"""Whose decision is a call (`call_weight`), and weights inside a thought (`reasoning_weight`), in both frameworks.

The base has learned a few conversations by heart. The pair takes that away again: tuned minus reference is an untrained network
minus the trained one, so that at weight 1 the trio babbles and calls nothing. So an answer that calls shows that the base decided,
and its words show whether the pair wrote them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch
from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage

from eft_engine import Between, CallDecision, CompositionOptions, Engine, LoadedPair, errors
from eft_integrations.agents.smolagents import EFTModel
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, Tool, ToolCall
from eft_integrations.chat.notations import NOTATIONS
from eft_integrations.chat.openings import call_openings
from eft_integrations.chat.prompt import Asked
from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.integrations.trained_trio import Learned, call, learn_once, lessons_of, make_model, make_tokenizer, rendered

LOOK = Tool(
    "look",
    "Look at a place.",
    {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
)
MARKED, BARE, WORDS, THINKS = "Is Paris sunny?", "Is Oslo sunny?", "Good morning", "Think of Rome"
TAGS = ("<think>", "</think>")
LEARNED = [
    Learned(ChatRequest((Message("user", MARKED),), (LOOK,)), call("look", '{"place": "Paris"}')),
    Learned(
        ChatRequest((Message("user", BARE),), (LOOK,), tool_notation="llama3"),
        '{"name": "look", "parameters": {"place": "Oslo"}}',
    ),
    Learned(ChatRequest((Message("user", WORDS),), (LOOK,)), "Good morning to you, what can I do?"),
    Learned(
        ChatRequest((Message("user", THINKS),), (LOOK,), reasoning_tags=TAGS),
        "<think>\nRome is far away.\n</think>\n\n" + call("look", '{"place": "Rome"}'),
    ),
    Learned(
        ChatRequest((Message("user", WORDS),), (LOOK,), tool_notation="llama3"), "Good morning to you, what can I do?"
    ),
]
OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}


@functools.cache
def engine() -> Engine:
    """Base: the trained network. Pair: the untrained one against it."""
    texts = [message.content for own in LEARNED for message in own.request.messages] + [own.answer for own in LEARNED]
    tokenizer = make_tokenizer(texts, vocab_size=500)
    untrained = make_model(tokenizer, hidden_size=64, seed=2)
    trained = copy.deepcopy(untrained)
    with Engine.from_models(
        untrained, tokenizer=tokenizer, pairs={"chat": LoadedPair(untrained, untrained)}
    ) as scratch:
        known = [(rendered(scratch, own), [*tokenizer.encode(own.answer), tokenizer.eos_token_id]) for own in LEARNED]
    torch.manual_seed(0)
    learn_once(trained, lessons_of(known), [])
    return Engine.from_models(trained, tokenizer=tokenizer, pairs={"chat": LoadedPair(untrained, trained)})


def ask(question: str, **fields: Any) -> ChatResult:
    """The whole answer of the engine."""
    sampling = {**OPTIONS, **fields.pop("sampling", {})}
    request = ChatRequest((Message("user", question),), (LOOK,), sampling=sampling, **fields)
    return EngineBackend.of(engine(), model_name="eft").chat(request)


@pytest.mark.parametrize(
    ("question", "notation", "place"), [(MARKED, None, "Paris"), (BARE, "llama3", "Oslo")], ids=["marker", "bare"]
)
def test_the_base_decides_and_the_pair_writes_the_words(question: str, notation: str | None, place: str) -> None:
    alone, at_1 = (ask(question, reward_weights=weight, tool_notation=notation) for weight in (0.0, 1.0))
    assert [own.arguments for own in alone.tool_calls] == [f'{{"place": "{place}"}}']
    assert not at_1.tool_calls
    decided = ask(question, reward_weights=1.0, call_weight=0.0, tool_notation=notation)
    assert [(own.name, own.arguments) for own in decided.tool_calls] == [("look", f'{{"place": "{place}"}}')]
    assert decided.content == ""
    assert "num_redrawn" not in decided.metadata
    words, of_the_pair = (
        ask(WORDS, reward_weights=1.0, tool_notation=notation, **own) for own in ({"call_weight": 0.0}, {})
    )
    assert words.content == of_the_pair.content != ask(WORDS, reward_weights=0.0).content
    assert words.metadata["num_redrawn"] > 0
    assert words.metadata["reward_weights"] == {"chat": 1.0}
    assert words.usage.completion_tokens == of_the_pair.usage.completion_tokens


def test_words_are_the_bases_where_the_pair_alone_may_call() -> None:
    said = ask(WORDS, reward_weights=0.0, call_weight=1.0)
    assert said.content == "Good morning to you, what can I do?"
    assert ask(MARKED, reward_weights=0.0, call_weight=1.0).tool_calls == ()


def test_decision_and_words_are_seeded() -> None:
    for question in (MARKED, WORDS):
        asked = {"reward_weights": 1.0, "call_weight": 0.0, "sampling": {"temperature": 1.0, "seed": 3}}
        first, second = (ask(question, **asked) for _ in range(2))
        assert (first.content, [own.arguments for own in first.tool_calls]) == (
            second.content, [own.arguments for own in second.tool_calls],
        )  # fmt: skip
    alone = ask(MARKED, reward_weights=0.0, sampling={"temperature": 1.0, "seed": 3})
    decided = ask(MARKED, reward_weights=1.0, call_weight=0.0, sampling={"temperature": 1.0, "seed": 3})
    assert alone.tool_calls
    assert [own.arguments for own in decided.tool_calls] == [own.arguments for own in alone.tool_calls]


def test_a_demanded_call_is_the_calls_alone() -> None:
    tools = [LOOK.as_openai()]
    llm = EFTChatModel(engine=engine(), **OPTIONS, reward_weights=1.0, call_weight=0.0).bind(
        tools=tools, tool_choice="look"
    )
    answer = llm.invoke(MARKED)
    assert answer.tool_calls[0]["args"] == {"place": "Paris"}
    assert answer.response_metadata["eft"]["reward_weights"] == {"chat": 0.0}


CALL_WEIGHTS: list[dict[str, Any]] = [{}, {"call_weight": 0.0}]


def test_without_tools_the_calls_weight_means_nothing() -> None:
    asked = [
        EFTChatModel(engine=engine(), **OPTIONS, **own).invoke(WORDS).response_metadata["eft"] for own in CALL_WEIGHTS
    ]
    assert "num_redrawn" not in asked[1]
    assert asked[0]["reward_weights"] == asked[1]["reward_weights"]


# ---- both frameworks -----------------------------------------------------------------------------------------------------


def through_langchain(question: str, **keywords: Any) -> list[Any]:
    """Invoked and streamed."""
    llm = EFTChatModel(engine=engine(), **OPTIONS, reward_weights=1.0).bind_tools([LOOK.as_openai()], **keywords)
    whole: AIMessageChunk | None = None
    for chunk in llm.stream(question):
        whole = chunk if whole is None else whole + chunk  # type: ignore[assignment]
    assert whole is not None
    return [(own.text, [one["args"] for one in own.tool_calls]) for own in (llm.invoke(question), whole)]


def through_llama_index(question: str, **keywords: Any) -> list[Any]:
    """The same with LlamaIndex."""
    llm = EFTLLM(engine=engine(), **OPTIONS, reward_weights=1.0)
    messages = [ChatMessage(question)]
    asked = {"tools": [LOOK.as_openai()], **keywords}
    answers = [llm.chat(messages, **asked), list(llm.stream_chat(messages, **asked))[-1]]
    return [
        (own.message.content or "", [one.tool_kwargs for one in llm.get_tool_calls_from_response(own, False)])
        for own in answers
    ]


async def asynchronously_through_langchain(question: str, **keywords: Any) -> list[Any]:
    llm = EFTChatModel(engine=engine(), **OPTIONS, reward_weights=1.0).bind_tools([LOOK.as_openai()], **keywords)
    text = ""
    async for chunk in llm.astream(question):
        text += chunk.text
    whole = await llm.ainvoke(question)
    assert whole.text == text
    return [(whole.text, [one["args"] for one in whole.tool_calls])]


async def asynchronously_through_llama_index(question: str, **keywords: Any) -> list[Any]:
    llm = EFTLLM(engine=engine(), **OPTIONS, reward_weights=1.0)
    asked = {"tools": [LOOK.as_openai()], **keywords}
    whole = await llm.achat([ChatMessage(question)], **asked)
    pieces: AsyncIterator[Any] = await llm.astream_chat([ChatMessage(question)], **asked)
    last = [piece async for piece in pieces][-1]
    assert last.message.content == whole.message.content
    return [
        (
            whole.message.content or "",
            [one.tool_kwargs for one in llm.get_tool_calls_from_response(whole, False)],
        )
    ]


@pytest.mark.parametrize("through", [through_langchain, through_llama_index])
def test_decided_in_both_frameworks_streamed_and_not(through: Callable[..., list[Any]]) -> None:
    assert through(MARKED, call_weight=0.0) == [("", [{"place": "Paris"}])] * 2
    words = ask(WORDS, reward_weights=1.0).content.strip()
    assert [text.strip() for text, calls in through(WORDS, call_weight=0.0) if not calls] == [words] * 2


@pytest.mark.parametrize("through", [asynchronously_through_langchain, asynchronously_through_llama_index])
async def test_decided_in_both_frameworks_asynchronously(through: Callable[..., Any]) -> None:
    assert await through(MARKED, call_weight=0.0) == [("", [{"place": "Paris"}])]
    words = ask(WORDS, reward_weights=1.0).content.strip()
    assert [text.strip() for text, calls in await through(WORDS, call_weight=0.0) if not calls] == [words]


def look(place: str) -> str:
    """Look at a place."""
    return f"{place} is sunny."


def test_an_agent_of_langchain_calls_as_the_base_and_answers_as_the_pair() -> None:
    llm = EFTChatModel(engine=engine(), **OPTIONS, reward_weights=1.0, call_weight=0.0)
    agent: Any = create_agent(llm, [look])
    messages = agent.invoke({"messages": [("user", MARKED)]})["messages"]
    assert all(own.response_metadata["eft"]["reward_weights"] == {"chat": 1.0} for own in messages if own.type == "ai")
    assert messages[-1].tool_calls == []


async def test_an_agent_of_llama_index_takes_the_field_too() -> None:
    backend = ScriptedBackend()
    llm = EFTLLM(backend=backend, call_weight=0.0)
    agent: Any = FunctionAgent(tools=[look], llm=llm)
    await agent.run(MARKED)
    assert {request.call_weight for request in backend.requests} == {0.0}
    assert len(backend.requests) == 2


# ---- thoughts ------------------------------------------------------------------------------------------------------------


def test_a_thought_has_a_weight_of_its_own() -> None:
    asked: dict[str, Any] = {"reasoning_tags": TAGS}
    at_0 = ask(THINKS, reward_weights=0.0, **asked)
    assert (at_0.reasoning, len(at_0.tool_calls)) == ("Rome is far away.", 1)
    # The pair may not open a thought, so it is the base that does: all is the base's but what stands between the tags.
    babbled = ask(THINKS, reward_weights=0.0, reasoning_weight=1.0, **asked)
    assert babbled.reasoning != at_0.reasoning
    found = babbled.metadata["reward_weights"]["chat"]
    assert (found["kind"], found["weight"], found["outside"], found["starts_inside"]) == ("between", 1.0, 0.0, False)


def test_a_thought_comes_at_once_and_stays_when_words_are_drawn_anew() -> None:
    backend = EngineBackend.of(engine(), model_name="eft")
    request = ChatRequest(
        (Message("user", THINKS),),
        (LOOK,),
        sampling=OPTIONS,
        reward_weights=0.0,
        call_weight=1.0,  # the pair calls nothing
        reasoning_tags=TAGS,
    )
    deltas = list(backend.stream(request))
    result = deltas[-1].result
    assert result is not None
    assert result.reasoning == "Rome is far away."
    assert "".join(delta.reasoning for delta in deltas) == result.reasoning
    assert sum(bool(delta.reasoning) for delta in deltas) > 1
    assert result.tool_calls == ()
    assert result.metadata["num_redrawn"] > 0


def options_of(request: ChatRequest) -> Any:
    return Asked.of_engine(request, engine()).options


def test_weights_of_a_thought_keep_those_of_the_call_and_the_words() -> None:
    request = ChatRequest(
        (Message("user", WORDS),),
        (LOOK,),
        reward_weights=1.0,
        call_weight=0.0,
        reasoning_weight={"chat": 0.5},
        reasoning_tags=TAGS,
        call_lookahead=7,
    )
    options = options_of(request)
    assert options["reward_weights"] == {
        "chat": Between(opening="<think>", closing="</think>", weight=0.5, outside=1.0, starts_inside=False)
    }
    decision: CallDecision = options["composition"].call_decision
    assert (decision.weights, decision.num_tokens) == ({"chat": 0.0}, 7)
    assert decision.thought is not None
    assert decision.thought.opening == "<think>"


def test_what_has_no_thoughts_says_that_their_weight_is_ignored() -> None:
    answer = EFTChatModel(engine=engine(), **OPTIONS, reasoning_weight=0.0).invoke(WORDS)
    assert answer.response_metadata["eft"]["ignored"] == ["reasoning_weight"]


# ---- what is refused, and what tells a call ------------------------------------------------------------------------------


def test_two_ways_to_say_it_and_wrong_pairs_are_errors() -> None:
    decision = CompositionOptions(call_decision=CallDecision(openings=("x",)))
    request = ChatRequest((Message("user", "hi"),), (LOOK,), call_weight=0.0, composition=decision)
    with pytest.raises(errors.InvalidOptionError, match="call_decision; give one of them"):
        options_of(request)
    with pytest.raises(errors.UnknownPairError, match="'chatt'"):
        ask(WORDS, call_weight={"chatt": 0.0})
    with pytest.raises(errors.UnknownPairError, match="'chatt'"):
        ScriptedBackend().chat(ChatRequest((Message("user", "hi"),), call_weight={"chatt": 0.0}))


@pytest.mark.parametrize("name", NOTATIONS)
def test_every_notation_begins_its_calls_with_one_of_its_openings(name: str) -> None:
    notation = NOTATIONS[name]
    written = notation.write([ToolCall("abcdefghi", "look", '{"place": "Paris"}')])
    for lenient in (True, False):
        openings = call_openings([LOOK], notation, lenient=lenient)
        found = [written.find(text) for text in openings if text in written]
        assert found, name
        assert min(found) <= written.find("look")


@pytest.mark.parametrize("name", NOTATIONS)
def test_grammar_of_words_compiles_for_every_notation(name: str) -> None:
    request = ChatRequest(
        (Message("user", WORDS),), (LOOK, Tool("a.b/c")), reward_weights=1.0, call_weight=0.0, tool_notation=name
    )
    asked = Asked.of_engine(request, engine())
    composition = asked.options["composition"]
    assert composition is not None
    assert composition.call_decision is not None
    assert composition.call_decision.otherwise is not None
    assert engine()._requests._grammars.compile(composition.call_decision.otherwise) is not None


def test_every_host_hands_it_on() -> None:
    backend = ScriptedBackend()
    own: dict[str, Any] = {"call_weight": 0.25, "reasoning_weight": {"scripted": 0.5}, "call_lookahead": 9}
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    EFTChatModel(backend=backend, **own).invoke("hi")
    EFTChatModel(backend=backend).invoke("hi", **own)
    EFTLLM(backend=backend, **own).chat([ChatMessage("hi")])
    EFTLLM(backend=backend).chat([ChatMessage("hi")], **own)
    EFTModel(backend=backend, **own).generate(messages)
    EFTModel(backend=backend).generate(messages, **own)
    seen = [{name: getattr(request, name) for name in own} for request in backend.requests]
    assert seen == [own] * 6
