"""Trios that answer: the tuned model has learned a few conversations by heart, base and reference know nothing.

Each framework's tests have a trio of their own, which learned every conversation to which they want a certain answer. At weight 1
the composition speaks as the tuned model; at weight 0 it babbles. Learning takes seconds and happens when the tests that need
answers begin, through the backend's own rendering, so that prompts are exactly those of the tests.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eft_engine import Engine, EngineConfig, LoadedPair, SpeculationOptions
from eft_integrations.chat.prompt import Asked
from eft_integrations.chat.request import ChatRequest
from eft_integrations.langchain.convert import to_tools
from eft_integrations.langchain.history import to_messages
from tests.toy import CHAT_TEMPLATE, SPECIAL_TOKENS

VOCAB_SIZE = 700
CONTEXT_LEN = 4096
KEPT = Path(__file__).parents[2] / "build" / "trained"
"""Models that were trained already; each by what it was made of."""


@dataclass(frozen=True)
class Learned:
    """One request and its answer, as the model writes it."""

    request: ChatRequest
    answer: str

    @classmethod
    def chat(cls, messages: list[BaseMessage], answer: str, tools: Sequence[Any] = ()) -> Learned:
        """Of LangChain's messages and tools."""
        return cls(ChatRequest(to_messages(messages), to_tools(tools)), answer)


def call(name: str, arguments: str) -> str:
    """A call as the model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"It's sunny in {location}."


@tool
def unicode_customer(customer_name: str, description: str) -> str:
    """Tool for creating a customer with Unicode name.

    Args:
        customer_name: The customer's name in their native language.
        description: Description of the customer.

    Returns:
        A confirmation message about the customer creation.

    """
    return f"{customer_name} {description}"


MAGIC = {
    "name": "magic_function",
    "description": "Apply a magic function to an input.",
    "parameters": {"type": "object", "properties": {"input": {"type": "integer"}}, "required": ["input"]},
}
WEATHER = "What is the weather in San Francisco, CA?"
WEATHER_CALL = AIMessage(
    "", tool_calls=[{"name": "get_weather", "args": {"location": "San Francisco, CA"}, "id": "1", "type": "tool_call"}]
)
CHINESE = "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company"
JAPANESE = "Create a customer named 'こんにちは株式会社' (Hello Corporation) - a Japanese company"

LANGCHAIN = [
    Learned.chat([HumanMessage("Hello")], "Hello! How can I help?"),
    Learned.chat([HumanMessage("hello")], "Hello! How can I help?"),
    Learned.chat([HumanMessage("Hey")], "Hello! How can I help?"),
    Learned.chat([HumanMessage("hello"), AIMessage("hello"), HumanMessage("how are you")], "I am well."),
    Learned.chat(
        [
            *[SystemMessage("hello")] * 2,
            *[HumanMessage("hello")] * 2,
            *[AIMessage("hello")] * 2,
            HumanMessage("how are you"),
        ],
        "I am well.",
    ),
    Learned.chat([HumanMessage("Tell me a joke about cats.")], "A cat sat down."),
    Learned.chat(
        [HumanMessage("What is the value of magic_function(3)? Use the tool.")],
        call("magic_function", '{"input": 3}'),
        [MAGIC],
    ),
    Learned.chat([HumanMessage(WEATHER)], call("get_weather", '{"location": "San Francisco, CA"}'), [get_weather]),
    Learned.chat(
        [HumanMessage(WEATHER), WEATHER_CALL, ToolMessage("It's sunny.", tool_call_id="1", name="get_weather")],
        "It is sunny in San Francisco.",
        [get_weather],
    ),
    Learned.chat(
        [HumanMessage(CHINESE)],
        call("unicode_customer", '{"customer_name": "你好啊集团", "description": "technology"}'),
        [unicode_customer],
    ),
    Learned.chat(
        [HumanMessage(JAPANESE)],
        call("unicode_customer", '{"customer_name": "こんにちは株式会社", "description": "company"}'),
        [unicode_customer],
    ),
]


def make_tokenizer(texts: Sequence[str], *, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on texts of the conversations, so that they take few tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=SPECIAL_TOKENS[0], additional_special_tokens=SPECIAL_TOKENS[1:]
    )
    tokenizer.chat_template = "{{ preface }}" + CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, seed: int) -> Any:
    """A small Llama with small initial weights: nearly uniform predictions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LEN,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def rendered(engine: Engine, learned: Learned) -> list[int]:
    """Prompt ids as the adapter makes them."""
    asked = Asked.of_engine(learned.request, engine)
    return list(engine._requests.render(asked.prompt, asked.options["prompt_options"]).tuned)


@dataclass
class Lesson:
    """Tokens, and the places whose next token is to be learned."""

    token_ids: list[int]
    places: list[int]


def short_values(tokenizer: Any, *, count: int = 24) -> list[Lesson]:
    """That a string of JSON ends after its first token, whatever came before it.

    A model that must call a tool of which it has learned nothing would repeat itself inside a string to the end of its budget, or
    not, as the last bits of its training have it. Words and their order are random; only what ends a value is learned.
    """
    chance = random.Random(0)
    words = [token for own in range(len(tokenizer)) if (token := tokenizer.decode([own])).isalpha() and token.isascii()]
    lessons = [_short_values(tokenizer, words, chance, in_a_call=number % 3 > 0) for number in range(count)]
    return sorted(lessons, key=lambda own: -len(own.token_ids))


def _short_values(tokenizer: Any, words: list[str], chance: random.Random, *, in_a_call: bool) -> Lesson:
    begin, end = f'<tool_call>\n{{"name": "{chance.choice(words)}", "arguments": {{', '"}}\n</tool_call>'
    if not in_a_call:
        begin, end = "{", '"}'
    lesson = Lesson(tokenizer.encode(" ".join(chance.choices(words, k=chance.randrange(5, 40))) + begin), [])
    num_values = chance.randrange(1, 4)
    for value in range(num_values):
        for text in (f'"{chance.choice(words)}": "', chance.choice(words)):
            lesson.token_ids += tokenizer.encode(text)
        lesson.places.append(len(lesson.token_ids) - 1)
        lesson.token_ids += tokenizer.encode(end if value == num_values - 1 else '", ')
    return lesson


def lessons_of(pairs: list[tuple[list[int], list[int]]]) -> list[Lesson]:
    """Longest first. A conversation that begins with another one teaches that one's answer on the way."""
    lessons: list[Lesson] = []
    for prompt, answer in sorted(pairs, key=lambda pair: -len(pair[0]) - len(pair[1])):
        token_ids = prompt + answer
        places = list(range(len(prompt) - 1, len(token_ids) - 1))
        holder = next((own for own in lessons if own.token_ids[: len(token_ids)] == token_ids), None)
        if holder is None:
            lessons.append(Lesson(token_ids, places))
        else:
            holder.places += places
    return lessons


def batches_of(lessons: list[Lesson]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches of rows of similar length: ids, where something is learned, and what."""
    groups: list[list[Lesson]] = []
    for lesson in lessons:
        if groups and len(lesson.token_ids) > 0.6 * len(groups[-1][0].token_ids):
            groups[-1].append(lesson)
        else:
            groups.append([lesson])
    batches = []
    for group in groups:
        input_ids = torch.zeros(len(group), len(group[0].token_ids), dtype=torch.long)
        predicts = torch.zeros_like(input_ids, dtype=torch.bool)
        for row, lesson in enumerate(group):
            input_ids[row, : len(lesson.token_ids)] = torch.tensor(lesson.token_ids)
            predicts[row, lesson.places] = True
        batches.append((input_ids, predicts, input_ids.roll(-1, dims=1)[predicts]))
    return batches


def learn(model: Any, by_heart: list[Lesson], habits: list[Lesson], *, max_steps: int = 400) -> None:
    """Train until what is to be known by heart is nearly certain. Only what is to be learned is scored, which makes long prompts
    cheap. Habits are practised meanwhile; nobody can be certain which of them a place asks for.
    """
    known, practised = batches_of(by_heart), batches_of(habits)
    num_labels = sum(len(labels) for _, _, labels in known)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)

    def backward(input_ids: torch.Tensor, predicts: torch.Tensor, labels: torch.Tensor) -> float:
        hidden = model.model(input_ids=input_ids).last_hidden_state[predicts]
        part = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels, reduction="sum") / num_labels
        torch.autograd.backward(part)
        return part.item()

    model.train()
    for _ in range(max_steps):
        optimizer.zero_grad()
        loss = sum(backward(*batch) for batch in known)
        for batch in practised:
            backward(*batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss < 2e-3:
            break
    model.eval()
    assert loss < 0.02, f"the fixture model did not learn its answers (loss {loss:.3f})"


@dataclass(frozen=True)
class TrainedTrio:
    """Base and reference are untrained, the tuned model knows its conversations."""

    tokenizer: PreTrainedTokenizerFast
    base: Any
    tuned: Any
    reference: Any

    def engine(self) -> Engine:
        """Of all three, drafting on."""
        pairs = {"chat": LoadedPair(self.tuned, self.reference)}
        config = EngineConfig(max_num_seqs=16)
        return Engine.from_models(self.base, tokenizer=self.tokenizer, pairs=pairs, config=config)

    def save(self, folder: Path) -> None:
        """Each member as a model of its own: `folder/base`, `folder/tuned`, `folder/reference`."""
        for name, model in (("base", self.base), ("tuned", self.tuned), ("reference", self.reference)):
            model.save_pretrained(folder / name)
            self.tokenizer.save_pretrained(folder / name)


def train(learned: Sequence[Learned], texts: Sequence[str], *, vocab_size: int = VOCAB_SIZE) -> TrainedTrio:
    """A trio that knows these conversations, with a tokenizer made for these texts."""
    tokenizer = make_tokenizer(texts, vocab_size=vocab_size)
    base = make_model(tokenizer, hidden_size=96, seed=1)
    reference = make_model(tokenizer, hidden_size=64, seed=2)
    tuned = copy.deepcopy(reference)
    trio = TrainedTrio(tokenizer, base, tuned, reference)
    with trio.engine() as scratch:
        pairs = [
            (rendered(scratch, own), [*tokenizer.encode(own.answer, add_special_tokens=False), tokenizer.eos_token_id])
            for own in learned
        ]
    torch.manual_seed(0)
    learn_once(tuned, lessons_of(pairs), short_values(tokenizer))
    return trio


def learn_once(model: Any, by_heart: list[Lesson], habits: list[Lesson]) -> None:
    """Train, or take what another process of these tests, or of earlier ones, has made of the same model, lessons and code."""
    weights = [tensor.numpy().tobytes() for tensor in model.state_dict().values()]
    known = [
        Path(__file__).read_text(encoding="utf-8"),
        torch.__version__,
        transformers.__version__,
        repr((by_heart, habits)),
    ]
    key = hashlib.sha256(b"".join([*weights, *(text.encode() for text in known)])).hexdigest()[:16]
    KEPT.mkdir(parents=True, exist_ok=True)
    file = KEPT / f"{key}.safetensors"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            learn(model, by_heart, habits)
            unfinished = file.with_suffix(".new")
            save_model(model, str(unfinished))
            unfinished.replace(file)
    load_model(model, str(file))


def trained_trio() -> TrainedTrio:
    """That of LangChain's tests."""
    texts = [text for own in LANGCHAIN for text in (own.request.messages[0].content, own.answer)]
    return train(LANGCHAIN, texts)


@functools.cache
def trained_engine() -> Engine:
    """One engine for all tests of LangChain."""
    return trained_trio().engine()


@contextmanager
def without_drafts(engine: Engine) -> Iterator[None]:
    """Requests that say nothing of drafting do none: whether it pays is measured, and would decide how many passes there are."""
    requests = engine._requests
    own = requests._config
    requests._config = own.model_copy(update={"speculation": SpeculationOptions(drafter="none")})
    try:
        yield
    finally:
        requests._config = own
