"""Names that users of other LLMs and LlamaIndex's own components bring: meant, without effect, or refused in words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.extractors import DocumentContextExtractor
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from eft_engine import MemberConfig, errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatRequest
from eft_integrations.llama_index import EFTLLM
from eft_integrations.testing.llama_index_suite.asking import CHATS, COMPLETIONS, gather, user
from eft_integrations.testing.llama_index_suite.scenarios import FERRY, NOTES, index_of
from eft_integrations.testing.llama_index_suite.structured import PROMPT, Person
from eft_integrations.testing.llama_index_suite.tools import ADD

TRIO: dict[str, Any] = {"tuned": "t", "reference": "r"}


def make(**fields: Any) -> tuple[EFTLLM, ScriptedBackend]:
    """An LLM that answers whatever fits, and what it was asked."""
    backend = ScriptedBackend()
    return EFTLLM(backend=backend, **fields), backend


def asked(call: Callable[[EFTLLM], Any], **fields: Any) -> ChatRequest:
    """What one call asks."""
    llm, backend = make(**fields)
    call(llm)
    return backend.requests[-1]


# ---- keywords of calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "name", "value"),
    [
        ({"max_new_tokens": 7}, "max_tokens", 7),
        ({"num_predict": 7, "max_tokens": None}, "max_tokens", 7),
        ({"options": {"top_k": 3, "repeat_penalty": 1.5}}, "repetition_penalty", 1.5),
        ({"extra_body": {"min_p": 0.1}}, "min_p", 0.1),
        ({"do_sample": False}, "temperature", 0.0),
        ({"stop_sequences": ["x"]}, "stop", ["x"]),
        ({"eos_token_id": 5}, "stop_token_ids", [5]),
    ],
    ids=str,
)
def test_sampling_under_another_name_is_meant(keywords: dict[str, Any], name: str, value: object) -> None:
    assert asked(lambda llm: llm.complete("hi", **keywords)).sampling[name] == value


@pytest.mark.parametrize(
    ("keywords", "name", "value"),
    [
        ({"thinking": False}, "reasoning", "off"),
        ({"think": "low"}, "reasoning", "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "reasoning_budget", 9),
        ({"reasoning_effort": "high"}, "reasoning", "high"),
        ({"extra_headers": {"X-EFT-Reward-Weights": "scripted=0.5"}}, "reward_weights", {"scripted": 0.5}),
        ({"extra_body": {"eft_reward_weights": 0.5}}, "reward_weights", 0.5),
        ({"json_mode": True}, "response_schema", {"type": "object"}),
        ({"format": {"type": "string"}}, "response_schema", {"type": "string"}),
    ],
    ids=str,
)
def test_what_other_llms_call_otherwise_is_meant(keywords: dict[str, Any], name: str, value: object) -> None:
    assert getattr(asked(lambda llm: llm.chat(user("hi"), **keywords)), name) == value


def test_tools_and_classes_of_the_framework_are_taken_as_they_are() -> None:
    request = asked(lambda llm: llm.chat(user("hi"), tools=[ADD], tool_required=True, allow_parallel_tool_calls=True))
    assert ([tool.name for tool in request.tools], request.tool_choice.mode) == (["add"], "required")
    assert request.tool_choice.parallel
    request = asked(lambda llm: llm.chat(user("hi"), response_format=Person))
    assert request.response_schema is not None
    assert list(request.response_schema["properties"]) == list(Person.model_fields)


SAYS_NOTHING = {
    "extra_headers": {"anthropic-beta": "prompt-caching"},
    "image_documents": None,
    "user": "ann",
    "metadata": {"a": "b"},
    "stream_options": {"include_usage": True},
    "n": 1,
    "request_timeout": None,
}


@pytest.mark.parametrize("way", [*CHATS, *COMPLETIONS])
def test_what_says_nothing_of_an_answer_changes_nothing(way: str) -> None:
    ask = (lambda llm, **keywords: CHATS[way](llm, user("hi"), **keywords)) if way in CHATS else None
    ask = ask or (lambda llm, **keywords: COMPLETIONS[way](llm, "hi", **keywords))
    assert asked(lambda llm: ask(llm, **SAYS_NOTHING)) == asked(ask)


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"image_documents": ["picture"]}, "image_documents: this model reads text only"),
        ({"n": 2}, "n: a call has one answer"),
        ({"num_beams": 4}, "num_beams: there is no beam search"),
        ({"num_predict": 3, "max_tokens": 4}, "means the same; give one of them"),
        ({"thinking": 3}, "thinking: must be True, False"),
        ({"extra_headers": {"x-eft-reward-weights": "much"}}, "X-EFT-Reward-Weights: weights are a number"),
        ({"options": {"mirostat": 1}}, "unknown keyword mirostat"),
        ({"tempreture": 1}, "unknown keyword tempreture"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_in_words(keywords: dict[str, Any], reason: str) -> None:
    llm, backend = make()
    for call in (lambda: llm.chat(user("hi"), **keywords), lambda: llm.complete("hi", **keywords)):
        with pytest.raises(errors.InvalidOptionError, match=reason):
            call()
    assert backend.requests == []


def test_context_of_chunks_is_told_by_a_component_that_sends_headers() -> None:
    llm, backend = make()
    store = SimpleDocumentStore()
    store.add_documents([Document(id_="d", text="The ferry leaves from pier four.")])
    node = TextNode(text="pier four")
    node.relationships = {"1": Document(id_="d").as_related_node_info()}  # type: ignore[dict-item]
    (found,) = DocumentContextExtractor(docstore=store, llm=llm, max_output_tokens=9).extract([node])
    assert found["context"]
    assert backend.requests[0].sampling["max_tokens"] == 9


def test_object_is_of_its_class_whatever_format_is_given_with_it() -> None:
    llm, backend = make(json_mode=True)
    assert isinstance(llm.structured_predict(Person, PROMPT, {"response_format": None}, who="Ann"), Person)
    with pytest.raises(errors.InvalidOptionError, match="the answer is an object of Person"):
        llm.structured_predict(Person, PROMPT, {"response_format": {"type": "json_object"}}, who="Ann")
    assert len(backend.requests) == 1


# ---- constructors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_name": "large", **TRIO}, {"base": "large"}),
        ({"model": "large", "tokenizer_name": "large", "device_map": "auto", **TRIO}, {"base": "large"}),
        (
            {"model_path": "large.gguf", "tokenizer": "words", **TRIO},
            {"base": MemberConfig(source="large.gguf", tokenizer="words")},
        ),
        (
            {"base": "large", "device_map": "balanced", "model_kwargs": {"revision": "v1"}, **TRIO},
            {"base": MemberConfig(source="large", device_map="balanced", revision="v1")},
        ),
        ({"model": "atlas@assistant=0.5"}, {"preset": "atlas", "reward_weights": {"assistant": 0.5}}),
        (
            {"model": "mine", "api_base": "http://h/v1", "api_key": "k"},
            {"base_url": "http://h/v1", "served_name": "mine"},
        ),
        ({"base": "a", **TRIO, "max_new_tokens": 9}, {"max_tokens": 9}),
        ({"base": "a", **TRIO, "num_output": 9, "request_timeout": 30.0}, {"max_tokens": 9, "timeout": 30.0}),
        ({"base": "a", **TRIO, "stopping_ids": [5], "thinking": False}, {"stop_token_ids": [5], "reasoning": "off"}),
        (
            {"base": "a", **TRIO, "temperature": 0.1, "additional_kwargs": {"temperature": 0.5, "num_predict": 4}},
            {"temperature": 0.5, "max_tokens": 4, "additional_kwargs": {}},
        ),
        ({"base": "a", **TRIO, "generate_kwargs": {"do_sample": False, "top_k": 2}}, {"temperature": 0.0, "top_k": 2}),
        ({"base": "a", **TRIO, "context_window": -1, "max_retries": 3, "reuse_client": True}, {"context_window": None}),
        ({"base": "a", **TRIO, "default_headers": {"X-EFT-Reward-Weights": "0.3"}}, {"reward_weights": 0.3}),
    ],
    ids=str,
)
def test_names_of_other_llms_are_fields_here(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    llm = EFTLLM(**fields)
    assert {name: getattr(llm, name) for name in expected} == expected
    again = EFTLLM.from_dict(llm.to_dict())
    assert {name: getattr(again, name) for name in expected} == expected


def test_kwargs_of_a_model_reach_the_engine() -> None:
    llm = EFTLLM(
        base="a", **TRIO, device_map="cuda:1", model_kwargs={"torch_dtype": "torch.float16", "n_gpu_layers": 5}
    )
    given = llm._backend.config if hasattr(llm._backend, "config") else llm.to_dict()["engine_config"]
    assert (given["device"], given["dtype"], given["llama_cpp"]["n_gpu_layers"]) == ("cuda:1", "float16", 5)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": "Qwen/Qwen2.5-7B"}, "a trio has more than one model"),
        ({"model": object(), **TRIO}, "models are named by hub id"),
        ({"model_name": "a", "base": "b", **TRIO}, "means the same; give one of them"),
        ({"base": "a", **TRIO, "tokenizer": object()}, "tokenizer: is named by hub id or folder"),
        (
            {"base": "a", **TRIO, "model_kwargs": {"max_memory": {}}},
            "model_kwargs.max_memory: is no option of how a trio",
        ),
        ({"base": "a", **TRIO, "generate_kwargs": {"tempreture": 1}}, "unknown keyword tempreture"),
        ({"base": "a", **TRIO, "generate_kwargs": 3}, "generate_kwargs: must be a mapping"),
        ({"base": "a", **TRIO, "max_new_tokens": 3, "max_tokens": 4}, "means the same"),
        ({"base": "a", **TRIO, "http_client": object()}, "give the server's base_url"),
        ({"base": "a", **TRIO, "additional_kwargs": {"num_ctx": 512}}, "EFTLLM\\(context_window=...\\)"),
        ({"preset": "atlas", "device_map": "cpu"}, "device: only models that are named here"),
        ({"base_url": "http://h/v1", "headers": {"X-Team": "a"}}, "X-Team is not sent"),
        ({"base": "a", **TRIO, "model_url": "http://h/m.gguf"}, "download the file"),
    ],
    ids=lambda told: told if isinstance(told, str) else None,  # an object's name is another one in each process
)
def test_name_that_cannot_be_meant_says_what_to_write(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=reason):
        EFTLLM(**fields)


def test_kwargs_of_all_calls_give_way_to_those_of_a_call() -> None:
    fields = {"additional_kwargs": {"tools": [ADD], "tool_choice": "required", "temperature": 0.5}}
    request = asked(lambda llm: llm.chat(user("hi")), **fields)
    assert (request.tool_choice.mode, request.sampling["temperature"]) == ("required", 0.5)
    request = asked(lambda llm: llm.chat(user("hi"), tool_choice="none", temperature=0.1), **fields)
    assert (request.tool_choice.mode, request.sampling["temperature"]) == ("none", 0.1)


# ---- prompts of one's own ------------------------------------------------------------------------------------------------


def shouted(messages: Any) -> str:
    """A template that is no model's."""
    return "".join(f"<{message.role.value}>{message.content}" for message in messages)


@pytest.mark.parametrize("way", CHATS)
def test_messages_to_prompt_writes_chats_and_nothing_else_is_added(way: str) -> None:
    request = asked(lambda llm: CHATS[way](llm, user("hi")), messages_to_prompt=shouted)
    assert (request.prompt, request.messages) == ("<user>hi", ())


@pytest.mark.parametrize("way", COMPLETIONS)
def test_texts_are_written_by_the_wrapper_and_then_by_completion_to_prompt(way: str) -> None:
    fields = {"query_wrapper_prompt": "[{query_str}]", "completion_to_prompt": lambda text: f"<{text}>"}
    assert asked(lambda llm: COMPLETIONS[way](llm, "hi"), **fields).prompt == "<[hi]>"
    assert asked(lambda llm: COMPLETIONS[way](llm, "hi", formatted=True), **fields).prompt == "hi"
    assert asked(lambda llm: COMPLETIONS[way](llm, "hi")).messages == (Message("user", "hi"),)


def test_function_that_is_set_later_counts_and_so_does_llama_indexs_own_where_it_is_given() -> None:
    llm, backend = make()
    llm.messages_to_prompt = shouted
    llm.chat(user("hi"))
    given, others = make(messages_to_prompt=generic_messages_to_prompt)
    given.chat(user("hi"))
    assert (backend.requests[0].prompt, others.requests[0].prompt) == ("<user>hi", "user: hi\nassistant: ")
    assert given.with_weights(0.5).chat(user("hi")).message.content
    assert others.requests[1].prompt == "user: hi\nassistant: "


def test_query_engines_write_with_the_functions_that_were_given() -> None:
    llm, backend = make(messages_to_prompt=shouted)
    index_of(NOTES).as_query_engine(llm=llm).query(FERRY)
    texts, others = make(completion_to_prompt=lambda text: f"<{text}>")
    index_of(NOTES).as_query_engine(llm=texts).query(FERRY)
    assert str(backend.requests[0].prompt).startswith("<system>")
    assert str(others.requests[0].prompt).startswith("<")
    assert FERRY in str(others.requests[0].prompt)
    assert not texts.metadata.is_chat_model


def test_objects_are_decoded_under_their_schema_in_a_prompt_of_ones_own() -> None:
    llm, backend = make(messages_to_prompt=shouted)
    assert isinstance(llm.structured_predict(Person, PROMPT, who="Ann"), Person)
    assert backend.requests[0].prompt is not None
    assert backend.requests[0].response_schema is not None


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (lambda llm: llm.chat(user("hi"), tools=[ADD]), "tools"),
        (lambda llm: llm.chat_with_tools([ADD], "hi"), "tools"),
        (lambda llm: llm.chat(user("hi"), documents=[{"text": "x"}]), "documents"),
        (lambda llm: llm.complete("hi", formatted=True, tools=[ADD]), "tools"),
    ],
)
def test_what_only_a_chat_template_writes_is_refused_in_another_prompt(call: Any, option: str) -> None:
    llm, _ = make(messages_to_prompt=shouted)
    with pytest.raises(errors.InvalidOptionError, match=f"^{option}: a text is continued as it stands"):
        call(llm)


def test_agents_are_told_that_a_prompt_of_ones_own_writes_no_tools() -> None:
    llm, _ = make(messages_to_prompt=shouted)
    assert not llm.metadata.is_function_calling_model

    async def run() -> Any:
        return await FunctionAgent(tools=[ADD], llm=llm).run("hi")

    with pytest.raises(ValueError, match="LLM must be a FunctionCallingLLM"):
        asyncio.run(run())


# ---- metadata ------------------------------------------------------------------------------------------------------------


def test_metadata_says_what_was_given() -> None:
    llm, _ = make(context_window=512, max_new_tokens=100, is_function_calling_model=False)
    told = llm.metadata
    assert (told.context_window, told.num_output, told.is_function_calling_model) == (512, 100, False)
    assert make(is_chat_model=False)[0].metadata.is_chat_model is False


def test_window_that_is_larger_than_the_models_is_refused() -> None:
    llm, _ = make(context_window=5000)
    with pytest.raises(errors.InvalidOptionError, match="context_window=5000 is more than the 4096 tokens"):
        _ = llm.metadata


def test_prompts_are_packed_into_the_window() -> None:
    texts = [" ".join([str(note), *["word"] * 400]) for note in range(6)]

    def calls(window: int) -> int:
        llm, backend = make(context_window=window, max_tokens=20)
        index_of(texts).as_query_engine(llm=llm, similarity_top_k=6).query(FERRY)
        return len(backend.requests)

    assert calls(4000) == 1 < calls(1000)


def test_system_prompt_is_that_of_predictions() -> None:
    request = asked(lambda llm: llm.predict(PromptTemplate("hi")), system_prompt="Be kind.")
    assert request.messages == (Message("system", "Be kind."), Message("user", "hi"))
    assert asked(lambda llm: asyncio.run(gather(llm.astream_chat([ChatMessage("hi")])))).messages == (
        Message("user", "hi"),
    )
