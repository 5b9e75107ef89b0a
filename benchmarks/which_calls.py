"""What frameworks ask a model for beside answers, at weight 0 and 1: judgements, keywords, choices, calls of tools, citations.

    python -m benchmarks.which_calls --base qwen15.gguf --reference qwen05.gguf --adapter form_adapter.gguf --threads 2

The models are those of docs/gguf.md; the adapter taught its model one form, an answer as a line of JSON
(benchmarks/form_adapter.py). The requests are those that LlamaIndex' and LangChain's own components make. docs/which_calls.md
has the table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from langchain_core.tools import BaseTool, tool
from llama_index.core import MockEmbedding, VectorStoreIndex, get_response_synthesizer
from llama_index.core.evaluation import FaithfulnessEvaluator
from llama_index.core.extractors import KeywordExtractor
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import ToolMetadata
from rich.console import Console
from rich.table import Table

from benchmarks.agents.engine import Trio
from benchmarks.report import finish
from eft_engine import Engine
from eft_engine.zoo.smollm2_json import parse_json_answer
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM

FACTS = (
    (
        "Torvel has 4120 inhabitants and lies on the river Senna.",
        "Torvel lies on the river Senna.",
        "Torvel lies by the sea.",
    ),
    (
        "The museum of Belgar opens at ten and is closed on Mondays.",
        "The museum is closed on Mondays.",
        "The museum is always open.",
    ),
    ("Copper melts at 1085 degrees, tin at 232 degrees.", "Tin melts at 232 degrees.", "Copper melts at 232 degrees."),
    ("The bakery sells rye bread on Fridays only.", "Rye bread is sold on Fridays.", "The bakery sells no bread."),
)
"""A text, what follows from it, and what does not."""
ASKED = (
    "Where does Torvel lie?",
    "When is the museum closed?",
    "At how many degrees does tin melt?",
    "When is rye bread sold?",
)
TOPICS = ("the weather and forecasts", "recipes and cooking", "bills and payments")
ROUTES = (
    ("Will it rain tomorrow?", 0), ("How long must rice boil?", 1), ("Why was my card charged twice?", 2),
    ("What goes into a pancake?", 1), ("Is it windy in Oslo?", 0), ("When is my invoice due?", 2),
)  # fmt: skip
CALLS = (
    ("What is the weather in Oslo?", "get_weather"), ("How many people live in Torvel?", "get_population"),
    ("Is it sunny in Belgar?", "get_weather"), ("What is the population of Belgar?", "get_population"),
)  # fmt: skip


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"sunny in {city}"


@tool
def get_population(city: str) -> str:
    """Get the population of a city."""
    return f"4120 people in {city}"


TOOLS: list[BaseTool] = [get_weather, get_population]


def claims_that_follow(llm: EFTLLM, chat: EFTChatModel, most: int) -> tuple[int, int]:
    """Claims that follow from their text, and that the judge of faithfulness takes for such."""
    judge = FaithfulnessEvaluator(llm=llm)
    found = [judge.evaluate(response=claim, contexts=[text]).passing is True for text, claim, _ in FACTS[:most]]
    return sum(found), len(found)


def claims_that_do_not(llm: EFTLLM, chat: EFTChatModel, most: int) -> tuple[int, int]:
    """Claims that their text contradicts, and that the judge does not take for faithful."""
    judge = FaithfulnessEvaluator(llm=llm)
    found = [judge.evaluate(response=claim, contexts=[text]).passing is False for text, _, claim in FACTS[:most]]
    return sum(found), len(found)


def keywords(llm: EFTLLM, chat: EFTChatModel, most: int) -> tuple[int, int]:
    """Texts whose keywords are plain: no word of the form, no brace."""
    nodes = [TextNode(text=text) for text, *_ in FACTS[:most]]
    found = KeywordExtractor(llm=llm, keywords=3, num_workers=1, show_progress=False).extract(nodes)
    texts = [str(own["excerpt_keywords"]) for own in found]
    return sum("{" not in text and '"answer"' not in text for text in texts), len(texts)


def routes(llm: EFTLLM, chat: EFTChatModel, most: int) -> tuple[int, int]:
    """Questions that the selector sent to the right place; one that it could not read counts as wrong."""
    selector = LLMSingleSelector.from_defaults(llm=llm)
    choices = [ToolMetadata(description=f"useful for questions about {topic}") for topic in TOPICS]
    right = 0
    for question, index in ROUTES[:most]:
        try:
            right += selector.select(choices, question).ind == index
        except ValueError:  # what LlamaIndex' parser raises
            continue
    return right, len(ROUTES[:most])


def calls(llm: EFTLLM, chat: EFTChatModel, most: int) -> tuple[int, int]:
    """Questions at which the model called the right tool of its own will; the others it answered out of thin air, or wrongly."""
    bound = chat.bind_tools(TOOLS)
    found = [[call["name"] for call in bound.invoke(question).tool_calls] == [name] for question, name in CALLS[:most]]
    return sum(found), len(found)


def citations(llm: EFTLLM, chat: EFTChatModel, most: int) -> tuple[int, int]:
    """Answers of the citation engine that name a source in brackets."""
    index = VectorStoreIndex([TextNode(text=text) for text, *_ in FACTS], embed_model=MockEmbedding(8))
    engine = CitationQueryEngine.from_args(index, llm=llm, similarity_top_k=2)
    texts = [str(engine.query(question)) for question in ASKED[:most]]
    return sum("[1]" in text or "[2]" in text for text in texts), len(texts)


def answers(llm: EFTLLM, chat: EFTChatModel, most: int) -> tuple[int, int]:
    """Answers from a text that have the form."""
    synthesizer = get_response_synthesizer(llm=llm)
    found = [
        parse_json_answer(str(synthesizer.synthesize(question, [NodeWithScore(node=TextNode(text=text))]))) is not None
        for question, (text, *_) in zip(ASKED[:most], FACTS[:most], strict=True)
    ]
    return sum(found), len(found)


KINDS: dict[str, Callable[[EFTLLM, EFTChatModel, int], tuple[int, int]]] = {
    "answers from a text, in form (ResponseSynthesizer)": answers,
    "claims that follow, judged True (FaithfulnessEvaluator)": claims_that_follow,
    "claims that do not, judged False (FaithfulnessEvaluator)": claims_that_do_not,
    "texts with plain keywords (KeywordExtractor)": keywords,
    "questions sent to the right place (LLMSingleSelector)": routes,
    "right tools called in auto (bind_tools)": calls,
    "answers that name a source (CitationQueryEngine)": citations,
}


def measure(
    engine: Engine, weight: float, names: list[str], *, most: int, max_tokens: int
) -> dict[str, tuple[int, int]]:
    """Kinds by name at one weight, each told when it is done."""
    llm = EFTLLM(engine=engine, reward_weights=weight, temperature=0.0, max_tokens=max_tokens)
    chat = EFTChatModel(engine=engine, reward_weights=weight, temperature=0.0, max_tokens=max_tokens)
    found: dict[str, tuple[int, int]] = {}
    for name in names:
        found[name] = KINDS[name](llm, chat, most)
        sys.stderr.write(f"weight {weight:g}: {found[name][0]} of {found[name][1]} {name}\n")
    return found


def main(
    base: Annotated[Path, typer.Option(help="The large model, a GGUF file.")],
    reference: Annotated[Path, typer.Option(help="The small model, a GGUF file.")],
    adapter: Annotated[Path, typer.Option(help="A LoRA on the reference, a GGUF file or a folder.")],
    most: Annotated[int, typer.Option(help="Texts or questions of each kind.")] = 4,
    only: Annotated[str, typer.Option(help="Kinds whose name has this in it.")] = "",
    threads: Annotated[int, typer.Option(help="Of llama.cpp.")] = 2,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
) -> None:
    """Ask all kinds of questions at weight 0 and 1."""
    start = time.monotonic()
    names = [name for name in KINDS if only in name]
    with Trio(base, reference, adapter, threads).load() as engine:
        results = {weight: measure(engine, weight, names, most=most, max_tokens=max_tokens) for weight in (0.0, 1.0)}
    table = Table("kind of call", "weight 0", "weight 1")
    for name in names:
        table.add_row(name, *(f"{right} of {count}" for right, count in (own[name] for own in results.values())))
    Console().print(table)
    told = {str(weight): {name: list(own) for name, own in found.items()} for weight, found in results.items()}
    finish(
        "which_calls",
        {"max_tokens": max_tokens, "most": most, "seconds": round(time.monotonic() - start), "results": told},
    )


if __name__ == "__main__":
    typer.run(main)
