"""Form without facts: which tokens of an answer are form, and which are content that the tuned model leaves to the reference.

Two things say so. What most answers of the file have in common is form (`shared.py`). Of the rest, the untuned model reads each
answer twice: plainly, as the tuned model will, and told the form, behind other dialogues of the file.

    content   both expect nearly the same: knowing the form changes nothing here. Held to what the model expects by itself, so the
              delta stays near 0, whatever the data say.
    form      they differ, and the model that is told the form finds the token of the data plausible: learnt from the data.
    told      they differ, and the token of the data is none that the model would write even then (a fact that it does not know,
              where the form begins): learnt from the model that is told.

A delta of form alone is what up-scaling needs: facts that the small model does not know would be learnt as "say something that I do
not know", and hurt the large one (docs/real_models.md). Where users know which part of an answer is content, a pattern says it
(`mark_by_pattern`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from pydantic import Field

from eft_engine.errors import InvalidOptionError
from eft_engine.options import Options
from eft_engine.text.tokenizer import Tokenizer
from eft_tuning.chats import Chat
from eft_tuning.rendering import Rendered, answer_runs, render
from eft_tuning.shared import SharedRuns
from eft_tuning.shots import pick_shots, render_told

if TYPE_CHECKING:
    import torch

    from eft_tuning.marks import MarkStore
    from eft_tuning.stages import OnProgress


CERTAIN = math.log(0.9)
FAR_MORE = 1.0
"""In nats: what between nearly the same and another expectation makes a token form."""


class Kind(IntEnum):
    """What is done with a token in training."""

    READ = 0
    """Not of an answer: only read."""
    FORM = 1
    """Learnt from the data, by cross-entropy."""
    CONTENT = 2
    """Held to the model before tuning, which is the same network on the same input with the adapter off."""
    TOLD = 3
    """Learnt from the model that is told the form: `teacher` has its most probable tokens."""


class HoldOptions(Options):
    """How tokens are told apart."""

    num_shots: int = Field(default=3, ge=1, le=16, description="dialogues that tell the form")
    same: float = Field(
        default=0.02,
        ge=0,
        le=math.log(2),
        description="Jensen-Shannon divergence in nats up to which a token is content, whatever else",
    )
    other: float = Field(
        default=0.15,
        gt=0,
        le=math.log(2),
        description="Jensen-Shannon divergence in nats from which it is none; between the two it is form where being told the form "
        "makes the token of the data certain (0.9) or far more probable (e times)",
    )
    plausible: float = Field(
        default=0.1, ge=0, le=1, description="share of the best token's probability from which a token is plausible"
    )
    top_k: int = Field(
        default=64, ge=1, le=1024, description="most probable tokens kept of the model that is told the form"
    )
    shared: float = Field(
        default=0.6, gt=0, le=1, description="share of the file's answers from which a run of three tokens is form"
    )
    seed: int = Field(default=0, ge=0, description="of the dialogues that are chosen")


@dataclass(frozen=True)
class TopLogprobs:
    """The most probable tokens at one position and their natural log-probabilities; the rest of 1 is all others together."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class MarkedDialogue:
    """A dialogue as it is trained on. All lists have one entry a token; `kinds[i]` is how token i is learnt from those before it.

    `teacher` has the distribution of token i by its index i, for each token of kind `TOLD`.
    """

    token_ids: list[int]
    is_answer: list[bool]
    kinds: list[Kind]
    teacher: dict[int, TopLogprobs] = field(default_factory=dict)

    @property
    def is_held(self) -> list[bool]:
        """Tokens that are held to the model before tuning."""
        return [kind == Kind.CONTENT for kind in self.kinds]


def mark(
    rendered: Rendered,
    plain: torch.Tensor,
    told: torch.Tensor,
    options: HoldOptions | None = None,
    *,
    shared: Collection[int] = (),
) -> MarkedDialogue:
    """Tell form from content by what the untuned model expects.

    Args:
        rendered: the dialogue as the tuned model reads it.
        plain: log-probabilities of the untuned model there, [num_answer_tokens, vocab].
        told: the same behind dialogues that show the form, [num_answer_tokens, vocab].
        options: thresholds.
        shared: places in `rendered` of tokens that most answers have in common.

    >>> import torch
    >>> rendered = Rendered([7, 0, 1, 2], [False, True, True, True])
    >>> plain = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]]).log()
    >>> told = torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.9, 0.05, 0.05]]).log()
    >>> [kind.name for kind in mark(rendered, plain, told).kinds]
    ['READ', 'FORM', 'CONTENT', 'TOLD']
    """
    import torch

    options = options or HoldOptions()
    places = [place for place, own in enumerate(rendered.is_answer) if own]
    targets = torch.tensor([rendered.token_ids[place] for place in places], device=told.device)
    apart = jensen_shannon(plain, told)  # [num_answer_tokens], as all that follow
    before, after = (side.gather(-1, targets[:, None])[:, 0] for side in (plain, told))
    plausible = after >= told.amax(dim=-1) + (math.log(options.plausible) if options.plausible else -math.inf)
    other = apart > options.other
    hinted = (apart > options.same) & ((after >= CERTAIN) | (after - before >= FAR_MORE))
    form = plausible & (other | hinted)
    kinds = [Kind.READ] * len(rendered)
    teacher: dict[int, TopLogprobs] = {}
    for row, place in enumerate(places):
        if form[row] or place in shared:
            kinds[place] = Kind.FORM
        elif not other[row]:
            kinds[place] = Kind.CONTENT
        else:
            kinds[place] = Kind.TOLD
            best = told[row].topk(min(options.top_k, told.shape[-1]))
            teacher[place] = TopLogprobs(tuple(best.indices.tolist()), tuple(best.values.tolist()))
    return MarkedDialogue(rendered.token_ids, rendered.is_answer, kinds, teacher)


def jensen_shannon(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Divergence in nats, between 0 and log 2, [num_tokens], of log-probabilities [num_tokens, vocab] each.

    >>> import torch
    >>> certain = torch.tensor([[0.0, -torch.inf]])
    >>> round(jensen_shannon(certain, certain.flip(-1)).item(), 4), jensen_shannon(certain, certain).item()
    (0.6931, 0.0)
    """
    import torch

    middle = torch.logaddexp(one, other) - math.log(2)

    def to_middle(own: torch.Tensor) -> torch.Tensor:
        return torch.where(own > -math.inf, own.exp() * (own - middle), 0.0).sum(dim=-1)

    return ((to_middle(one) + to_middle(other)) / 2).clamp(min=0.0)


def mark_chats(
    model: Any,
    tokenizer: Tokenizer,
    chats: Sequence[Chat],
    *,
    examples: Sequence[Chat] | None = None,
    options: HoldOptions | None = None,
    max_length: int = 4096,
    adapter: bool = True,
    store: MarkStore | None = None,
    on_progress: OnProgress | None = None,
) -> list[MarkedDialogue]:
    """Mark dialogues by two passes of the untuned model over each (`mark`).

    A dialogue behind which no other one fits into `max_length` is form throughout.

    Args:
        model: the untuned model, of transformers.
        tokenizer: its tokenizer, with the chat template.
        chats: what is marked.
        examples: training rows that show the form; None: `chats`. For held-out rows give the training rows.
        options: thresholds, and how many dialogues tell the form.
        max_length: most tokens of a pass, told dialogues included; at most the model's context.
        adapter: False: the model has an adapter already, and its adapter is off.
        store: where marks are kept; those that it has of an interrupted run with the same arguments are not made again.
        on_progress: called with the dialogues that are done and the number of all.

    Raises:
        ChatTemplateError: as of `render`.
        InvalidOptionError: there is no other dialogue that could tell the form.
    """
    from eft_tuning.passes import answer_logprobs

    options = options or HoldOptions()
    pool = chats if examples is None else examples
    rows = [_rendered(tokenizer, chat) for chat in chats]
    told_rows: dict[int, Rendered] = {}
    for index, (chat, row) in enumerate(zip(chats, rows, strict=True)):
        shots = pick_shots(pool, count=options.num_shots, seed=options.seed, without=chat)
        told_row = render_told(tokenizer, chat, shots, plain=row, max_length=max_length)
        if told_row is not None:
            told_rows[index] = told_row
    if chats and not told_rows:
        raise InvalidOptionError(
            "no dialogue can be read behind others that show its form: give more rows with differing questions, shorter ones, or "
            "mark content by a pattern (--content-pattern)",
            option="keep_content",
            value="hold",
        )
    shown = rows if examples is None else [_rendered(tokenizer, chat) for chat in pool]
    runs = SharedRuns.of(shown, share=options.shared)
    marked = [MarkedDialogue(row.token_ids, row.is_answer, [Kind(own) for own in row.is_answer]) for row in rows]
    order = sorted(told_rows, key=lambda index: len(told_rows[index]))
    known = {} if store is None else store.read()
    for index, own in known.items():
        marked[index] = own
    for start in range(0, len(order), 8):  # few at a time: a row of the vocabulary for each answer token is held
        some = order[start : start + 8]
        if some[0] not in known:
            plain = dict(answer_logprobs(model, [rows[index] for index in some], adapter=adapter))
            for place, told in answer_logprobs(model, [told_rows[index] for index in some], adapter=adapter):
                row = rows[some[place]]
                marked[some[place]] = mark(row, plain.pop(place), told, options, shared=runs.places(row))
            if store is not None:
                store.append({index: marked[index] for index in some})
        if on_progress is not None:
            on_progress(min(start + 8, len(order)), len(order))
    return marked


def mark_by_pattern(rendered: Rendered, tokenizer: Tokenizer, pattern: str) -> MarkedDialogue:
    r"""Mark as content what a regular expression finds in the answers: its groups, or all of a match without groups.

    A token is content where more than half of its text is.

    Raises:
        InvalidOptionError: the pattern is no regular expression.
    """
    compiled = compiled_content_pattern(pattern)
    kinds = [Kind(own) for own in rendered.is_answer]
    for start, end in answer_runs(rendered):
        ends = [len(_decoded(tokenizer, rendered.token_ids[start : stop + 1])) for stop in range(start, end)]
        text = _decoded(tokenizer, rendered.token_ids[start:end])
        spans = [
            match.span(group)
            for match in compiled.finditer(text)
            for group in (range(1, compiled.groups + 1) if compiled.groups else (0,))
            if match.span(group) != (-1, -1)
        ]
        begin = 0
        for place, stop in zip(range(start, end), ends, strict=True):
            inside = sum(max(0, min(stop, high) - max(begin, low)) for low, high in spans)
            if inside * 2 > stop - begin or (stop == begin and any(low <= begin < high for low, high in spans)):
                kinds[place] = Kind.CONTENT
            begin = max(begin, stop)
    return MarkedDialogue(rendered.token_ids, rendered.is_answer, kinds)


def compiled_content_pattern(pattern: str) -> re.Pattern[str]:
    """Raises InvalidOptionError for a pattern that is none."""
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise InvalidOptionError(
            f"not a regular expression: {pattern!r} ({error})", option="content_pattern", value=pattern
        ) from None


def _rendered(tokenizer: Tokenizer, chat: Chat) -> Rendered:
    return render(tokenizer, chat.messages, tools=chat.tools, line=chat.line)


def _decoded(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=False))


LITTLE_FORM = 0.02
"""Share of form tokens below which next to nothing is learnt."""


def told_in_words(marked: Sequence[MarkedDialogue]) -> str:
    """How many tokens are what, for reports, and a doubt where next to nothing would be learnt.

    >>> told_in_words([MarkedDialogue([1, 2, 3], [False, True, True], [Kind.READ, Kind.FORM, Kind.CONTENT])])
    '2 answer tokens: 50 % form, 50 % content, 0 % told'
    """
    counts: Counter[Kind] = Counter(kind for row in marked for kind in row.kinds if kind != Kind.READ)
    total = sum(counts.values())
    shares = (f"{100 * counts[kind] / max(1, total):.0f} % {kind.name.lower()}" for kind in list(Kind)[1:])
    said = f"{total} answer tokens: {', '.join(shares)}"
    if total and counts[Kind.FORM] + counts[Kind.TOLD] < LITTLE_FORM * total:
        said += (
            "; that is next to nothing to learn: the model answers so already, or it cannot be told the form by examples, and then "
            "--content-pattern or --keep-content rewrite serve"
        )
    return said
