"""Members whose chat templates differ, and prompts that do not fit."""

from __future__ import annotations

import copy

import pytest

from eft_engine import Engine, LoadedPair
from eft_engine.evaluation.fitting import fitting
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.templates import template_differences
from tests.toy import CHAT_TEMPLATE, ToyTrio

ADDS_A_SYSTEM_TURN = "{% if messages[0].role != 'system' %}<|system|>Be kind.<|end|>{% endif %}" + CHAT_TEMPLATE
CHAT = [Question(question="Hi?")]
WITH_SYSTEM = [Question(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}])]


def engine_of(trio: ToyTrio, **templates: str | None) -> Engine:
    """An engine whose members have chat templates of their own."""
    tokenizers = {}
    for member in ("base", "tuned", "reference"):
        own = copy.deepcopy(trio.tokenizer)
        own.chat_template = templates.get(member, CHAT_TEMPLATE)
        tokenizers[member if member == "base" else f"chat.{member}"] = own
    return Engine.from_models(trio.base, tokenizer=tokenizers, pairs={"chat": LoadedPair(trio.tuned, trio.reference)})


def test_a_base_that_renders_otherwise_is_told_with_the_first_difference(toy_trio: ToyTrio) -> None:
    with engine_of(toy_trio, base=ADDS_A_SYSTEM_TURN) as engine:
        (told,) = template_differences(engine, [*CHAT, *CHAT])
        assert told.startswith("the base's own chat template renders messages otherwise: ")
        assert "'system|>Be kind." in told
        assert "where all members read 'user|>Hi?" in told
        assert template_differences(engine, WITH_SYSTEM) == []
        assert len(template_differences(engine, [*WITH_SYSTEM, *CHAT])) == 1
        assert template_differences(engine, [Question(prompt="Hi?")]) == []


def test_templates_that_say_the_same_and_members_without_one_are_not_told(toy_trio: ToyTrio) -> None:
    with engine_of(toy_trio, base=None, reference=CHAT_TEMPLATE + "{# a remark #}") as engine:
        assert template_differences(engine, CHAT) == []


def test_a_reference_that_renders_otherwise_is_told(toy_trio: ToyTrio) -> None:
    with engine_of(toy_trio, reference=ADDS_A_SYSTEM_TURN) as engine:
        (told,) = template_differences(engine, CHAT)
        assert told.startswith("the reference's own chat template")


@pytest.mark.parametrize(("length", "refused", "short"), [(10, [], []), (250, [], [0]), (300, [0], [])])
def test_prompts_that_do_not_fit_are_found_before(
    toy_trio: ToyTrio, length: int, refused: list[int], short: list[int]
) -> None:
    """The context is 256 tokens, and a letter is one."""
    with toy_trio.engine() as engine:
        found = fitting(engine, [Question(prompt="a" * length), Question(prompt="b")], max_tokens=16)
    assert [place for place, _ in found.refused] == refused
    assert list(found.short_of_room) == short
