"""From the arguments of a call to sequences: what is missing is filled in, everything is checked, prompts become token ids."""

from __future__ import annotations

import math
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as Seq
from typing import Any

from eft_engine.config import (
    CallDecision,
    CompositionOptions,
    EngineConfig,
    Grammar,
    Prompt,
    PromptOptions,
    PromptPair,
    RewardWeights,
    SamplingParams,
    SpeculationOptions,
    TokenIds,
    Verbatim,
    Weight,
    resolve_weights,
)
from eft_engine.decoding.composition import PairMembers
from eft_engine.engine.deciding import Deciding
from eft_engine.engine.metrics import EngineTotals
from eft_engine.engine.own_process import OwnProcess
from eft_engine.engine.prompt_sides import side_prompt
from eft_engine.engine.routing import BASE, Reader, Route, Stream, plan_route
from eft_engine.engine.sequence import Event, GenerationSequence, Redraw, Request, ScoringSequence, Sequence
from eft_engine.engine.steering import Steering
from eft_engine.errors import ContextOverflowError, EmptyPromptError, InvalidOptionError, UnknownTokenError
from eft_engine.models.loading import Trio, TrioMember
from eft_engine.models.planning import chat_member
from eft_engine.outputs import TextToken
from eft_engine.text.closing import Closing
from eft_engine.text.encoding import Encoder
from eft_engine.text.grammar import GrammarCompiler, GrammarState
from eft_engine.text.prompt import PromptTokenizers, RenderedPrompt, render_prompt
from eft_engine.text.token_bytes import TokenBytes
from eft_engine.text.tokenizer import skipped_tokens
from eft_engine.weights import is_schedule

MAX_ID_LEN = 200
"""Characters of the id that a caller gives a request."""

MakeSequence = Callable[[Callable[[Event], None]], Sequence]
"""A checked request; it becomes a sequence once it is known who is told about its events."""


class RequestMaker:
    """Makes the sequences of one engine. May be used from any thread: tokenizers, which may not, are behind a lock.

    All methods raise `ForkedEngineError` in a child of the engine's process.
    """

    def __init__(self, trio: Trio, weights: Mapping[str, Weight], config: EngineConfig, totals: EngineTotals) -> None:
        members = list(trio.members.values())
        chat = chat_member(list(trio.members))
        references = [own for own in members if own.name.endswith(".reference")]
        self.tokenizers = PromptTokenizers(
            base=members[BASE].tokenizer,
            tuned=trio.members[chat].tokenizer,
            reference=(references or members)[0].tokenizer,
            own={own.name: own.tokenizer for own in members if trio.vocabulary.unknown_ids.get(own.name)},
            unknown=trio.vocabulary.unknown_ids,
            keeps_tuned=bool(trio.vocabulary.kept),
        )
        self._output_member = chat if trio.vocabulary.kept else "base"
        self._trio = trio
        self._weights = weights
        self._config = config
        self._totals = totals
        self._tokenizer_lock = threading.Lock()
        self._encoder = Encoder(self._tokenizer_lock)
        self._longest_context = min(
            max(own.network.context_len for own in members), config.max_context_len or sys.maxsize
        )
        self._process = OwnProcess()
        self._eos_token_ids = trio.ends.ids
        self._skipped = skipped_tokens(self.tokenizers.output)
        self._token_bytes = TokenBytes(self.tokenizers.output)
        self._last_id: int | None = None
        self._grammars = GrammarCompiler(
            self.tokenizers.output,
            width=trio.vocabulary.width,
            eos_token_ids=self._eos_token_ids,
            masked_ids=trio.vocabulary.masked_ids,
        )

    def token_ids(self, text: str, *, must_fit: bool = False) -> list[int]:
        """A text as tokens that may be generated, without special ones at its ends. `must_fit`: see `render`."""
        self._process.check()
        context_len = self._longest_context if must_fit else None
        return list(
            self._encoder.encode(self.tokenizers.output, text, add_special_tokens=False, context_len=context_len)
        )

    def decode(self, token_ids: Seq[int]) -> str:
        """Tokens as one text, control tokens included; errors as for `_check_known`."""
        self._process.check()
        with self._tokenizer_lock:
            self._check_known(token_ids)
            return str(self.tokenizers.output.decode(list(token_ids), skip_special_tokens=False))

    def text_tokens(self, token_ids: Seq[int]) -> list[TextToken]:
        """What each token of a text stands for; errors as for `_check_known`."""
        self._process.check()
        found: list[TextToken] = []
        is_first = True
        with self._tokenizer_lock:
            self._check_known(token_ids)
            for token_id in token_ids:
                text = self._token_bytes.text_of(token_id, is_first=is_first)
                found.append(TextToken(token_id, text, self._token_bytes.of(token_id, is_first=is_first)))
                is_first = is_first and token_id in self._skipped
        return found

    def prompt_ids(self, prompt: Prompt, options: PromptOptions, *, must_fit: bool = False) -> tuple[int, ...]:
        """A prompt in the ids of the tokenizer that reads generated tokens; errors as for `render`."""
        return self.render(prompt, options, must_fit=must_fit).of(self._output_member)

    def _check_known(self, token_ids: Seq[int]) -> None:
        """With the lock held.

        Raises:
            UnknownTokenError: an id that the tokenizer has no token for.
        """
        if self._last_id is None:
            self._last_id = max(self.tokenizers.output.get_vocab().values())
        for token_id in token_ids:
            if not 0 <= token_id <= self._last_id:
                raise UnknownTokenError(
                    f"there is no token with the id {token_id}; the vocabulary has the ids 0 to {self._last_id}",
                    token_id=token_id,
                    member=self._output_member,
                )

    def render(self, prompt: Prompt, options: PromptOptions, *, must_fit: bool = False) -> RenderedPrompt:
        """A prompt as tokens, for every member. `must_fit`: one that is certain to be longer than any context is not tokenised.

        Raises:
            RequestError: the prompt is empty or malformed, names a token that there is not, or cannot fit.
        """
        self._process.check()
        if isinstance(prompt, TokenIds):
            with self._tokenizer_lock:
                self._check_known(prompt.ids)
        return render_prompt(
            prompt,
            options,
            self.tokenizers,
            encoder=self._encoder,
            context_len=self._longest_context if must_fit else None,
        )

    def generations(
        self,
        prompts: Seq[Prompt],
        sampling: Any,
        reward_weights: Any,
        composition: Any,
        speculation: Any,
        prompt_options: Any,
        batch: bool,
        request_id: str | None = None,
    ) -> list[MakeSequence]:
        """Check every request before any of them is submitted; arguments and errors as for `Engine.generate`."""
        count = len(prompts)
        columns = (
            prompts,
            _per_request(sampling, SamplingParams(), count, "sampling", batch=batch),
            _per_request(reward_weights, None, count, "reward_weights", batch=batch),
            _per_request(composition, CompositionOptions(), count, "composition", batch=batch),
            _per_request(speculation, self._config.speculation, count, "speculation", batch=batch),
            _per_request(prompt_options, PromptOptions(), count, "prompt_options", batch=batch),
            _request_ids(request_id, count, batch=batch),
        )
        return [self._generation(*row) for row in zip(*columns, strict=True)]

    def _generation(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        reward_weights: RewardWeights,
        composition: CompositionOptions,
        speculation: SpeculationOptions,
        prompt_options: PromptOptions,
        request_id: str,
    ) -> MakeSequence:
        weights = self._resolved(reward_weights, composition)
        decision = composition.call_decision
        deciding = None if decision is None else self._resolved(decision.weights, composition, over=weights)
        if deciding == weights:
            decision = deciding = None
        self._check_token_ids("stop_token_ids", sampling.stop_token_ids)
        self._check_token_ids("logit_bias", sampling.logit_bias)
        rendered = self.render(prompt, prompt_options, must_fit=True)
        readers = self._readers(prompt, rendered, prompt_options, composition)
        route = self._route(readers, [weights] if deciding is None else [weights, deciding], composition)
        room = self._room(route)
        grammar, closing = self._held(sampling.grammar, sampling, room)
        redraw = None if decision is None else self._redraw(decision, sampling, room)

        def make(emit: Callable[[Event], None]) -> Sequence:
            return GenerationSequence(
                self._request(route, readers, weights, composition, emit, request_id, deciding),
                sampling=sampling,
                speculation=speculation,
                prompt_ids=rendered.of(self._output_member),
                room=room,
                eos_token_ids=self._eos_token_ids,
                tokenizer=self.tokenizers.output,
                skipped=self._skipped,
                grammar=grammar,
                closing=closing,
                redraw=redraw,
            )

        return make

    def _resolved(
        self, given: RewardWeights, composition: CompositionOptions, *, over: Mapping[str, Weight] | None = None
    ) -> dict[str, Weight]:
        """Weights of the engine's pairs, and behind them those of the call's prompt pairs. One for all is for the engine's pairs: a
        prompt pair comes with a weight, which only a mapping changes. `over`: what holds where a mapping is silent.

        All are 0 where a member answers alone.

        Raises:
            InvalidOptionError: a prompt pair is called like a pair of the engine, or weights are given for a member alone.
        """
        if composition.member is not None:
            if given is not None and given != {}:
                raise InvalidOptionError(
                    f"weights are of a composition, and {composition.member!r} answers alone; leave out one of them",
                    option="reward_weights",
                    value=given,
                )
            return dict.fromkeys(self._weights, 0.0)
        for name in composition.prompt_pairs:
            if name in self._weights:
                raise InvalidOptionError(
                    f"the prompt pair {name!r} is called like a pair of this engine; give it another name",
                    option="prompt_pairs",
                    value=name,
                )
        own = over or {**self._weights, **{name: pair.weight for name, pair in composition.prompt_pairs.items()}}
        if isinstance(given, Mapping) and not is_schedule(given):
            return resolve_weights(given, own)
        return {**own, **resolve_weights(given, {name: own[name] for name in self._weights})}

    def _held(
        self, grammar: Grammar | None, sampling: SamplingParams, room: int
    ) -> tuple[GrammarState | None, Closing | None]:
        """What holds a text to a grammar, and to its end within the budget."""
        if grammar is None:
            return None, None
        closing = self._closing(grammar, sampling, min(sampling.max_tokens, room))
        return self._grammars.compile(grammar), closing

    def _redraw(self, decision: CallDecision, sampling: SamplingParams, room: int) -> Redraw:
        grammar, closing = self._held(decision.otherwise, sampling, room)
        return Redraw(Deciding(decision, self._written), grammar, closing)

    def _written(self, token_id: int) -> bytes:
        """What a token stands for, texts of control tokens included."""
        found = self._token_bytes.of(token_id)
        return self._token_bytes.text_of(token_id).encode() if found is None else bytes(found)

    def _check_token_ids(self, option: str, token_ids: Iterable[int]) -> None:
        vocabulary = self._trio.vocabulary
        for token_id in token_ids:
            if not vocabulary.generates(token_id):
                why = f"the vocabulary has the ids 0 to {vocabulary.width - 1}"
                if 0 <= token_id < vocabulary.width:
                    why = "that token is never generated: not every member has it (`eft inspect` and `Engine.report` list such ids)"
                raise InvalidOptionError(
                    f"{option} has the token id {token_id}, and {why}; leave it out", option=option, value=token_id
                )

    def _closing(self, grammar: Grammar, sampling: SamplingParams, max_new_tokens: int) -> Closing | None:
        """What ends the sentence of a grammar in time, where that is asked for: with no token that is forbidden or a stop token."""
        if not sampling.close_within_budget:
            return None
        never = {token_id for token_id, bias in sampling.logit_bias.items() if bias == -math.inf}
        return self._grammars.closing(grammar, max_tokens=max_new_tokens, never=never.union(sampling.stop_token_ids))

    def scorings(
        self,
        prompt: Any,
        completion: Any,
        reward_weights: Any,
        composition: Any,
        prompt_options: Any,
        batch: bool,
        request_id: str | None = None,
        *,
        num_top: int = 0,
        every_member: bool = True,
    ) -> list[MakeSequence]:
        """Check every request to score a completion before any is submitted; arguments and errors as for `Engine.score`."""
        prompts = list(prompt) if batch else [prompt]
        count = len(prompts)
        if batch != isinstance(completion, list | tuple) or (batch and len(completion) != count):
            given = f"{len(completion)} completions" if isinstance(completion, list | tuple) else "one completion"
            asked = f"a list of {count} prompts" if batch else "one prompt"
            raise InvalidOptionError(
                f"{given} for {asked}; give a list of prompts and as many completions, or one of each",
                option="completion",
                value=completion,
            )
        columns = (
            prompts,
            completion if batch else [completion],
            _per_request(reward_weights, None, count, "reward_weights", batch=batch),
            _per_request(composition, CompositionOptions(), count, "composition", batch=batch),
            _per_request(prompt_options, PromptOptions(), count, "prompt_options", batch=batch),
            _request_ids(request_id, count, batch=batch),
        )
        return [self._scoring(*row, num_top=num_top, every_member=every_member) for row in zip(*columns, strict=True)]

    def _scoring(
        self,
        prompt: Prompt,
        completion: str | TokenIds,
        reward_weights: RewardWeights,
        composition: CompositionOptions,
        prompt_options: PromptOptions,
        request_id: str,
        *,
        num_top: int,
        every_member: bool,
    ) -> MakeSequence:
        weights = self._resolved(reward_weights, composition)
        rendered = self.render(prompt, prompt_options, must_fit=True)
        completion_ids = (
            completion.ids if isinstance(completion, TokenIds) else tuple(self.token_ids(completion, must_fit=True))
        )
        if not completion_ids:
            raise EmptyPromptError(f"the completion {completion!r} has no tokens, so there is nothing to score")
        self._check_completion(completion_ids)
        readers = self._readers(prompt, rendered, prompt_options, composition)
        always = range(len(readers)) if every_member else (BASE,)
        route = self._route(readers, [weights], composition, always=always)
        for stream in route.streams:
            prompt_len, own_len = len(stream.prompt_ids), len(stream.spelled(completion_ids))
            context_len = self._context_len(stream)
            if prompt_len + own_len > context_len:
                raise ContextOverflowError(
                    f"prompt ({prompt_len} tokens) and completion ({own_len} tokens) do not fit the context of {context_len} "
                    "tokens",
                    prompt_len=prompt_len + own_len,
                    context_len=context_len,
                )
        return lambda emit: ScoringSequence(
            self._request(route, readers, weights, composition, emit, request_id),
            completion_ids=completion_ids,
            num_top=num_top,
        )

    def _readers(
        self, prompt: Prompt, rendered: RenderedPrompt, options: PromptOptions, composition: CompositionOptions
    ) -> list[Reader]:
        """All members of a request: the engine's, then the two sides of each prompt pair."""
        spellings = self._trio.vocabulary.spellings
        readers = [
            Reader(own.name, own.network, own.adapter, rendered.of(own.name), spellings.get(own.name, {}))
            for own in self._trio.members.values()
        ]
        for name, pair in composition.prompt_pairs.items():
            model = self._model_of(name, pair)
            role = model.name.rpartition(".")[2]
            if isinstance(getattr(options, role), Verbatim):
                raise InvalidOptionError(
                    f"prompt_pairs.{name}: PromptOptions.{role} gives {model.name} one text as its prompt, whatever the request "
                    "has, so that both sides would be the same; leave it out",
                    option=f"prompt_pairs.{name}",
                    value=pair,
                )
            for side in ("positive", "negative"):
                named = f"prompt_pairs.{name}.{side}"
                own_prompt = side_prompt(getattr(pair, side), prompt, named=named)
                own = rendered if own_prompt is prompt else self.render(own_prompt, options, must_fit=True)
                readers.append(
                    Reader(
                        f"{name}.{side}",
                        model.network,
                        model.adapter,
                        own.of(model.name),
                        spellings.get(model.name, {}),
                    )
                )
        return readers

    def _model_of(self, name: str, pair: PromptPair) -> TrioMember:
        members = self._trio.members
        found = members.get(pair.model) or members.get(f"{pair.model}.tuned")
        if found is None:
            raise InvalidOptionError(
                f"prompt_pairs.{name}.model: there is no model {pair.model!r}; this engine has {', '.join(members)}",
                option=f"prompt_pairs.{name}.model",
                value=pair.model,
            )
        return found

    def _route(
        self,
        readers: Seq[Reader],
        weights: Seq[Mapping[str, Weight]],
        composition: CompositionOptions,
        *,
        always: Collection[int] = (),
    ) -> Route:
        """Streams that can read their prompts."""
        places = {reader.name: place for place, reader in enumerate(readers)}
        origin = BASE if composition.member is None else self._place_of(composition.member)
        pairs = [PairMembers(places[f"{name}.tuned"], places.get(f"{name}.reference")) for name in self._weights]
        pairs += [
            PairMembers(places[f"{name}.positive"], places[f"{name}.negative"]) for name in composition.prompt_pairs
        ]
        keeps = range(len(self._weights)) if self._trio.vocabulary.kept_ids else ()
        route = plan_route(readers, pairs, weights, composition, keeps=keeps, always=always, origin=origin)
        for stream in route.streams:
            last = max(stream.prompt_ids)
            if last >= stream.network.vocab_size:
                member = readers[stream.members[0]].name
                raise UnknownTokenError(
                    f"the prompt has the token {self._text_of(last)!r} (id {last}), and {member} reads ids below "
                    f"{stream.network.vocab_size} only: its tokenizer has more tokens than the model; give it the "
                    "tokenizer that it was trained with, or resize its embeddings",
                    token_id=last,
                    member=member,
                )
        return route

    def _place_of(self, member: str) -> int:
        """Of a member that answers alone."""
        names = list(self._trio.members)
        if member not in names:
            raise InvalidOptionError(
                f"member: there is no model {member!r}; this engine has {', '.join(names)}",
                option="member",
                value=member,
            )
        return names.index(member)

    def _text_of(self, token_id: int) -> str:
        with self._tokenizer_lock:
            return str(self.tokenizers.output.decode([token_id], skip_special_tokens=False))

    def _check_completion(self, completion_ids: Seq[int]) -> None:
        vocabulary = self._trio.vocabulary
        for token_id in completion_ids:
            if not vocabulary.generates(token_id):
                lacking = next((name for name, own in vocabulary.unknown_ids.items() if token_id in own), "base")
                raise UnknownTokenError(
                    f"the completion has the token {self._text_of(token_id)!r} (id {token_id}), which {lacking} does not know, so "
                    "that there is nothing to compose",
                    token_id=token_id,
                    member=lacking,
                )

    def _room(self, route: Route) -> int:
        """Tokens that can follow the prompt; the tightest stream decides."""
        rooms: list[int] = []
        for stream in route.streams:
            context_len, prompt_len = self._context_len(stream), len(stream.prompt_ids)
            if prompt_len >= context_len:
                raise ContextOverflowError(
                    f"the prompt has {prompt_len} tokens and the context holds {context_len}, so there is no room for an "
                    "answer; shorten the prompt",
                    prompt_len=prompt_len,
                    context_len=context_len,
                )
            rooms.append(context_len - prompt_len)
        return min(rooms)

    def _context_len(self, stream: Stream) -> int:
        return min(stream.network.context_len, self._config.max_context_len or stream.network.context_len)

    def _request(
        self,
        route: Route,
        readers: Seq[Reader],
        weights: Mapping[str, Weight],
        composition: CompositionOptions,
        emit: Callable[[Event], None],
        request_id: str,
        deciding: Mapping[str, Weight] | None = None,
    ) -> Request:
        return Request(
            request_id,
            route,
            weights,
            composition,
            tuple(reader.name for reader in readers),
            emit,
            self._totals,
            Steering(weights, self._written, deciding=deciding),
            num_held_pairs=len(self._weights),
        )


def is_batch(prompt: Any) -> bool:
    """Whether this is a list of prompts and not one prompt: its items are strings, token ids or lists of messages."""
    return isinstance(prompt, list | tuple) and all(isinstance(item, str | list | tuple | TokenIds) for item in prompt)


def check_single(prompt: Any) -> None:
    """Raise InvalidOptionError for a list of prompts."""
    if prompt and is_batch(prompt):
        raise InvalidOptionError(
            f"a stream answers one prompt, got a list of {len(prompt)}; open one stream per prompt",
            option="prompt",
            value=prompt,
        )


def _request_ids(given: str | None, count: int, *, batch: bool) -> list[str]:
    """Ids under which logs and outputs speak of requests: the caller's own, with a number behind it for each prompt of a batch."""
    if given is None:
        return [f"eft-{uuid.uuid4().hex}" for _ in range(count)]
    if not (isinstance(given, str) and given.isprintable() and 0 < len(given) <= MAX_ID_LEN):
        raise InvalidOptionError(
            f"request_id must be a text of 1 to {MAX_ID_LEN} characters that can be printed, got {str(given)[:80]!r}",
            option="request_id",
            value=given,
        )
    return [f"{given}-{index}" for index in range(count)] if batch else [given]


def _per_request(value: Any, default: Any, count: int, name: str, *, batch: bool) -> list[Any]:
    if batch and isinstance(value, list | tuple):
        if len(value) != count:
            raise InvalidOptionError(
                f"{name} has {len(value)} entries for {count} prompts; give one per prompt, or one for all",
                option=name,
                value=value,
            )
        values = list(value)
    else:
        values = [value] * count
    values = [default if own is None else own for own in values]
    for own in values:
        if default is not None and not isinstance(own, type(default)):
            raise InvalidOptionError(f"{name} must be a {type(default).__name__}, got {own!r}", option=name, value=own)
    return values
