"""Prompts as pairs in LangChain's forms: sides that are conversations of its messages, and the prompt of a RAG chain without its
documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda

from eft_engine import PromptPair, Without, errors
from eft_integrations.context_aware import ContextAwareness
from eft_integrations.langchain.history import to_messages

SIDES = ("positive", "negative")


def with_plain_sides(keywords: Mapping[str, object]) -> dict[str, object]:
    """Keywords whose `prompt_pairs` hold conversations as OpenAI writes them; LangChain's messages and prompts may stand there."""
    pairs = keywords.get("prompt_pairs")
    if not isinstance(pairs, Mapping):
        return dict(keywords)
    return {**keywords, "prompt_pairs": {name: _with_plain_sides(pair) for name, pair in pairs.items()}}


def _with_plain_sides(pair: object) -> object:
    if not isinstance(pair, Mapping):
        return pair
    return {
        **pair,
        **{side: _plain(pair[side]) for side in SIDES if isinstance(pair.get(side), list | tuple | PromptValue)},
    }


def _plain(side: Any) -> list[dict[str, object]]:
    messages = side.to_messages() if isinstance(side, PromptValue) else convert_to_messages(side)
    return [own.as_openai() for own in to_messages(messages)]


class ContextAware(ContextAwareness):
    """Answers that keep to the retrieved documents rather than to what the model has read before (context-aware decoding, Shi et
    al. 2023, arXiv 2305.14739): what the prompt with the documents says beyond the prompt without them counts more.

    >>> from eft_engine import Proportional
    >>> ContextAware(weight=Proportional(to="jensen_shannon")).weight.kind  # AdaCAD, arXiv 2409.07394
    'proportional'
    """

    def chain(
        self,
        prompt: BasePromptTemplate[Any],
        llm: Runnable[LanguageModelInput, AIMessage],
        *,
        variable: str = "context",
    ) -> Runnable[Mapping[str, Any], AIMessage]:
        """`prompt | llm` of a RAG chain, with the same prompt without its documents as the negative side.

        Args:
            prompt: it has a variable for the documents; where this is empty, the answer is that of `prompt | llm`.
            llm: an `EFTChatModel`, perhaps with weights, keywords or tools bound to it.
            variable: which one.

        Raises:
            InvalidOptionError: the prompt has no such variable.
        """
        if variable not in prompt.input_variables:
            raise errors.InvalidOptionError(
                f"variable={variable!r}: the prompt has {', '.join(map(repr, prompt.input_variables)) or 'no variables'}",
                option="variable",
                value=variable,
            )

        def answering(inputs: Mapping[str, Any]) -> Runnable[Any, AIMessage]:
            if not inputs.get(variable):
                return prompt | llm
            without = prompt.invoke({**inputs, variable: ""})
            return prompt | llm.bind(**self._keywords(_plain(without)))

        return RunnableLambda(answering, name="ContextAware")

    def prompt_pairs(self, documents: Sequence[Document | str]) -> dict[str, PromptPair]:
        """For `llm.invoke(messages, prompt_pairs=...)`: the messages without these documents, which stand in them as they are.

        None without documents.
        """
        texts = [own if isinstance(own, str) else own.page_content for own in documents]
        texts = [text for text in texts if text.strip()]
        return self._pairs(Without(texts=tuple(texts))) if texts else {}

    def _keywords(self, without: list[dict[str, object]]) -> dict[str, Any]:
        return cast("dict[str, Any]", self.keywords(without))
