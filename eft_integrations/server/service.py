"""What every route works with: compositions, who may ask, whose turn it is, and how an answer gets to the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.json_types import JsonObject
from eft_integrations.server.admission import Turns
from eft_integrations.server.answers import Asking
from eft_integrations.server.callers import KeyRing
from eft_integrations.server.calls import Call
from eft_integrations.server.compositions import Chosen, Composition, Compositions
from eft_integrations.server.limits import Pace
from eft_integrations.server.metrics import ServerMetrics
from eft_integrations.server.protocol import GenerationBody
from eft_integrations.server.settings import ServerSettings
from eft_integrations.server.streaming import Event, TimeLimit, stream_response, while_connected


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

    @classmethod
    def of(cls, compositions: Iterable[Composition], settings: ServerSettings) -> Service:
        """The parts of a server of these compositions.

        Raises:
            InvalidOptionError: there is no composition, or the keys cannot be used.
        """
        served = Compositions(compositions)
        ring = KeyRing(settings.known_keys)
        pace = Pace(max_num_seqs=settings.engine.max_num_seqs)

        def turns_of(backend: ChatBackend) -> Turns:
            waiting = settings.engine.max_queued_requests
            if not isinstance(backend, EngineBackend):  # it has a queue of its own
                capacity = None if waiting is None else settings.engine.max_num_seqs + waiting
                return Turns(
                    num_places=capacity or 2**31,
                    capacity=capacity,
                    callers=lambda: ring.callers,
                    retry_after_s=pace.retry_after_s,
                )
            return Turns.of_engine(
                max_num_seqs=settings.engine.max_num_seqs,
                max_waiting=waiting,
                callers=lambda: ring.callers,
                retry_after_s=pace.retry_after_s,
            )

        turns = {id(backend): turns_of(backend) for backend in served.backends}
        return cls(settings, served, ring, pace, ServerMetrics(served, pace), turns)

    def choose(self, call: Call[Any], model: str, *, weights: Any = None) -> Chosen:
        """The composition and the weights of a call; errors as for `Compositions.choose`."""
        return self.served.choose(model, body=weights, header=call.weights_header, caller=call.caller)

    def asking(self, call: Call[GenerationBody]) -> Asking:
        """Who asks what; errors as for `choose`."""
        chosen = self.choose(call, call.body.model, weights=call.body.eft_reward_weights)
        turns = self.turns[id(chosen.composition.backend)]
        return Asking(chosen, call.caller, turns, self.metrics, call.request_id)

    async def answer(
        self,
        call: Call[GenerationBody],
        *,
        reply: Callable[[], Coroutine[object, None, JsonObject]],
        events: Callable[[], AsyncGenerator[Event]],
    ) -> Response:
        """The response of a call: whole, or as a stream where its body asks for one."""
        limit = TimeLimit(self.settings.request_timeout_s)
        if call.body.stream:
            return await stream_response(events(), call.request, limit)
        return JSONResponse(await while_connected(reply(), call.request.receive, limit))
