"""`EFTLLM` of `eft_integrations.llama_index`, and its name in the table by which LlamaIndex loads LLMs (`load_llm`)."""

from llama_index.core.llms.loading import RECOGNIZED_LLMS

from eft_integrations.llama_index import EFTLLM

RECOGNIZED_LLMS[EFTLLM.class_name()] = EFTLLM

__all__ = ["EFTLLM"]
