"""Whose turn it is: callers take turns, and nobody fills the queue for the others.

A call first gets room for all its answers, or is refused whole. Then each answer waits for a place, of which there are as many as
the engine steps together (and a few more, so that the next answer is there when a place gets free). Callers take turns for places,
one answer each, however many each of them has waiting.

Half of the room is common. The other half is kept in equal parts for the callers that hold a key: who has filled the common half
leaves room for everyone else. With more keys than parts nobody has one, and no caller may have more than the common half.
Of the places that the engine steps, if they are more than one, one is kept for whoever holds a key and has no answer there, so that
nobody waits until another's generations end.

What a key allows holds over all engines of a server together (`InHand`); room and places are each engine's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence

from eft_engine import errors
from eft_integrations.server.callers.callers import Caller
from eft_integrations.server.errors import INVALID, RATE, ApiError, Kind


class TooManyAnswersError(ApiError):
    """A call asks for more answers than could ever be in hand: no retry can serve it (400)."""

    def __init__(self, num_asked: int, limit: int, *, what: str) -> None:
        super().__init__(
            f"{num_asked} answers in one call, and {what} allows {limit} in hand; send them in several calls",
            Kind(400, INVALID, "too_many_answers", "n"),
        )


class CallerLimitError(ApiError):
    """The caller's key allows no more at present (429); what it has in hand goes on."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, Kind(429, RATE, "key_limit_exceeded"), headers={"Retry-After": str(retry_after_s)})


class InHand:
    """What callers have in hand, by name: answers, and tokens of those callers that have a limit of them."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    @contextlib.contextmanager
    def holding(self, name: str, count: int, num_tokens: int) -> Generator[None]:
        """Count them in until the block ends."""
        self.answers[name] += count
        self.tokens[name] += num_tokens
        try:
            yield
        finally:
            self.answers[name] -= count
            self.tokens[name] -= num_tokens
            self.answers += Counter()  # forget those who have none
            self.tokens += Counter()


class Room:
    """The room of one call: `place` surrounds each of its answers. Leaving the block of `Turns.room` gives all of it back."""

    def __init__(self, turns: Turns, caller: Caller) -> None:
        self._turns = turns
        self._caller = caller

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Wait for the turn of one answer, and keep the place until the block ends."""
        name = self._caller.name
        await self._turns.take(name)
        try:
            yield
        finally:
            self._turns.give_back(name)


class Turns:
    """Room and places of one engine. Belongs to one event loop.

    Args:
        num_places: answers that may be with the engine at once; None: any number, as it has a queue of its own.
        capacity: answers in hand, waiting ones included; None: any number.
        num_stepped: how many of the places the engine steps together, of which one is kept; None: none is.
        callers: says who holds a key now.
        retry_after_s: says how long a refused caller should wait, given how many answers wait.
        everywhere: what callers have in hand at all engines of the server, for the limits of their keys; None: there is one engine.
    """

    def __init__(
        self,
        *,
        num_places: int | None,
        capacity: int | None,
        num_stepped: int | None = None,
        callers: Callable[[], Sequence[Caller]] = lambda: (),
        retry_after_s: Callable[[int], int] = lambda num_waiting: 1,
        everywhere: InHand | None = None,
    ) -> None:
        self._num_places = math.inf if num_places is None else num_places
        self._capacity = capacity
        self._callers = callers
        self._retry_after_s = retry_after_s
        self._num_stepped = num_stepped
        self._placed: Counter[str] = Counter()  # answers that have a place, by the name of who asked
        self._here = InHand()
        self._everywhere = everywhere or InHand()
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def capacity(self) -> int | None:
        """Answers that may be in hand; None: any number."""
        return self._capacity

    @property
    def num_waiting(self) -> int:
        """Answers that wait for a place."""
        return sum(len(line) for line in self._lines.values())

    @property
    def in_hand(self) -> dict[str, int]:
        """Answers that wait or have a place, by the name of who asked."""
        return dict(self._here.answers)

    @contextlib.contextmanager
    def room(self, caller: Caller, count: int, *, num_tokens: int = 0) -> Generator[Room]:
        """Room for the answers of one call, all of them or none, until the block ends.

        Args:
            num_tokens: tokens of all of them together, for callers that have a limit of it.

        Raises:
            TooManyAnswersError: so many can never be in hand.
            QueueFullError: there is no room now.
            CallerLimitError: the caller has in hand what its key allows.
        """
        self._check_key(caller, count, num_tokens)
        self._check_room(caller, count)
        with (
            self._here.holding(caller.name, count, num_tokens),
            self._everywhere.holding(caller.name, count, num_tokens),
        ):
            yield Room(self, caller)

    def _check_key(self, caller: Caller, count: int, num_tokens: int) -> None:
        own, own_tokens = self._everywhere.answers[caller.name], self._everywhere.tokens[caller.name]
        if caller.max_requests is not None:
            if count > caller.max_requests:
                raise TooManyAnswersError(count, caller.max_requests, what="this key")
            if own + count > caller.max_requests:
                raise CallerLimitError(
                    f"this key has {own} answers in hand and asks for {count} more; it may have {caller.max_requests}",
                    retry_after_s=self._retry_after_s(own),
                )
        if (most := caller.max_tokens_in_flight) is not None:
            if num_tokens > most:
                raise ApiError(
                    f"{num_tokens} tokens in one call (prompts, and what may be written), and this key may have {most} in flight; "
                    "send a shorter prompt or a smaller max_tokens",
                    Kind(400, INVALID, "too_many_tokens", "max_tokens"),
                )
            if own_tokens + num_tokens > most:
                raise CallerLimitError(
                    f"this key has {own_tokens} tokens in flight and asks for {num_tokens} more; it may have {most}",
                    retry_after_s=self._retry_after_s(own),
                )

    def _check_room(self, caller: Caller, count: int) -> None:
        if self._capacity is None:
            return
        share, most = self._share, self._most_of_one
        if count > most:
            raise TooManyAnswersError(count, most, what="this server")
        own, in_hand = self._here.answers[caller.name], self._here.answers.total()
        others = {other.name for other in self._callers()} - {caller.name}
        kept = sum(max(0, share - self._here.answers[name]) for name in others)
        if in_hand + count > self._capacity - kept:
            raise errors.QueueFullError(
                f"{in_hand} answers are in hand and {count} more came; there is room for {self._capacity}"
                + (f", of which {kept} are kept for other callers" if kept else ""),
                num_queued=in_hand,
                limit=self._capacity,
            )
        if own + count > most:
            raise errors.QueueFullError(
                f"this key has {own} answers in hand and asks for {count} more; one key may have {most} of {self._capacity}",
                num_queued=own,
                limit=most,
            )

    @property
    def _share(self) -> int:
        """The room that is kept for each caller."""
        num_callers = len(self._callers())
        return self._capacity // (2 * num_callers) if self._capacity is not None and num_callers > 1 else 0

    @property
    def _most_of_one(self) -> int:
        """The room that one caller may have while nobody else has any."""
        assert self._capacity is not None, "asked only where room is bounded"
        num_callers = len(self._callers())
        if num_callers < 2:
            return self._capacity
        kept = self._share * (num_callers - 1)
        return self._capacity - (kept or self._capacity // 2)

    async def take(self, name: str) -> None:
        """Wait until it is the turn of one of a caller's answers; it has a place then."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(name, deque()).append(turn)
        self._fill()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(name)  # it had just got one
            elif turn in (line := self._lines.get(name, deque())):
                line.remove(turn)
                if not line:
                    del self._lines[name]
            raise

    def give_back(self, name: str) -> None:
        """A place that this caller had is free."""
        self._placed[name] -= 1
        if not self._placed[name]:
            del self._placed[name]
        self._fill()

    def _fill(self) -> None:
        """Give out the places that are free: the first caller in line who may have one gets it, and stands behind all others."""
        while (name := next(filter(self._may_have_place, self._lines), None)) is not None:
            line = self._lines.pop(name)
            turn = line.popleft()
            if line:
                self._lines[name] = line
            if not turn.done():
                self._placed[name] += 1
                turn.set_result(None)

    def _may_have_place(self, name: str) -> bool:
        num_placed = self._placed.total()
        if num_placed >= self._num_places:
            return False
        if name not in self._placed or self._num_stepped is None or self._num_stepped < 2:
            return True
        return num_placed < self._num_stepped - 1 or all(own.name in self._placed for own in self._callers())
