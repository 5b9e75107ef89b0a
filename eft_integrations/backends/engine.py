"""A backend that answers with an engine of this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from eft_engine import EngineHealth, EngineStats, GenerationDelta, ScoreOutput, TextToken, TokenIds, errors
from eft_engine.overdue import at_most
from eft_engine.preparing import prepared
from eft_engine.weights import Weight
from eft_integrations.backends.forking import forgets_in_children
from eft_integrations.backends.keep_alive import KeepAlive
from eft_integrations.backends.protocol import last_result
from eft_integrations.backends.stamp import identity_of
from eft_integrations.backends.trio_source import TrioSource
from eft_integrations.chat.answer import AnswerReader
from eft_integrations.chat.prompt import Asked
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.durations import FOREVER
from eft_integrations.pieces import Pieces

if TYPE_CHECKING:
    from eft_engine import Engine

MAX_SECONDS = 10.0
"""Most time of a thread that a request may take until the engine gets it: schemas, grammars, how its template is used."""


class EngineBackend:
    """Answers with an engine.

    A request may say how long the engine stays loaded after it (`ChatRequest.keep_alive_s`); who asks after that has it loaded
    again. In a forked child a backend whose engine was loaded before the fork raises `ForkedEngineError`; one that had none loads
    its own.

    Args:
        load: makes the engine; called when it is needed and not there.
        model_name: what reports and logs call the model.
        identity: see `ChatBackend`; made up if it is not given.
        source: what `load` loads, where that is known: it can say beforehand what the engine will be.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        *,
        model_name: str,
        identity: str | None = None,
        source: TrioSource | None = None,
    ) -> None:
        self.identity = identity or uuid.uuid4().hex
        self.source = source
        self._load = load
        self._name = model_name
        self._engine: Engine | None = None
        self._is_given = self._is_inherited = self._is_closed = False
        self._planned_context_len: int | None = None
        self._keeper = KeepAlive(self._detach)
        forgets_in_children(self)

    @classmethod
    def of(cls, engine: Engine, *, model_name: str, identity: str | None = None) -> EngineBackend:
        """Answers with an engine that is loaded already, and belongs to whoever loaded it."""
        backend = cls(lambda: engine, model_name=model_name, identity=identity)
        backend._engine = engine
        backend._is_given = True
        return backend

    @classmethod
    def named(cls, source: TrioSource) -> EngineBackend:
        """Answers with the engine of a source, loaded when it is first needed."""
        return cls(source.load, model_name=source.name, identity=identity_of(source), source=source)

    # ---- the engine ----------------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine, loaded now if it is not there. Who uses it beside this backend has to know of requests that let it go.

        Raises:
            EngineClosedError: the backend was closed before it was loaded.
        """
        engine = self._engine
        if engine is None:
            with self._keeper.loading:
                self._check_open()
                if self._engine is None:
                    self._engine = self._load()
                engine = self._engine
        return engine

    def _check_open(self) -> None:
        if self._is_closed:
            raise errors.EngineClosedError(f"the backend of {self._name} was closed; make a new one")

    def _detach(self) -> Callable[[], None] | None:
        """Take the engine away from those who come. One that was given, or is the parent's, is not ours to close."""
        engine = self._engine
        if engine is None or self._is_given or self._is_inherited:
            return None
        self._engine = None
        return engine.close

    @property
    def is_loaded(self) -> bool:
        """Whether the engine is there already."""
        return self._engine is not None

    @property
    def is_closed(self) -> bool:
        """Whether this backend or its engine was closed, by anybody."""
        engine = self._engine
        return self._is_closed or (engine is not None and engine.is_closed)

    def let_go(self) -> None:
        """Unload the engine now, or as soon as no request runs; the next request loads it again. One that was given stays."""
        self._keeper.let_go()

    def close(self) -> None:
        """Close the engine, or never load one; whoever shares it loses it too."""
        with self._keeper.loading:
            self._is_closed = True
        self._keeper.stop()
        engine = self._engine
        if engine is not None:
            engine.close()

    def in_child(self) -> None:
        """In a forked child: nobody uses anything yet, and an engine of the parent is nothing to be let go."""
        self._keeper = KeepAlive(self._detach)
        self._is_inherited = self._engine is not None

    # ---- what it is ----------------------------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """See `ChatBackend`."""
        return self._name

    @property
    def weights(self) -> Mapping[str, Weight]:
        """See `ChatBackend`."""
        with self._keeper.use():
            return self.engine.weights

    @property
    def context_len(self) -> int:
        """See `ChatBackend`. Cheap: before the engine is loaded, it is worked out from the configurations of the models, once, and
        nothing is loaded for it.

        Raises:
            LoadError: a configuration is missing or cannot be read.
        """
        engine = self._engine
        if engine is not None:
            return engine.context_len
        if self.source is None:
            return self.engine.context_len
        self._check_open()
        if self._planned_context_len is None:
            self._planned_context_len = self.source.context_len()
        return self._planned_context_len

    def load(self) -> None:
        """Load the engine now, if it is not there."""
        _ = self.engine

    def check(self) -> None:
        """Find what is wrong with the trio without loading it; errors as for `TrioSource.check`."""
        if self._engine is None and self.source is not None:
            self.source.check()

    def token_ids(self, text: str, *, must_fit: bool = False) -> list[int]:
        """See `ChatBackend`. `must_fit`: as for `Engine.token_ids`."""
        with self._keeper.use():
            return self.engine.token_ids(text, must_fit=must_fit)

    def count_prompt_tokens(self, request: ChatRequest, *, must_fit: bool = False) -> int:
        """See `ChatBackend`. `must_fit`: as for `Engine.token_ids`."""
        with self._keeper.use():
            engine = self.engine
            asked = _asked(request, engine)
            return engine.count_prompt_tokens(
                asked.prompt, prompt_options=asked.options["prompt_options"], must_fit=must_fit
            )

    def template_of(self, pair: str) -> str | None:
        """The chat template of a pair's tuned model, which its own requests are rendered with."""
        with self._keeper.use():
            return self.engine.chat_template_of(pair)

    def stats(self) -> EngineStats:
        """See `ChatBackend`."""
        with self._keeper.use():
            return self.engine.stats()

    # ---- tokens and their log-probabilities ----------------------------------------------------------------------------

    def prompt_ids(self, request: ChatRequest, *, must_fit: bool = False) -> list[int]:
        """The prompt as tokens, as it is rendered; errors as for `Engine.prompt_ids`."""
        with self._keeper.use():
            engine = self.engine
            asked = _asked(request, engine)
            options = asked.options["prompt_options"]
            return engine.prompt_ids(asked.prompt, prompt_options=options, must_fit=must_fit)

    def text_tokens(self, token_ids: Sequence[int]) -> list[TextToken]:
        """What each token of a text stands for; errors as for `Engine.decode`."""
        with self._keeper.use():
            return self.engine.text_tokens(token_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Tokens as text; errors as for `Engine.decode`."""
        with self._keeper.use():
            return self.engine.decode(token_ids)

    @property
    def prefix_id(self) -> int:
        """The token that begins a text of which nothing else is known: the one that begins texts, else one that ends them.

        Raises:
            EmptyPromptError: there is neither.
        """
        with self._keeper.use():
            tokenizer = self.engine.tokenizer
        for name in ("bos_token_id", "eos_token_id"):
            if isinstance(token_id := getattr(tokenizer, name, None), int):
                return token_id
        raise errors.EmptyPromptError("the prompt is empty, and no token begins or ends texts; give a prompt")

    def tokenizer_info(self) -> dict[str, str | bool | None]:
        """The named tokens and the chat template, by the names that transformers has for them."""
        with self._keeper.use():
            engine = self.engine
            named = ("bos_token", "eos_token", "pad_token", "unk_token")
            return {
                "tokenizer_class": type(engine.tokenizer).__name__,
                **{
                    name: None if (text := getattr(engine.tokenizer, name, None)) is None else str(text)
                    for name in named
                },
                "chat_template": engine.chat_template,
            }

    async def _loaded(self) -> Engine:
        """`engine` for an event loop, which does not stand still while it is loaded."""
        engine = self._engine
        return engine if engine is not None else await asyncio.to_thread(lambda: self.engine)

    async def ascore(
        self, request: ChatRequest, completion_ids: Sequence[int], *, num_top: int = 0, every_member: bool = False
    ) -> ScoreOutput:
        """How probable these tokens are behind the prompt; arguments and errors as for `Engine.score`. Cancelling cancels it."""
        with self._keeper.use():
            engine = await self._loaded()
            asked = await prepared(_asked, request, engine)
            return await engine.ascore(
                asked.prompt,
                TokenIds(ids=tuple(completion_ids)),
                reward_weights=asked.options["reward_weights"],
                composition=asked.options["composition"],
                prompt_options=asked.options["prompt_options"],
                request_id=request.request_id,
                num_top=num_top,
                every_member=every_member,
            )

    def health(self) -> EngineHealth | None:
        """Of the engine; None: none is loaded. Waits for nothing.

        Raises:
            ForkedEngineError: it belongs to the process that this one was forked from.
        """
        engine = self._engine
        return None if engine is None else engine.health()

    # ---- answers -------------------------------------------------------------------------------------------------------

    def chat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result for delta in self.stream(request)])

    def stream(self, request: ChatRequest) -> Generator[ChatDelta]:
        """See `ChatBackend`. The request is checked and submitted now, not when the first piece is asked for."""
        self._check_keeping(request)
        use = self._keeper.begin(request.keep_alive_s)
        try:
            engine = self.engine
            asked = _asked(request, engine)
            deltas = engine.stream(asked.prompt, **asked.options)
        except BaseException:
            use.end()
            raise

        def leave() -> None:
            deltas.close()
            use.end()

        return Pieces(_read(deltas, AnswerReader(asked)), leave)

    async def achat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result async for delta in self.astream(request)])

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """See `ChatBackend`."""
        self._check_keeping(request)
        use = self._keeper.begin(request.keep_alive_s)
        try:
            engine = await self._loaded()
            asked = await prepared(_asked, request, engine)
            reader = AnswerReader(asked)
            deltas = engine.astream(asked.prompt, **asked.options)
            try:
                async for delta in deltas:
                    read = reader.feed(delta)
                    for piece in read if reader.is_quick(delta) else await prepared(list, read):
                        yield piece
            finally:
                await deltas.aclose()
        finally:
            use.end()

    def _check_keeping(self, request: ChatRequest) -> None:
        """Raises InvalidOptionError where a request would let go of an engine that belongs to somebody else."""
        if self._is_given and request.keep_alive_s != FOREVER:
            raise errors.InvalidOptionError(
                f"keep_alive ({request.keep_alive_s:g} s): the engine of {self._name} was loaded by somebody else, who closes it; "
                "leave keep_alive out, or name the models (base=, tuned=, reference=) instead of engine=",
                option="keep_alive",
                value=request.keep_alive_s,
            )


def _asked(request: ChatRequest, engine: Engine) -> Asked:
    """A request in the engine's terms.

    Raises:
        InvalidOptionError: see `Asked.of`; or it takes longer than `MAX_SECONDS`.
    """
    with at_most(MAX_SECONDS, _took_too_long):
        return Asked.of_engine(request, engine)


def _took_too_long() -> errors.InvalidOptionError:
    return errors.InvalidOptionError(
        f"the schemas of the request's tools and answer were not read within {MAX_SECONDS:g} s of work; make them smaller: fewer "
        "alternatives, fewer references that multiply",
        option="response_format",
    )


def _read(deltas: Iterator[GenerationDelta], reader: AnswerReader) -> Generator[ChatDelta]:
    for delta in deltas:
        yield from reader.feed(delta)
