"""The judge of all that changes what is composed: the formulas as they are written, over transformers models without caches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eft_engine.decoding.races import race_times
from tests.toy import END_ID, ToyTrio


class Judge:
    """Log-probabilities of the members of a trio after any tokens, remembered."""

    def __init__(self, trio: ToyTrio) -> None:
        self.trio = trio
        self._of = functools.lru_cache(maxsize=None)(self._computed)

    @torch.inference_mode()
    def _computed(self, member: str, token_ids: tuple[int, ...]) -> Tensor:
        model: PreTrainedModel = getattr(self.trio, member)
        return model(torch.tensor([token_ids])).logits[0, -1].float().log_softmax(dim=-1)

    def of(self, member: str, prompt: str, output_ids: Sequence[int]) -> Tensor:
        """Of base, tuned or reference, after a prompt and what was written; `[width]`."""
        return self._of(member, (*self.trio.tokenizer.encode(prompt), *output_ids))


@dataclass(frozen=True)
class Written:
    """What is known before a token is drawn."""

    judge: Judge
    prompt: str
    output_ids: tuple[int, ...]

    def of(self, member: str, prompt: str | None = None) -> Tensor:
        """A member's log-probabilities, with its own prompt or another."""
        return self.judge.of(member, self.prompt if prompt is None else prompt, self.output_ids)

    @property
    def position(self) -> int:
        """Tokens written."""
        return len(self.output_ids)

    @property
    def text(self) -> bytes:
        """What is written; toy tokens are bytes, and control tokens count as their texts."""
        tokenizer = self.judge.trio.tokenizer
        return b"".join(
            tokenizer.decode([token]).encode() if token >= END_ID else _byte_of(tokenizer, token)
            for token in self.output_ids
        )


def _byte_of(tokenizer: object, token_id: int) -> bytes:
    from eft_engine.text.token_bytes import TokenBytes

    found = TokenBytes(tokenizer).of(token_id)  # type: ignore[arg-type]
    assert found is not None, "a byte"
    return bytes(found)


Scores = Callable[[Written], Tensor]
"""Composed scores `[width]`, at the next position."""


@dataclass(frozen=True)
class Draw:
    """How the slow loop draws."""

    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 16
    salt: int = 0
    bias: dict[int, float] = field(default_factory=dict)


def slow_loop(judge: Judge, prompt: str, scores: Scores, draw: Draw, *, written: Sequence[int] = ()) -> list[int]:
    """One token after the other, each from all that is before it; goes on behind `written`."""
    output_ids = list(written)
    while len(output_ids) < draw.max_tokens:
        own = scores(Written(judge, prompt, tuple(output_ids))).clone()
        for token_id, bias in draw.bias.items():
            own[token_id] += bias
        if draw.temperature == 0.0:
            token_id = int(own.argmax())
        else:
            times = race_times(draw.seed, len(output_ids), len(own), salt=draw.salt)
            token_id = int(((own / draw.temperature).softmax(dim=-1) / times).argmax())
        output_ids.append(token_id)
        if token_id == END_ID:
            break
    return output_ids
