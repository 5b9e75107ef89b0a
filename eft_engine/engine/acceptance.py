"""How often drafts of one sequence are accepted, and what that is worth."""

from __future__ import annotations


class Acceptance:
    """Running estimate of the probability that a drafted token is accepted; recent verifications count most."""

    DECAY = 0.9

    def __init__(self, prior: float) -> None:
        self._accepted, self._verified = 4.0 * prior, 4.0

    def note(self, num_drafted: int, num_accepted: int) -> None:
        """A draft of `num_drafted` tokens was verified. What follows the first rejected token was not judged."""
        self._accepted = self.DECAY * self._accepted + num_accepted
        self._verified = self.DECAY * self._verified + min(num_drafted, num_accepted + 1)

    @property
    def rate(self) -> float:
        """Estimated acceptance of one token."""
        return self._accepted / self._verified


def expected_tokens(rate: float, num_drafts: int) -> float:
    """Tokens per step when each draft is accepted with probability `rate` (Leviathan et al. 2023, equation 1).

    >>> expected_tokens(0.5, 2), expected_tokens(1.0, 3)
    (1.75, 4.0)
    """
    return sum(rate**power for power in range(num_drafts + 1))
