"""How a stream of text becomes pieces: text that is passed on at once, and calls, in the model's notation or a looser form."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from eft_integrations.chat.forms import WrittenCall
from eft_integrations.chat.loose import Unrecognised, fault, find_calls, may_become_calls
from eft_integrations.chat.messages import LOOSE, InvalidToolCall, Tool, ToolCall
from eft_integrations.chat.notations.base import BrokenCall, Notation, Zone, overlap
from eft_integrations.chat.request import CallDelta
from eft_integrations.chat.thought_reader import Thought
from eft_integrations.chat.torn import torn_call, torn_calls

SETTLED = 256
"""From so many characters on, what is held back is looked at again only when something came that may decide about it."""
DECIDING = frozenset("}])>`\n")
PARAGRAPHS = re.compile(r"\S[^\S\n]*\n[^\S\n]*\n\s*\S")

Piece = str | Thought | CallDelta | ToolCall | InvalidToolCall | Unrecognised
"""Text, a piece of a thought or of a call, a call that is complete, what turned out to be none, or what only looked like one."""


@dataclass(frozen=True)
class Reading:
    """How an answer is to be read.

    `lenient`: calls count in other forms than the notation's too. `demanded`: a call has to come.
    """

    notation: Notation
    tools: tuple[Tool, ...]
    lenient: bool = True
    demanded: bool = False


class CallReader:
    """Reads one answer. Calls in the notation of the model come in pieces as soon as their name is known; other forms come whole,
    at the end, since only the answer as a whole says that they are calls. Text is held back only while it may become a call.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._held = ""
        self._passed = ""
        self._explains = False
        self._has_invalid = False
        self._news = ""
        self._waits = False
        self._in_zone = False
        self._num_zone_calls = 0
        self._num_thought = 0
        self._has_thought = False
        self.is_thinking = False
        self._num_begun = 0
        self._partial: _Partial | None = None
        self._calls: list[tuple[str, str]] = []

    def feed(self, text: str) -> Iterator[Piece]:
        """Take a piece of the model's text."""
        self._held += text
        self._news = text
        yield from self._advance(is_over=False)

    def is_settled_by(self, text: str) -> bool:
        """Whether little is held back, and nothing in a piece can bring a call to its end."""
        return len(self._held) < SETTLED and DECIDING.isdisjoint(text)

    def finish(self, *, is_cut: bool = False) -> Iterator[Piece]:
        """The text is over: what is still held back is a call or is none. `is_cut`: it reached its budget.

        A call counts as whole from the bracket or tag that closes it on, also where what closes all of them is cut.
        """
        yield from self._advance(is_over=True)
        if self._partial is not None:
            yield self._invalid(self._partial.arguments, "the text ended inside the call")
        if self._is_lenient:
            yield from self._loose(is_cut=is_cut)
        if self._held.strip() or not self._calls:
            yield from self._pass(self._held)
        self._held = ""
        if is_cut and self._reading.demanded and not self._calls and not self._has_invalid:
            yield self._invalid(self._passed, "the text ended before the call")

    def _loose(self, *, is_cut: bool) -> Iterator[Piece]:
        """The calls that the answer is in a looser form, and what a cut has left of one; else nothing, and all stays held back."""
        prefix = "call_" if self._reading.notation.is_bare else LOOSE
        found = find_calls(self._passed + self._held, self._reading.tools)
        torn = torn_calls(self._held, self._names) if is_cut and (not found.calls or found.behind) else None
        if torn is not None:
            for call in torn.calls:
                yield from self._whole(call, prefix=prefix)
            if torn.text:
                yield self._invalid(torn.text, "the text ended inside the call", torn.begun)
            self._held = ""
            return
        if self._reading.demanded and found.unrecognised and not self._passed.strip():
            for own in found.unrecognised:  # a call was written, and it is not to be run
                yield self._invalid(own.text, own.reason)
            self._held = ""
            return
        yield from found.unrecognised
        if found.calls:
            yield from self._pass(found.before[len(self._passed) :])
            yield from self._pass(found.behind)
            for call in found.calls:
                yield from self._whole(call, prefix=prefix)
            self._held = ""
        elif is_cut and self._reading.demanded and self._held.strip():
            yield self._invalid(self._held.strip(), "the text ended inside the call")
            self._held = ""

    def _invalid(self, text: str, reason: str, begun: WrittenCall | None = None) -> InvalidToolCall:
        """What is known of a call that is none: under the id of its pieces, where some were sent."""
        self._has_invalid = True
        known, self._partial = self._partial, None
        if known is not None:
            return InvalidToolCall(text, reason, known.name, known.call_id, known.arguments)
        call = begun or torn_call(text, self._names)
        if call is None:
            return InvalidToolCall(text, reason)
        return InvalidToolCall(text, reason, call.name, _new_id(), call.arguments)

    @property
    def _names(self) -> list[str]:
        return [tool.name for tool in self._reading.tools]

    @property
    def _is_lenient(self) -> bool:
        return self._reading.lenient and not self._calls and bool(self._reading.tools)

    def _advance(self, *, is_over: bool) -> Iterator[Piece]:
        while True:
            if not self._in_zone:
                start = self._marker()
                if start is None:
                    yield from self._pass_text(is_over=is_over)
                    return
                yield from self._pass(self._held[:start].rstrip())
                self._held, self._in_zone = self._held[start:], True
                self._num_zone_calls = self._num_thought = 0
            if not self._held and is_over:
                return
            zone = self._reading.notation.read(self._held, self._reading.tools, is_over=is_over)
            yield from self._zone(zone)
            if zone.end is None:
                return
            self._held, self._in_zone = self._held[zone.end :], False
            if not zone.calls and zone.end == 0:  # never, as long as a notation reads its own markers
                raise AssertionError(f"{self._reading.notation.name} does not read {self._held[:40]!r}")

    # ---- text --------------------------------------------------------------------------------------------------------

    def _marker(self) -> int | None:
        """Where the first marker begins."""
        places = [place for marker in self._reading.notation.markers if (place := self._held.find(marker)) >= 0]
        return min(places, default=None)

    def _pass_text(self, *, is_over: bool) -> Iterator[Piece]:
        """Pass on what certainly is text."""
        keep = 0 if is_over else max((overlap(self._held, own) for own in self._reading.notation.markers), default=0)
        end = len(self._held) - keep
        if self._is_lenient:
            if self._waits and len(self._held) > SETTLED and not is_over and DECIDING.isdisjoint(self._news):
                return  # it may become a call, and nothing came that changes this
            # What is demanded is a call or a broken one.
            possible = 0 if self._reading.demanded else self._possible_call()
            self._waits = possible < len(self._held)
            end = min(end, possible)
        ready = self._held[:end]
        if not is_over or self._calls:
            ready = ready.rstrip()  # whitespace in front of a call is no text, and what comes next is not known
        self._held = self._held[len(ready) :]
        yield from self._pass(ready)

    def _possible_call(self) -> int:
        """Where a call may begin in what is held back; its end where none may. More than a paragraph in front of it is too much."""
        line = self._passed.rpartition("\n")[2]  # what is passed of the line that goes on
        line = "-" if line.strip() else line
        for found in re.finditer(r"^[ \t]*", line + self._held, re.MULTILINE):
            place = found.end() - len(line)
            if place < 0:
                continue
            if self._explains or self._two_paragraphs(self._held[:place].rstrip()):
                return len(self._held)
            if may_become_calls(self._held[place:], self._reading.tools):
                return max(found.start() - len(line), 0)
        return len(self._held)

    def _two_paragraphs(self, further: str) -> bool:
        """Whether text, a blank line and text again have passed by the end of what comes now."""
        return PARAGRAPHS.search(self._passed[-SETTLED:] + further) is not None

    def _pass(self, text: str) -> Iterator[Piece]:
        self._explains = self._explains or self._two_paragraphs(text)
        self._passed += text
        if text:
            yield text

    # ---- thoughts and calls --------------------------------------------------------------------------------------------

    def _zone(self, zone: Zone) -> Iterator[Piece]:
        if piece := (zone.thought or "")[self._num_thought :]:
            begins_another = self._has_thought and self._num_thought == 0
            self._num_thought, self._has_thought = self._num_thought + len(piece), True
            yield Thought(f"\n\n{piece}" if begins_another else piece)
        self.is_thinking = zone.thought is not None and zone.end is None
        for call in zone.calls[self._num_zone_calls :]:
            self._num_zone_calls += 1
            match call:
                case WrittenCall():
                    yield from self._whole(call)
                case BrokenCall(text=text, reason=reason, begun=begun):
                    yield self._invalid(text, reason, begun)
        if zone.partial is not None and not self._calls:  # a further one may be a repetition
            yield from self._part(zone.partial)

    def _part(self, call: WrittenCall, *, prefix: str = "call_") -> Iterator[Piece]:
        if self._partial is None:
            self._partial = _Partial(_new_id(prefix), call.name, self._num_begun)
            self._num_begun += 1
            yield CallDelta(self._partial.index, self._partial.call_id, call.name)
        if piece := call.arguments[len(self._partial.arguments) :]:
            self._partial.arguments += piece
            yield CallDelta(self._partial.index, arguments=piece)

    def _whole(self, call: WrittenCall, *, prefix: str = "call_") -> Iterator[Piece]:
        known = (call.name, _canonical(call.arguments))
        if known in self._calls:
            yield Unrecognised(f"{call.name}({call.arguments})", "the answer makes this call already")
            return
        yield from self._part(call, prefix=prefix)
        assert self._partial is not None, "a part was sent"
        if call.name in self._names and (reason := fault(call, self._reading.tools)) is not None:
            yield self._invalid(call.arguments, reason)
            return
        self._calls.append(known)
        yield ToolCall(self._partial.call_id, call.name, call.arguments)
        self._partial = None


@dataclass
class _Partial:
    """A call of which pieces were sent, with the arguments so far."""

    call_id: str
    name: str
    index: int
    arguments: str = ""


def _new_id(prefix: str = "call_") -> str:
    return f"{prefix}{uuid.uuid4().hex[:24]}"


def _canonical(arguments: str) -> str:
    return json.dumps(json.loads(arguments, strict=False), sort_keys=True)
