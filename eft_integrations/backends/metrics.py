"""What servers tell Prometheus, as an engine's statistics. Of single networks they tell nothing."""

from __future__ import annotations

import re

from eft_engine import EngineStats, errors

EFT_SAMPLE = re.compile(r'^eft_(\w+)\{engine="((?:[^"\\]|\\.)*)"\} (\S+)$', re.MULTILINE)


def eft_stats(exposition: str, name: str) -> EngineStats:
    r"""The metrics of `eft serve`, of the engine that serves the composition `name`.

    >>> eft_stats('eft_prompt_tokens_total{engine="a+b"} 7.0\neft_prompt_tokens_total{engine="c"} 5.0', "b").prompt_tokens
    7
    """
    totals: dict[str, int] = {}
    use = 0.0
    for metric, label, value in EFT_SAMPLE.findall(exposition):
        engine = re.sub(r"\\(.)", lambda escaped: "\n" if escaped[1] == "n" else escaped[1], label)
        if name == engine or name in engine.split("+"):
            totals[metric] = int(float(value))
            use = float(value) if metric == "kv_cache_use_ratio" else use
    if not totals:
        raise errors.RemoteServerError(f"the server's metrics say nothing of {name!r}", status=None)
    return EngineStats(
        num_running=totals.get("requests_running", 0),
        num_waiting=totals.get("requests_waiting", 0),
        num_warm_prefixes=totals.get("warm_prefixes", 0),
        num_finished=totals.get("requests_finished_total", 0),
        num_failed=totals.get("requests_failed_total", 0),
        num_cancelled=totals.get("requests_cancelled_total", 0),
        prompt_tokens=totals.get("prompt_tokens_total", 0),
        cached_prompt_tokens=totals.get("cached_prompt_tokens_total", 0),
        completion_tokens=totals.get("completion_tokens_total", 0),
        num_drafted=totals.get("drafted_tokens_total", 0),
        num_accepted=totals.get("accepted_tokens_total", 0),
        num_steps=totals.get("evaluations_total", 0),
        networks=(),
        kv_cache_use=use,
    )


VLLM_SAMPLE = re.compile(r"^vllm:(\w+?)(?:\{[^}]*\})? ([-+.\deE]+)$", re.MULTILINE)


def vllm_stats(exposition: str) -> EngineStats:
    """The metrics of vLLM in our words.

    >>> vllm_stats('vllm:prompt_tokens_total{engine="0"} 7.0').prompt_tokens
    7
    """
    totals: dict[str, float] = {}
    for name, value in VLLM_SAMPLE.findall(exposition):
        totals[name] = totals.get(name, 0.0) + float(value)

    def count(name: str) -> int:
        return int(totals.get(name, 0))

    return EngineStats(
        num_running=count("num_requests_running"),
        num_waiting=count("num_requests_waiting"),
        num_warm_prefixes=0,
        num_finished=count("request_success_total"),
        num_failed=0,
        num_cancelled=0,
        prompt_tokens=count("prompt_tokens_total"),
        cached_prompt_tokens=count("prefix_cache_hits_total"),
        completion_tokens=count("generation_tokens_total"),
        num_drafted=count("spec_decode_num_draft_tokens_total"),
        num_accepted=count("spec_decode_num_accepted_tokens_total"),
        num_steps=0,
        networks=(),
    )
