"""What was measured at one setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from eft_engine.evaluation.intervals import Share, share_of
from eft_engine.evaluation.settings import Setting, Weights
from eft_engine.outputs import RequestOutput

LEAST_TIMED = 0.5
"""Share of its answers that must have been timed for a setting to have a speed."""


@dataclass(frozen=True)
class Timing:
    """How long answers took that were asked together: the time from the first question to the last answer, nothing else between."""

    num_answers: int = 0
    num_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Timing) -> Timing:
        return Timing(
            self.num_answers + other.num_answers, self.num_tokens + other.num_tokens, self.seconds + other.seconds
        )


@dataclass(frozen=True)
class WeightResult:
    """Everything measured at one setting of the weights, or of one member alone."""

    label: str
    weights: Weights
    answers: list[RequestOutput]
    marks: dict[str, list[bool]]
    """By scorer, one mark an answer."""
    groups: list[str]
    timing: Timing = Timing()
    """Of the answers that were asked in one go, without an interruption."""
    changed: Share | None = None
    """Tokens that the base would not have written by itself; None: nobody has looked."""
    member: str | None = None
    """Who answered alone; None: the composition."""
    places: list[int] = field(default_factory=list)
    """Which of the questions were answered, by place."""

    @property
    def setting(self) -> Setting:
        """What was asked."""
        return Setting(self.weights, self.member, self.label if self.member else "")

    def share(self, scorer: str, *, group: str | None = None) -> Share:
        """How many answers count, over all questions or those of a group."""
        marks = self.marks[scorer]
        return share_of([mark for mark, of in zip(marks, self.groups, strict=True) if group in (None, of)])

    def first(self, count: int) -> WeightResult:
        """The result of the first so many answers; its timing is that of all."""
        marks = {name: own[:count] for name, own in self.marks.items()}
        return replace(
            self,
            answers=self.answers[:count],
            marks=marks,
            groups=self.groups[:count],
            places=self.places[:count],
            changed=None,
        )

    @property
    def steered(self) -> float:
        """Share of all tokens that were drawn with some weight other than 0."""
        tokens = sum(len(answer.token_ids) for answer in self.answers)
        steered = sum(answer.intervention_rate * len(answer.token_ids) for answer in self.answers)
        return steered / tokens if tokens else 0.0

    @property
    def is_cut(self) -> list[bool]:
        """Of each answer, whether max_tokens ended it."""
        return [answer.finish_reason == "length" for answer in self.answers]

    @property
    def cut(self) -> Share:
        """How many answers max_tokens ended."""
        return share_of(self.is_cut)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted tokens; None when nothing was drafted."""
        drafted = sum(answer.metrics.num_drafted for answer in self.answers)
        return sum(answer.metrics.num_accepted for answer in self.answers) / drafted if drafted else None

    @property
    def tokens_per_s(self) -> float | None:
        """Generated tokens by the second, all questions that were asked together; None where less than half of the answers were
        timed: the others are from before an interruption.
        """
        if not self.timing.seconds or self.timing.num_answers < LEAST_TIMED * len(self.answers):
            return None
        return self.timing.num_tokens / self.timing.seconds

    @property
    def mean_tokens(self) -> float:
        """Length of an answer."""
        return sum(answer.usage.completion_tokens for answer in self.answers) / max(1, len(self.answers))


def base_of(results: Sequence[WeightResult]) -> WeightResult | None:
    """The row of weight 0; None: it was not asked."""
    return next((own for own in results if own.setting.is_off), None)
