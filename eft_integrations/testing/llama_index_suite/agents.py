"""Agents of every kind, hand-off between them, and the LLM as a judge."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.llms import LLM

from eft_integrations.testing.llama_index_suite import scenarios
from eft_integrations.testing.llama_index_suite.properties import SuiteProperties

STREAMING = pytest.mark.parametrize("streaming", [True, False], ids=["streamed", "whole"])


class AgentTests(SuiteProperties):
    """These need a model that follows simple instructions."""

    def _able_llm(self, **fields: object) -> LLM:
        self.needs(has=self.follows_instructions, what="a model that follows instructions")
        return self.make_llm(**fields)

    @STREAMING
    def test_function_agent_calls_its_tool_and_answers(self, streaming: bool) -> None:
        self.needs(has=self.has_tools, what="tools")
        outcome = asyncio.run(scenarios.function_agent(self._able_llm(), streaming=streaming))
        assert outcome.calls == [("get_weather", "Oslo")]
        assert "sunny" in outcome.text

    @STREAMING
    def test_first_tool_of_an_agent_can_be_demanded(self, streaming: bool) -> None:
        self.needs(has=self.has_tools, what="tools")
        outcome = asyncio.run(
            scenarios.function_agent(self._able_llm(), streaming=streaming, initial_tool_choice="get_weather")
        )
        assert outcome.calls == [("get_weather", "Oslo")]

    @STREAMING
    def test_react_agent_calls_its_tool_and_answers(self, streaming: bool) -> None:
        outcome = asyncio.run(scenarios.react_agent(self._able_llm(), streaming=streaming))
        assert outcome.calls == [("get_weather", "Oslo")]
        assert "sunny" in outcome.text

    @STREAMING
    def test_code_act_agent_writes_code_and_answers(self, streaming: bool) -> None:
        outcome = asyncio.run(scenarios.code_act_agent(self._able_llm(), streaming=streaming))
        assert [name for name, _ in outcome.calls] == ["execute"]
        assert "42" in outcome.text

    def test_agents_hand_over_to_each_other(self) -> None:
        self.needs(has=self.has_tools, what="tools")
        outcome = asyncio.run(scenarios.hand_off(self._able_llm()))
        assert outcome.agents == ["clerk", "forecaster"]
        assert outcome.calls == [("get_weather", "Oslo")]
        assert "sunny" in outcome.text

    def test_judge_of_faithfulness_says_yes_to_what_is_supported(self) -> None:
        outcome = asyncio.run(scenarios.judge(self._able_llm()))
        assert outcome.extra.passing is True

    def test_reranker_keeps_the_note_that_matters(self) -> None:
        outcome = asyncio.run(scenarios.reranked(self._able_llm()))
        assert [node.node.get_content() for node in outcome.extra.source_nodes] == [scenarios.NOTES[1]]
        assert "four" in outcome.text

    def test_question_is_answered_from_the_notes(self) -> None:
        outcome = asyncio.run(scenarios.question_of_notes(self._able_llm()))
        assert "four" in outcome.text
