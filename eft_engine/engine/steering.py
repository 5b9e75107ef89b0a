"""What weight each pair has at each position. Rules of position and text are settled here; what is measured is left to the device.

The slow and obvious reading of a rule is in the tests; this one follows a text token by token, and tries drafts without taking
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq

from eft_engine.text.places import BehindMarker, BetweenMarkers, InsideJsonString, Place
from eft_engine.weights import (
    Between,
    FirstTokens,
    FromMarker,
    Gate,
    InJsonStrings,
    LinearRamp,
    MeasuredWeight,
    Proportional,
    Weight,
    parts,
)

TextSchedule = FromMarker | Between | InJsonStrings
Settled = float | MeasuredWeight
"""A weight at one position: a number, or what to measure there."""

Bytes = Callable[[int], bytes]
"""What a token stands for, texts of control tokens included."""


class Follower:
    """Follows one text, and says what weights are at a position.

    Args:
        weights: whatever will be asked for.
        bytes_of: what a token stands for.
    """

    def __init__(self, weights: Iterator[Weight] | Seq[Weight], bytes_of: Bytes) -> None:
        self._bytes_of = bytes_of
        self._places: dict[TextSchedule, Place] = {
            own: _place(own) for weight in weights for own in parts(weight) if isinstance(own, TextSchedule)
        }

    @property
    def reads_text(self) -> bool:
        """Whether weights depend on the text so far."""
        return bool(self._places)

    def after(self, token_id: int) -> Follower:
        """The same, one token further; this one stays where it is."""
        if not self._places:
            return self
        written = self._bytes_of(token_id)
        found = Follower((), self._bytes_of)
        found._places = {own: place.after(written) for own, place in self._places.items()}
        return found

    def settle(self, weight: Weight, position: int) -> Settled:
        """A weight for the token number `position`, which comes next."""
        match weight:
            case LinearRamp(start=start, end=end, num_tokens=number):
                return end if position >= number else start + (end - start) * position / number
            case FirstTokens(num_tokens=number, weight=first, then=then):
                return self.settle(first if position < number else then, position)
            case FromMarker(weight=inside, before=outside):
                return self.settle(inside if self._places[weight].is_inside else outside, position)
            case Between(weight=inside, outside=outside) | InJsonStrings(weight=inside, outside=outside):
                return self.settle(inside if self._places[weight].is_inside else outside, position)
            case Gate() | Proportional():
                return weight
        return float(weight)


def _place(weight: TextSchedule) -> Place:
    match weight:
        case FromMarker(marker=marker):
            return BehindMarker(marker.encode())
        case Between(opening=opening, closing=closing, starts_inside=inside):
            return BetweenMarkers(opening.encode(), closing.encode(), inside)
        case InJsonStrings(keys=keys):
            return InsideJsonString(keys)


class Steering:
    """The weights of one request, position by position.

    Args:
        weights: by pair.
        bytes_of: what a token stands for.
        deciding: by pair, those that hold instead while it is open whether the text is a call (see `Deciding`), and if it is one.
    """

    def __init__(
        self, weights: Mapping[str, Weight], bytes_of: Bytes, *, deciding: Mapping[str, Weight] | None = None
    ) -> None:
        self._weights = tuple(weights.values())
        self._deciding = None if deciding is None else tuple(deciding.values())
        self._start = Follower([*self._weights, *(self._deciding or ())], bytes_of)
        self._now = self._start

    @property
    def reads_text(self) -> bool:
        """Whether a weight depends on the text so far, and so on the values of drafts."""
        return self._now.reads_text

    def commit(self, token_id: int) -> None:
        """A token was written."""
        self._now = self._now.after(token_id)

    def restart(self, token_ids: Seq[int]) -> None:
        """The text is these tokens again."""
        self._now = self._start
        for token_id in token_ids:
            self.commit(token_id)

    def rows(self, position: int, lookahead: Seq[int], decides: Seq[bool]) -> list[list[Settled]]:
        """Weights by pair at the next position and behind each token of the lookahead; `decides` says at which of these rows it is
        open whether the text is a call, or known that it is one.
        """
        follower, found = self._now, []
        for offset in range(len(lookahead) + 1):
            if offset:
                follower = follower.after(lookahead[offset - 1])
            weights = self._deciding if self._deciding is not None and decides[offset] else self._weights
            found.append([follower.settle(weight, position + offset) for weight in weights])
        return found
