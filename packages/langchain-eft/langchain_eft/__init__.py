"""EFT for LangChain: a large base model with the behaviour of small tuned ones, as a chat model.

from langchain_eft import ChatEFT
llm = ChatEFT(preset="smollm2-json", reward_weights=0.5)
"""

from importlib.metadata import version

from eft_integrations.langchain import ContextAware, init_chat_model
from langchain_eft.chat_models import ChatEFT, EFTChatModel

__version__ = version("langchain-eft")

__all__ = ["ChatEFT", "ContextAware", "EFTChatModel", "__version__", "init_chat_model"]
