"""The LlamaIndex suite on a trio that answers through the real engine: three members, drafting on."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.llms import LLM

from eft_integrations.llama_index import EFTLLM
from eft_integrations.testing.llama_index_suite import LlamaIndexLLMSuite
from tests.integrations.llama_index.trained import GREETING, trained_engine

pytestmark = pytest.mark.timeout(func_only=True)
"""The time limit is that of a test; the model is trained before the first one."""


@pytest.fixture(scope="module", autouse=True)
def _trained() -> None:
    """Seconds, or minutes on a machine that has other things to do."""
    trained_engine()


class TestEFTLLM(LlamaIndexLLMSuite):
    """Nothing is overridden: all of it holds."""

    def make_llm(self, **fields: Any) -> LLM:
        """Greedy, over the shared engine."""
        return EFTLLM(
            engine=trained_engine(), **{"temperature": 0.0, "max_tokens": 64, "close_within_budget": True, **fields}
        )


def test_answers_of_the_fixture_come_from_the_pair_and_drafts_are_taken() -> None:
    """Otherwise the suite would pass on the base alone, or without drafting."""
    llm = EFTLLM(engine=trained_engine(), temperature=0.0, max_tokens=20)
    assert llm.complete("Hello", reward_weights=0.0).text != GREETING
    assert llm.complete("Hello").text == GREETING
    assert trained_engine().stats().num_accepted > 0
