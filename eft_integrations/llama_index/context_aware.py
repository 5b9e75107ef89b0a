"""Answers that keep to the retrieved nodes: a node postprocessor for query and chat engines.

It tells the engine's span that it was there (see `query_weights`). What an `EFTLLM` is asked inside of that span with a prompt that
has a variable for the nodes' texts, it is asked with the same prompt without them as the negative side of a prompt pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import ConfigDict

from eft_engine import errors
from eft_integrations.context_aware import ContextAwareness
from eft_integrations.llama_index.history import to_messages
from eft_integrations.llama_index.query_weights import QUERY_WEIGHTS

VARIABLES = ("context_str", "context_msg", "context")
"""Under which LlamaIndex' prompts get the texts of nodes."""

Asked = TypeVar("Asked", str, list[ChatMessage])


class ContextAware(ContextAwareness, BaseNodePostprocessor):
    """Context-aware decoding (Shi et al. 2023, arXiv 2305.14739) in any query engine or chat engine over an `EFTLLM`: what the
    prompt with the retrieved nodes says beyond the prompt without them counts more.

        index.as_query_engine(llm=llm, node_postprocessors=[ContextAware(weight=0.5)])

    Nodes pass unchanged. Prompts may be of any kind of synthesizer; those of other postprocessors (a reranker's) are left alone.
    """

    model_config = ConfigDict(frozen=False, arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls the postprocessor."""
        return "ContextAware"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """See `BaseNodePostprocessor`.

        Raises:
            ConfigurationError: no engine asks for it, so that nothing would come of it.
        """
        if not QUERY_WEIGHTS.note_context(self):
            raise errors.ConfigurationError(
                "ContextAware was called outside of a query engine or chat engine, and no answer would be told of it; give it to "
                "one as node_postprocessors=[...], or give the model prompt_pairs=... with the call"
            )
        return nodes


class ContextMessages(list[ChatMessage]):
    """A conversation with texts of nodes, and the same without them."""

    without: list[ChatMessage]
    aware: ContextAwareness


class ContextText(str):
    """A prompt with texts of nodes, and the same without them."""

    without: str
    aware: ContextAwareness


def in_context(asked: Asked, again: Callable[[dict[str, object]], Asked], variables: Mapping[str, object]) -> Asked:
    """What a model is asked, told apart from the same without the texts of nodes, where that is wanted.

    Args:
        asked: messages or a text, made of a prompt.
        again: makes the same of other variables.
        variables: those of the prompt.
    """
    aware = QUERY_WEIGHTS.context_in_effect()
    named = [name for name in VARIABLES if str(variables.get(name) or "").strip()]
    if aware is None or not named:
        return asked
    without = again({**variables, **dict.fromkeys(named, "")})
    told: ContextMessages | ContextText = ContextText(asked) if isinstance(asked, str) else ContextMessages(asked)
    told.without = without
    told.aware = aware
    return told  # type: ignore[return-value]  # of the same kind


def context_keywords(asked: object, written: Callable[[list[ChatMessage]], str] | None = None) -> Mapping[str, object]:
    """Further keywords of the call that asks this. `written`: conversations are written so, and no chat template is asked."""
    match asked:
        case ContextMessages(without=without, aware=aware) if written is not None:
            return aware.keywords(written(without))
        case ContextMessages(without=without, aware=aware):
            return aware.keywords([own.as_openai() for own in to_messages(without)])
        case ContextText(without=text, aware=aware):
            return aware.keywords(text)
    return {}
