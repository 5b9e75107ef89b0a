"""A streamed answer while it arrives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from eft_integrations.chat.messages import ToolCall
from eft_integrations.chat.request import ChatDelta


@dataclass
class AnswerSoFar:
    """What has come of a streamed answer. A call that is being written has its arguments so far."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, delta: ChatDelta) -> None:
        """The next piece came."""
        self.text += delta.text
        self.reasoning += delta.reasoning
        if (piece := delta.call) is None:
            return
        if piece.name is not None:
            self.calls.append(ToolCall(piece.call_id or "", piece.name, ""))
        call = self.calls[piece.index]
        self.calls[piece.index] = dataclasses.replace(call, arguments=call.arguments + piece.arguments)

    def index_of(self, call_id: str | None) -> int | None:
        """Which of the calls has this id; None where no piece of it has come."""
        return next((index for index, call in enumerate(self.calls) if call.call_id == call_id), None)
