"""An engine that answers as a model of a family would: a tiny random one where a grammar demands the answer, else told what to say.

Prompts go through the family's template and tokenizer as in the real engine, grammars are compiled and must let the told text
through, and control tokens stay in the text or leave it as the request says.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from eft_engine import (
    Engine,
    EngineConfig,
    GenerationDelta,
    PromptOptions,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    Usage,
)
from eft_engine.config import Grammar
from eft_engine.text.grammar import GrammarCompiler
from eft_engine.text.prompt import PromptTokenizers, render_prompt
from tests.families.imitations import Family
from tests.toy import make_model

CONTEXT_LEN = 16384
THOUGHT = "Hm."
"""What a model thinks that has to."""
METRICS = RequestMetrics(queue_s=0.0, ttft_s=0.0, tpot_s=0.0, total_s=0.0, num_forwards={})


class NotAllowedError(AssertionError):
    """The grammar of a request does not let through what the family writes."""


class StandIn:
    """Behaves as an `Engine`. `says` is the next answer, with its markers; None: whatever the random network and the grammar make.

    `cuts` says how the told text arrives: word by word, character by character, or in random pieces. What the network made once is
    repeated when the same is asked again.
    """

    def __init__(self, family: Family, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.family = family
        self.own_tokenizer = tokenizer or family.make_tokenizer()
        self.says: str | None = None
        self.cuts = "words"
        self.checks_grammars = True
        """Whether the told text must be one that the request's grammar lets through."""
        self.cut_at: int | None = None
        """How many tokens of the told text `max_tokens` leaves of it; None: there is room for all."""
        self.watch: Callable[[str], None] | None = None
        """Is told what was handed out so far, each time that more is wanted."""
        self.prompts: list[list[int]] = []
        """Token ids of all prompts."""
        self.sampling = SamplingParams()
        """How the last answer is sampled."""
        network = make_model(
            "llama", hidden_size=16, num_layers=1, vocab_size=len(self.own_tokenizer), context_len=CONTEXT_LEN
        )
        vocab = self.own_tokenizer.get_vocab()
        ends = [vocab[token] for token in (family.end, *family.further_ends)]
        network.config.eos_token_id = network.generation_config.eos_token_id = ends
        self.engine = Engine.from_models(network, tokenizer=self.own_tokenizer, config=EngineConfig())
        self._end, self._ends = ends[0], frozenset(ends)
        self._compiler = GrammarCompiler(self.own_tokenizer, width=len(self.own_tokenizer), eos_token_ids=self._ends)
        self._tokenizers = PromptTokenizers(self.own_tokenizer, self.own_tokenizer, self.own_tokenizer)
        self._random = random.Random(0)
        self._allowed: dict[str, bool] = {}
        self._made: dict[str, list[GenerationDelta]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    # ---- what tests ask ----------------------------------------------------------------------------------------------

    @property
    def prompt(self) -> str:
        """The last prompt as text."""
        return str(self.own_tokenizer.decode(self.prompts[-1], skip_special_tokens=False))

    def allows(self, text: str) -> bool:
        """Whether the grammar of the last request lets the model write this and end."""
        token_ids = self._ids(self._in_full(text))
        if token_ids and token_ids[-1] in self._ends:
            token_ids.pop()
        return self._allows(self.sampling.grammar, token_ids)

    def _in_full(self, text: str) -> str:
        """What the model writes: it ends the thought that a prompt has begun, where the text does not do that itself."""
        is_open = self.prompt.rfind("<think>") > self.prompt.rfind("</think>")
        return f"{THOUGHT}\n</think>\n\n{text}" if is_open and "</think>" not in text else text

    # ---- what an engine does -----------------------------------------------------------------------------------------

    def stream(
        self,
        prompt: Any,
        *,
        sampling: SamplingParams | None = None,
        prompt_options: PromptOptions | None = None,
        **options: Any,
    ) -> Iterator[GenerationDelta]:
        """See `Engine.stream`."""
        sampling, prompt_options = sampling or SamplingParams(), prompt_options or PromptOptions()
        self._look_at(prompt, sampling, prompt_options)
        if self.says is not None:
            return self._say(self._in_full(self.says), sampling)
        key = f"{self.prompts[-1]} {sampling.model_dump_json()}"
        if key not in self._made:
            deltas = self.engine.stream(prompt, sampling=sampling, prompt_options=prompt_options, **options)
            self._made[key] = list(deltas)
        return (delta for delta in self._made[key])

    async def astream(self, prompt: Any, **options: Any) -> AsyncIterator[GenerationDelta]:
        """See `Engine.astream`."""
        for delta in self.stream(prompt, **options):
            yield delta

    def _look_at(self, prompt: Any, sampling: SamplingParams, prompt_options: PromptOptions) -> None:
        self.prompts.append(list(render_prompt(prompt, prompt_options, self._tokenizers).base))
        self.sampling = sampling

    def _say(self, text: str, sampling: SamplingParams) -> Iterator[GenerationDelta]:
        token_ids = [*self._ids(text), self._end]
        stops = self._ends | set(sampling.stop_token_ids)
        last = next(index for index, own in enumerate(token_ids) if own in stops)
        is_cut = self.cut_at is not None and self.cut_at <= last
        shown = token_ids[: self.cut_at if is_cut else last]
        if self.checks_grammars and not self._allows(sampling.grammar, shown, is_over=not is_cut):
            raise NotAllowedError(f"{self.family.name}: the grammar does not allow {text!r}: {sampling.grammar}")
        token_ids = shown if is_cut else token_ids[: last + 1]
        told = self._text(shown, sampling)
        for stop in sampling.stop:
            told = told.partition(stop)[0]
        finish_reason: Literal["stop", "length"] = "length" if is_cut else "stop"
        output = RequestOutput(
            request_id="told",
            text=told,
            token_ids=tuple(token_ids),
            finish_reason=finish_reason,
            stop_reason=None if is_cut else token_ids[-1],
            usage=Usage(len(self.prompts[-1]), len(token_ids)),
            metrics=METRICS,
            reward_weights={},
        )
        sent = ""
        for piece in self._cut(told):
            yield GenerationDelta(piece, token_ids=tuple(self._ids(piece)))
            sent += piece
            if self.watch is not None:
                self.watch(sent)
        yield GenerationDelta("", finish_reason=finish_reason, output=output)

    def _text(self, shown: Sequence[int], sampling: SamplingParams) -> str:
        """The text of an answer as the engine shows it, from its tokens without the one that ends it."""
        return str(self.own_tokenizer.decode(shown, skip_special_tokens=sampling.skip_special_tokens))

    def _cut(self, text: str) -> Iterator[str]:
        match self.cuts:
            case "characters":
                yield from text
            case "pieces":
                while text:
                    size = self._random.randint(1, 20)
                    yield text[:size]
                    text = text[size:]
            case _:
                yield from re.findall(r"\s?\w+|.", text, flags=re.DOTALL)

    def _ids(self, text: str) -> list[int]:
        return list(self.own_tokenizer.encode(text, add_special_tokens=False))

    def _allows(self, grammar: Grammar | None, token_ids: Sequence[int], *, is_over: bool = True) -> bool:
        if grammar is None:
            return True
        key = f"{is_over} {grammar.model_dump_json()} {token_ids}"
        if key not in self._allowed:
            state = self._compiler.compile(grammar)
            follows = list(state.valid_prefix(token_ids)) == list(token_ids)
            for token_id in token_ids if follows else ():
                state.commit(token_id)
            self._allowed[key] = follows and (state.is_accepting or not is_over)
        return self._allowed[key]


def markers_in(token_ids: Sequence[int], stand_in: StandIn) -> Mapping[str, int]:
    """How often each of the family's markers occurs in a prompt, as the token that gives it structure."""
    vocab = stand_in.own_tokenizer.get_vocab()
    return {marker: list(token_ids).count(vocab[marker]) for marker in stand_in.family.all_markers if marker in vocab}
