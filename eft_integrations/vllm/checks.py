"""What a trio needs of vLLM's configuration, set or refused in the front end before any model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from eft_integrations.vllm.admission import check_name, is_check
from eft_integrations.vllm.trio_options import TrioOptions

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

DRAFTERS = frozenset({"ngram", "ngram_gpu", "draft_model"})
"""Ways of speculative decoding that need no hidden states of the model."""

LOAD_FORMATS = frozenset({"auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "dummy"})
"""Ways of loading that read the checkpoints of several models."""

CPU_WORKER = "eft_integrations.vllm.cpu_worker.EFTCPUWorker"


class EFTConfigChecks(VerifyAndUpdateConfig):  # type: ignore[misc]  # vLLM is not there when types are checked
    """vLLM calls these for the architecture of trios, in the process that reads the command line."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Logits in float32, so that their differences are not rounded, unless the overrides say otherwise.

        Raises:
            ValueError: the pairs are missing or wrong, or a member is of a kind that trios do not support.
        """
        TrioOptions.of(model_config.hf_config)
        if getattr(model_config.hf_config, "head_dtype", None) is None:
            model_config.hf_config.head_dtype = "float32"
        _check_members(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Choose the worker, check every request's weights, and refuse what trios cannot do.

        Raises:
            ValueError: something that cannot be, with what to do instead.
        """
        _refuse_unsupported(vllm_config)
        model_config, v2 = vllm_config.model_config, vllm_config.use_v2_model_runner
        if not v2:
            _choose_cpu_worker(vllm_config)
        others = [own for own in model_config.logits_processors or [] if not is_check(own)]
        options = TrioOptions.of(model_config.hf_config)
        model_config.logits_processors = [*others, check_name(options.weights, v2=v2)]


def _choose_cpu_worker(vllm_config: VllmConfig) -> None:
    if not current_platform.is_cpu():
        raise ValueError(
            "trios on a GPU need vLLM's Model Runner V2, and this configuration uses the older one: install Triton, leave "
            "VLLM_USE_V2_MODEL_RUNNER unset or set it to 1, and see vLLM's warning for the option that V2 does not support"
        )
    if vllm_config.parallel_config.worker_cls == "auto":
        vllm_config.parallel_config.worker_cls = CPU_WORKER


def _refuse_unsupported(vllm_config: VllmConfig) -> None:
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    speculative = vllm_config.speculative_config
    stacks = "a trio is several stacks of layers, not one; split it with --tensor-parallel-size, over several nodes too"
    merge = "merge the adapter into its reference model and give the merged model as tuned"
    load_format = vllm_config.load_config.load_format
    refused = {
        f"pipeline parallelism ({stacks})": parallel.pipeline_parallel_size > 1,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "dual-batch overlap (--enable-dbo)": parallel.use_ubatching,
        f"LoRA (--enable-lora); {merge}": vllm_config.lora_config is not None,
        "prompt embeddings (each member has its own)": model.enable_prompt_embeds,
        f"load format {load_format!r}; trios are read from safetensors": load_format not in LOAD_FORMATS,
        "pooling (--runner pooling)": model.runner_type != "generate",
    }
    for what, found in refused.items():
        if found:
            raise ValueError(f"EFTForCausalLM does not support {what}")
    if speculative is not None and speculative.method not in DRAFTERS:
        raise ValueError(
            f"EFTForCausalLM does not support speculative decoding by {speculative.method!r}, which reads the hidden states of one "
            f"model; a trio has several. Use ngram, or draft_model with the tuned small model"
        )


def _check_members(trio: ModelConfig) -> None:
    """Read the members' configurations: kinds, vocabularies and lengths, before the workers would fail over them."""
    from eft_integrations.vllm.members import member_configs

    configs = dict(member_configs(trio, max_model_len=None))
    for key, config in configs.items():
        for kind in ("is_multimodal_model", "is_encoder_decoder", "is_hybrid", "is_attention_free", "uses_mrope"):
            if getattr(config, kind, False):
                raise ValueError(
                    f"EFTForCausalLM: {config.model} ({key}) is of a kind that trios do not support ({kind}); every "
                    "member must be a decoder of text with attention layers (save the language model of a multimodal "
                    "checkpoint by itself)"
                )
    sizes = {key: config.get_vocab_size() for key, config in configs.items()}
    if max(sizes.values()) > 1.25 * min(sizes.values()):
        raise ValueError(f"EFTForCausalLM: the members' vocabularies cannot be the same: {sizes}")
    named = TrioOptions.of(trio.hf_config).end_ids
    trio.hf_config.eft_eos_token_ids = sorted(
        named or {token for config in configs.values() for token in _eos_token_ids(config)}
    )
    _limit_length(trio, {key: config.max_model_len for key, config in configs.items()})


def _eos_token_ids(config: ModelConfig) -> list[int]:
    """The tokens that end a member's text: its generation configuration's, else its own."""
    ids = config.try_get_generation_config().get("eos_token_id", getattr(config.hf_text_config, "eos_token_id", None))
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _limit_length(trio: ModelConfig, lengths: dict[str, int]) -> None:
    """No request may be longer than the member that was made for the shortest texts."""
    shortest = min(lengths.values())
    if trio.max_model_len <= shortest:
        return
    if trio.original_max_model_len not in (None, -1):
        raise ValueError(
            f"EFTForCausalLM: --max-model-len {trio.max_model_len} is more than the members allow: {lengths}; leave it "
            f"out, or give {shortest}"
        )
    trio.max_model_len = shortest
