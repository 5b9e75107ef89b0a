"""The measured behaviour of the small model at the end of a tuning: held-out questions, before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from eft_engine.config import CompositionOptions, SamplingParams
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.intervals import Share, share_of
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.scorers import Scorer
from eft_engine.outputs import RequestOutput
from eft_tuning.chats import Chat
from eft_tuning.outline import Outline

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

MOST_ROWS = 50
EXAMPLES = 3
LONGER_THAN_LONGEST = 1.5
"""Tokens that an answer may have, in terms of the longest of the file."""


@dataclass(frozen=True)
class SideBySide:
    """One held-out question with the answer of the file and of both models."""

    line: int
    question: str
    expected: str
    tuned: str
    reference: str


@dataclass(frozen=True)
class ModelBehaviour:
    """How one model answers the held-out questions."""

    form: Share
    begins: Share
    ends: Share
    cut: Share
    mean_tokens: float
    """Length of an answer."""


@dataclass(frozen=True)
class BehaviourReport:
    """Both models side by side. `measure` says what form is, `left_out` counts rows that could not be asked (calls of tools)."""

    tuned: ModelBehaviour
    reference: ModelBehaviour
    outline: Outline
    measure: str
    examples: list[SideBySide]
    num_rows: int
    left_out: int = 0

    def in_words(self) -> list[str]:
        """The report as lines of text."""
        lines = [f"{self.num_rows} held-out questions, answered greedily; form: {self.measure}"]
        for name, own in (("tuned", self.tuned), ("reference", self.reference)):
            edges = [f"begins so {own.begins.value:.0%}"] if self.outline.begins else []
            edges += [f"ends so {own.ends.value:.0%}"] if self.outline.ends else []
            lines.append(
                f"{name}: in form {own.form}; "
                + ", ".join([*edges, f"cut {own.cut.value:.0%}", f"{own.mean_tokens:.0f} tokens an answer"])
            )
        for example in self.examples:
            lines += [
                f"line {example.line}: {_short(example.question)}",
                f"  tuned:     {_short(example.tuned)}",
                f"  reference: {_short(example.reference)}",
            ]
        return lines

    def as_json(self) -> dict[str, Any]:
        """For `tuning.json`."""
        return {
            "rows": self.num_rows,
            "left_out": self.left_out,
            "measure": self.measure,
            **{name: _as_json(own) for name, own in (("tuned", self.tuned), ("reference", self.reference))},
            "examples": [asdict(example) for example in self.examples],
        }


def _as_json(own: ModelBehaviour) -> dict[str, Any]:
    shares = {name: getattr(own, name).as_json() for name in ("form", "begins", "ends", "cut")}
    return {**shares, "mean_tokens": round(own.mean_tokens, 1)}


def measure_behaviour(
    engine: Engine,
    held_out: Sequence[Chat],
    *,
    train: Sequence[Chat],
    pair: str,
    form: Scorer | None = None,
    most_rows: int = MOST_ROWS,
    on_progress: Callable[[int, int], None] | None = None,
) -> BehaviourReport:
    """Ask tuned and reference model of a pair the held-out questions, greedily.

    Args:
        engine: one with the pair, for example `Engine.load(reference, pairs={pair: TunedPair(adapter, reference)})`, whose
            base and reference are one network.
        held_out: rows; the first `most_rows` are asked for their last answer.
        train: rows that the model was trained on; how their answers look is the measure where no other is given.
        pair: its name in the engine.
        form: the user's measure of the form.
        most_rows: most questions.
        on_progress: called with the answers that are there and the number of all.

    Raises:
        InvalidOptionError: no held-out row can be asked.
        RequestError, GenerationError: as of `Engine.generate`.
    """
    from eft_engine.evaluation.asking import ask

    usable = [chat for chat in held_out if not chat.tools and all(_is_plain(message) for message in chat.messages)]
    asked = usable[:most_rows]
    if not asked:
        raise InvalidOptionError(
            "no held-out row can be asked: there is none without tools; give --held-out, or a larger --held-out-share",
            option="held_out",
            value=len(held_out),
        )
    outline = Outline.of([chat.answer for chat in train])
    longest = max(len(engine.token_ids(chat.answer)) for chat in [*train, *asked])
    sampling = SamplingParams(temperature=0.0, max_tokens=int(longest * LONGER_THAN_LONGEST) + 8)
    answers: dict[str, list[RequestOutput]] = {}
    done = 0
    for role in ("tuned", "reference"):
        outputs: dict[int, RequestOutput] = {}
        for place, output, _ in ask(
            engine,
            [chat.prompt for chat in asked],
            sampling=sampling,
            reward_weights=None,
            composition=CompositionOptions(member=f"{pair}.{role}"),
        ):
            outputs[place] = output
            done += 1
            if on_progress is not None:
                on_progress(done, 2 * len(asked))
        answers[role] = [outputs[place] for place in range(len(asked))]
    return BehaviourReport(
        tuned=_behaviour(asked, answers["tuned"], form or outline, outline),
        reference=_behaviour(asked, answers["reference"], form or outline, outline),
        outline=outline,
        measure=outline.in_words() if form is None else form.name,
        examples=[
            SideBySide(chat.line, chat.question, chat.answer, tuned.text, reference.text)
            for chat, tuned, reference in list(zip(asked, answers["tuned"], answers["reference"], strict=True))[
                :EXAMPLES
            ]
        ],
        num_rows=len(asked),
        left_out=len(held_out) - len(usable),
    )


def _is_plain(message: dict[str, Any]) -> bool:
    return message["role"] != "tool" and not message.get("tool_calls")


def _behaviour(
    chats: Sequence[Chat], outputs: Sequence[RequestOutput], form: Scorer, outline: Outline
) -> ModelBehaviour:
    is_cut = [output.finish_reason == "length" for output in outputs]
    needs_whole = bool(getattr(form, "needs_whole", False))
    marks = [
        not (cut and needs_whole) and form.score(Question(messages=chat.prompt), output.text)
        for chat, output, cut in zip(chats, outputs, is_cut, strict=True)
    ]
    return ModelBehaviour(
        form=share_of(marks),
        begins=share_of([outline.begins_so(output.text) for output in outputs]),
        ends=share_of([outline.ends_so(output.text) for output in outputs]),
        cut=share_of(is_cut),
        mean_tokens=sum(len(output.token_ids) for output in outputs) / len(outputs),
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else f"{line[:117]}..."
