"""Answers of /v1/responses that are kept, so that a later call can go on from one by its id.

There is room for so many, and for so many bytes; the least recently used leave first. Each belongs to the caller who asked for it:
to others it is not there.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from eft_integrations.json_types import Json, JsonObject
from eft_integrations.server.callers.callers import Caller
from eft_integrations.server.errors import INVALID, ApiError, Kind, shortened

Item: TypeAlias = Mapping[str, object]

MOST_LISTED = 100
"""Most items of one page."""


@dataclass(frozen=True)
class StoredResponse:
    """An answer that is kept.

    Attributes:
        response: as it was answered.
        inputs: the items of the conversation before it, from its beginning on, without instructions.
        num_bytes: of both as JSON.
    """

    response: Mapping[str, Json]
    inputs: tuple[Item, ...]
    num_bytes: int

    @property
    def items(self) -> list[Item]:
        """The conversation with the answer."""
        output = self.response.get("output")
        return (
            [*self.inputs, *(item for item in output if isinstance(item, Mapping))] if isinstance(output, list) else []
        )


def page_of(items: Sequence[Item], *, after: str | None, limit: int) -> dict[str, object]:
    """So many items behind the one of an id, as OpenAI lists them.

    >>> page_of([{"id": "1"}, {"id": "2"}, {"id": "3"}], after="1", limit=1)
    {'object': 'list', 'data': [{'id': '2'}], 'first_id': '2', 'last_id': '2', 'has_more': True}
    """
    ids = [item.get("id") for item in items]
    if after is not None and after not in ids:
        raise ApiError(f"there is no item {shortened(after)!r}", Kind(404, INVALID, "item_not_found", "after"))
    start = 0 if after is None else ids.index(after) + 1
    shown = ids[start : start + limit]
    return {
        "object": "list",
        "data": [*items[start : start + limit]],
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
        "has_more": start + limit < len(ids),
    }


class StoredResponses:
    """The answers that are kept.

    Args:
        most: so many answers; 0: none are.
        max_bytes: of all of them together.
    """

    def __init__(self, most: int, *, max_bytes: int) -> None:
        self._most = most
        self._max_bytes = max_bytes
        self._by_id: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()
        self._num_bytes = 0

    @property
    def is_on(self) -> bool:
        """Whether any are kept."""
        return self._most > 0

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, caller: Caller, response: JsonObject, inputs: Sequence[Item]) -> None:
        """Keep an answer; one that is too large for all the room is not kept."""
        num_bytes = len(json.dumps([response, inputs], ensure_ascii=False).encode())
        if not self.is_on or num_bytes > self._max_bytes:
            return
        self._drop((caller.name, str(response["id"])))
        self._by_id[caller.name, str(response["id"])] = StoredResponse(response, tuple(inputs), num_bytes)
        self._num_bytes += num_bytes
        while len(self._by_id) > self._most or self._num_bytes > self._max_bytes:
            self._drop(next(iter(self._by_id)))

    def find(self, caller: Caller, response_id: str, *, param: str | None = None) -> StoredResponse:
        """An answer of this caller.

        Raises:
            ApiError: none are kept (400), or there is none of this id (404).
        """
        if not self.is_on:
            raise ApiError(
                "this server keeps no answers; send the whole conversation as input (an operator turns it on with "
                "max_stored_responses)",
                Kind(400, INVALID, "responses_not_stored", param),
            )
        found = self._by_id.get((caller.name, response_id))
        if found is None:
            raise ApiError(
                f"there is no response {shortened(response_id)!r}, or it had to make room; send the whole conversation as input",
                Kind(404, INVALID, "response_not_found", param),
            )
        self._by_id.move_to_end((caller.name, response_id))
        return found

    def conversation(self, caller: Caller, given: Sequence[Mapping[str, object]], previous: str | None) -> list[Item]:
        """The items of a call: those of the answer that it goes on from, then its own, references in it looked up.

        Raises:
            ApiError: see `find`; an item is referred to that is not kept.
        """
        before = [] if previous is None else self.find(caller, previous, param="previous_response_id").items
        known: dict[str, Item] | None = None
        items: list[Item] = []
        for index, item in enumerate(given):
            if item.get("type") == "item_reference":
                known = self._items_of(caller) if known is None else known
                found = known.get(str(item.get("id")))
                if found is None:
                    raise ApiError(
                        f"input.{index}: the item {shortened(str(item.get('id')))!r} is not kept here; send the item itself "
                        "(clients do so where `store` is false)",
                        Kind(404 if self.is_on else 400, INVALID, "item_not_found", f"input.{index}"),
                    )
                item = found
            items.append(item)
        return [*before, *items]

    def _items_of(self, caller: Caller) -> dict[str, Item]:
        """All items that are kept for a caller, by their ids."""
        kept = [stored for (name, _), stored in self._by_id.items() if name == caller.name]
        return {str(item["id"]): item for stored in kept for item in stored.items if "id" in item}

    def remove(self, caller: Caller, response_id: str) -> None:
        """Forget an answer; errors as for `find`."""
        self.find(caller, response_id)
        self._drop((caller.name, response_id))

    def _drop(self, key: tuple[str, str]) -> None:
        if (stored := self._by_id.pop(key, None)) is not None:
            self._num_bytes -= stored.num_bytes
