"""What is written behind the JSON of a call that is none: no reader makes a call of it, the real ones of the frameworks neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.utils.json import parse_partial_json
from llama_index.core.llms.utils import parse_partial_json as parse_partial_json_of_llama_index

from eft_integrations.json_objects import breaking_end, breaks_off

VALUE = {"a": 'x\\y"z\u00e9\n', "b": [1, {"c": [[], {}]}, "}"], "d": {"e": True, "f": None, "g": -1.5e3}, "é": "ü]"}
WRITTEN = {
    "escaped": json.dumps(VALUE),
    "plain": json.dumps(VALUE, ensure_ascii=False),
    "spread": json.dumps(VALUE, indent=2),
    "raw line feed": json.dumps(VALUE).replace("\\n", "\n"),
    "no JSON": 'visit(place="Pa\\"ris", days=[1, 2])',
    "a notation": f"<tool_call>\n{json.dumps(VALUE)}\n</tool_call>",
}
READERS: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "json, lenient": lambda text: json.loads(text, strict=False),
    "LangChain": parse_partial_json,
    "LlamaIndex": parse_partial_json_of_llama_index,
}


def read(reader: str, text: str) -> Any:
    """The value, or None where there is none."""
    try:
        return READERS[reader](text)
    except ValueError:
        return None


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", WRITTEN)
def test_nothing_can_be_made_of_a_call_that_is_none(name: str, reader: str) -> None:
    for end in range(len(WRITTEN[name]) + 1):
        written = WRITTEN[name][:end]
        assert not isinstance(read(reader, written + breaking_end(written)), dict)


def test_readers_that_mend_would_make_calls_of_these_texts() -> None:
    """Else the test above could not fail."""
    text = WRITTEN["plain"]
    for reader in ("LangChain", "LlamaIndex"):
        assert sum(isinstance(read(reader, text[:end]), dict) for end in range(len(text))) > 0.7 * len(text)
        assert isinstance(read(reader, text[:12] + "]"), dict)  # inside a string, a bracket alone breaks nothing


@pytest.mark.parametrize("name", ["escaped", "plain", "spread", "raw line feed"])
def test_object_breaks_off_until_its_last_brace(name: str) -> None:
    text = WRITTEN[name]
    assert [breaks_off(text[:end]) for end in range(1, len(text) + 1)] == [True] * (len(text) - 1) + [False]
    assert not breaks_off(f'{text} and "then {{')
    assert not breaks_off("no object")
