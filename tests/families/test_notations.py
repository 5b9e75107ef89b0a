"""What each family writes, by hand, against what the package writes and reads for it."""

from __future__ import annotations

import json

import pytest

from eft_integrations.chat.messages import ToolCall
from eft_integrations.chat.notations import notation_of
from tests.families.cells import TIME_CALL, WEATHER_CALL, alike
from tests.families.imitations import FAMILIES, Family

NAMES = {
    "hermes": "hermes",
    "qwen3-coder": "qwen3-coder",
    "llama3.1": "llama3",
    "llama3.2-pythonic": "pythonic",
    "llama4-pythonic": "pythonic",
    "mistral-v3": "mistral",
    "mistral-v11": "mistral-v11",
    "mistral-v13": "mistral-v11",
    "deepseek-v3": "deepseek-v3",
    "deepseek-r1": "deepseek-v3",
    "deepseek-v3.1": "deepseek-v3.1",
    "gpt-oss": "harmony",
    "granite3": "granite3",
    "granite3.3": "granite3",
    "granite4": "hermes",
    "qwen3": "hermes",
    "phi4-mini": "phi4-mini",
    "smollm3": "hermes",
    "lfm2": "lfm2",
}
"""The notation of each family that has one."""

CALLS = [
    ToolCall("abcdef123", WEATHER_CALL[0], json.dumps(WEATHER_CALL[1])),
    ToolCall("abcdef124", TIME_CALL[0], json.dumps(TIME_CALL[1])),
]
OWN = [family for family in FAMILIES if family.one_call is not None]


def test_every_family_with_a_notation_has_a_name() -> None:
    assert set(NAMES) == {family.name for family in OWN}


@pytest.mark.parametrize("family", OWN, ids=lambda own: own.name)
def test_template_tells_the_notation(family: Family) -> None:
    assert notation_of(family.template).name == NAMES[family.name]


@pytest.mark.parametrize("family", OWN, ids=lambda own: own.name)
def test_notation_writes_as_the_family_does(family: Family) -> None:
    notation = notation_of(family.template)
    assert _bare(notation.write(CALLS[:1])) == _bare(family.one_call or "")
    if family.two_calls is not None:
        assert _bare(notation.write(CALLS)) == _bare(family.two_calls)


def _bare(text: str) -> str:
    """Without the ids, which are the caller's or the template's, and what ends the turn."""
    for part in (', "id": "abcdef123"', ', "id": "abcdef124"', "[CALL_ID]abcdef123", "[CALL_ID]abcdef124", "<|call|>"):
        text = text.replace(part, "")
    return alike(text)
