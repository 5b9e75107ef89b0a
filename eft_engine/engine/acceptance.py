"""How often drafts of one sequence are accepted, and what that is worth."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from eft_engine.weights import Weight


class Acceptance:
    """Running estimate of the probability that a drafted token is accepted; recent verifications count most.

    Args:
        prior: what to believe at first.
        of_all: the estimate over all requests of a kind, which learns with this one.
    """

    DECAY = 0.9
    ENOUGH = 16

    def __init__(self, prior: float, *, of_all: Acceptance | None = None) -> None:
        self._accepted, self._verified = 4.0 * prior, 4.0
        self._of_all = of_all
        self._num_noted = 0

    def note(self, num_drafted: int, num_accepted: int) -> None:
        """A draft of `num_drafted` tokens was verified. What follows the first rejected token was not judged."""
        self._accepted = self.DECAY * self._accepted + num_accepted
        self._verified = self.DECAY * self._verified + min(num_drafted, num_accepted + 1)
        self._num_noted += 1
        if self._of_all is not None:
            self._of_all.note(num_drafted, num_accepted)

    @property
    def is_known(self) -> bool:
        """Whether it rests on enough verifications, of this request or of all of its kind, to be believed."""
        return self._num_noted >= self.ENOUGH or (self._of_all is not None and self._of_all.is_known)

    @property
    def rate(self) -> float:
        """Estimated acceptance of one token."""
        return self._accepted / self._verified


class AcceptanceByWeights:
    """What the tuned model's drafts were worth in earlier requests with the same weights: where a new request starts from."""

    MAX_KNOWN = 64

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._known: OrderedDict[tuple[Weight, ...], Acceptance] = OrderedDict()

    def start(self, weights: Iterable[Weight]) -> Acceptance:
        """The estimate of a request that begins."""
        key = tuple(weights)
        of_all = self._known.setdefault(key, Acceptance(self._prior))
        self._known.move_to_end(key)
        while len(self._known) > self.MAX_KNOWN:
            self._known.popitem(last=False)
        return Acceptance(of_all.rate, of_all=of_all)


def expected_tokens(rate: float, num_drafts: int) -> float:
    """Tokens per step when each draft is accepted with probability `rate` (Leviathan et al. 2023, equation 1).

    >>> expected_tokens(0.5, 2), expected_tokens(1.0, 3)
    (1.75, 4.0)
    """
    return sum(rate**power for power in range(num_drafts + 1))
