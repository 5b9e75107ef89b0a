"""A model with keywords that every call of it has. LangChain's own binding forgets them when tools or a schema are bound to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.tools import BaseTool

from eft_engine.config import RewardWeights

if TYPE_CHECKING:
    from eft_integrations.langchain.chat_model import EFTChatModel

OF_AN_ANSWER = frozenset(
    {"tools", "tool_choice", "parallel_tool_calls", "response_format", "ls_structured_output_format"}
)
"""Keywords that a schema stands in place of."""


class BoundChatModel(RunnableBinding[LanguageModelInput, AIMessage]):
    """An `EFTChatModel` with keywords, as `bind` and `bind_tools` make it, or with a config: in whatever order, they are all kept.

    Weights among the keywords are as good as given with the call. They are the model's own too, for hosts that take the model out.
    """

    @classmethod
    def lc_id(cls) -> list[str]:
        """What serialised chains call it: LangChain's own binding, which does the same where nothing more is bound."""
        return RunnableBinding.lc_id()

    def bind(self, **kwargs: Any) -> Self:
        """See `Runnable.bind`; what is bound later goes first."""
        weights = cast("RewardWeights", kwargs.get("reward_weights"))
        model = self._model
        bound = model if weights is None else model.with_weights(weights, fixed=model.fixed_weights)
        return self._with(bound=bound, kwargs={**self.kwargs, **kwargs})

    def bind_tools(
        self, tools: Sequence[Mapping[str, object] | type | Callable[..., object] | BaseTool], **kwargs: Any
    ) -> Self:
        """See `EFTChatModel.bind_tools`."""
        return self.bind(**cast("BoundChatModel", self._model.bind_tools(tools, **kwargs)).kwargs)

    def with_structured_output(self, schema: dict[str, Any] | type | None = None, **kwargs: Any) -> Runnable[Any, Any]:
        """See `EFTChatModel.with_structured_output`."""
        kept = {name: value for name, value in self.kwargs.items() if name not in OF_AN_ANSWER}
        answers = self._model.with_structured_output(schema, **{**kept, **kwargs})
        if not (self.config or self.config_factories):
            return answers
        return RunnableBinding(bound=answers, config=self.config, config_factories=self.config_factories)

    def with_alisteners(self, **listeners: Any) -> Self:
        """See `Runnable.with_alisteners`; LangChain's own binding would be put around this one."""
        around = cast("RunnableBinding[LanguageModelInput, AIMessage]", super().with_alisteners(**listeners))
        return self.model_copy(update={"config_factories": [*self.config_factories, *around.config_factories]})

    def with_weights(self, reward_weights: RewardWeights, *, fixed: bool = False) -> Self:
        """See `EFTChatModel.with_weights`; weights that were bound before are gone."""
        kept = {name: value for name, value in self.kwargs.items() if name != "reward_weights"}
        return self._with(bound=self._model.with_weights(reward_weights, fixed=fixed), kwargs=kept)

    @property
    def _model(self) -> EFTChatModel:
        return cast("EFTChatModel", self.bound)

    def _with(self, *, bound: Runnable[Any, Any], kwargs: Mapping[str, object]) -> Self:
        """The same with another model and other keywords."""
        return type(self)(
            bound=bound,
            kwargs=kwargs,
            config=self.config,
            config_factories=self.config_factories,
            custom_input_type=self.custom_input_type,
            custom_output_type=self.custom_output_type,
        )
