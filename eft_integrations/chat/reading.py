"""How a stream of text becomes pieces: text that is passed on at once, and calls, in the model's notation or a looser form."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from eft_integrations.chat.forms import WrittenCall
from eft_integrations.chat.loose import Unrecognised, find_calls, may_become_calls, names_a_tool
from eft_integrations.chat.messages import LOOSE, InvalidToolCall, Tool, ToolCall
from eft_integrations.chat.notations.base import BrokenCall, Notation, Zone
from eft_integrations.chat.request import CallDelta

SETTLED = 256
"""From so many characters on, what is held back is looked at again only when something came that may decide about it."""
DECIDING = frozenset("}])>`\n")
PARAGRAPHS = re.compile(r"\S[^\S\n]*\n[^\S\n]*\n\s*\S")

Piece = str | CallDelta | ToolCall | InvalidToolCall | Unrecognised
"""Text, a piece of a call, a call that is complete, what turned out to be none, or what only looked like one."""


@dataclass(frozen=True)
class Reading:
    """How an answer is to be read.

    `lenient`: calls count in other forms than the notation's too. `demanded`: a call has to come. `removed` are control tokens that
    are no part of a text.
    """

    notation: Notation
    tools: tuple[Tool, ...]
    lenient: bool = True
    demanded: bool = False
    removed: frozenset[str] = frozenset()


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
        self._partial: _Partial | None = None
        self._calls: list[tuple[str, str]] = []

    def feed(self, text: str) -> Iterator[Piece]:
        """Take a piece of the model's text."""
        self._held += text
        self._news = text
        yield from self._advance(is_over=False)

    def finish(self, *, is_cut: bool = False) -> Iterator[Piece]:
        """The text is over: what is still held back is a call or is none. `is_cut`: it reached its budget."""
        yield from self._advance(is_over=True)
        if self._is_lenient:
            found = find_calls(self._passed + self._held, self._reading.tools)
            yield from found.unrecognised
            if found.calls:
                is_torn = is_cut and names_a_tool(found.behind, self._reading.tools)
                yield from self._pass(found.before[len(self._passed) :])
                if not is_torn:
                    yield from self._pass(found.behind)
                prefix = "call_" if self._reading.notation.is_bare else LOOSE
                for call in found.calls:
                    yield from self._whole(WrittenCall(call.name, call.arguments), prefix=prefix)
                if is_torn:
                    yield self._invalid(found.behind, "the text ended inside the call")
                return
        torn = self._held.strip()
        if is_cut and self._is_lenient and torn and (self._reading.demanded or names_a_tool(torn, self._reading.tools)):
            yield self._invalid(torn, "the text ended inside the call")
        elif torn or not self._calls:
            yield from self._pass(self._held)
        self._held = ""
        if is_cut and self._reading.demanded and not self._calls and not self._has_invalid:
            yield self._invalid(self._passed, "the text ended before the call")

    def _invalid(self, text: str, reason: str) -> InvalidToolCall:
        self._has_invalid = True
        return InvalidToolCall(text, reason)

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
                self._held, self._in_zone, self._num_zone_calls = self._held[start:], True, 0
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
        keep = 0 if is_over else max((_overlap(self._held, own) for own in self._reading.notation.markers), default=0)
        end = len(self._held) - keep
        if self._is_lenient:
            if self._waits and len(self._held) > SETTLED and not is_over and DECIDING.isdisjoint(self._news):
                return  # it may become a call, and nothing came that changes this
            possible = self._possible_call()
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
        for token in self._reading.removed:
            text = text.replace(token, "")
        if text:
            yield text

    # ---- calls -------------------------------------------------------------------------------------------------------

    def _zone(self, zone: Zone) -> Iterator[Piece]:
        for call in zone.calls[self._num_zone_calls :]:
            self._num_zone_calls += 1
            match call:
                case WrittenCall():
                    yield from self._whole(call)
                case BrokenCall(text=text, reason=reason):
                    self._partial = None
                    yield self._invalid(text, reason)
        if zone.partial is not None and not self._calls:  # a further one may be a repetition
            yield from self._part(zone.partial)

    def _part(self, call: WrittenCall, *, prefix: str = "call_") -> Iterator[Piece]:
        if self._partial is None:
            self._partial = _Partial(f"{prefix}{uuid.uuid4().hex[:24]}")
            yield CallDelta(len(self._calls), self._partial.call_id, call.name)
        if piece := call.arguments[self._partial.num_sent :]:
            self._partial.num_sent += len(piece)
            yield CallDelta(len(self._calls), arguments=piece)

    def _whole(self, call: WrittenCall, *, prefix: str = "call_") -> Iterator[Piece]:
        known = (call.name, _canonical(call.arguments))
        if known in self._calls:
            yield Unrecognised(f"{call.name}({call.arguments})", "the answer makes this call already")
            return
        yield from self._part(call, prefix=prefix)
        assert self._partial is not None, "a part was sent"
        self._calls.append(known)
        yield ToolCall(self._partial.call_id, call.name, call.arguments)
        self._partial = None


@dataclass
class _Partial:
    """A call of which pieces were sent."""

    call_id: str
    num_sent: int = 0


def _canonical(arguments: str) -> str:
    return json.dumps(json.loads(arguments, strict=False), sort_keys=True)


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`.

    >>> _overlap("see <tool", "<tool_call>"), _overlap("see", "<tool_call>")
    (5, 0)
    """
    return next(
        (length for length in range(min(len(text), len(marker) - 1), -1, -1) if text.endswith(marker[:length])), 0
    )
