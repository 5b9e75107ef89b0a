"""LangChain: `EFTChatModel` wherever a chat model goes.

from eft_integrations.langchain import EFTChatModel
llm = EFTChatModel(preset="smollm2-json", reward_weights=0.5)
"""

from __future__ import annotations

try:
    import langchain_core  # noqa: F401  only to say what is missing
except ImportError as error:
    raise ImportError("EFTChatModel needs langchain-core: pip install 'eft-engine[langchain]'") from error

from eft_integrations.langchain.by_name import init_chat_model
from eft_integrations.langchain.chat_model import EFTChatModel
from eft_integrations.langchain.prompt_pairs import ContextAware

__all__ = ["ContextAware", "EFTChatModel", "init_chat_model"]
