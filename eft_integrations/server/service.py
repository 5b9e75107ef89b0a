"""What every route works with: compositions, who may ask, whose turn it is, and how an answer gets to the client."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.json_types import JsonObject
from eft_integrations.server.answers import Asking
from eft_integrations.server.bodies.calls import Call, unused_around
from eft_integrations.server.bodies.protocol import GenerationBody
from eft_integrations.server.callers.admission import InHand, Turns
from eft_integrations.server.callers.callers import KeyRing, check_keys
from eft_integrations.server.callers.pace import Pace
from eft_integrations.server.callers.weight_policy import check_pairs
from eft_integrations.server.compositions import Chosen, Composition, Compositions
from eft_integrations.server.openai.stored_responses import StoredResponses
from eft_integrations.server.seen.engine_metrics import EngineCollector
from eft_integrations.server.seen.health import Health
from eft_integrations.server.seen.metrics import ServerMetrics
from eft_integrations.server.seen.records import current
from eft_integrations.server.settings import ServerSettings
from eft_integrations.server.steering import Steering
from eft_integrations.server.streaming import Event, StreamForm, TimeLimit, stream_response, while_connected


@dataclass(frozen=True)
class Service:
    """One server's parts.

    Attributes:
        ring: the keys; empty: everybody may ask.
        turns: places, by backend.
    """

    settings: ServerSettings
    served: Compositions
    ring: KeyRing
    pace: Pace
    metrics: ServerMetrics
    turns: Mapping[int, Turns] = field(repr=False)
    health: Health = field(repr=False)
    responses: StoredResponses = field(repr=False)

    @classmethod
    def of(cls, compositions: Iterable[Composition], settings: ServerSettings) -> Service:
        """The parts of a server of these compositions.

        Raises:
            InvalidOptionError: there is no composition, or keys or policies speak of what is not there.
        """
        served = Compositions(compositions)
        for own in served:
            check_pairs(own.weight_policy, own.weights, owner=f"composition {own.name!r}")
        check_keys(settings.known_keys, {own.name: own.weights.keys() for own in served})
        ring = KeyRing(settings.known_keys)
        pace = Pace(max_num_seqs=settings.engine.max_num_seqs)

        everywhere = InHand()

        def turns_of(backend: ChatBackend) -> Turns:
            stepped, waiting = settings.engine.max_num_seqs, settings.engine.max_queued_requests
            is_engine = isinstance(backend, EngineBackend)  # others have queues of their own
            return Turns(
                num_places=stepped + math.ceil(stepped / 4) if is_engine else None,
                num_stepped=stepped if is_engine else None,
                capacity=None if waiting is None else stepped + waiting,
                callers=lambda: ring.callers,
                retry_after_s=pace.retry_after_s,
                everywhere=everywhere,
            )

        turns = {id(backend): turns_of(backend) for backend in served.backends}
        health = Health(served, stall_timeout_s=settings.stall_timeout_s)
        metrics = ServerMetrics(EngineCollector(health, turns), pace)
        responses = StoredResponses(settings.max_stored_responses, max_bytes=settings.max_stored_bytes)
        return cls(settings, served, ring, pace, metrics, turns, health, responses)

    def choose(self, call: Call[Any], model: str, *, steering: Steering | None = None) -> Chosen:
        """The composition and the weights of a call; errors as for `Compositions.choose`."""
        chosen = self.served.choose(model, body=steering, header=call.weights_header, caller=call.caller)
        current().model = chosen.composition.name
        return chosen

    def asking(self, call: Call[GenerationBody]) -> Asking:
        """Who asks what; errors as for `choose`."""
        chosen = self.choose(call, call.body.model, steering=call.body.steering())
        turns = self.turns[id(chosen.composition.backend)]
        return Asking(chosen, call.caller, turns, self.metrics, call.request_id, unused_around(call))

    async def answer(
        self,
        call: Call[GenerationBody],
        *,
        reply: Callable[[], Coroutine[object, None, JsonObject]],
        events: Callable[[], AsyncGenerator[Event]],
        form: StreamForm | None = None,
    ) -> Response:
        """The response of a call: whole, or as a stream of that form (OpenAI's, if none is given) where its body asks for one."""
        limit = TimeLimit(self.settings.request_timeout_s)
        if call.body.stream:
            return await stream_response(
                events(), call.request, limit, form=form, ping_interval_s=self.settings.ping_interval_s
            )
        return JSONResponse(await while_connected(reply(), call.request.receive, limit))
