"""Models by the name of their provider, beside those that LangChain knows."""

from __future__ import annotations

from typing import Any, cast

from langchain_core.language_models.chat_models import BaseChatModel

from eft_engine import errors
from eft_integrations.langchain.chat_model import EFTChatModel

PROVIDER = "eft"


def init_chat_model(model: str | None = None, *, model_provider: str | None = None, **kwargs: Any) -> BaseChatModel:
    """`langchain.chat_models.init_chat_model` with one provider more, whose list is closed: "eft".

    >>> init_chat_model("eft:atlas", temperature=0).model_name
    'atlas'

    Args:
        model: "eft:<name>", or a name with `model_provider="eft"`: a preset, or what a server of `base_url` calls its trio, perhaps
            with weights ("eft:atlas@assistant=0.5"). None: fields of `EFTChatModel` name the trio. Anything else is LangChain's.
        model_provider: "eft", or one of LangChain's.
        kwargs: fields of the model.

    Raises:
        InvalidOptionError: an option that `EFTChatModel` does not take; configurable fields, which it has itself.
        ImportError: the model is another provider's, and langchain is not installed.
    """
    if model_provider is None and model is not None and model.startswith(f"{PROVIDER}:"):
        model, model_provider = model.removeprefix(f"{PROVIDER}:"), PROVIDER
    if model_provider != PROVIDER:
        from langchain import chat_models

        return cast("BaseChatModel", chat_models.init_chat_model(model, model_provider=model_provider, **kwargs))
    for name in ("configurable_fields", "config_prefix"):
        if kwargs.pop(name, None):
            raise errors.InvalidOptionError(
                f"{name} belongs to LangChain's own providers; write llm.configurable_fields(...), or give weights in a config's "
                "eft_reward_weights",
                option=name,
            )
    return EFTChatModel(**{**kwargs, **({} if model is None else {"model": model})})
