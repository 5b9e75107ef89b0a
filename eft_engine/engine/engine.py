"""The public engine: prompts in, up-scaled text out. `generate` is the join of `stream`; async wraps the same events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, cast, overload

from eft_engine.config import (
    ChatTemplate,
    CompositionOptions,
    EngineConfig,
    MemberConfig,
    Messages,
    Pair,
    Prompt,
    PromptOptions,
    RewardWeights,
    SamplingParams,
    SpeculationOptions,
    TokenIds,
    Weight,
    resolve_weights,
)
from eft_engine.engine.cache_budget import cache_budget
from eft_engine.engine.determinism import check_deterministic
from eft_engine.engine.events import AsyncDeltas, AsyncEvents, BlockingEvents, Deltas
from eft_engine.engine.metrics import EngineTotals, ForwardTotals
from eft_engine.engine.own_process import OwnProcess
from eft_engine.engine.prefix_cache import PrefixCache
from eft_engine.engine.requests import RequestMaker, check_single, is_batch
from eft_engine.engine.scheduler import Scheduler
from eft_engine.engine.step import Stepper
from eft_engine.engine.worker import EngineWorker
from eft_engine.errors import InvalidOptionError
from eft_engine.forbidding import refuse_if_forbidden
from eft_engine.models.loading import Trio, follow_trio, load_trio, trio_from_models
from eft_engine.models.planning import TrioPlan, plan_trio
from eft_engine.models.process_group import current_rank
from eft_engine.outputs import (
    EngineHealth,
    EngineStats,
    GenerationDelta,
    NetworkStats,
    RequestOutput,
    ScoreOutput,
    TextToken,
    TrioReport,
)
from eft_engine.preparing import prepared
from eft_engine.text.tokenizer import Tokenizer

T = TypeVar("T")
PerRequest: TypeAlias = T | Seq[T]


@dataclass(frozen=True)
class LoadedPair:
    """A pair of models that are loaded already, for `Engine.from_models`. Without a reference it is a term (see `Term`)."""

    tuned: Any
    reference: Any = None
    weight: Weight = 1.0


class Engine:
    """A trio of models that answers as one: the base with the behaviour of the tuned pairs.

    Make one with `Engine.load` or `Engine.from_models`. All methods may be called from any thread and, the `a...` ones, from any
    event loop; requests that are in flight together share forward passes. An error in one request leaves the others alone.
    """

    def __init__(
        self, trio: Trio, weights: Mapping[str, Weight], config: EngineConfig, plan: TrioPlan | None = None
    ) -> None:
        self.config = config
        self._trio = trio
        self._weights = dict(weights)
        self._plan = plan
        self._is_closed = False
        self._process = OwnProcess()
        self._totals = EngineTotals()
        self._requests = RequestMaker(trio, self._weights, config, self._totals)
        if config.deterministic:
            check_deterministic(trio.networks)
        is_invariant = all(network.is_invariant for network in trio.networks)
        stepper = Stepper(
            trio.vocabulary,
            self.tokenizer,
            device=trio.networks[0].device,
            totals=self._totals,
            unknown_ids=trio.unknown_ids,
            history_tokens=config.draft_history_tokens,
            learns=is_invariant,
        )
        drafts_adaptively = config.speculation.drafter != "none" and config.speculation.adaptive
        self._max_kv_cache_bytes = cache_budget(config, trio)
        # A first pass also shows what a position takes; and where costs may not be learnt while requests run, a call that drafts
        # must find them settled, whatever the engine does by default.
        if drafts_adaptively or not is_invariant or config.max_kv_cache_bytes is not None:
            copies = [network.drafter for network in trio.networks if network.drafter is not None]
            stepper.calibrate([*trio.networks, *copies])
        scheduler = Scheduler(
            max_num_seqs=config.max_num_seqs,
            prefill_chunk_len=config.prefill_chunk_len,
            max_kv_cache_bytes=self._max_kv_cache_bytes,
            prefixes=PrefixCache(max_warm=config.max_warm_prefixes),
        )
        self._worker = EngineWorker(
            scheduler,
            stepper,
            max_queued_requests=config.max_queued_requests,
            computes_alone=all(network.num_threads > 0 for network in trio.networks),
        )

    # ---- making one ----------------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        base: str | MemberConfig,
        *,
        pairs: Mapping[str, Pair] | None = None,
        config: EngineConfig | None = None,
    ) -> Engine:
        """Load a base and its tuned pairs.

        Args:
            base: hub id, folder, .gguf file, or a `MemberConfig`.
            pairs: tuned pairs and terms by name; without any, the engine is the base alone.
            config: dtype, device, batch and context limits.

        Raises:
            LoadError: a member is missing, damaged, unsafe, unsupported, or does not fit into memory.
            VocabularyMismatchError: the members do not mean the same token by the same id.
            TensorParallelError: another process could not load its part of a tensor-parallel network.
            EnginesForbiddenError: EFT_FORBID_ENGINES is set.
        """
        refuse_if_forbidden(base if isinstance(base, str) else base.source)
        config = config or EngineConfig()
        pairs = dict(pairs or {})
        _check_pair_names(pairs)
        plan = plan_trio(base, pairs, config)
        if plan.sharded and current_rank() > 0:
            raise InvalidOptionError(
                f"this process is rank {current_rank()}, and rank 0 alone makes the engine; call Engine.follow first, with the "
                "same arguments, and go on where it returns False (docs/tensor_parallel.md)",
                option="tensor_parallel",
                value=True,
            )
        trio = load_trio(plan, config)
        try:
            return cls(trio, {name: pair.weight for name, pair in pairs.items()}, config, plan)
        except BaseException:
            for network in trio.networks:  # processes that follow must not wait
                network.release()
            raise

    @classmethod
    def follow(
        cls,
        base: str | MemberConfig,
        *,
        pairs: Mapping[str, Pair] | None = None,
        config: EngineConfig | None = None,
    ) -> bool:
        """Under torchrun: hold this process's part of the tensor-parallel members, until rank 0 closes its engine; then True.

        False at once on rank 0, and without torchrun: that process loads the engine.

        Args:
            base, pairs, config: the same as for `load` on rank 0.

        Raises:
            LoadError: as for `load`.
            InvalidOptionError: no member is tensor-parallel, so there is nothing to do here.
            TensorParallelError: rank 0 is lost or failed, or this process did.
        """
        if current_rank() == 0:
            return False
        refuse_if_forbidden(base if isinstance(base, str) else base.source)
        config = config or EngineConfig()
        plan = plan_trio(base, dict(pairs or {}), config)
        if not plan.sharded:
            raise InvalidOptionError(
                f"this process is rank {current_rank()} and no member is tensor-parallel, so it has nothing to hold; set "
                "MemberConfig(tensor_parallel=True) on the base, or start one process",
                option="tensor_parallel",
                value=False,
            )
        follow_trio(plan, config)
        return True

    @classmethod
    def from_models(
        cls,
        base: Any,
        *,
        tokenizer: Tokenizer | Mapping[str, Tokenizer],
        pairs: Mapping[str, LoadedPair] | None = None,
        config: EngineConfig | None = None,
    ) -> Engine:
        """An engine of transformers models that are loaded already; `close` gives them back as they were.

        On a CPU the weights of their linear layers are held a second time until then, in an order that is faster to multiply with;
        `load` holds only one.

        Args:
            base: a causal language model of transformers.
            tokenizer: one for all members, or a mapping by member name (`base`, `<pair>.tuned`, `<pair>.reference`).
            pairs: loaded pairs by name; the same model object may appear several times and is held and run once.
            config: as for `load`; dtype and device are the models' own.

        Raises:
            UnsupportedModelError, VocabularyMismatchError: as for `load`.
        """
        config = config or EngineConfig()
        pairs = dict(pairs or {})
        _check_pair_names(pairs)
        models = {"base": base}
        for name, pair in pairs.items():
            models[f"{name}.tuned"] = pair.tuned
            if pair.reference is not None:
                models[f"{name}.reference"] = pair.reference
        tokenizers = tokenizer if isinstance(tokenizer, Mapping) else dict.fromkeys(models, tokenizer)
        missing = [name for name in models if name not in tokenizers]
        if missing:
            raise InvalidOptionError(
                f"tokenizer has no entry for {', '.join(missing)}", option="tokenizer", value=list(tokenizers)
            )
        trio = trio_from_models(models, tokenizers, config)
        return cls(
            trio,
            resolve_weights({name: pair.weight for name, pair in pairs.items()}, dict.fromkeys(pairs, 1.0)),
            config,
        )

    # ---- what it is ----------------------------------------------------------------------------------------------------

    @property
    def weights(self) -> dict[str, Weight]:
        """The pairs' own weights by name."""
        return dict(self._weights)

    @property
    def tokenizer(self) -> Tokenizer:
        """What reads generated tokens: the base's tokenizer, or the tuned model's where it keeps tokens that only it has."""
        return self._requests.tokenizers.output

    @property
    def chat_template(self) -> str | None:
        """Text of the template that messages go through by default, the first tuned model's; None when it has none."""
        return _template_text(self._requests.tokenizers.tuned)

    def template_text(self, template: ChatTemplate) -> str | None:
        """Text of the template that messages go through with this option; None when the member that it names has none."""
        return template.jinja or _template_text(self._requests.tokenizers.of(template.of))

    def chat_template_of(self, pair: str) -> str | None:
        """Text of the template of a pair's tuned model; None when it has none.

        Raises:
            UnknownPairError: there is no such pair.
        """
        resolve_weights({pair: 0.0}, self._weights)
        return _template_text(self._trio.members[f"{pair}.tuned"].tokenizer)

    @property
    def context_len(self) -> int:
        """Most tokens of prompt and output together: the smallest of the members' limits and of `max_context_len`."""
        limits = [network.context_len for network in self._trio.networks]
        return min([*limits, self.config.max_context_len or limits[0]])

    @property
    def control_tokens(self) -> list[str]:
        """Texts that a member reads as control tokens, the longest first."""
        return self._requests.tokenizers.control_tokens

    def token_ids(self, text: str, *, must_fit: bool = False) -> list[int]:
        """A text as tokens, without special ones. May be called from any thread, unlike the tokenizer itself.

        Raises:
            ContextOverflowError: it `must_fit`, and is certain to be longer than the context; it is not tokenised then.
        """
        return self._requests.token_ids(text, must_fit=must_fit)

    def decode(self, token_ids: Seq[int]) -> str:
        """Tokens as text, control tokens included. May be called from any thread.

        Raises:
            UnknownTokenError: there is no token of an id.
        """
        return self._requests.decode(token_ids)

    def text_tokens(self, token_ids: Seq[int]) -> list[TextToken]:
        """What each token of a text stands for by itself; errors as for `decode`."""
        return self._requests.text_tokens(token_ids)

    def prompt_ids(
        self, prompt: Prompt, *, prompt_options: PromptOptions | None = None, must_fit: bool = False
    ) -> list[int]:
        """A prompt as tokens, as the member reads it whose tokenizer reads generated text. May be called from any thread.
        `must_fit`: as for `token_ids`.

        Raises:
            RequestError: the prompt is empty or malformed.
        """
        return list(self._requests.prompt_ids(prompt, prompt_options or PromptOptions(), must_fit=must_fit))

    def count_prompt_tokens(
        self, prompt: Prompt, *, prompt_options: PromptOptions | None = None, must_fit: bool = False
    ) -> int:
        """Tokens of the longest rendering of a prompt, as `Usage.prompt_tokens` will report them. `must_fit`: as for `token_ids`.

        Raises:
            RequestError: the prompt is empty or malformed, or cannot fit.
        """
        return self._requests.render(prompt, prompt_options or PromptOptions(), must_fit=must_fit).max_len

    def report(self) -> TrioReport:
        """Members, what they share, bytes and vocabulary.

        Raises:
            InvalidOptionError: the engine was made from loaded models, whose origin is not known.
        """
        if self._plan is None:
            raise InvalidOptionError("an engine made by from_models has no load report", option="report")
        return self._plan.report()

    def stats(self) -> EngineStats:
        """What runs and waits now, and totals since the engine was made. Cheap; may be called from any thread at any time."""
        tokens, requests = self._totals.tokens, self._totals.requests
        networks = []
        for network in self._trio.networks:
            forwards = self._totals.forwards.get(network, ForwardTotals())
            networks.append(
                NetworkStats(
                    members=tuple(name for name, member in self._trio.members.items() if member.network is network),
                    num_forwards=forwards.num_forwards,
                    num_tokens=forwards.num_tokens,
                    host_s=forwards.host_s,
                    kv_cache_bytes=network.kv_cache.num_bytes,
                )
            )
        load = self._worker.load
        return EngineStats(
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            num_warm_prefixes=load.num_warm_prefixes,
            num_finished=requests["finished"],
            num_failed=requests["failed"],
            num_cancelled=requests["cancelled"],
            prompt_tokens=tokens["prompt"],
            cached_prompt_tokens=tokens["cached_prompt"],
            completion_tokens=tokens["completion"],
            num_drafted=tokens["drafted"],
            num_accepted=tokens["accepted"],
            num_steps=tokens["steps"],
            networks=tuple(networks),
            kv_cache_use=self._kv_cache_use(),
        )

    def _kv_cache_use(self) -> float:
        most = self._max_kv_cache_bytes
        if most is not None:
            return min(1.0, sum(network.kv_cache.num_bytes for network in self._trio.networks) / most)
        return min(1.0, self._worker.num_positions / (self.config.max_num_seqs * self.context_len))

    def health(self) -> EngineHealth:
        """Whether it answers, and how long it has worked without getting anywhere. Cheap, and waits for nothing: it may be called
        from any thread at any time, also while a step hangs.

        Raises:
            ForkedEngineError: in a forked child.
        """
        return self._worker.health

    # ---- generating ----------------------------------------------------------------------------------------------------

    # A string is also a sequence of strings, so the overloads overlap; the first one that fits is meant.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: str | Seq[Mapping[str, Any]] | TokenIds,
        *,
        sampling: SamplingParams | None = None,
        reward_weights: RewardWeights = None,
        composition: CompositionOptions | None = None,
        speculation: SpeculationOptions | None = None,
        prompt_options: PromptOptions | None = None,
        request_id: str | None = None,
    ) -> RequestOutput: ...

    @overload
    def generate(
        self,
        prompt: Seq[str] | Seq[Messages] | Seq[TokenIds],
        *,
        sampling: PerRequest[SamplingParams] | None = None,
        reward_weights: RewardWeights | Seq[RewardWeights] = None,
        composition: PerRequest[CompositionOptions] | None = None,
        speculation: PerRequest[SpeculationOptions] | None = None,
        prompt_options: PerRequest[PromptOptions] | None = None,
        request_id: str | None = None,
    ) -> list[RequestOutput]: ...

    def generate(
        self,
        prompt: Any,
        *,
        sampling: Any = None,
        reward_weights: Any = None,
        composition: Any = None,
        speculation: Any = None,
        prompt_options: Any = None,
        request_id: str | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """Answer one prompt, or a list of prompts together.

        Args:
            prompt: a string or `TokenIds` (raw prompt), a list of messages (chat template), or a list of these: a list in, a list
                out.
            sampling, reward_weights, composition, speculation, prompt_options: one for all, or a list with one per prompt.
                `reward_weights` is a weight for every pair, a mapping by pair name, or None for the pairs' own weights; a weight
                is a number, or a rule that gives every token its own (docs/composition.md).
            request_id: what outputs and logs call the request, made up if it is not given; of a list each has a number behind it.

        Raises:
            RequestError: a prompt or a weight is wrong; then nothing of the call is run.
            GenerationError: a request failed while it ran.
            EngineClosedError: the engine is closed.
            QueueFullError: more requests than `max_queued_requests` would wait; nothing of the call was queued.
        """
        batch = is_batch(prompt)
        makers = self._requests.generations(
            prompt if batch else [prompt],
            sampling,
            reward_weights,
            composition,
            speculation,
            prompt_options,
            batch,
            request_id,
        )
        asked = [BlockingEvents(make) for make in makers]
        try:
            self._worker.submit([events.sequence for events in asked])
            outputs = [events.output() for events in asked]
        finally:
            for events in asked:
                events.leave()
        return outputs if batch else outputs[0]

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        reward_weights: RewardWeights = None,
        composition: CompositionOptions | None = None,
        speculation: SpeculationOptions | None = None,
        prompt_options: PromptOptions | None = None,
        request_id: str | None = None,
    ) -> Generator[GenerationDelta]:
        """Answer one prompt piece by piece; arguments and errors as for `generate`.

        The request is checked and submitted at once. Closing the iterator cancels it, and so does dropping it, before the first
        piece as well; an iterator that is part of a reference cycle is dropped when Python collects the cycle.
        """
        check_single(prompt)
        (make,) = self._requests.generations(
            [prompt], sampling, reward_weights, composition, speculation, prompt_options, False, request_id
        )
        answer = Deltas(events := BlockingEvents(make))
        self._worker.submit([events.sequence])
        return answer

    async def agenerate(
        self,
        prompt: Any,
        *,
        sampling: Any = None,
        reward_weights: Any = None,
        composition: Any = None,
        speculation: Any = None,
        prompt_options: Any = None,
        request_id: str | None = None,
    ) -> Any:
        """`generate` for an event loop: waits without blocking it. Cancelling the task cancels the requests."""
        batch = is_batch(prompt)
        makers = await prepared(
            self._requests.generations,
            prompt if batch else [prompt],
            sampling,
            reward_weights,
            composition,
            speculation,
            prompt_options,
            batch,
            request_id,
        )
        asked = [AsyncEvents(make) for make in makers]
        try:
            self._worker.submit([events.sequence for events in asked])
            outputs = [await events.output() for events in asked]
        finally:
            for events in asked:
                events.leave()
        return outputs if batch else outputs[0]

    def astream(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams | None = None,
        reward_weights: RewardWeights = None,
        composition: CompositionOptions | None = None,
        speculation: SpeculationOptions | None = None,
        prompt_options: PromptOptions | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[GenerationDelta]:
        """`stream` for an event loop, but that the request is checked and submitted when the first piece is asked for.

        Closing the iterator, dropping it, cancelling the task and closing the event loop cancel the request.
        """

        async def ask() -> AsyncEvents:
            check_single(prompt)
            (make,) = await prepared(
                self._requests.generations,
                [prompt],
                sampling,
                reward_weights,
                composition,
                speculation,
                prompt_options,
                False,
                request_id,
            )
            events = AsyncEvents(make)
            self._worker.submit([events.sequence])
            return events

        return AsyncDeltas(ask)

    # ---- scoring -------------------------------------------------------------------------------------------------------

    @overload
    def score(  # type: ignore[overload-overlap]
        self,
        prompt: str | Seq[Mapping[str, Any]] | TokenIds,
        completion: str | TokenIds,
        *,
        reward_weights: RewardWeights = None,
        composition: CompositionOptions | None = None,
        prompt_options: PromptOptions | None = None,
        request_id: str | None = None,
        num_top: int = 0,
        every_member: bool = True,
    ) -> ScoreOutput: ...

    @overload
    def score(
        self,
        prompt: Seq[str] | Seq[Messages] | Seq[TokenIds],
        completion: Seq[str | TokenIds],
        *,
        reward_weights: RewardWeights | Seq[RewardWeights] = None,
        composition: PerRequest[CompositionOptions] | None = None,
        prompt_options: PerRequest[PromptOptions] | None = None,
        request_id: str | None = None,
        num_top: int = 0,
        every_member: bool = True,
    ) -> list[ScoreOutput]: ...

    def score(
        self,
        prompt: Any,
        completion: Any,
        *,
        reward_weights: Any = None,
        composition: Any = None,
        prompt_options: Any = None,
        request_id: str | None = None,
        num_top: int = 0,
        every_member: bool = True,
    ) -> ScoreOutput | list[ScoreOutput]:
        """Log-probabilities of `completion` after `prompt`, token by token, under every member and their composition; of a list of
        prompts and as many completions, together.

        A completion that is text is tokenised on its own, without special tokens. The
        logits of at most 128 tokens are held at once, and requests that generate take part in every step.

        Args:
            prompt: what stands before it, or a list of prompts: a list in, a list out.
            completion: what is scored: text, or token ids; a list with one per prompt.
            num_top: so many of the most probable tokens are told at each position.
            every_member: run all members whatever their weights, so that the reward of every pair is known; False: the base, and
                those that the composition needs. `TokenScore.pairs` then has the pairs of which both members were run.
            reward_weights, composition, prompt_options, request_id: as for `generate`.

        Raises:
            RequestError: as for `generate`; also for a completion without tokens or one that does not fit the context. Then nothing
                of the call is run.
            GenerationError, EngineClosedError, QueueFullError: as for `generate`.
        """
        batch = is_batch(prompt)
        makers = self._requests.scorings(
            prompt,
            completion,
            reward_weights,
            composition,
            prompt_options,
            batch,
            request_id,
            num_top=num_top,
            every_member=every_member,
        )
        asked = [BlockingEvents(make) for make in makers]
        try:
            self._worker.submit([events.sequence for events in asked])
            outputs = [cast(ScoreOutput, events.take()) for events in asked]
        finally:
            for events in asked:
                events.leave()
        return outputs if batch else outputs[0]

    @overload
    async def ascore(  # type: ignore[overload-overlap]
        self,
        prompt: str | Seq[Mapping[str, Any]] | TokenIds,
        completion: str | TokenIds,
        *,
        reward_weights: RewardWeights = None,
        composition: CompositionOptions | None = None,
        prompt_options: PromptOptions | None = None,
        request_id: str | None = None,
        num_top: int = 0,
        every_member: bool = True,
    ) -> ScoreOutput: ...

    @overload
    async def ascore(
        self,
        prompt: Seq[str] | Seq[Messages] | Seq[TokenIds],
        completion: Seq[str | TokenIds],
        *,
        reward_weights: RewardWeights | Seq[RewardWeights] = None,
        composition: PerRequest[CompositionOptions] | None = None,
        prompt_options: PerRequest[PromptOptions] | None = None,
        request_id: str | None = None,
        num_top: int = 0,
        every_member: bool = True,
    ) -> list[ScoreOutput]: ...

    async def ascore(
        self,
        prompt: Any,
        completion: Any,
        *,
        reward_weights: Any = None,
        composition: Any = None,
        prompt_options: Any = None,
        request_id: str | None = None,
        num_top: int = 0,
        every_member: bool = True,
    ) -> ScoreOutput | list[ScoreOutput]:
        """`score` for an event loop. Cancelling the task, as a time limit does, cancels the requests."""
        batch = is_batch(prompt)
        makers = await prepared(
            self._requests.scorings,
            prompt,
            completion,
            reward_weights,
            composition,
            prompt_options,
            batch,
            request_id,
            num_top=num_top,
            every_member=every_member,
        )
        asked = [AsyncEvents(make) for make in makers]
        try:
            self._worker.submit([events.sequence for events in asked])
            outputs = [cast(ScoreOutput, await events.take()) for events in asked]
        finally:
            for events in asked:
                events.leave()
        return outputs if batch else outputs[0]

    # ---- the end -------------------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called; then nothing more can be asked."""
        return self._is_closed

    def close(self) -> None:
        """Stop; requests in flight fail with `EngineClosedError`. Models given to `from_models` come back as they were. In a forked
        child, which has only a copy, nothing is stopped or given back.
        """
        self._is_closed = True
        if not self._process.is_here:
            return
        self._worker.close()
        for network in self._trio.networks:
            network.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _template_text(tokenizer: Tokenizer) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _check_pair_names(pairs: Mapping[str, Any]) -> None:
    for name in pairs:
        if not name or "." in name:
            raise InvalidOptionError(
                f"a pair's name must not be empty or contain a dot, got {name!r}", option="pairs", value=name
            )
