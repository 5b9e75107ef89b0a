"""What Atlas reads: the corpus keeps the questions it is measured by out, and dialogues are what the chat template writes."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from eft_engine.zoo.atlas import has_form
from recipes.atlas.chat import find_spans, openai_messages, strip_marks
from recipes.atlas.copying import looked_up, recalled, repeated
from recipes.atlas.corpus import Corpus, TuningDialogues, reserved_question
from recipes.atlas.document import Document
from recipes.atlas.facts import Fact, load_facts
from recipes.atlas.fiction import made_up_name, make_reading
from recipes.atlas.phrasing import Answerable, assistant_answer, brief_answer, detailed_answer
from recipes.atlas.pretrain import ANSWER_WEIGHT, attention_mask, packed_rows, weighted
from recipes.atlas.questions import fact_questions, reading_questions, tool_questions
from recipes.atlas.tokenizer import train_tokenizer
from recipes.atlas.tools import make_tool_requests


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return load_facts()


@pytest.fixture(scope="module")
def documents(facts: list[Fact]) -> list[str]:
    """Enough of the corpus that every fact occurs several times."""
    corpus = Corpus(facts, seed=3)
    return [corpus.document().text for _ in range(4000)]


@pytest.fixture(scope="module")
def tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(documents[:1500], vocab_size=600)


def test_facts_that_are_measured_are_many_and_all_are_learned(facts: list[Fact]) -> None:
    held_out = [fact for fact in facts if fact.is_held_out]
    assert len(held_out) >= 500
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
    texts = [[corpus.document().text for _ in range(20)] for corpus in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]


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


def test_a_passage_holds_the_answers_to_its_questions() -> None:
    rng = random.Random(5)
    for _ in range(200):
        reading = make_reading(rng, max_questions=3)
        for item in reading.items:
            assert item.answer in reading.passage
            assert item.subject in reading.passage


def test_requests_of_one_dialogue_have_a_tool_each() -> None:
    rng = random.Random(5)
    for _ in range(200):
        requests = make_tool_requests(rng, max_requests=3)
        called = [request.call["name"] for request in requests]
        assert len(set(called)) == len(called)
        assert set(called) <= {tool.name for tool in requests[0].tools}


def test_tool_requests_name_a_tool_on_offer_and_what_it_needs() -> None:
    for question in tool_questions():
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in question["tools"]}
        assert set(question["call"]["arguments"]) == set(offered[question["call"]["name"]]["required"])


def test_reading_questions_end_with_the_users_turn() -> None:
    assert all(question["messages"][-1]["role"] == "user" for question in reading_questions())


def test_a_name_is_the_same_tokens_wherever_it_stands(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(4)
    for name in (made_up_name(rng) for _ in range(100)):
        tokens = tokenizer.tokenize(name)
        for before, after in ((" ", "."), ('"', '"'), ("\n", "'s"), (" ", "?")):
            text = tokenizer.tokenize(f"in{before}{name}{after}")
            assert any(text[i : i + len(tokens)] == tokens for i in range(len(text)))


def test_made_up_names_are_many() -> None:
    rng = random.Random(4)
    assert len({made_up_name(rng) for _ in range(2000)}) > 1950


def test_a_repetition_says_the_same_again(facts: list[Fact]) -> None:
    rng = random.Random(6)
    for _ in range(50):
        document = repeated(rng, Corpus(facts, seed=1).words)
        ((begin, end),) = document.unknown
        assert document.text.count(document.text[begin:end]) >= 2


def test_what_is_recalled_was_told_before(facts: list[Fact]) -> None:
    rng = random.Random(6)
    words = Corpus(facts, seed=1).words
    for make in (recalled, looked_up):
        for _ in range(50):
            document = make(rng, words)
            (_, told), *asked = document.unknown
            ends = [start for start, _ in asked[1:]] + [len(document.text)]
            for (_, start), end in zip(asked, ends, strict=True):
                assert document.text[start:end] in document.text[:told]


def test_what_is_made_up_weighs_nothing_and_answers_more(tokenizer: PreTrainedTokenizerFast) -> None:
    document = Document("The capital of Bo is Zan. Zan is old.", unknown=[(15, 17), (21, 24)], answers=[(26, 29)])
    ((ids, weights),) = weighted([document], tokenizer)

    def tokens_of(weight: float) -> str:
        return tokenizer.decode([token for token, found in zip(ids, weights, strict=True) if found == weight])

    assert tokens_of(0.0) == "TheBoZan"
    assert tokens_of(1.0) == " capital of  is .  is old."
    assert tokens_of(ANSWER_WEIGHT) == "Zan"


def test_rows_hold_whole_documents(facts: list[Fact], tokenizer: PreTrainedTokenizerFast) -> None:
    rows = itertools.islice(packed_rows(Corpus(facts, seed=1), tokenizer, row_length=256), 40)
    for row in rows:
        assert len(row.ids) == len(row.weights) == len(row.document) == 256
        ids = [token for token in row.ids if token != tokenizer.pad_token_id]
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id


def test_documents_of_a_row_do_not_see_one_another() -> None:
    mask = attention_mask(torch.tensor([[0, 0, 1]]))[0, 0]
    assert (mask == 0).tolist() == [[True, False, False], [True, True, False], [False, False, True]]
