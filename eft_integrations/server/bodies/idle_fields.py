"""Fields that change nothing, each with the reason: they cannot, or might have been meant to (see `unused_fields`)."""

from __future__ import annotations

from collections.abc import Mapping

_WHO = "who asks: told to nobody"
_NOTES = "the caller's own notes"
_CACHE = "what was read before is found by its text; an answer does not depend on it"
_DRAFTS = "how tokens are drafted changes no answer"
_PLACE = "where an answer is computed changes nothing in it"
_MEDIA = "it is about images, sound or video, and this model reads text only"
_OF = "it belongs to {}, which is refused where it is on"
_ONE_ENGINE = "one engine reads the prompt and writes the answer"
_LOADED = "models stay loaded"
_ONE_MODEL = "`model` names what answers; there is nothing to fall back to"
_TOLD = "eft, usage and the stream's own fields tell what there is"
_NOTATION = "how answers are read is told by the model's chat template"

WITHOUT_EFFECT: Mapping[str, str] = {
    **dict.fromkeys(("user", "safety_identifier"), _WHO),
    **dict.fromkeys(("metadata", "trace", "custom_labels"), _NOTES),
    "service_tier": "there is one",
    **dict.fromkeys(
        ("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "cache_prompt", "cache_salt", "cache_control",
         "n_cache_reuse", "extra_key"), _CACHE,
    ),
    **dict.fromkeys(("id_slot", "backend_sampling"), _PLACE),
    **dict.fromkeys(
        ("speculative.n_max", "speculative.n_min", "speculative.p_min", "speculative.type", "speculative.ngram_size_n",
         "speculative.ngram_size_m", "speculative.ngram_min_hits", "ngram_corpus_id", "draft_model"), _DRAFTS,
    ),
    **dict.fromkeys(
        ("media_io_kwargs", "images_config", "image_config", "max_dynamic_patch", "min_dynamic_patch", "use_audio_in_video"),
        _MEDIA,
    ),
    **dict.fromkeys(("mirostat_tau", "mirostat_eta"), _OF.format("mirostat")),
    **dict.fromkeys(
        ("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"), _OF.format("dry_multiplier")
    ),
    "xtc_threshold": _OF.format("xtc_probability"),
    "dynatemp_exponent": _OF.format("dynatemp_range"),
    "adaptive_decay": _OF.format("adaptive_target"),
    "repeat_last_n": _OF.format("repeat_penalty"),
    "truncation_side": _OF.format("truncate_prompt_tokens"),
    "routed_experts_start_len": _OF.format("return_routed_experts"),
    **dict.fromkeys(("max_tool_calls", "stop_server_tools_when"), "it bounds calls of built-in tools, and there are none"),
    **dict.fromkeys(("request_id", "rid"), "X-Request-Id carries it"),
    "disable_fallbacks": "there is nothing to fall back to",
    **dict.fromkeys(("keep_alive", "ttl"), _LOADED),
}  # fmt: skip
"""By name, why it cannot change an answer: taken, and not mentioned."""

NAMED: Mapping[str, str] = {
    "store": "no answers are kept on this route, or on this server",
    "verbosity": "say in a message how long an answer is to be",
    "truncation": "a prompt that does not fit is refused",
    "prediction": "this engine drafts by itself",
    "context_management": "a conversation is not compacted; one that does not fit is refused",
    "include": "nothing of it is there",
    "priority": "turns are shared fairly among keys",
    **dict.fromkeys(
        ("kv_transfer_params", "ec_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank",
         "disagg_prefill_dp_rank", "data_parallel_rank"), _ONE_ENGINE,
    ),
    **dict.fromkeys(("models", "route", "provider"), _ONE_MODEL),
    "transforms": "a prompt that does not fit is refused",
    "session_id": "no sessions are kept; an answer depends on its own body",
    **dict.fromkeys(
        ("usage", "details", "debug", "verbose", "timings_per_token", "return_progress", "response_fields"), _TOLD
    ),
    **dict.fromkeys(("include_reasoning", "stream_reasoning"), "thoughts are told, piece by piece"),
    "reasoning_control": "a thought is bounded by eft_reasoning_budget",
    "sse_ping_interval": "the operator sets how often a silent stream pings",
    "t_max_prompt_ms": "how long a prompt is read is bounded by the operator",
    **dict.fromkeys(("n_keep", "n_discard", "num_ctx"), "the context has the length that the operator gave it, and is not shifted"),
    "min_keep": "samplers keep at least one token",
    **dict.fromkeys(("chat_format", "chat_parser", "preserved_tokens"), _NOTATION),
    **dict.fromkeys(("guided_decoding_backend", "grammar_type"), "one library holds texts to grammars"),
    **dict.fromkeys(
        ("guided_whitespace_pattern", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"),
        "JSON is written with single spaces, and a schema says itself which properties there may be",
    ),
    "continuous_usage_stats": "usage is told at the end; eft_progress tells how far an answer is",
    "include_obfuscation": "pieces are sent as they come",
}  # fmt: skip
"""By name, why it is not used: named in `eft.ignored`. So is every name that is in none of the tables."""

QUIET_IN_MESSAGES: Mapping[str, str] = {
    **dict.fromkeys(
        ("refusal", "annotations", "id", "status", "index", "logprobs", "finish_reason", "phase", "eft"),
        "an answer's own, sent back",
    ),
    "cache_control": WITHOUT_EFFECT["cache_control"],
    "metadata": WITHOUT_EFFECT["metadata"],
    "provider_specific_fields": "another provider's own, sent back",
    "timestamp": "when it was written",
}
"""Keys of messages and of what they hold that cannot change an answer."""

QUIET_IN_QUERY = frozenset({"api-version", "beta", "timeout"})
