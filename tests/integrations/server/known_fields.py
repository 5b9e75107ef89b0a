"""Names of the fields that other servers and clients send, by whose they are; read from their sources, in November 2026."""

from __future__ import annotations

SAMPLING = (
    "model temperature top_p top_k min_p seed stop stream stream_options max_tokens n logit_bias logprobs "
    "presence_penalty frequency_penalty repetition_penalty response_format stop_token_ids ignore_eos user"
)
"""What nearly all of them have in common."""

CHAT: dict[str, str] = {
    "OpenAI": (
        "messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens "
        "max_tokens metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key "
        "prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed "
        "service_tier stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity "
        "web_search_options"
    ),
    "vLLM": (
        f"{SAMPLING} messages top_logprobs max_completion_tokens tools tool_choice reasoning_effort "
        "thinking_token_budget include_reasoning parallel_tool_calls use_beam_search length_penalty "
        "include_stop_str_in_output min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens "
        "truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo add_generation_prompt "
        "continue_final_message add_special_tokens documents chat_template chat_template_kwargs media_io_kwargs "
        "mm_processor_kwargs structured_outputs priority request_id return_tokens_as_token_ids return_token_ids "
        "return_token_offsets return_prompt_text return_assistant_tokens_mask cache_salt kv_transfer_params "
        "ec_transfer_params vllm_xargs repetition_detection best_of early_stopping guided_decoding_backend guided_json "
        "guided_regex guided_choice guided_grammar guided_whitespace_pattern logits_processors"
    ),
    "SGLang": (
        f"{SAMPLING} messages top_logprobs max_completion_tokens tools tool_choice parallel_tool_calls "
        "return_hidden_states return_routed_experts routed_experts_start_len return_cached_tokens_details "
        "return_prompt_token_ids return_token_ids return_meta_info reasoning_effort reasoning task min_tokens regex "
        "ebnf stop_regex no_stop_trim continue_final_message skip_special_tokens lora_path session_id session_params "
        "separate_reasoning stream_reasoning chat_template_kwargs max_dynamic_patch min_dynamic_patch "
        "use_audio_in_video images_config custom_logit_processor custom_params input_ids rid extra_key cache_salt "
        "ngram_corpus_id priority bootstrap_host bootstrap_port bootstrap_room routed_dp_rank disagg_prefill_dp_rank "
        "data_parallel_rank"
    ),
    "llama.cpp": (
        f"{SAMPLING} messages top_logprobs max_completion_tokens tools tool_choice parallel_tool_calls "
        "add_generation_prompt continue_final_message chat_template_kwargs reasoning_format reasoning_effort "
        "reasoning_budget_tokens thinking_budget_tokens reasoning_budget_message reasoning_control "
        "reasoning_budget_start_tag reasoning_budget_end_tag reasoning_budget_end_tags grammar json_schema grammar_lazy "
        "grammar_triggers grammar_type preserved_tokens chat_format chat_parser generation_prompt parse_tool_calls echo "
        "n_probs n_predict n_cmpl n_keep n_discard n_indent n_cache_reuse cache_prompt id_slot lora min_keep mirostat "
        "mirostat_tau mirostat_eta typical_p top_n_sigma xtc_probability xtc_threshold dynatemp_range dynatemp_exponent "
        "dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers adaptive_target "
        "adaptive_decay repeat_penalty repeat_last_n samplers post_sampling_probs return_tokens return_progress "
        "response_fields timings_per_token t_max_predict_ms t_max_prompt_ms sse_ping_interval backend_sampling verbose "
        "speculative.n_max speculative.n_min speculative.p_min speculative.type speculative.ngram_size_n "
        "speculative.ngram_size_m speculative.ngram_min_hits"
    ),
    "text-generation-inference": (
        "messages frequency_penalty logit_bias logprobs max_tokens model n presence_penalty response_format seed stop "
        "stream stream_options temperature tool_choice tool_prompt tools top_logprobs top_p inputs parameters "
        "adapter_id best_of decoder_input_details details do_sample grammar max_new_tokens repetition_penalty "
        "return_full_text top_k top_n_tokens truncate typical_p watermark"
    ),
    "Ollama": (
        "model messages stream stream_options max_tokens seed stop temperature frequency_penalty presence_penalty top_p "
        "response_format tools reasoning reasoning_effort _debug_render_only format options keep_alive think raw "
        "template system num_predict num_ctx"
    ),
    "OpenRouter": (
        "messages cache_control debug deferred_tools frequency_penalty image_config logit_bias logprobs "
        "max_completion_tokens max_tokens metadata min_p modalities model models parallel_tool_calls plugins prediction "
        "presence_penalty prompt_cache_key prompt_cache_options provider reasoning reasoning_effort repetition_penalty "
        "response_format route seed service_tier session_id stop stop_server_tools_when stream stream_options "
        "temperature tool_choice tools top_a top_k top_logprobs top_p trace transforms usage user include_reasoning "
        "preset"
    ),
}
"""Of chat completions."""

COMPLETIONS: dict[str, str] = {
    "OpenAI": (
        "best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt seed stop stream "
        "stream_options suffix temperature top_p user"
    ),
    "vLLM": (
        f"{SAMPLING} prompt echo suffix use_beam_search length_penalty include_stop_str_in_output min_tokens "
        "skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids "
        "prompt_logprobs logprob_token_ids bad_words prompt_embeds add_special_tokens structured_outputs priority "
        "request_id return_tokens_as_token_ids return_token_ids return_token_offsets cache_salt kv_transfer_params "
        "ec_transfer_params vllm_xargs repetition_detection thinking_token_budget guided_json guided_regex "
        "guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern logits_processors best_of"
    ),
    "SGLang": (
        f"{SAMPLING} prompt best_of echo suffix return_hidden_states return_routed_experts routed_experts_start_len "
        "return_cached_tokens_details return_token_ids min_tokens json_schema regex ebnf stop_regex no_stop_trim "
        "skip_special_tokens lora_path session_id session_params custom_params custom_logit_processor images_config rid "
        "extra_key cache_salt ngram_corpus_id priority custom_labels"
    ),
    "Ollama": (
        "model prompt frequency_penalty max_tokens presence_penalty seed stop stream stream_options temperature top_p "
        "suffix _debug_render_only"
    ),
}
"""Of completions."""

RESPONSES: dict[str, str] = {
    "OpenAI": (
        "background context_management conversation include input instructions max_output_tokens max_tool_calls "
        "metadata model moderation parallel_tool_calls previous_response_id prompt prompt_cache_key "
        "prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store stream "
        "stream_options temperature text tool_choice tools top_logprobs top_p truncation user"
    ),
    "vLLM": (
        "logit_bias include_reasoning top_k skip_special_tokens include_stop_str_in_output presence_penalty "
        "frequency_penalty request_id media_io_kwargs mm_processor_kwargs priority cache_salt enable_response_messages "
        "previous_input_messages structured_outputs repetition_penalty seed stop ignore_eos vllm_xargs "
        "kv_transfer_params ec_transfer_params chat_template_kwargs"
    ),
    "SGLang": "chat_template_kwargs request_id session_id priority extra_key cache_salt ngram_corpus_id stop top_k min_p",
}
"""Of responses."""

TOKENIZE: dict[str, str] = {
    "vLLM": (
        "model prompt messages add_special_tokens return_token_strs add_generation_prompt continue_final_message "
        "chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs tools"
    ),
    "SGLang": "tool_choice reasoning_effort continue_final_message chat_template_kwargs",
}
"""Of /tokenize."""
