"""Fields that are refused, each with what to do instead: the answer without them would be wrong (see `unused_fields`)."""

from __future__ import annotations

from collections.abc import Mapping

_CONSTRAINT = "give response_format, structured_outputs, guided_json, guided_regex, guided_choice or guided_grammar"
_PENALTY = "this engine has repetition_penalty, presence_penalty and frequency_penalty"
_SAMPLER = "this engine draws with temperature, top_k, top_p and min_p"
_BEAMS = "answers are drawn, not searched; ask for n answers"
_LORA = "this server has the trio that it loaded; `model` and eft_reward_weights choose what it does"
_RENDERED = "the server renders messages with its own; POST /v1/completions takes a text that is rendered already"
_BUDGET = "use eft_reasoning_budget, or reasoning.max_tokens"
_TAGS = "use eft_reasoning_tags"
_CODE = "callers bring no code; use logit_bias or a grammar"
_TEXT_ONLY = "this model reads text only"
_IDS = "tokens are told as texts and bytes; POST /tokenize tells the ids of a text"
_INSIDE = "a model's inside is not told"
_LIMIT = "use max_tokens"
_SCORES = "POST /v1/completions with echo and logprobs, or POST /v1/score"
_STOP = "use stop"
_MINIMUM = "use ignore_eos with max_tokens, or logit_bias of -100 on the token that ends the text"
_LATE_STOP = "a stop string is no part of a text; append it yourself"
_CONTROL = "control tokens are no part of a text"
_DEPRECATED = "deprecated by OpenAI; use {}"

REFUSED: Mapping[str, str] = {
    # OpenAI
    "functions": _DEPRECATED.format("tools"),
    "function_call": _DEPRECATED.format("tool_choice"),
    **dict.fromkeys(("audio", "modalities"), "this server answers in text"),
    "web_search_options": "this server searches nothing",
    "moderation": "this server moderates nothing; ask a moderation model about what was sent and answered",
    "suffix": "text is continued, not filled in",
    "conversation": "this server keeps no conversations; send the whole conversation as input",
    "background": "this server answers in the request's own connection",
    "prompt_id": "this server keeps no prompts",
    "extra_body": "that is an argument of OpenAI's client, which sends what it holds at the top of the body; send it there",
    "extra_headers": "that is an argument of OpenAI's client; send them as headers",
    # what belongs to another route, or to another API
    "messages": "POST /v1/chat/completions takes messages",
    "prompt": "POST /v1/completions takes a text; this server keeps no prompts",
    "input": "POST /v1/responses takes an input",
    "inputs": "use messages, or POST /v1/completions with prompt",
    "input_ids": "POST /v1/completions takes token ids as prompt",
    "prompt_embeds": "POST /v1/completions takes a text or token ids",
    "parameters": "write them into the body itself, under OpenAI's names",
    "system": "send it as a message of the role system",
    "instructions": "send them as a message of the role system",
    "tools": "POST /v1/chat/completions takes tools",
    "deferred_tools": "give them as tools",
    "tool_prompt": "the chat template announces tools",
    "n": "one call has one answer here",
    "n_cmpl": "use n",
    "random_seed": "use seed",
    **dict.fromkeys(("max_completion_tokens", "max_output_tokens"), _LIMIT),
    "response_format": "POST /v1/responses has text.format in its place",
    **dict.fromkeys(("stop_sequences", "stop_regex"), _STOP),
    "format": "use response_format",
    "think": "use reasoning_effort",
    "thinking": "use reasoning",
    "prompt_mode": "use reasoning_effort",
    "enable_thinking": "use reasoning_effort (none: do not think), or put it into chat_template_kwargs",
    "echo": "POST /v1/completions has it",
    "best_of": "answers are not ranked; ask for n answers",
    "plugins": "this server has none",
    "preset": "this server keeps none; send what it stands for",
    "safe_prompt": "send it as a message of the role system",
    # vLLM, SGLang
    **dict.fromkeys(("structural_tag", "guided_decoding", "grammar_lazy", "grammar_triggers"), _CONSTRAINT),
    **dict.fromkeys(("logits_processors", "custom_logit_processor", "custom_params"), _CODE),
    "vllm_xargs": "callers reach no plugin; ours are eft_reward_weights and the fields beside it",
    "allowed_token_ids": "use logit_bias, or guided_choice",
    "bad_words": "use logit_bias with the tokens' ids (POST /tokenize)",
    **dict.fromkeys(("min_tokens", "min_new_tokens"), _MINIMUM),
    **dict.fromkeys(("use_beam_search", "num_beams"), _BEAMS),
    **dict.fromkeys(("length_penalty", "early_stopping"), "it belongs to beam search, which this server does not do"),
    "repetition_detection": _PENALTY,
    **dict.fromkeys(("prompt_logprobs", "decoder_input_details"), _SCORES),
    "logprob_token_ids": "use top_logprobs, or POST /v1/score for given texts",
    "add_generation_prompt": "messages are always rendered with it; POST /v1/completions takes a text rendered otherwise",
    "add_special_tokens": "a chat template writes its own; POST /v1/completions has it for texts",
    "continue_final_message": "POST /v1/completions continues a text that is rendered already",
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens"), _CONTROL),
    **dict.fromkeys(("include_stop_str_in_output", "no_stop_trim"), _LATE_STOP),
    **dict.fromkeys(("truncate_prompt_tokens", "truncate"), "a prompt that does not fit is refused (400); shorten it"),
    **dict.fromkeys(
        ("return_tokens_as_token_ids", "return_token_ids", "return_tokens", "return_prompt_token_ids",
         "return_token_offsets", "return_assistant_tokens_mask"), _IDS,
    ),
    **dict.fromkeys(("return_prompt_text", "_debug_render_only"), "POST /tokenize tells what a conversation comes to"),
    **dict.fromkeys(("return_hidden_states", "return_routed_experts", "return_meta_info"), _INSIDE),
    "return_cached_tokens_details": "usage tells how many tokens were cached",
    "enable_response_messages": "POST /tokenize tells what a conversation comes to",
    "previous_input_messages": "send them as items of input",
    "session_params": "this server keeps no sessions; send the whole conversation",
    "task": "say it in a message, or put it into chat_template_kwargs",
    "separate_reasoning": "thoughts are told apart from the text",
    "reasoning_format": "thoughts are told apart from the text, in reasoning_content",
    **dict.fromkeys(("thinking_token_budget", "thinking_budget_tokens", "reasoning_budget_tokens"), _BUDGET),
    "reasoning_budget_message": "a thought that reaches its bound is ended by its tag",
    **dict.fromkeys(("reasoning_budget_start_tag", "reasoning_budget_end_tag", "reasoning_budget_end_tags"), _TAGS),
    **dict.fromkeys(("lora", "lora_path", "adapter_id"), _LORA),
    **dict.fromkeys(("mm_processor_kwargs", "images", "image_data"), _TEXT_ONLY),
    # llama.cpp, text-generation-inference, Ollama, and other samplers
    **dict.fromkeys(("n_predict", "max_new_tokens", "num_predict", "max_length", "t_max_predict_ms"), _LIMIT),
    "repeat_penalty": "use repetition_penalty, which looks at the whole text",
    **dict.fromkeys(("penalize_nl", "no_repeat_ngram_size", "dry_multiplier"), _PENALTY),
    **dict.fromkeys(
        ("typical_p", "typical", "tfs_z", "top_a", "top_n_sigma", "epsilon_cutoff", "eta_cutoff", "xtc_probability",
         "dynatemp_range", "mirostat", "samplers", "adaptive_target"), _SAMPLER,
    ),
    "do_sample": "temperature 0 is greedy, any other draws",
    "watermark": "texts are not marked",
    "n_indent": "use guided_regex or a grammar",
    **dict.fromkeys(("n_probs", "top_n_tokens"), "use logprobs and top_logprobs"),
    "post_sampling_probs": "log-probabilities are those before top_k, top_p and min_p",
    "parse_tool_calls": "calls are read where tools are given; leave tools out, or describe them in a message",
    "generation_prompt": _RENDERED,
    "return_full_text": "POST /v1/completions with echo",
    **dict.fromkeys(("chat_template", "template"), _RENDERED),
    "options": "Ollama's options go into the body itself, under OpenAI's names (num_predict: max_tokens)",
    "raw": "POST /v1/completions takes a raw text",
}  # fmt: skip
"""By name, what to do instead."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(
        ("functions", "tools", "stop_sequences", "logits_processors", "allowed_token_ids", "bad_words", "lora", "images",
         "image_data", "include", "plugins", "deferred_tools", "transforms", "models", "logprob_token_ids",
         "previous_input_messages", "grammar_triggers", "response_fields", "context_management", "stop_regex"), ([],),
    ),
    **dict.fromkeys(
        ("mm_processor_kwargs", "options", "vllm_xargs", "custom_params", "repetition_detection", "session_params",
         "parameters"), ({},),
    ),
    **dict.fromkeys(
        ("format", "suffix", "lora_path", "tool_prompt", "generation_prompt", "reasoning_budget_message",
         "reasoning_budget_start_tag", "reasoning_budget_end_tag"), ("",),
    ),
    **dict.fromkeys(("n", "n_cmpl", "best_of", "num_beams", "repeat_penalty", "typical_p", "typical", "tfs_z"), (1,)),
    **dict.fromkeys(
        ("min_tokens", "min_new_tokens", "no_repeat_ngram_size", "dry_multiplier", "top_a", "epsilon_cutoff", "eta_cutoff",
         "xtc_probability", "dynatemp_range", "mirostat", "n_probs", "top_n_tokens", "priority", "n_indent"), (0,),
    ),
    **dict.fromkeys(
        ("add_generation_prompt", "skip_special_tokens", "spaces_between_special_tokens", "do_sample", "include_reasoning",
         "separate_reasoning", "stream_reasoning", "parse_tool_calls"), (True,),
    ),
    **dict.fromkeys(("t_max_predict_ms", "t_max_prompt_ms", "n_keep", "n_discard"), (0, -1)),
    **dict.fromkeys(("thinking_token_budget", "thinking_budget_tokens", "reasoning_budget_tokens"), (-1,)),
    "top_n_sigma": (0, -1),
    "adaptive_target": (-1,),
    "length_penalty": (1, 0),
    "min_keep": (0, 1),
    "function_call": ("none",),
    "modalities": (["text"], []),
    "response_format": ({"type": "text"},),
    "truncation": ("disabled",),
    "verbosity": ("medium",),
    "store": (False,),
    "route": ("fallback",),
    "reasoning_format": ("auto", "deepseek"),
}  # fmt: skip
"""Values, besides null and false, that say what happens anyway. False says so except where it is a wish."""

FALSE_IS_A_WISH = frozenset(
    {"add_generation_prompt", "skip_special_tokens", "spaces_between_special_tokens", "do_sample", "include_reasoning",
     "separate_reasoning", "stream_reasoning", "parse_tool_calls", "enable_thinking", "function_call"}
)  # fmt: skip
