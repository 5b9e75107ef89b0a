"""ReAct agents, which read calls out of plain text."""

from __future__ import annotations

from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.react.types import BaseReasoningStep

from eft_integrations.json_objects import breaks_off

INPUT = "Action Input:"


class WholeCallsParser(ReActOutputParser):
    """Takes no call whose input breaks off. LlamaIndex' own parser runs one that `max_tokens` cut behind an inner brace, with what
    it can find of its arguments.

        ReActAgent(tools=[...], llm=llm, output_parser=WholeCallsParser())

    The agent tells the model of the error and asks again, as it does with every text that it cannot read.
    """

    def parse(self, output: str, is_streaming: bool = False) -> BaseReasoningStep:
        """See `ReActOutputParser`.

        Raises:
            ValueError: the input of a call is not whole. The agent catches errors of this kind alone, and asks again.
        """
        _, found, written = output.partition(INPUT)
        if found and breaks_off(written):
            raise ValueError(
                f"the input of the action is not whole, so it was cut or a brace is missing; be shorter: {written.strip()}"
            )
        return super().parse(output, is_streaming=is_streaming)
