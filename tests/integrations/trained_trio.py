"""A trio that answers: the tuned model has learned a few conversations by heart, base and reference know nothing.

Every conversation to which LangChain's suites want an answer that is not empty is among them. At weight 1 the composition speaks
as the tuned model; at weight 0 it babbles. Learning takes seconds and happens when the tests that need answers begin, through
the adapter's own rendering, so that prompts are exactly those of the tests.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eft_engine import Engine, EngineConfig, LoadedPair
from eft_integrations.backend import ChatRequest, _Asked
from eft_integrations.langchain.convert import to_messages, to_tools
from tests.toy import CHAT_TEMPLATE, SPECIAL_TOKENS

VOCAB_SIZE = 700
CONTEXT_LEN = 4096


@dataclass(frozen=True)
class Learned:
    """One conversation and its answer."""

    messages: list[BaseMessage]
    answer: str
    tools: list[Any] = field(default_factory=list)


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

LEARNED = [
    Learned([HumanMessage("Hello")], "Hello! How can I help?"),
    Learned([HumanMessage("hello")], "Hello! How can I help?"),
    Learned([HumanMessage("Hey")], "Hello! How can I help?"),
    Learned([HumanMessage("hello"), AIMessage("hello"), HumanMessage("how are you")], "I am well."),
    Learned(
        [
            *[SystemMessage("hello")] * 2,
            *[HumanMessage("hello")] * 2,
            *[AIMessage("hello")] * 2,
            HumanMessage("how are you"),
        ],
        "I am well.",
    ),
    Learned([HumanMessage("Tell me a joke about cats.")], "A cat sat down."),
    Learned(
        [HumanMessage("What is the value of magic_function(3)? Use the tool.")],
        call("magic_function", '{"input": 3}'),
        [MAGIC],
    ),
    Learned([HumanMessage(WEATHER)], call("get_weather", '{"location": "San Francisco, CA"}'), [get_weather]),
    Learned(
        [HumanMessage(WEATHER), WEATHER_CALL, ToolMessage("It's sunny.", tool_call_id="1", name="get_weather")],
        "It is sunny in San Francisco.",
        [get_weather],
    ),
    Learned(
        [HumanMessage(CHINESE)],
        call("unicode_customer", '{"customer_name": "你好啊集团", "description": "technology"}'),
        [unicode_customer],
    ),
    Learned(
        [HumanMessage(JAPANESE)],
        call("unicode_customer", '{"customer_name": "こんにちは株式会社", "description": "company"}'),
        [unicode_customer],
    ),
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on the conversations themselves, so that calls take few tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([text for own in LEARNED for text in (str(own.messages[0].content), own.answer)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=SPECIAL_TOKENS[0], additional_special_tokens=SPECIAL_TOKENS[1:]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
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
    asked = _Asked.of(ChatRequest(to_messages(learned.messages), to_tools(learned.tools)), engine)
    return list(engine._render(asked.prompt, asked.options["prompt_options"]).tuned)


def learn(model: Any, pairs: list[tuple[list[int], list[int]]], *, max_steps: int = 400) -> None:
    """Train until every answer's tokens are nearly certain."""
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    input_ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    labels = torch.full((len(pairs), longest), -100)
    for row, (prompt, answer) in enumerate(pairs):
        input_ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    model.train()
    for _ in range(max_steps):
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < 2e-3:
            break
    model.eval()
    assert loss.item() < 0.02, f"the fixture model did not learn its answers (loss {loss.item():.3f})"


@functools.cache
def trained_engine() -> Engine:
    """One engine for all tests; base and reference are untrained, drafting is on."""
    tokenizer = make_tokenizer()
    base = make_model(tokenizer, hidden_size=96, seed=1)
    reference = make_model(tokenizer, hidden_size=64, seed=2)
    tuned = copy.deepcopy(reference)
    with Engine.from_models(base, tokenizer=tokenizer, pairs={"chat": LoadedPair(tuned, reference)}) as scratch:
        pairs = [
            (rendered(scratch, own), [*tokenizer.encode(own.answer, add_special_tokens=False), tokenizer.eos_token_id])
            for own in LEARNED
        ]
    torch.manual_seed(0)
    learn(tuned, pairs)
    return Engine.from_models(
        base, tokenizer=tokenizer, pairs={"chat": LoadedPair(tuned, reference)}, config=EngineConfig(max_num_seqs=16)
    )
