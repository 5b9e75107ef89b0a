"""What the checks say about rows, and where a split puts them."""

from __future__ import annotations

import pytest

from eft_engine.errors import InvalidOptionError
from eft_tuning.chats import Chat, Preference
from eft_tuning.checks import Finding, Findings, check_chats, split
from eft_tuning.duplicates import key_of, near_pairs
from tests.families.imitations import BY_NAME
from tests.toy import make_tokenizer

THINGS = [
    "apple",
    "bridge",
    "candle",
    "desert",
    "engine",
    "forest",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
]


def chat(question: str, answer: str, line: int, *before: dict[str, str]) -> Chat:
    return Chat([*before, {"role": "user", "content": question}, {"role": "assistant", "content": answer}], line)


def varied(count: int = 24) -> list[Chat]:
    return [
        chat(f"Tell me how {THINGS[n % 12]} number {n} was found?", f"It was {THINGS[-1 - n % 12]} no. {n}.", n + 1)
        for n in range(count)
    ]


def check(rows: list[Chat], **options: object) -> Findings:
    return check_chats(rows, make_tokenizer(), **{"max_length": 200, **options})  # type: ignore[arg-type]


def kinds(found: list[Finding]) -> list[str]:
    return [own.kind for own in found]


def test_good_rows_have_no_findings() -> None:
    findings = check(varied())
    assert (findings.errors, findings.warnings, findings.notes, findings.too_long) == ([], [], [], [])
    assert findings.num_answer_tokens == sum(len(row.answer) + 1 for row in varied())


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": "Hi"}], "line 99: the dialogue ends with a turn of user"),
        ([{"role": "assistant", "content": "Hi"}], "line 99: nobody asks"),
        (
            [{"role": "human", "content": "Hi"}, {"role": "assistant", "content": "Hi"}],
            "line 99: the role 'human' is none of",
        ),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " \n"}],
            r"line 99: turn 2 \(assistant\) is empty",
        ),
        (
            [
                {"role": "user", "content": "Hi"},
                {"role": "system", "content": "x"},
                {"role": "assistant", "content": "Hi"},
            ],
            "line 99: a system turn stands behind other turns",
        ),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Bye<|end|>"}],
            r"line 99: an answer holds '<\|end\|>', which this model's template writes itself",
        ),
    ],
)
def test_rows_that_cannot_be_learnt_are_errors_with_their_lines(messages: list[dict[str, str]], said: str) -> None:
    findings = check([*varied(), Chat(messages, 99)])
    with pytest.raises(InvalidOptionError, match=rf"chats.jsonl cannot be trained on:\s+{said}"):
        findings.raise_errors("chats.jsonl")
    assert findings.errors[0].lines == (99,)


def test_one_reason_names_all_its_lines() -> None:
    rows = [Chat([{"role": "user", "content": "Hi"}], line) for line in range(3, 14)]
    (error,) = check([*varied(2), *rows]).errors
    assert error.message.startswith("lines 3, 4, 5, 6, 7, 8, 9, 10 and 3 more: the dialogue ends with a turn of user")


def test_a_template_that_refuses_is_told() -> None:
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
    rows = [*varied(), Chat([user, answer, answer], 50), Chat([user, user, answer], 51)]
    findings = check_chats(rows, BY_NAME["gemma3"].make_tokenizer(), max_length=200)
    assert [(own.kind, own.lines) for own in findings.errors] == [("template", (50, 51))]
    assert "Roles must alternate" in findings.errors[0].message


def test_a_template_that_leaves_out_system_turns_or_tools_is_told() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages if message.role != 'system' %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    system = {"role": "system", "content": "Speak like a pirate."}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_time", "arguments": {}}}]}
    rows = [*varied(), chat("Hi", "Arr.", 60, system), Chat([{"role": "user", "content": "When?"}, call], 61)]
    findings = check_chats(rows, tokenizer, max_length=200)
    assert [(own.kind, own.lines) for own in findings.errors] == [("template", (60,)), ("tools", (61,))]
    assert "leaves out the turn of system" in findings.errors[0].message
    assert "get_time" in findings.errors[1].message


def test_rows_that_are_too_long_are_left_out_and_told() -> None:
    findings = check([*varied(), chat("Why?", "b" * 300, 70)])
    assert (kinds(findings.warnings), findings.too_long) == (["long"], [70])
    assert "line 70: more than 200 tokens (the longest has 308)" in findings.warnings[0].message
    assert kinds(check([chat("Why?", "b" * 300, 70)]).errors) == ["long"]


def test_duplicates_and_near_ones_are_told_with_their_lines() -> None:
    long = "the quick brown fox jumps over the lazy dog and then it sleeps for the whole of the long warm afternoon"
    rows = [
        *varied(),
        chat("Which animal?", f"{long}.", 80),
        chat("which animal", f"{long.upper()}!", 81),
        chat("Which animal?", f"{long} in May.", 82),
    ]
    findings = check(rows)
    assert [(own.kind, own.lines) for own in findings.warnings] == [
        ("duplicate", (80, 81)),
        ("near_duplicate", (80, 81, 82)),
    ]
    assert "80 = 81" in findings.warnings[0].message
    assert [(own.kind, own.lines) for own in findings.notes] == [("same_question", (80, 82))]


def test_leakage_is_an_error_where_it_is_exact_and_a_warning_where_it_is_near() -> None:
    rows = varied()
    asked = "how many of the old stone bridges over the river were still open to carts in that year"
    answer = "There were three of them left, and one was closed in winter."
    rows.append(chat(f"{asked}?", answer, 90))
    held_out = [
        chat(rows[3].question.upper(), "Something else.", 1),
        chat(f"Now, {asked}?", "Two.", 2),
        chat("Which were left of those in the south?", answer, 3),
        chat("What is 3 - 4?", "-1.", 4),
    ]
    findings = check([*rows, chat("What is 3 + 4?", "7.", 91)], held_out_rows=held_out, held_out_apart=True)
    (error,) = findings.errors
    assert (error.kind, error.lines) == ("held_out_leak", (1,))
    assert "held-out file, line 1 (trained on: 4)" in error.message
    assert [(own.kind, own.lines) for own in findings.warnings] == [("held_out_near", (2,)), ("held_out_answer", (3,))]


def test_answers_that_are_alike_or_cut_are_told() -> None:
    rows = [chat(row.question, "No.", row.line) if row.line <= 13 else row for row in varied()]
    (warning,) = check(rows).warnings
    assert warning.kind == "alike"
    assert "13 of 24 answers are 'No.'" in warning.message
    (note,) = check([*varied(), chat("And then what?", "Then he went to the", 95)]).notes
    assert (note.kind, note.lines) == ("cut", (95,))
    bare = [chat(row.question, row.answer.rstrip("."), row.line) for row in varied()]
    assert check([chat(row.question, f"{row.answer} yes", row.line) for row in bare]).notes == []


def test_preferences_are_checked_on_both_sides() -> None:
    ask, good, bad = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes."},
        {"role": "assistant", "content": " "},
    )
    rows = [Preference([ask], [good], [bad], 1), Preference([ask], [good], [good], 2)]
    findings = check_chats(rows, make_tokenizer(), max_length=100)
    assert [(own.kind, own.lines) for own in findings.errors] == [("empty", (1,)), ("preference", (2,))]


# ---- splitting ----------------------------------------------------------------------------------------------------------


def test_a_split_is_that_of_its_seed_and_keeps_the_order() -> None:
    train, held_out = split(varied(40), 0.2, 0)
    assert (len(train), len(held_out)) == (32, 8)
    assert [row.line for row in train] == sorted(row.line for row in train)
    assert split(varied(40), 0.2, 0) == (train, held_out)
    assert split(varied(40), 0.2, 1)[1] != held_out
    assert split(varied(4), 0.0, 0) == (varied(4), [])


def test_rows_with_the_same_question_are_on_one_side() -> None:
    rows = [chat(f"{thing}?", f"{n}.", 2 * i + n) for i, thing in enumerate(THINGS) for n in (1, 2)]
    for seed in range(5):
        train, held_out = split(rows, 0.25, seed)
        assert not {row.question for row in train} & {row.question for row in held_out}
        assert len(held_out) == 6


def test_an_instruction_that_all_rows_share_makes_no_duplicates_of_them() -> None:
    text = "Read the following text with care and say in one word what it is about: "
    rows = [chat(f"{text}{THINGS[n % 12]} {THINGS[(5 * n + 1) % 12]}", "Yes.", n + 1) for n in range(40)]
    train, held_out = split(rows, 0.25, 0)
    assert train
    assert held_out
    assert list(near_pairs([f"{text}{thing} {n}" for n, thing in enumerate(THINGS * 3)])) == []


@pytest.mark.parametrize(
    ("share", "said"), [(1.0, "at least 0 and below 1"), (-0.1, "at least 0"), (0.5, "all rows ask the same")]
)
def test_a_split_that_cannot_be_is_an_error(share: float, said: str) -> None:
    with pytest.raises(InvalidOptionError, match=said):
        split([chat("Hi", "a.", 1), chat("hi!", "b.", 2)], share, 0)


def test_the_index_finds_what_comparing_all_pairs_finds() -> None:
    import random

    from eft_tuning.duplicates import NEAR, overlap, runs

    draw = random.Random(0)
    texts = []
    for _ in range(40):
        words = draw.choices(THINGS, k=draw.randint(1, 30))
        texts += [" ".join(words), " ".join([*words, draw.choice(THINGS)]), " ".join(words[1:])]
    every = {(i, j) for j in range(len(texts)) for i in range(j) if overlap(runs(texts[i]), runs(texts[j])) >= NEAR}
    assert len(every) > 30
    assert set(near_pairs(texts)) == every
    assert key_of("Ünïcode!  Text") == "ünïcode text"
