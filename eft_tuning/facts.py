"""Does a delta carry facts that the small model does not know? That is the known way in which up-scaling hurts.

Over the answers of training rows and of held-out rows three things are read: what the reference expects, what the tuned model
expects, and what the reference expects that is told the form (`content.mark`). Then

    lift         log-probability of an answer's token, tuned - reference
    unknown      a token that is not form, and that the reference gives less than 10 % even when it is told the form
    memorised    an unknown token that the tuned model lifts by more than 1 nat

A form that is learnt lifts tokens of answers it has never seen as much as those it was trained on. Facts cannot: they are lifted
where they were trained. So the verdict compares the memorised share of both sides.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.intervals import Share
from eft_engine.options import Options
from eft_engine.text.tokenizer import Tokenizer
from eft_tuning.chats import Chat
from eft_tuning.content import HoldOptions, Kind, mark
from eft_tuning.passes import answer_ids, answer_logprobs
from eft_tuning.rendering import Rendered, render
from eft_tuning.shared import SharedRuns
from eft_tuning.shots import pick_shots, render_told
from eft_tuning.stages import OnProgress

Verdict = Literal["carries facts", "no sign of facts", "too little to say"]
EXAMPLES = 8
ROWS_AT_ONCE = 8
CONTEXT_TOKENS = 12
"""Tokens before a lifted one that reports show."""


class FactsOptions(Options):
    """Thresholds of the check."""

    unknown_below: float = Field(
        default=0.1, gt=0, lt=1, description="probability of a token below which the reference does not know it"
    )
    lifted_by: float = Field(default=1.0, gt=0, description="nats by which the tuned model lifts what it has memorised")
    least_difference: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="difference of the memorised shares, training rows less held-out ones, from which facts are carried; besides "
        "their 95 % intervals must be apart",
    )
    least_tokens: int = Field(default=20, ge=1, description="unknown tokens on either side below which nothing is said")
    hold: HoldOptions = Field(default_factory=HoldOptions, description="how form is told from content")


@dataclass(frozen=True)
class Lifted:
    """A memorised token: where it stands, what comes before, and its probability under reference and tuned model."""

    line: int
    before: str
    token: str
    reference: float
    tuned: float


@dataclass(frozen=True)
class Side:
    """Measures over the answers of one side. Means are in nats a token, NaN where there is no such token."""

    num_rows: int
    num_form_tokens: int
    num_content_tokens: int
    content_lift: float
    form_lift: float
    content_divergence: float
    """KL(tuned || reference) where content is."""
    form_divergence: float
    memorised: Share
    """Of the unknown tokens."""


@dataclass(frozen=True)
class FactsReport:
    """What was found, the verdict, and the thresholds that it rests on."""

    train: Side
    held_out: Side
    lifted: list[Lifted]
    """The most lifted unknown tokens of training rows, one a row."""
    options: FactsOptions

    @property
    def difference(self) -> float:
        """Memorised share of training rows less that of held-out rows."""
        return self.train.memorised.value - self.held_out.memorised.value

    @property
    def verdict(self) -> Verdict:
        """In three words."""
        train, held_out = self.train.memorised, self.held_out.memorised
        if min(train.total, held_out.total) < self.options.least_tokens:
            return "too little to say"
        apart = train.interval[0] > held_out.interval[1]
        return "carries facts" if apart and self.difference >= self.options.least_difference else "no sign of facts"

    def in_words(self) -> list[str]:
        """The report as lines of text, the verdict first."""
        options = self.options
        rule = (
            f"unknown: the reference, told the form, gives the token less than {options.unknown_below:.0%}; memorised: the tuned "
            f"model lifts it by more than {options.lifted_by:g} nat; facts are carried where training rows have at least "
            f"{100 * options.least_difference:.0f} points more of it than held-out rows, and the 95 % intervals are apart"
        )
        shares = f"memorised of unknown tokens: training rows {self.train.memorised}, held-out rows {self.held_out.memorised}"
        lines = [f"{self.verdict}: {shares}", rule]
        if self.verdict == "too little to say":
            lines.append(
                f"there are {self.train.memorised.total} unknown tokens in training rows and {self.held_out.memorised.total} in "
                f"held-out rows, and {options.least_tokens} are needed on each side: give more rows"
            )
        if self.verdict == "carries facts":
            lines.append(
                "a large model would be pushed towards these facts, known or not; train with --keep-content hold (or rewrite)"
            )
        for name, side in (("training", self.train), ("held-out", self.held_out)):
            lines.append(
                f"{name} rows: lift {side.content_lift:+.2f} nats a token of content and {side.form_lift:+.2f} of form; "
                f"KL(tuned || reference) {side.content_divergence:.3f} at content ({side.num_content_tokens} tokens) and "
                f"{side.form_divergence:.3f} at form ({side.num_form_tokens})"
            )
        lines += [
            f"line {own.line}: ...{own.before}[{own.token}] {own.reference:.2%} -> {own.tuned:.2%}"
            for own in self.lifted
        ]
        return lines

    def as_json(self) -> dict[str, Any]:
        """For reports; means of nothing are null."""
        return {
            "verdict": self.verdict,
            "train": _side_json(self.train),
            "held_out": _side_json(self.held_out),
            "lifted": [vars(own) for own in self.lifted],
            "thresholds": self.options.model_dump(mode="json"),
        }


def _side_json(side: Side) -> dict[str, Any]:
    numbers = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in vars(side).items()
        if name != "memorised"
    }
    return {**numbers, "memorised": side.memorised.as_json()}


def check_facts(
    tuned: Any,
    tokenizer: Tokenizer,
    train: Sequence[Chat],
    held_out: Sequence[Chat],
    *,
    reference: Any = None,
    options: FactsOptions | None = None,
    max_length: int = 4096,
    on_progress: OnProgress | None = None,
) -> FactsReport:
    """Look for facts in the delta of a pair.

    Args:
        tuned: the tuned model, of transformers or PEFT.
        tokenizer: of both, with the chat template.
        train: rows that it was trained on.
        held_out: rows like them that it was not.
        reference: the model before tuning; None: `tuned` with its adapter off.
        options: thresholds.
        max_length: most tokens of a pass, at most the model's context.
        on_progress: called with the rows that are done and the number of all.

    Raises:
        InvalidOptionError: one side has no rows, or there is neither a reference nor an adapter.
        ChatTemplateError: as of `render`.
    """
    options = options or FactsOptions()
    for name, side in (("training", train), ("held-out", held_out)):
        if not side:
            raise InvalidOptionError(f"the check needs {name} rows, and there are none", option="held_out", value=0)
    if reference is None and not hasattr(tuned, "disable_adapter"):
        raise InvalidOptionError(
            "the tuned model has no adapter that could be switched off; give the reference", option="reference"
        )
    total = len(train) + len(held_out)
    measured = [
        _Measured(tuned, reference, tokenizer, options, max_length).over(
            side, train, lambda done, start=start: on_progress(start + done, total) if on_progress else None
        )
        for side, start in ((train, 0), (held_out, len(train)))
    ]
    best = sorted(measured[0].lifted, key=lambda own: math.log(own.reference + 1e-12) - math.log(own.tuned + 1e-12))
    return FactsReport(measured[0].side(), measured[1].side(), best[:EXAMPLES], options)


class _Measured:
    """Sums over the answers of one side."""

    def __init__(
        self, tuned: Any, reference: Any, tokenizer: Tokenizer, options: FactsOptions, max_length: int
    ) -> None:
        self._tuned, self._reference = tuned, reference
        self._tokenizer = tokenizer
        self._options = options
        self._max_length = max_length
        self._runs = SharedRuns()
        self._lifts: dict[bool, list[float]] = defaultdict(list)  # by whether it is form
        self._divergences: dict[bool, list[float]] = defaultdict(list)
        self._num_rows = self._num_unknown = self._num_memorised = 0
        self.lifted: list[Lifted] = []

    def over(self, chats: Sequence[Chat], examples: Sequence[Chat], tell: Any) -> _Measured:
        """Measure rows; `examples` show the form, and `tell` is called with the number of rows that are done."""
        options = self._options.hold
        shown = [render(self._tokenizer, chat.messages, tools=chat.tools, line=chat.line) for chat in examples]
        self._runs = SharedRuns.of(shown, share=options.shared)
        rows: list[tuple[Chat, Rendered, Rendered]] = []
        for chat in chats:
            row = render(self._tokenizer, chat.messages, tools=chat.tools, line=chat.line)
            shots = pick_shots(examples, count=options.num_shots, seed=options.seed, without=chat)
            behind = render_told(self._tokenizer, chat, shots, plain=row, max_length=self._max_length)
            if behind is not None and row.num_answer_tokens:
                rows.append((chat, row, behind))
        rows.sort(key=lambda each: len(each[2]))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            plain_rows, told_rows = [row for _, row, _ in some], [told for _, _, told in some]
            reference = self._tuned if self._reference is None else self._reference
            adapter = self._reference is not None
            before = dict(answer_logprobs(reference, plain_rows, adapter=adapter))
            after = dict(answer_logprobs(self._tuned, plain_rows))
            for place, told in answer_logprobs(reference, told_rows, adapter=adapter):
                chat, row, _ = some[place]
                self._add(chat, row, before.pop(place), after.pop(place), told)
            tell(min(start + ROWS_AT_ONCE, len(rows)))
        return self

    def _add(self, chat: Chat, row: Rendered, before: torch.Tensor, after: torch.Tensor, told: torch.Tensor) -> None:
        """Add one row; log-probabilities are [num_answer_tokens, vocab]."""
        marked = mark(row, before, told, self._options.hold, shared=self._runs.places(row))
        places = [place for place, own in enumerate(row.is_answer) if own]
        targets = answer_ids(row).to(told.device)[:, None]
        reference, tuned, when_told = (side.gather(-1, targets)[:, 0].tolist() for side in (before, after, told))
        divergences = torch.where(after > -math.inf, after.exp() * (after - before), 0.0).sum(dim=-1).tolist()
        self._num_rows += 1
        found: list[Lifted] = []
        for index, place in enumerate(places):
            is_form = marked.kinds[place] == Kind.FORM
            lift = tuned[index] - reference[index]
            self._lifts[is_form].append(lift)
            self._divergences[is_form].append(divergences[index])
            if is_form or when_told[index] >= math.log(self._options.unknown_below):
                continue
            self._num_unknown += 1
            if lift > self._options.lifted_by:
                self._num_memorised += 1
                context = row.token_ids[max(0, place - CONTEXT_TOKENS) : place]
                found.append(
                    Lifted(
                        chat.line,
                        str(self._tokenizer.decode(context, skip_special_tokens=False)),
                        str(self._tokenizer.decode([row.token_ids[place]], skip_special_tokens=False)),
                        math.exp(reference[index]),
                        math.exp(tuned[index]),
                    )
                )
        if found:
            self.lifted.append(max(found, key=lambda own: own.tuned / max(own.reference, 1e-12)))

    def side(self) -> Side:
        """What came of it."""
        return Side(
            num_rows=self._num_rows,
            num_form_tokens=len(self._lifts[True]),
            num_content_tokens=len(self._lifts[False]),
            content_lift=_mean(self._lifts[False]),
            form_lift=_mean(self._lifts[True]),
            content_divergence=_mean(self._divergences[False]),
            form_divergence=_mean(self._divergences[True]),
            memorised=Share(self._num_memorised, self._num_unknown),
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
