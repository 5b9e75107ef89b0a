"""langchain-openai over the newest client of OpenAI, by chat completions and by responses."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI


@pytest.mark.parametrize("use_responses_api", [False, True])
def test_chat_streams_and_counts(base_url: str, use_responses_api: bool) -> None:
    llm = ChatOpenAI(
        model="trio",
        base_url=base_url,
        api_key="none",
        temperature=0,
        stream_usage=True,
        use_responses_api=use_responses_api,
    )
    answer = llm.invoke("hello")
    whole = sum(llm.stream("hello"), AIMessageChunk(""))
    assert answer.text == whole.text == "Hello! How can I help?"
    assert whole.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"] > 0


def test_weights_travel_in_the_body(base_url: str) -> None:
    llm = ChatOpenAI(model="tools", base_url=base_url, api_key="none", extra_body={"eft_reward_weights": 0.5})
    assert llm.invoke("hi").content == 'hi {"scripted": 0.5}'
