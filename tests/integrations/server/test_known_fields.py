"""Every field that other servers and clients are known to send is declared, refused, without effect, or named, with a reason."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.bodies.body import Body
from eft_integrations.server.bodies.idle_fields import NAMED, WITHOUT_EFFECT
from eft_integrations.server.bodies.protocol import ChatBody
from eft_integrations.server.bodies.refused_fields import FALSE_IS_A_WISH, NEUTRAL, REFUSED
from eft_integrations.server.bodies.unused_fields import OWN, is_neutral, meant
from eft_integrations.server.openai.completions_protocol import CompletionBody, TokenizeBody
from eft_integrations.server.openai.responses_protocol import ResponsesBody
from tests.integrations.server.known_fields import CHAT, COMPLETIONS, RESPONSES, TOKENIZE
from tests.integrations.server.serving import in_process

BODIES: dict[type[Body], dict[str, str]] = {
    ChatBody: CHAT,
    CompletionBody: COMPLETIONS,
    ResponsesBody: RESPONSES,
    TokenizeBody: TOKENIZE,
}
LISTS = [
    pytest.param(body, names, id=f"{body.__name__} {whose}") for body in BODIES for whose, names in BODIES[body].items()
]


@pytest.mark.parametrize(("body", "names"), LISTS)
def test_no_known_field_is_unknown_here(body: type[Body], names: str) -> None:
    declared = {field.alias or name for name, field in body.model_fields.items()} | body.QUIET
    unknown = [name for name in names.split() if not {name} & {*declared, *REFUSED, *WITHOUT_EFFECT, *NAMED}]
    assert unknown == []


def test_every_name_has_one_fate_and_none_is_taken_for_one_of_ours() -> None:
    tables = [REFUSED, WITHOUT_EFFECT, NAMED]
    names = [name for table in tables for name in table]
    assert sorted(names) == sorted({*names})
    assert [name for name in {*names, *NEUTRAL, *FALSE_IS_A_WISH} - {"include"} if meant(name, OWN)] == []
    assert {*NEUTRAL, *FALSE_IS_A_WISH} <= {*REFUSED, *NAMED}
    assert all(reason.strip() for table in tables for reason in table.values())


async def answered(client: httpx.AsyncClient, **fields: Any) -> tuple[int, str, list[str]]:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}
    response = await client.post("/v1/chat/completions", json=body)
    value = response.json()
    return response.status_code, value.get("error", {}).get("message", ""), value.get("eft", {}).get("ignored", [])


@pytest.mark.parametrize("table", [REFUSED, WITHOUT_EFFECT, NAMED])
async def test_every_name_of_a_table_meets_its_fate(table: dict[str, str]) -> None:
    """Those that a chat declares itself are looked at elsewhere."""
    async with in_process({"m": ScriptedBackend()}) as client:
        for name in [own for own in table if own not in ChatBody.model_fields]:
            told = await answered(client, **{name: {"some": "wish"}})
            if table is REFUSED:
                assert told[0] == 400, name
                assert REFUSED[name] in told[1], name
            else:
                assert told == (200, "", [name] if table is NAMED else []), name


async def test_every_neutral_value_is_taken_and_not_mentioned() -> None:
    async with in_process({"m": ScriptedBackend()}) as client:
        for name in [own for own in NEUTRAL if own not in ChatBody.model_fields]:
            for value in NEUTRAL[name]:
                assert await answered(client, **{name: value}) == (200, "", []), (name, value)
            assert not is_neutral(name, "some wish"), name
