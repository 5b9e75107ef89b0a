"""What LlamaIndex expects of an LLM class, as tests that can be run against any.

Derive a class named `Test...` from the suite and tell it how to make your LLM:

    class TestMyLLM(LlamaIndexLLMSuite):
        def make_llm(self, **fields):
            return MyLLM(model="...", temperature=0.0, **fields)

The LLM must answer greedily, so that different ways of asking can be compared. What a class cannot do is said by overriding a
property (`has_tools`, `has_logprobs`, ...), and its tests are skipped with that reason; `follows_instructions = False` skips those
that need a model which understands simple English (agents, judges). Nothing measures a time.
"""

from __future__ import annotations

from eft_integrations.testing.llama_index_suite.agents import AgentTests
from eft_integrations.testing.llama_index_suite.asking import AskingTests
from eft_integrations.testing.llama_index_suite.engines import EngineTests
from eft_integrations.testing.llama_index_suite.properties import SuiteProperties
from eft_integrations.testing.llama_index_suite.reporting import ReportingTests
from eft_integrations.testing.llama_index_suite.structured import StructuredTests
from eft_integrations.testing.llama_index_suite.tools import ToolTests

__all__ = ["LlamaIndexLLMSuite", "SuiteProperties"]


class LlamaIndexLLMSuite(AskingTests, ReportingTests, ToolTests, StructuredTests, EngineTests, AgentTests):
    """All of it. Each base class is a subject and can be derived from alone."""
