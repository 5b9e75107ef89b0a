"""Whether the engine writes exactly what the three-model loop writes, for one case of the survey.

The loop runs over the three models' own uncached forward. The engine gets four unequal prompts at once, in chunks, with drafts, at
every weight, and from the second weight on prompts that it has read before. Tokens are compared exactly; log-probabilities too,
loosely, since some random models hardly vary their tokens.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import torch
from transformers import PreTrainedModel

from eft_engine import SamplingParams, SpeculationOptions
from eft_engine.errors import EFTError, EngineStepError
from tests.survey.tiny import tiny_model
from tests.toy import END_ID, ToyTrio, make_tokenizer

PROMPTS = ("Hello", "Once upon a", "abcdefgh, abcdefgh, ", "0123456789, 0123456789, the sky is so blue")
"""5, 11, 20 and 42 tokens: within every window; beyond it; across the original length of long rotary factors while the text is
written; beyond all of that, and more than one chunk of prefill."""

WEIGHTS = (0.0, 0.7, 1.0)
MAX_TOKENS = 12
PREFILL_CHUNK_LEN = 16
TIE = 1e-4
"""Scores of the composition that lie nearer than this are not told apart: rounding decides between them."""

LOGPROB_TOLERANCE = 0.02
"""Largest difference of a token's log-probability. Rounding makes thousandths of it; a wrong state or mask makes tenths."""

Kind = Literal["exact", "refused", "WRONG", "UNTYPED", "LEFT BEHIND", "cannot be built"]


@dataclass(frozen=True)
class Verdict:
    """What became of one case; `detail` says why or where."""

    name: str
    kind: Kind
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class JudgedText:
    """The loop's greedy tokens, the log-probability of each, and by how much its score beats the second best."""

    token_ids: list[int]
    logprobs: list[float]
    margins: list[float]


class Loop:
    """`tests.toy.naive_greedy` with what it thought on the way; what several weights read alike is computed once."""

    def __init__(self, trio: ToyTrio) -> None:
        self._trio = trio
        self._known: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}

    @torch.inference_mode()
    def text(self, prompt_ids: Sequence[int], *, weight: float) -> JudgedText:
        """The loop's text behind a prompt. The pair is not run at weight 0."""
        trio, token_ids, logprobs, margins = self._trio, tuple(prompt_ids), [], []
        for _ in range(MAX_TOKENS):
            scores = self.logprobs(trio.base, token_ids)
            if weight:
                tuned, reference = (self.logprobs(model, token_ids) for model in (trio.tuned, trio.reference))
                scores = scores + weight * (tuned - reference)
            best, second = scores.log_softmax(dim=-1).topk(2).values.tolist()
            logprobs.append(best)
            margins.append(best - second)
            token_ids = (*token_ids, int(scores.argmax()))
            if token_ids[-1] == END_ID:
                break
        return JudgedText(list(token_ids[len(prompt_ids) :]), logprobs, margins)

    def logprobs(self, model: PreTrainedModel, token_ids: tuple[int, ...]) -> torch.Tensor:
        """Log-probabilities `[vocabulary]` of the token behind these."""
        key = id(model), token_ids
        if key not in self._known:
            logits = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits
            self._known[key] = logits[0, -1].log_softmax(dim=-1)
        return self._known[key]


def make_trio(name: str) -> ToyTrio:
    """A base that is wider than its pair, all of the case with this name."""
    return ToyTrio(
        base=tiny_model(name, seed=1, hidden_size=64),
        tuned=tiny_model(name, seed=2),
        reference=tiny_model(name, seed=3),
        tokenizer=make_tokenizer(),
    )


def judge(name: str) -> Verdict:
    """Build the trio of a case, let the loop write, let the engine write, compare."""
    began = time.monotonic()
    kind, detail = _judged(name)
    return Verdict(name, kind, detail, time.monotonic() - began)


def _judged(name: str) -> tuple[Kind, str]:
    try:
        trio = make_trio(name)
        loop = Loop(trio)
        prompt_ids = [trio.tokenizer.encode(prompt) for prompt in PROMPTS]
        expected = {weight: [loop.text(ids, weight=weight) for ids in prompt_ids] for weight in WEIGHTS}
    except Exception as error:  # transformers raises what it likes
        return "cannot be built", in_one_line(error)
    if _left_behind(trio, loop, tuple(prompt_ids[0])) is not None:
        return "cannot be built", "its own forward says something else at every call"
    try:
        kind, detail = _compared(trio, expected)
    except EngineStepError as error:
        return "UNTYPED", f"{in_one_line(error)}; {in_one_line(error.__cause__)}"
    except EFTError as error:
        kind, detail = "refused", in_one_line(error)
    except Exception as error:  # what the survey looks for
        return "UNTYPED", in_one_line(error)
    left_behind = _left_behind(trio, loop, tuple(prompt_ids[0]))
    if kind == "WRONG" and looks_ahead(trio.base, prompt_ids[-1]):
        detail += "; its own logits change with tokens that come later"
    if left_behind is None or kind == "WRONG":
        return kind, detail
    return "LEFT BEHIND", f"{left_behind}, after: {kind} {detail}".rstrip()


@torch.inference_mode()
def looks_ahead(model: PreTrainedModel, token_ids: Sequence[int]) -> bool:
    """Whether later tokens change what a model's own forward says behind earlier ones, so that no cache can say the same."""
    whole = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    for end in range(1, len(token_ids)):
        logits = model(input_ids=torch.tensor([token_ids[:end]]), use_cache=False).logits[0, -1]
        if not (whole[end - 1] - logits).abs().max() <= LOGPROB_TOLERANCE:
            return True
    return False


def _left_behind(trio: ToyTrio, before: Loop, token_ids: tuple[int, ...]) -> str | None:
    """What the models compute otherwise than when `before` asked them; None: nothing, but for rounding."""
    after = Loop(trio)
    for name, model in (("base", trio.base), ("tuned", trio.tuned), ("reference", trio.reference)):
        try:
            difference = (after.logprobs(model, token_ids) - before.logprobs(model, token_ids)).abs().max().item()
        except Exception as error:  # whatever an engine left behind
            return f"{name} was given back broken: {in_one_line(error)}"
        if not difference <= TIE:
            return f"{name} was given back changed by {difference:.2g}"
    return None


def _compared(trio: ToyTrio, expected: Mapping[float, Sequence[JudgedText]]) -> tuple[Kind, str]:
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=0)
    drafts = SpeculationOptions(max_draft_tokens=3, adaptive=False, min_confidence=0.0, min_ngram_size=1)
    with trio.engine(prefill_chunk_len=PREFILL_CHUNK_LEN, speculation=drafts) as engine:
        for weight in WEIGHTS:
            outputs = engine.generate(list(PROMPTS), sampling=greedy, reward_weights=weight)
            for prompt, text, output in zip(PROMPTS, expected[weight], outputs, strict=True):
                logprobs = [own.logprob for own in output.logprobs or ()]
                wrong = difference(text, output.token_ids, logprobs)
                if wrong is not None:
                    return "WRONG", f"weight {weight}, prompt of {len(prompt)} tokens: {wrong}"
    return "exact", ""


def difference(expected: JudgedText, token_ids: Sequence[int], logprobs: Sequence[float]) -> str | None:
    """Where a text leaves the judge's; None: nowhere, or first where the judge's two best tokens are as good as equal."""
    pairs = zip_longest(expected.token_ids, token_ids)
    same = next((step for step, (own, other) in enumerate(pairs) if own != other), len(token_ids))
    for step, (own, other) in enumerate(zip(expected.logprobs[:same], logprobs[:same], strict=True)):
        if not abs(own - other) <= LOGPROB_TOLERANCE:
            return f"step {step}, log-probability {other:.3f} where the loop has {own:.3f}"
    if same == len(expected.token_ids) == len(token_ids):
        return None
    margin = expected.margins[min(same, len(expected.margins) - 1)]
    return None if margin < TIE else f"step {same}, another token, margin {margin:.2g}"


def in_one_line(error: BaseException | None) -> str:
    """Class, message and, for an error that is not the engine's own, the line that raised it."""
    if error is None:
        return "no cause"
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, EFTError) else f" ({place.filename.rsplit('/', 1)[-1]}:{place.lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
