"""The two prompts of a prompt pair."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from eft_engine import TokenIds, Without
from eft_engine.engine.prompt_sides import side_prompt
from eft_engine.errors import ChatTemplateError, InvalidOptionError

SYSTEM = {"role": "system", "content": "Be polite."}
USER = {"role": "user", "content": "Read this: Paris is in Texas. Where is Paris?"}
PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": "Paris is in Texas."}, {"type": "text", "text": "Where is Paris?"}],
}
TOOL = {"role": "tool", "content": "Paris is in Texas.", "tool_call_id": "1"}
MESSAGES: list[dict[str, Any]] = [SYSTEM, USER]
PASSAGE = "Paris is in Texas."


@pytest.mark.parametrize("prompt", ["raw", TokenIds(ids=[1]), MESSAGES], ids=["text", "ids", "messages"])
def test_no_side_is_the_requests_own_prompt(prompt: Any) -> None:
    assert side_prompt(None, prompt, named="it") is prompt


@pytest.mark.parametrize(
    ("side", "prompt"),
    [
        ("another", "raw"),
        (TokenIds(ids=[1, 2]), "raw"),
        (TokenIds(ids=[1, 2]), MESSAGES),
        ([USER], MESSAGES),
        ([USER], "raw"),
        ("another", TokenIds(ids=[1])),
    ],
)
def test_a_whole_prompt_stands_for_itself(side: Any, prompt: Any) -> None:
    assert side_prompt(side, prompt, named="it") is side


@pytest.mark.parametrize(
    ("side", "prompt", "made"),
    [
        ({"system": "Be brief."}, MESSAGES, [{"role": "system", "content": "Be brief."}, USER]),
        ({"system": "Be brief."}, [USER], [{"role": "system", "content": "Be brief."}, USER]),
        ({"system": None}, MESSAGES, [USER]),
        ({"system": None}, [USER], [USER]),
        ({"tool": None}, [USER, TOOL], [USER]),
        ({"tool": "Nothing."}, [USER, TOOL], [USER, {**TOOL, "content": "Nothing."}]),
        ({"user": "Hi."}, [USER, SYSTEM, USER], [{**USER, "content": "Hi."}, SYSTEM, {**USER, "content": "Hi."}]),
        ({"system": "A", "user": "B"}, [USER], [{"role": "system", "content": "A"}, {**USER, "content": "B"}]),
        ({"user": ""}, [USER], [{**USER, "content": ""}]),
    ],
)
def test_texts_by_role(side: Any, prompt: list[dict[str, Any]], made: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(prompt)
    assert side_prompt(side, prompt, named="it") == made
    assert prompt == before


@pytest.mark.parametrize(
    ("texts", "prompt", "made"),
    [
        ([PASSAGE], f"{PASSAGE} Where? {PASSAGE}", " Where? "),
        ([PASSAGE], MESSAGES, [SYSTEM, {**USER, "content": "Read this:  Where is Paris?"}]),
        ([PASSAGE], [PARTS], [{**PARTS, "content": [{"type": "text", "text": ""}, PARTS["content"][1]]}]),
        ([PASSAGE], [USER, TOOL], [{**USER, "content": "Read this:  Where is Paris?"}, {**TOOL, "content": ""}]),
        (["ab", "abc"], "abc ab", " "),  # the longer one first, whatever the order
        (["a", "ab"], "ab", ""),  # and what it holds counts as found
    ],
)
def test_texts_are_taken_out_wherever_they_stand(texts: list[str], prompt: Any, made: Any) -> None:
    before = copy.deepcopy(prompt)
    assert side_prompt(Without(texts=texts), prompt, named="it") == made
    assert prompt == before


def test_a_role_is_no_text() -> None:
    assert side_prompt(Without(texts=["user"]), [{"role": "user", "content": "a user"}], named="it") == [
        {"role": "user", "content": "a "}
    ]


@pytest.mark.parametrize(
    ("side", "prompt", "says"),
    [
        ("raw", MESSAGES, "raw text and the request has messages"),
        ({"system": "A"}, "raw", "by role, and the request is a raw prompt"),
        ({"system": "A"}, TokenIds(ids=[1]), "by role, and the request is a raw prompt"),
        ({"tool": "A"}, MESSAGES, r"role 'tool'.* roles there are system, user"),
        ({"tool": None}, MESSAGES, "role 'tool'"),
        ({"user": None, "system": None}, MESSAGES, "takes all messages away"),
        (Without(texts=["Rome"]), MESSAGES, r"does not hold 1 of 1 texts to take out, as 'Rome'"),
        (Without(texts=[PASSAGE, "Rome"]), MESSAGES, r"does not hold 1 of 2 texts to take out, as 'Rome'"),
        (Without(texts=["Rome"]), "raw", "does not hold 1 of 1"),
        (Without(texts=["a"]), TokenIds(ids=[1]), "the request is token ids"),
    ],
)
def test_a_side_that_cannot_be_meant_is_refused_by_its_name(side: Any, prompt: Any, says: str) -> None:
    with pytest.raises(InvalidOptionError, match=says) as caught:
        side_prompt(side, prompt, named="prompt_pairs.safe.negative")
    assert str(caught.value).startswith("prompt_pairs.safe.negative")
    assert caught.value.option == "prompt_pairs.safe.negative"


def test_a_message_that_is_none_is_refused_as_without_pairs() -> None:
    wrong: Any = ["hi"]
    with pytest.raises(ChatTemplateError, match="message 0 must be a mapping"):
        side_prompt({"system": "A"}, wrong, named="it")
