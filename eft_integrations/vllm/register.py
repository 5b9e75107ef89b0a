"""The entry point of the plugin: vLLM calls `register` in each of its processes before it reads a configuration."""

from __future__ import annotations

ARCHITECTURE = "EFTForCausalLM"


def register() -> None:
    """Make the architecture and its checks known to vLLM; calling it again changes nothing."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from eft_integrations.vllm.checks import EFTConfigChecks

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"eft_integrations.vllm.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = EFTConfigChecks
