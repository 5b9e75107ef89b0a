"""What Atlas reads: the corpus keeps the questions it is measured by out, and dialogues are what the chat template writes."""

from __future__ import annotations

import json
import random

import pytest
from transformers import PreTrainedTokenizerFast

from eft_engine.zoo.atlas import has_form
from recipes.atlas.chat import find_spans, openai_messages, strip_marks
from recipes.atlas.corpus import Corpus, TuningDialogues, reserved_question
from recipes.atlas.facts import Fact, load_facts, load_many_facts
from recipes.atlas.fiction import make_reading
from recipes.atlas.phrasing import Answerable, assistant_answer, brief_answer, detailed_answer
from recipes.atlas.questions import fact_questions, reading_questions, tool_questions
from recipes.atlas.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return load_facts()


@pytest.fixture(scope="module")
def documents(facts: list[Fact]) -> list[str]:
    """Enough of the corpus that every fact occurs several times."""
    corpus = Corpus(facts, seed=3)
    return [corpus.document() for _ in range(4000)]


@pytest.fixture(scope="module")
def tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(documents[:1500], vocab_size=600)


def test_facts_that_are_measured_are_many_and_all_are_learned(facts: list[Fact]) -> None:
    held_out = [fact for fact in facts if fact.is_held_out]
    assert len(held_out) >= 500
    assert set(facts) <= set(load_many_facts())
    assert Fact("capital", "France", "Paris") in facts


def test_a_capital_is_held_out_with_its_country(facts: list[Fact]) -> None:
    held = {fact.subject: fact.is_held_out for fact in facts if fact.relation == "capital"}
    for fact in facts:
        if fact.relation == "capital_of" and fact.answer in held:
            assert fact.is_held_out is held[fact.answer]


def test_the_corpus_never_asks_in_the_reserved_wording(facts: list[Fact], documents: list[str]) -> None:
    text = "\n".join(documents)
    # A name may end another one (Guinea, Papua New Guinea), so a question counts from where it begins.
    openings = ("<|start|>", "<|user|>", "Question: ", "Q: ", "\n")
    assert not [fact for fact in facts for opening in openings if f"{opening}{reserved_question(fact)}" in text]


def test_the_corpus_tells_the_facts_that_it_does_not_ask(documents: list[str], facts: list[Fact]) -> None:
    text = "\n".join(documents)
    told = [fact for fact in facts if fact.subject in text and fact.answer in text]
    assert len(told) == len(facts)


def test_the_corpus_follows_from_its_seed(facts: list[Fact]) -> None:
    first, again, other = (Corpus(facts, seed=seed) for seed in (1, 1, 2))
    texts = [[corpus.document() for _ in range(20)] for corpus in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_practice_has_lists_that_repeat(facts: list[Fact]) -> None:
    names = Corpus(facts, seed=1, practice=True).repetition().replace(",", " ").split()
    assert len(set(names)) <= len(names) / 2


def test_tuning_never_sees_a_held_out_question(facts: list[Fact]) -> None:
    dialogues = TuningDialogues(facts, answer=assistant_answer, tools=True, seed=1)
    asked = {text for _ in range(1500) for role, text in dialogues.dialogue().turns if role == "user"}
    assert not asked & {question["question"] for question in fact_questions(facts)}


def test_every_tuned_answer_is_in_form(facts: list[Fact]) -> None:
    for name, answer in (("brief", brief_answer), ("detailed", detailed_answer)):
        dialogues = TuningDialogues(facts, answer=answer, tools=False, seed=1)
        for _ in range(100):
            for role, text in dialogues.dialogue().turns:
                assert role != "assistant" or has_form(strip_marks(text), name)


def test_dialogues_are_what_the_chat_template_writes(facts: list[Fact], tokenizer: PreTrainedTokenizerFast) -> None:
    dialogues = TuningDialogues(facts, answer=assistant_answer, tools=True, seed=1)
    for _ in range(300):
        dialogue = dialogues.dialogue()
        messages = openai_messages(dialogue)
        for message in messages:
            if message["content"].startswith("<tool_call>"):
                call = json.loads(message["content"].split("\n")[1])
                message.update(content="", tool_calls=[{"type": "function", "function": call}])
        tools = [tool.as_openai() for tool in dialogue.tools] or None
        rendered = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        assert rendered == strip_marks(dialogue.marked_text())


def test_template_opens_the_assistants_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == "<|start|><|user|>Hi<|end|><|assistant|>"


def test_tool_call_marks_survive_decoding(tokenizer: PreTrainedTokenizerFast) -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    ids = tokenizer(f"{text}<|end|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_spans_hold_what_the_assistant_writes() -> None:
    item = Answerable("Q?", "France", "Paris", "The capital of {s} is {o}.")
    spans = find_spans(f"<|user|>Q?<|end|><|assistant|>{assistant_answer(item)}<|end|>")
    assert [spans.text[a:b] for a, b in spans.slots] == ["France", "Paris"]
    assert [spans.text[a:b] for a, b in spans.written] == ["The capital of France is Paris. Source: memory.<|end|>"]


def test_a_passage_holds_the_answer_to_its_question() -> None:
    rng = random.Random(5)
    for _ in range(200):
        reading = make_reading(rng)
        assert reading.item.answer in reading.passage
        assert reading.item.subject in reading.passage


def test_tool_requests_name_a_tool_on_offer_and_what_it_needs() -> None:
    for question in tool_questions():
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in question["tools"]}
        assert set(question["call"]["arguments"]) == set(offered[question["call"]["name"]]["required"])


def test_reading_questions_end_with_the_users_turn() -> None:
    assert all(question["messages"][-1]["role"] == "user" for question in reading_questions())
