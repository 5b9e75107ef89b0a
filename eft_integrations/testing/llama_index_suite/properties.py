"""What a suite asks about the class under test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pytest
from llama_index.core.llms import LLM
from llama_index.core.types import PydanticProgramMode


class SuiteProperties(ABC):
    """Override what differs."""

    @abstractmethod
    def make_llm(self, **fields: object) -> LLM:
        """The LLM under test: greedy, and answering in at most some hundred tokens.

        Args:
            fields: passed on to its constructor; `callback_manager` and `pydantic_program_mode` are asked for.
        """

    @property
    def has_tools(self) -> bool:
        """It is a `FunctionCallingLLM`."""
        return True

    @property
    def has_call_keywords(self) -> bool:
        """Sampling can be changed call by call."""
        return True

    @property
    def has_logprobs(self) -> bool:
        """It reports log-probabilities."""
        return True

    @property
    def reports_usage(self) -> bool:
        """`raw` holds token counts."""
        return True

    @property
    def follows_instructions(self) -> bool:
        """The model behind it does what simple English sentences ask for."""
        return True

    @property
    def program_modes(self) -> Sequence[PydanticProgramMode]:
        """Modes of structured output that it can be used with."""
        return tuple(PydanticProgramMode)

    @property
    def max_tokens_keyword(self) -> dict[str, int]:
        """Keywords that end an answer after two tokens."""
        return {"max_tokens": 2}

    @property
    def logprobs_keywords(self) -> dict[str, object]:
        """Keywords that ask for log-probabilities with two alternatives per token."""
        return {"logprobs": True, "top_logprobs": 2}

    def needs(self, *, has: bool, what: str) -> None:
        """Skip the running test where the class says that it lacks what is tested."""
        if not has:
            pytest.skip(f"{type(self).__name__} says that its LLM lacks {what}")
