"""POST /v1/score: how probable given texts are behind their prompts, under the composition and by pair."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi.responses import JSONResponse, Response

from eft_engine import PromptOptions, ScoreOutput, TokenScore, Usage, errors
from eft_engine.preparing import prepared
from eft_engine.weights import weights_as_json
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.server.answers import new_id
from eft_integrations.server.bodies.calls import Call, unused_around
from eft_integrations.server.callers.admission import Room
from eft_integrations.server.compositions import Chosen
from eft_integrations.server.errors import ApiError, error_fields, kind_of
from eft_integrations.server.evaluation.scoring_protocol import ScoreBody, ScoreItem
from eft_integrations.server.openai.echo import engine_of
from eft_integrations.server.openai.logprob_lists import LOWEST
from eft_integrations.server.routes import Routes
from eft_integrations.server.seen.records import current
from eft_integrations.server.seen.request_ids import answer_id
from eft_integrations.server.service import Service
from eft_integrations.server.streaming import TimeLimit, interleave, while_connected


@dataclass(frozen=True)
class Pair:
    """A prompt and a continuation as tokens; neither is empty."""

    prompt_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Of both."""
        return len(self.prompt_ids) + len(self.continuation_ids)


def scoring_routes(service: Service) -> Routes:
    """The route that scores."""
    routes = Routes(tag="scoring", bounds=service.settings.bounds)

    @routes.posts("/v1/score", ScoreBody, weighted=True)
    async def score(call: Call[ScoreBody]) -> Response:
        chosen = service.choose(call, call.body.model, steering=call.body.steering())
        engine_of(chosen.composition, "model")
        reply = _reply(service, call, chosen)
        return JSONResponse(
            await while_connected(reply, call.request.receive, TimeLimit(service.settings.request_timeout_s))
        )

    return routes


async def _reply(service: Service, call: Call[ScoreBody], chosen: Chosen) -> JsonObject:
    composition = chosen.composition
    engine = engine_of(composition, "model")
    own = composition.own_weights(chosen.reward_weights, chosen.steering.prompt_pairs)
    record = current()
    pairs = await prepared(_pairs, engine, call.body)
    num_tokens = sum(pair.num_tokens for pair in pairs)
    num_read = num_tokens + await prepared(_side_tokens, chosen, pairs)
    record.asks(composition.name, composition.weights_of(chosen.steering), {}, len(pairs))
    found: dict[int, ScoreOutput] = {}
    with service.turns[id(composition.backend)].room(call.caller, len(pairs), num_tokens=num_read) as room:
        scoring = [_scored(engine, chosen, pair, room, call, index) for index, pair in enumerate(pairs)]
        async with aclosing(interleave(scoring)) as scores:
            async for index, (output, result) in scores:
                found[index] = output
                record.piece(ChatDelta(result=result))
                service.metrics.observe(composition, call.caller, result)
    eft: JsonObject = {"request_id": call.request_id, "reward_weights": {**weights_as_json(own)}}
    if ignored := unused_around(call):
        eft["ignored"] = [*ignored]
    return {
        "id": new_id("score-"),
        "object": "list",
        "model": chosen.model,
        "data": [_form(index, found[index], call.body, [*own]) for index in range(len(pairs))],
        "usage": {"prompt_tokens": num_tokens, "completion_tokens": 0, "total_tokens": num_tokens},
        "eft": eft,
    }


def _side_tokens(chosen: Chosen, pairs: list[Pair]) -> int:
    """Most tokens that prompts of prompt pairs have."""
    longest = max(len(pair.prompt_ids) for pair in pairs)
    return len(pairs) * chosen.composition.count_side_tokens(ChatRequest(**chosen.steering.fields()), longest)


async def _scored(
    engine: EngineBackend, chosen: Chosen, pair: Pair, room: Room, call: Call[ScoreBody], index: int
) -> AsyncGenerator[tuple[ScoreOutput, ChatResult]]:
    """One pair, when it is its turn; and what logs and metrics read of it, as of an answer."""
    request_id = answer_id(call.request_id, index, len(call.body.pairs))
    request = ChatRequest(prompt_ids=pair.prompt_ids, request_id=request_id, **chosen.steering.fields())
    came = time.perf_counter()
    async with room.place():
        with _telling(call.body.where(index)):
            output = await engine.ascore(
                chosen.composition.ask(request), pair.continuation_ids, every_member=call.body.return_rewards
            )
    metadata = {"total_s": time.perf_counter() - came}
    yield output, ChatResult("", (), (), "length", Usage(pair.num_tokens, 0), None, metadata)


@contextlib.contextmanager
def _telling(where: str) -> Generator[None]:
    """What is wrong with one item names it."""
    try:
        yield
    except errors.RequestError as error:
        kind = kind_of(error)
        raise ApiError(f"{where}: {error_fields(error)['message']}", dataclasses.replace(kind, param=where)) from error


def _pairs(engine: EngineBackend, body: ScoreBody) -> list[Pair]:
    """All items as tokens; errors as for `pair_of`, with the item's name."""
    found: list[Pair] = []
    for index, item in enumerate(body.pairs):
        with _telling(body.where(index)):
            found.append(pair_of(engine, item))
    return found


def pair_of(engine: EngineBackend, item: ScoreItem) -> Pair:
    """The tokens of an item, as lm-evaluation-harness cuts them: prompt and continuation are tokenised as one text, and cut where
    the prompt's own tokens end. Spaces at the prompt's end belong to the continuation. Behind an empty prompt the continuation
    follows the token that begins texts, or, where there is none, the one that ends them.

    Raises:
        EmptyPromptError: a continuation has no tokens.
        ContextOverflowError: a text is certain to be longer than the context; it is not tokenised then.
    """
    if isinstance(item.prompt, list):
        assert isinstance(item.continuation, list), "both are of one kind"
        return Pair(tuple(item.prompt), tuple(item.continuation))
    assert isinstance(item.continuation, str), "both are of one kind"
    prompt = item.prompt.rstrip()
    continuation = item.prompt[len(prompt) :] + item.continuation
    if not continuation:
        raise errors.EmptyPromptError("a continuation is empty, so there is nothing to score")
    if not prompt:
        plain = ChatRequest(prompt=continuation, prompt_options=PromptOptions(add_special_tokens=False))
        return Pair((engine.prefix_id,), tuple(engine.prompt_ids(plain, must_fit=True)))
    before = engine.prompt_ids(ChatRequest(prompt=prompt), must_fit=True)
    whole = engine.prompt_ids(ChatRequest(prompt=prompt + continuation), must_fit=True)
    behind = whole[len(before) :]
    if not behind:
        raise errors.EmptyPromptError(
            f"the continuation {continuation[:80]!r} has no tokens of its own behind the prompt"
        )
    return Pair(tuple(whole[: len(before)]), tuple(behind))


def _form(index: int, output: ScoreOutput, body: ScoreBody, pairs: list[str]) -> JsonObject:
    told = pairs if body.return_rewards else None
    form: JsonObject = {
        "index": index,
        "object": "score",
        "logprob": sum(max(LOWEST, token.composed) for token in output.tokens),
        "num_tokens": len(output.tokens),
        "is_greedy": output.is_greedy,
    }
    if told is not None:
        form["rewards"] = {name: _finite(output.reward(name)) for name in told}
    if body.return_tokens:
        form["tokens"] = [_token_form(token, told) for token in output.tokens]
    return form


def _token_form(token: TokenScore, pairs: list[str] | None) -> Json:
    form: JsonObject = {
        "token": token.token,
        "token_id": token.token_id,
        "bytes": None if token.utf8 is None else [*token.utf8],
        "logprob": max(LOWEST, token.composed),
        "is_greedy": token.is_greedy,
    }
    if pairs is not None:
        form["rewards"] = {name: _finite(token.pairs[name].delta) for name in pairs}
    return form


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
