"""What LangChain asks about a model: its name, what its answers depend on, what it can do, its JSON, and how it counts tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

from langchain_core.language_models import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.load import dumpd
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import BaseMessage
from pydantic import ConfigDict, Field, model_validator

from eft_integrations.call_options import WITHOUT_EFFECT, CallOptions
from eft_integrations.langchain import convert
from eft_integrations.langchain.errors import translated
from eft_integrations.langchain.history import to_messages
from eft_integrations.langchain.names import call_keywords, model_fields
from eft_integrations.langchain.profile import LazyProfile
from eft_integrations.langchain.prompt_pairs import with_plain_sides
from eft_integrations.langchain.saving import cache_key, plain, plain_constructor
from eft_integrations.question import Question
from eft_integrations.sampling import stops_of
from eft_integrations.trio_model import NAMES_OF_TRIO, TrioModel


class DescribedModel(TrioModel, BaseChatModel):
    """A trio as far as LangChain looks at it without asking it anything."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    max_retries: int | None = Field(default=None, description="accepted for compatibility; local calls are not retried")
    streaming: bool = Field(default=False, description="invoke streams inside, so that callbacks see tokens")

    @model_validator(mode="before")
    @classmethod
    def _own_names(cls, given: Any) -> Any:
        """Fields by the names that they have in other chat models. A lazy profile among them is another model's, of which LangChain
        takes all fields where some are configurable: this one makes its own.
        """
        if not isinstance(given, Mapping):
            return given
        fields = {name: value for name, value in given.items() if not isinstance(value, LazyProfile)}
        return with_plain_sides(model_fields(fields))

    @model_validator(mode="after")
    def _profile_of_the_trio(self) -> Self:
        """Where no profile was given. Behind LangChain's own validators, which would ask it for all that it has."""
        if self.profile is None:
            self.profile = self._lazy_profile()
        return self

    def _lazy_profile(self) -> ModelProfile:
        held = self._held
        return cast("ModelProfile", LazyProfile(lambda: held.opened().context_len))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """See `TrioModel.model_copy`. A copy that names another trio has that trio's profile."""
        copied = super().model_copy(update=update, deep=deep)
        if copied._held is not self._held and isinstance(copied.profile, LazyProfile):
            copied.profile = copied._lazy_profile()
        return copied

    def __getstate__(self) -> dict[Any, Any]:
        """A profile that has not learned its limits learns them where the model comes back."""
        state = super().__getstate__()
        if isinstance(self.profile, LazyProfile):
            state["__dict__"] = {**state["__dict__"], "profile": None}
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        if self.profile is None:
            self.profile = self._lazy_profile()

    # ---- names and identity --------------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "eft"

    @property
    def _identifying_params(self) -> dict[str, object]:
        """Everything that changes an answer."""
        names = (*NAMES_OF_TRIO, "engine_config", *sorted(set(CallOptions.model_fields) - WITHOUT_EFFECT))
        own = {name: plain(getattr(self, name)) for name in names}
        return {"model_name": self._shown_name, "backend": self._held.backend.identity, **own}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: object) -> LangSmithParams:
        own = {"model": self._shown_name, **kwargs}
        params = super()._get_ls_params(stop=stop or stops_of(self), **own)
        params["ls_provider"] = "eft"
        return params

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: object) -> str:
        """What caches tell calls apart by, beside the messages."""
        with translated():
            request = self._question((), stop, kwargs).request
        return cache_key(self._held.backend.identity, request, output_version=self.output_version)

    def _question(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, keywords: Mapping[str, object]
    ) -> Question:
        """What is asked, checked.

        Raises:
            InvalidOptionError: an unknown keyword, or a value that cannot be used.
            ModelNotFoundError: `model` names another model.
        """
        asked = with_plain_sides(call_keywords(keywords if stop is None else {**keywords, "stop": stop}))
        asked["tools"] = convert.openai_tools(cast("Sequence[object]", asked.get("tools") or ()))
        asked["response_format"] = convert.openai_format(asked.get("response_format"))
        return self._ask(to_messages(messages), asked)

    # ---- JSON ----------------------------------------------------------------------------------------------------------

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Models that are named by their sources are; others say so in their JSON."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What JSON names and does not tell."""
        return {"api_key": "EFT_API_KEY"}

    @property
    def _serialized(self) -> dict[str, Any]:
        """Made anew each time: LangChain's own is kept in copies that differ."""
        return cast("dict[str, Any]", dumpd(self))

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """See `Serializable.to_json`. A model from `engine=` or `backend=` has no JSON: nothing names what it holds."""
        if self.engine is not None or self.backend is not None:
            return self.to_json_not_implemented()
        return plain_constructor(cast("SerializedConstructor", super().to_json()))

    # ---- tokens --------------------------------------------------------------------------------------------------------

    def get_token_ids(self, text: str) -> list[int]:
        """The text as tokens of the base's tokenizer, or as `custom_get_token_ids` has them."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with translated():
            return self.token_ids(text)

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any]] | None = None,
    ) -> int:
        """Prompt tokens of a conversation as the chat template renders it; by `custom_get_token_ids` without the template."""
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens_from_messages(messages, tools)
        with translated():
            question = self._question(messages, None, {"tools": tools})
            return self._backend.count_prompt_tokens(question.request)
