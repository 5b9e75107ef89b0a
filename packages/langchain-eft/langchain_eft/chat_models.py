"""`ChatEFT`: the chat model of `eft_integrations.langchain` by the name that LangChain's packages use.

It is the same class, so that saved chains, caches and traces know one model.
"""

from eft_integrations.langchain import EFTChatModel

ChatEFT = EFTChatModel

__all__ = ["ChatEFT", "EFTChatModel"]
