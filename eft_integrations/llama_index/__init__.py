"""LlamaIndex: `EFTLLM` wherever an LLM goes.

from eft_integrations.llama_index import EFTLLM
llm = EFTLLM(preset="smollm2-json", reward_weights=0.5)
"""

from __future__ import annotations

try:
    import llama_index.core  # noqa: F401  only to say what is missing
except ImportError as error:
    raise ImportError("EFTLLM needs llama-index-core: pip install 'eft-engine[llama-index]'") from error

from eft_integrations.llama_index.context_aware import ContextAware
from eft_integrations.llama_index.llm import EFTLLM

__all__ = ["EFTLLM", "ContextAware"]
