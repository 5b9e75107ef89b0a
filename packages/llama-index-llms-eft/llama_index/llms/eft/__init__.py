"""EFT for LlamaIndex: a large base model with the behaviour of small tuned ones, as an LLM.

from llama_index.llms.eft import EFTLLM
llm = EFTLLM(preset="smollm2-json", reward_weights=0.5)
"""

from llama_index.llms.eft.base import EFTLLM

from eft_integrations.llama_index import ContextAware

__all__ = ["EFTLLM", "ContextAware"]
