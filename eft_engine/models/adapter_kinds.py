"""What an adapter of PEFT is, by its configuration alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

CHANGES_THE_MODEL = ("pissa", "olora", "loftq")
"""Initialisations for which PEFT subtracts from the weights of a layer what it puts into A and B, also when it loads a file
(PiSSA, arXiv 2404.02948)."""

VARIANTS = ("kasa_config", "monteclora_config", "use_bdlora", "use_qalora", "velora_config")
"""Settings of PEFT under which layers compute something else than `scaling * B(A(x))`."""

PROMPTS = "it puts trained tokens or states before the text, which is no change of weights"
BY_TEXT = "what it adds goes by the text as a whole, which is no change of weights"
NEVER: Mapping[str, str] = {
    "PROMPT_TUNING": PROMPTS,
    "MULTITASK_PROMPT_TUNING": PROMPTS,
    "P_TUNING": PROMPTS,
    "PREFIX_TUNING": PROMPTS,
    "CPT": PROMPTS,
    "CARTRIDGE": PROMPTS,
    "ADAPTION_PROMPT": PROMPTS,
    "XLORA": "it mixes other adapters by a first look at the text, which is no change of weights",
    "POLY": "it mixes its parts by the number of a task, which comes with each request",
    "SHADOW": BY_TEXT,
    "LILY": "it weighs its parts by the mean over all tokens of a pass, the later ones too",
}
"""By PEFT's type, kinds that no set of weights can stand for."""


def why_never(config: Mapping[str, Any]) -> str | None:
    """Why no network can hold an adapter; None: PEFT may say so."""
    kind = str(config["peft_type"])
    if kind in NEVER:
        return f"it is of type {kind}: {NEVER[kind]}"
    if kind != "LORA":
        return None
    if config.get("alora_invocation_tokens"):
        return "it waits for invocation tokens (aLoRA), so that what it adds goes by the text"
    if config.get("arrow_config"):
        return "it is a router over other adapters (arrow_config)"
    if _initial(config).startswith("corda"):
        return (
            "it starts from values taken out of the model's weights and of data (init_lora_weights='corda'), and PEFT does not "
            "load it without that data; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    if _initial(config) == "loftq" and importlib.util.find_spec("bitsandbytes") is None:
        return "it starts from weights that PEFT quantises when it loads it (LoftQ), with a package that is missing: bitsandbytes"
    return None


def beyond_lora(config: Mapping[str, Any]) -> list[str]:
    """What an adapter does beyond adding `scaling * B(A(x))` to layers, by its configuration."""
    kind, initial = config["peft_type"], _initial(config)
    return [
        reason
        for found, reason in (
            (kind != "LORA", f"it is of type {kind}, not LORA"),
            (config.get("use_dora"), "it uses DoRA"),
            (config.get("modules_to_save"), f"it replaces whole modules ({config.get('modules_to_save')})"),
            (config.get("trainable_token_indices"), "it changes embeddings of single tokens"),
            (
                config.get("target_parameters"),
                f"it changes parameters outside of layers ({config.get('target_parameters')})",
            ),
            (config.get("bias", "none") != "none", f"it trains biases (bias={config.get('bias')!r})"),
            (config.get("layer_replication"), "it repeats layers of the model"),
            *((config.get(name), f"it uses {name} ({config.get(name)!r})") for name in VARIANTS),
            (
                initial.startswith(CHANGES_THE_MODEL),
                f"it starts from values taken out of the model's own weights (init_lora_weights={initial!r})",
            ),
        )
        if found
    ]


def doubts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences on an adapter that loads, and may not say what it said while it was trained."""
    initial = _initial(config)
    converted = "PEFT's path_initial_model_for_weight_conversion saves it so that it fits any copy of the base"
    if initial.startswith("pissa_niter"):
        return (
            "its start was estimated with random numbers, and PEFT estimates it anew when it is loaded: what it says differs "
            f"noticeably from what was trained; {converted}",
        )
    if initial == "lora_ga":
        return (f"its training changed the base's own weights (lora_ga), and it fits only that base; {converted}",)
    return ()


def _initial(config: Mapping[str, Any]) -> str:
    return str(config.get("init_lora_weights", True)).lower()
