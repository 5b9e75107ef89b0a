"""Chat files in all forms that data sets come in, and what is said of those that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eft_engine.errors import InvalidOptionError
from eft_tuning.chats import Chat, Preference, load_chats

ASKED, ANSWERED = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "chats.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, ANSWERED], "id": 7},
        {"prompt": "Hi?", "completion": "Hello."},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"question": "Hi?", "answer": "Hello."},
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]},
                ANSWERED,
            ]
        },
    ],
    ids=["messages", "prompt", "prompt messages", "question", "sharegpt", "parts"],
)
def test_every_form_is_the_same_dialogue(tmp_path: Path, row: object) -> None:
    assert load_chats(write(tmp_path, "", row, "  ")) == [Chat([ASKED, ANSWERED], 2)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go away."},
        {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [{"role": "assistant", "content": "Go away."}]},
        {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, {"role": "assistant", "content": "Go away."}]},
        {
            "prompt": "Hi?",
            "chosen": [ASKED, ANSWERED],
            "rejected": [ASKED, {"role": "assistant", "content": "Go away."}],
        },
    ],
    ids=["strings", "messages", "whole dialogues", "whole dialogues beside a prompt"],
)
def test_every_form_is_the_same_preference(tmp_path: Path, row: object) -> None:
    expected = Preference([ASKED], [ANSWERED], [{"role": "assistant", "content": "Go away."}], 1)
    assert load_chats(write(tmp_path, row)) == [expected]
    assert [chat.answer for chat in expected.as_chats()] == ["Hello.", "Go away."]


def test_a_system_text_beside_sharegpts_turns_comes_first(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
    (chat,) = load_chats(write(tmp_path, {"system": "Be kind.", "conversations": turns}))
    assert isinstance(chat, Chat)
    assert chat.messages[0] == {"role": "system", "content": "Be kind."}


def test_a_byte_order_mark_and_line_separators_inside_texts_are_no_matter(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    text = json.dumps({"question": "a\u2028b?", "answer": "c\u0085d"}, ensure_ascii=False)
    file.write_text(f"\ufeff{text}\r\n{text}\r\n", encoding="utf-8")
    rows = load_chats(file)
    assert [row.line for row in rows] == [1, 2]
    assert isinstance(rows[0], Chat)
    assert rows[0].question == "a\u2028b?"


def test_tools_may_be_a_text_of_json(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "now"}}
    first, second = load_chats(
        write(tmp_path, {"messages": [ASKED, ANSWERED], "tools": json.dumps([tool])}, {"messages": [ASKED, ANSWERED]})
    )
    assert (first.tools, second.tools) == ([tool], None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: an object is needed, not \\[1\\]"),
        ({"text": "Hi"}, "line 2: no known fields, it has 'text'"),
        ({"messages": []}, "line 2: messages must be a list of messages"),
        ({"messages": [{"content": "Hi"}]}, r'line 2: messages\[0\] must be an object with "role" and "content"'),
        ({"messages": [{"role": "user", "content": 3}]}, r"line 2: messages\[0\].content must be a string, not 3"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, r"line 2: conversations\[0\]: from is 'narrator'"),
        ({"prompt": 3, "completion": "x"}, "line 2: prompt must be a list of messages, not 3"),
        ({"chosen": "a", "rejected": "b"}, "line 2: chosen and rejected have no prompt"),
        ({"chosen": [ASKED], "rejected": [ANSWERED]}, "line 2: .*chosen goes on with a turn of user"),
        ({"messages": [ASKED, ANSWERED], "tools": "{"}, "line 2: tools is a string that is not JSON"),
    ],
)
def test_what_is_no_dialogue_is_told_with_its_line(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(InvalidOptionError, match=said):
        load_chats(write(tmp_path, {"question": "Hi?", "answer": "Hello."}, row))


def test_many_wrong_lines_are_counted_and_the_first_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidOptionError, match=r"has 7 lines (?s:.*)line 1: (?s:.*)line 5: (?s:.*)and 2 more"
    ) as caught:
        load_chats(write(tmp_path, *["{"] * 7))
    assert "line 6" not in str(caught.value)


def test_dialogues_and_preferences_do_not_mix(tmp_path: Path) -> None:
    rows = {"question": "Hi?", "answer": "Hello."}, {"prompt": "Hi?", "chosen": "a", "rejected": "b"}
    with pytest.raises(InvalidOptionError, match=r"mixes dialogues \(line 1\) and preferences \(line 2\)"):
        load_chats(write(tmp_path, *rows))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no dialogues"),
        (b'[{"question": "a", "answer": "b"}]', "is one JSON list"),
        (b"\xff\xfe", "must be JSON Lines in UTF-8"),
        (None, "cannot read the chat file"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "chats.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidOptionError, match=said):
        load_chats(file)
