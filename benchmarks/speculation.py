"""How fast is the composition with drafting, against the three-model loop, the base alone, and itself without drafting?

    python -m benchmarks.speculation imposed         base SmolLM2-135M, pair of 6 layers x 256 (random weights), acceptance imposed
    python -m benchmarks.speculation quoting         SmolLM2 trio, answers that quote their context, prompt lookup
    python -m benchmarks.speculation batch           16 requests together against one after another without drafting
    python -m benchmarks.speculation conversation    second turn of a 2,000-token conversation: time to first token

Imposed acceptance: the drafter pays every forward pass of the tuned model, and its tokens are then replaced by the right ones with
the given probability. What a real pair would accept is not measured by this.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.batch_limit import batch_limits
from benchmarks.imposed import impose, small_model
from benchmarks.naive import naive_loop, transformers_generate
from benchmarks.report import finish
from benchmarks.rounds import CpuTime, clock, count_cpu_time, measure, medians_of_ratios, run_engine, show
from benchmarks.smollm2 import QUESTIONS, Dtype, SeparateTrio, separate_trio, shared_engine
from benchmarks.texts import ARTICLE
from eft_engine import Engine, EngineConfig, SamplingParams, SpeculationOptions

app = typer.Typer(add_completion=False, help=__doc__)
Rounds = Annotated[int, typer.Option(help="Repetitions; medians of their ratios are reported.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens per request.")]
PLAIN = SpeculationOptions(drafter="none")


@app.command()
def imposed(rounds: Rounds = 3, max_tokens: MaxTokens = 64) -> None:
    """Batch 1, acceptance imposed on drafts of a small tuned model."""
    trio = separate_trio()
    trio = SeparateTrio(trio.base, small_model(1), small_model(2), trio.tokenizer)
    prompt_ids = trio.tokenizer.encode(QUESTIONS[0])
    models = (trio.base, trio.tuned, trio.reference)
    drafting = SpeculationOptions(drafter="tuned")
    right, _ = naive_loop(models, prompt_ids, weight=0.5, max_tokens=max_tokens)
    engine_outputs: dict[str, Any] = {}

    def with_engine(acceptance: float | None) -> float:
        with trio.engine(EngineConfig(self_check=False, max_warm_prefixes=0)) as engine:
            if acceptance is not None:
                impose(engine, {tuple(prompt_ids): right}, acceptance)
            warm, _ = run_engine(
                engine, QUESTIONS[0], max_tokens=16, weight=0.5, speculation=drafting
            )  # learns the costs
            assert warm.token_ids == tuple(right[:16]), "drafting must not change the text"
            out, seconds = run_engine(
                engine,
                QUESTIONS[0],
                max_tokens=max_tokens,
                weight=0.5,
                speculation=PLAIN if acceptance is None else drafting,
            )
        assert out.token_ids == tuple(right), "drafting must not change the text"
        engine_outputs[str(acceptance)] = out.metrics
        return seconds

    runs: dict[str, Callable[[], float]] = {
        "naive loop": lambda: naive_loop(models, prompt_ids, weight=0.5, max_tokens=max_tokens)[1],
        "base alone (transformers)": lambda: transformers_generate(trio.base, prompt_ids, max_tokens=max_tokens)[1],
        "engine, no drafts": lambda: with_engine(None),
    }
    for acceptance in (0.6, 0.8, 0.9):
        runs[f"engine, acceptance {acceptance}"] = partial(with_engine, acceptance)
    times = measure(runs, rounds)
    result = show(f"batch 1, {max_tokens} tokens, imposed acceptance", times, max_tokens, "naive loop")
    result["against_base_alone"] = {
        name: medians_of_ratios(times, "base alone (transformers)", name) for name in runs if name.startswith("engine")
    }
    result["mean_acceptance_length"] = {key: value.mean_acceptance_length for key, value in engine_outputs.items()}
    finish("speculation_imposed", result)


@app.command()
def quoting(rounds: Rounds = 3, max_tokens: MaxTokens = 96) -> None:
    """Batch 1, answers that quote their context."""
    trio = separate_trio()
    prompt = (
        f"{ARTICLE}\n\nRepeat the text above word for word.\n\n"
        "The lighthouse of Orrin Head was built in 1847 from grey granite"
    )
    prompt_ids = trio.tokenizer.encode(prompt)
    models = (trio.base, trio.tuned, trio.reference)
    lookup = SpeculationOptions(drafter="prompt_lookup", max_draft_tokens=16)
    right, _ = naive_loop(models, prompt_ids, weight=0.5, max_tokens=max_tokens)
    metrics: dict[str, Any] = {}

    def with_engine(engine: Engine, name: str, speculation: SpeculationOptions) -> float:
        out, seconds = run_engine(engine, prompt, max_tokens=max_tokens, weight=0.5, speculation=speculation)
        same = sum(a == b for a, b in zip(out.token_ids, right, strict=True))
        metrics[name] = {"mean_acceptance_length": out.metrics.mean_acceptance_length, "tokens_equal_to_naive": same}
        return seconds

    config = EngineConfig(max_warm_prefixes=0)
    with shared_engine(config) as shared:
        runs: dict[str, Callable[[], float]] = {
            "naive loop": lambda: naive_loop(models, prompt_ids, weight=0.5, max_tokens=max_tokens)[1],
            "base alone (transformers)": lambda: transformers_generate(trio.base, prompt_ids, max_tokens=max_tokens)[1],
            "base alone, prompt lookup (transformers)": lambda: transformers_generate(
                trio.base, prompt_ids, max_tokens=max_tokens, prompt_lookup_num_tokens=10
            )[1],
            "engine, no drafts": lambda: with_engine(shared, "engine, no drafts", PLAIN),
            "engine, prompt lookup": lambda: with_engine(shared, "engine, prompt lookup", lookup),
        }
        times = measure(runs, rounds)
    title = f"batch 1, prompt of {len(prompt_ids)} tokens that is quoted, {max_tokens} tokens"
    result = show(title, times, max_tokens, "naive loop")
    finish("speculation_quoting", {**result, "engine": metrics})


@app.command()
def batch(
    rounds: Rounds = 3,
    max_tokens: MaxTokens = 32,
    size: Annotated[int, typer.Option(help="Requests; half of them at weight 0.5, half at 1.")] = 16,
    sample: Annotated[int, typer.Option(min=1, help="One by one, only every n-th request; the sum is scaled up.")] = 1,
    dtype: Dtype = "float32",
    cpu_time: CpuTime = False,
) -> None:
    """Requests together (drafting as it pays) against one after another without drafting, next to what the processor allows."""
    if cpu_time:
        count_cpu_time()
    prompts = [[{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}] for i in range(size)]
    weights = [0.5 if i < size // 2 else 1.0 for i in range(size)]

    def together(engine: Engine) -> float:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        started = clock()
        engine.generate(prompts, sampling=sampling, reward_weights=weights)
        return clock() - started

    def alone(engine: Engine) -> float:
        chosen = list(zip(prompts, weights, strict=True))[::sample]
        seconds = sum(
            run_engine(engine, [prompt], max_tokens=max_tokens, weight=weight, speculation=PLAIN)[1]
            for prompt, weight in chosen
        )
        return seconds * size / len(chosen)

    name = f"{size} together"
    # In torch, whose products the limits are made of.
    config = EngineConfig(max_warm_prefixes=0, max_num_seqs=size, dtype=dtype, cpu_kernels=False)
    with shared_engine(config) as engine:
        times = measure({"one by one": lambda: alone(engine), name: lambda: together(engine)}, rounds)
        adapter = engine._trio.members["json.tuned"].adapter
        # At weight 1 base and reference, which are one network here, cancel out, and only the tuned row runs.
        limits = batch_limits(engine, [[None, adapter] if weight < 1.0 else [adapter] for weight in weights])
    result = show(
        f"{size} requests of {max_tokens} tokens, weights 0.5 and 1, {dtype}", times, size * max_tokens, "one by one"
    )
    Console().print("limits: " + ", ".join(f"{kind} {limit:.1f}x" for kind, limit in limits.items()))
    finish("speculation_batch", {**result, "limits": limits, "sample": sample, "dtype": dtype, "cpu_time": cpu_time})


@app.command()
def conversation(rounds: Rounds = 3) -> None:
    """Time to first token: the second turn of a 2,000-token conversation, warm against cold."""
    history = [
        {"role": "user", "content": "Here are my notes. " + " ".join([ARTICLE] * 9)},
        {"role": "assistant", "content": "Thank you, I have read them."},
        {"role": "user", "content": "How tall is the tower?"},
    ]
    first_turn = history[:1]
    sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    ratios: list[float] = []
    details: list[dict[str, float]] = []
    for _ in range(rounds):
        with shared_engine() as engine:
            engine.generate("warm up", sampling=sampling, reward_weights=0.5)
            cold = engine.generate(history, sampling=sampling, reward_weights=0.5)
        with shared_engine() as engine:
            engine.generate("warm up", sampling=sampling, reward_weights=0.5)
            engine.generate(first_turn, sampling=sampling, reward_weights=0.5)
            warm = engine.generate(history, sampling=sampling, reward_weights=0.5)
        assert warm.token_ids == cold.token_ids, "a warm prefix must not change the text"
        ratios.append(warm.metrics.ttft_s / cold.metrics.ttft_s)
        details.append({"cold_ttft_s": cold.metrics.ttft_s, "warm_ttft_s": warm.metrics.ttft_s})
        Console(stderr=True).print(f"cold {cold.metrics.ttft_s:.2f} s, warm {warm.metrics.ttft_s:.2f} s")
    usage = warm.usage
    Console().print(
        f"second turn of {usage.prompt_tokens} tokens, {usage.cached_prompt_tokens} of them cached: time to first token "
        f"{statistics.median(ratios):.3f}x of a cold start"
    )
    finish("speculation_conversation", {"ratio": statistics.median(ratios), "ratios": ratios, "rounds": details})


if __name__ == "__main__":
    app()
