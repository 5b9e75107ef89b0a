"""Tokens that only the tuned model has: composed as a slow loop composes them, read by the others in tokens of their own."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eft_engine import (
    CompositionOptions,
    Engine,
    EngineConfig,
    Lark,
    LoadedPair,
    PlainText,
    PromptOptions,
    SamplingParams,
    SpeculationOptions,
    TunedPair,
)
from eft_engine.decoding.composition import keep_tuned_outside_nuclei
from eft_engine.errors import ContextOverflowError, UnknownTokenError, VocabularyMismatchError
from tests.choice import thorough_but
from tests.gguf_files import write_gguf
from tests.llama_cpp_trios import EXACT
from tests.toy import END_ID, VOCAB_SIZE, make_model, make_tokenizer, save_adapter, wait_until_idle

ADDED = ("<|im_start|>", "<|im_end|>", "<|think|>")
TURN_END = VOCAB_SIZE + 1
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}]
PROMPTS = ["abc", "The quick brown fox", "<|im_start|>user\nHi<|im_end|>\n", "x<|think|>y"]


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(extra_tokens=ADDED)
    tokenizer.chat_template = CHATML
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def chatml_model(seed: int, *, padding: int = 9) -> PreTrainedModel:
    """A model of a padded vocabulary that likes the added tokens."""
    model = make_model("llama", seed=seed, vocab_size=VOCAB_SIZE + len(ADDED) + padding)
    with torch.no_grad():
        model.get_output_embeddings().weight[VOCAB_SIZE : VOCAB_SIZE + len(ADDED)] *= 2.5
    model.generation_config.eos_token_id = TURN_END
    return model


@dataclass(frozen=True)
class Member:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    def logits(self, prompt: str, output_ids: Sequence[int], output: PreTrainedTokenizerFast) -> Tensor:
        """Logits behind a prompt and generated tokens; one that it does not know it reads as text."""
        read = list(self.tokenizer.encode(prompt, add_special_tokens=False))
        for token_id in output_ids:
            known = token_id in self.tokenizer.get_vocab().values()
            text = output.decode([token_id])
            read += [token_id] if known else self.tokenizer.encode(text, add_special_tokens=False)
        with torch.inference_mode():
            logits: Tensor = self.model(torch.tensor([read])).logits[0, -1]
        return logits


@dataclass(frozen=True)
class Trio:
    """A base and pairs whose tuned models added the tokens of ChatML."""

    base: Member
    pairs: dict[str, tuple[Member, Member]]

    def engine(self, **config: Any) -> Engine:
        tokenizers = {"base": self.base.tokenizer}
        for name, (tuned, reference) in self.pairs.items():
            tokenizers |= {f"{name}.tuned": tuned.tokenizer, f"{name}.reference": reference.tokenizer}
        return Engine.from_models(
            self.base.model,
            tokenizer=tokenizers,
            pairs={name: LoadedPair(tuned.model, reference.model) for name, (tuned, reference) in self.pairs.items()},
            config=EngineConfig.model_validate({"tuned_only_tokens": "keep", **config}),
        )

    def logprobs(
        self,
        prompt: str,
        output_ids: Sequence[int],
        weights: dict[str, float],
        top_p: float | None = None,
        share: float = 0.0,
    ) -> Tensor:
        """The composition as it is defined: kept tokens have the tuned model's probability, the others share the rest."""
        shared, every = slice(0, VOCAB_SIZE), slice(0, VOCAB_SIZE + len(ADDED))
        output = next(iter(self.pairs.values()))[0].tokenizer
        scores = self.base.logits(prompt, output_ids, output)[shared].log_softmax(-1)
        kept = torch.zeros(len(ADDED))
        total = sum(abs(weight) for weight in weights.values())
        for name, weight in weights.items():
            tuned, reference = (member.logits(prompt, output_ids, output) for member in self.pairs[name])
            own = tuned[shared].log_softmax(-1)
            differences = own - reference[shared].log_softmax(-1)
            is_noise = (own.exp() < share * own.exp().max()) & (differences > 0)
            scores = scores + torch.where(is_noise, min(weight, 1.0), weight) * differences
            if weight:
                kept += abs(weight) / total * tuned[every].softmax(-1)[VOCAB_SIZE:]
            if top_p is not None:
                scores = keep_tuned_outside_nuclei(
                    scores[None], own[None, None], torch.ones(1, 1), torch.tensor([top_p])
                )[0]
        rest = 1 - kept.sum()
        return torch.cat([scores.log_softmax(-1) + rest.log(), kept.log()])

    def greedy(self, prompt: str, weights: dict[str, float], *, max_tokens: int, ends: Sequence[int]) -> list[int]:
        output_ids: list[int] = []
        while len(output_ids) < max_tokens and not (output_ids and output_ids[-1] in ends):
            output_ids.append(int(self.logprobs(prompt, output_ids, weights).argmax()))
        return output_ids


@pytest.fixture(scope="module")
def trio() -> Trio:
    plain = make_tokenizer(chat=False)
    return Trio(
        Member(make_model("llama", seed=1, hidden_size=64), plain),
        {"chat": (Member(chatml_model(2), chatml_tokenizer()), Member(make_model("llama", seed=3), plain))},
    )


@pytest.fixture(scope="module")
def with_states(trio: Trio) -> Trio:
    """Its base and reference keep states, which cannot be set back to any length."""
    plain = trio.base.tokenizer
    base = make_model("qwen3_next", seed=1, hidden_size=64)
    return Trio(Member(base, plain), {"chat": (trio.pairs["chat"][0], Member(make_model("qwen3_next", seed=3), plain))})


@pytest.fixture(scope="module")
def two_pairs(trio: Trio) -> Trio:
    plain = trio.base.tokenizer
    more = (Member(chatml_model(12), chatml_tokenizer()), Member(make_model("llama", seed=13), plain))
    return Trio(trio.base, {**trio.pairs, "style": more})


SPECULATION = [
    SpeculationOptions(drafter="none"),
    SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=4),
    SpeculationOptions(drafter="auto", adaptive=False, min_ngram_size=1),
]


@pytest.mark.parametrize("weight", thorough_but([1.0, 0.4, 2.0, -0.5], often=("1.0", "-0.5")))
def test_greedy_texts_are_those_of_the_slow_loop(trio: Trio, weight: float) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    expected = [trio.greedy(prompt, {"chat": weight}, max_tokens=16, ends=()) for prompt in PROMPTS]
    assert any(token_id >= VOCAB_SIZE for ids in expected for token_id in ids), "no kept token was generated"
    with trio.engine(max_num_seqs=3) as engine:
        for speculation in SPECULATION:
            outputs = engine.generate(PROMPTS, sampling=sampling, reward_weights=weight, speculation=speculation)
            assert [list(output.token_ids) for output in outputs] == expected


@pytest.mark.parametrize("speculation", SPECULATION, ids=["plain", "tuned", "lookup"])
def test_networks_with_states_read_them_too(with_states: Trio, speculation: SpeculationOptions) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    with with_states.engine() as engine:
        outputs = engine.generate(PROMPTS, sampling=sampling, speculation=speculation)
    expected = [with_states.greedy(prompt, {"chat": 1.0}, max_tokens=16, ends=()) for prompt in PROMPTS]
    assert [list(output.token_ids) for output in outputs] == expected


def test_requests_of_one_batch_have_weights_of_their_own(trio: Trio) -> None:
    weights = [1.0, 0.0, 0.4, -0.5]
    sampling = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    with trio.engine() as engine:
        engine._worker._stepper._drafter.reads_drafts = False  # as on an accelerator
        together = engine.generate(PROMPTS, sampling=sampling, reward_weights=weights, speculation=SPECULATION[1])
        alone = [
            engine.generate(prompt, sampling=sampling, reward_weights=weight, speculation=SPECULATION[0])
            for prompt, weight in zip(PROMPTS, weights, strict=True)
        ]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]
    assert max(together[1].token_ids) < VOCAB_SIZE <= max(together[0].token_ids)


@pytest.mark.parametrize("speculation", SPECULATION, ids=["plain", "tuned", "lookup"])
def test_drafts_change_no_sampled_text(trio: Trio, speculation: SpeculationOptions) -> None:
    sampling = [
        SamplingParams(temperature=temperature, seed=seed, max_tokens=30, ignore_eos=True, repetition_penalty=penalty)
        for seed, (temperature, penalty) in enumerate([(1.0, 1.0), (0.7, 1.3), (1.5, 1.0), (1.0, 1.1)])
    ]
    with trio.engine() as engine:
        plain = engine.generate(PROMPTS, sampling=sampling, speculation=SPECULATION[0])
        drafted = engine.generate(PROMPTS, sampling=sampling, speculation=speculation)
    assert [output.token_ids for output in drafted] == [output.token_ids for output in plain]


@pytest.mark.parametrize(
    ("weight", "composition"),
    [
        (1.0, CompositionOptions()),
        (1.0, CompositionOptions(conservative_top_p=0.8)),
        (2.5, CompositionOptions(tuned_plausibility=0.3)),
    ],
)
def test_logprobs_are_those_of_the_definition(trio: Trio, weight: float, composition: CompositionOptions) -> None:
    sampling = SamplingParams(temperature=1.0, seed=5, max_tokens=12, ignore_eos=True, logprobs=5)
    with trio.engine() as engine:
        output = engine.generate("abc<|im_start|>", sampling=sampling, composition=composition, reward_weights=weight)
    assert output.logprobs is not None
    tuned = trio.pairs["chat"][0]
    for position, own in enumerate(output.logprobs):
        done = output.token_ids[:position]
        expected = trio.logprobs(
            "abc<|im_start|>",
            done,
            {"chat": weight},
            composition.conservative_top_p,
            composition.tuned_plausibility,
        )
        assert own.logprob == pytest.approx(float(expected[own.token_id]), abs=1e-4)
        assert [top.logprob for top in own.top] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-4)
        all_logits = tuned.logits("abc<|im_start|>", done, tuned.tokenizer)[: VOCAB_SIZE + len(ADDED)]
        assert own.members["chat.tuned"] == pytest.approx(float(all_logits.log_softmax(-1)[own.token_id]), abs=1e-4)


def test_several_pairs_keep_the_mean_of_their_tuned_models(two_pairs: Trio) -> None:
    weights = {"chat": 0.5, "style": 1.5}
    sampling = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with two_pairs.engine() as engine:
        output = engine.generate("abc", sampling=sampling, reward_weights=weights)
    assert list(output.token_ids) == two_pairs.greedy("abc", weights, max_tokens=20, ends=())


@pytest.mark.parametrize("reads_drafts", [True, False], ids=["read", "on the device"])
def test_several_pairs_never_draft_what_is_masked(two_pairs: Trio, reads_drafts: bool) -> None:
    """A base has no embedding for such a token, and where drafts are not read it would be fed to it."""
    pairs = dict(two_pairs.pairs)
    for name, middle in (("chat", "<|think|>"), ("style", "<|muse|>")):
        tokenizer = make_tokenizer(extra_tokens=("<|im_start|>", middle, "<|im_end|>"))
        tokenizer.eos_token = "<|end|>"
        model = copy.deepcopy(pairs[name][0].model)
        model.generation_config.eos_token_id = END_ID
        pairs[name] = (Member(model, tokenizer), pairs[name][1])
    sampling = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    weights = {"chat": 0.3, "style": 0.2}
    with Trio(two_pairs.base, pairs).engine(mismatched_tokens="mask") as engine:
        engine._worker._stepper._drafter.reads_drafts = reads_drafts
        plain, drafted = (
            engine.generate("abc", sampling=sampling, reward_weights=weights, speculation=own)
            for own in SPECULATION[:2]
        )
    assert drafted.token_ids == plain.token_ids
    assert drafted.metrics.num_drafted > 0


def test_at_weight_zero_the_base_alone_answers_in_its_own_tokens(trio: Trio) -> None:
    with trio.engine() as engine:
        output = engine.generate(
            MESSAGES, sampling=SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), reward_weights=0.0
        )
    read = trio.base.tokenizer.encode(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
    )
    with torch.inference_mode():
        for token_id in output.token_ids:
            assert token_id == int(trio.base.model(torch.tensor([read])).logits[0, -1].argmax())
            read.append(token_id)
    assert output.metrics.num_forwards["chat.tuned"] == 0


def test_the_turn_ends_with_the_token_that_only_the_tuned_model_has(trio: Trio) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=60, logit_bias={TURN_END: 6.0})
    with trio.engine() as engine:
        output = engine.generate(MESSAGES, sampling=sampling)
    assert (output.finish_reason, output.stop_reason, output.token_ids[-1]) == ("stop", TURN_END, TURN_END)


def test_members_read_prompts_in_tokens_of_their_own(trio: Trio) -> None:
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with trio.engine() as engine:
        rendered = engine._requests.render(MESSAGES, PromptOptions())
        plain = engine._requests.render(MESSAGES, PromptOptions(base=PlainText()))
    tuned = trio.pairs["chat"][0].tokenizer
    assert list(rendered.of("chat.tuned")) == tuned.encode(text, add_special_tokens=False)
    for name in ("base", "chat.reference"):
        assert list(rendered.of(name)) == trio.base.tokenizer.encode(text, add_special_tokens=False)
        assert max(rendered.of(name)) < VOCAB_SIZE
    assert list(plain.of("base")) == trio.base.tokenizer.encode("Question: Hi\n\nAnswer:")
    assert plain.of("chat.reference") == rendered.of("chat.reference")


@pytest.mark.parametrize(
    "completion", ["yes", "a<|im_end|>b<|think|>c", "<|im_end|>", "q" * 150 + "<|im_end|>" + "r" * 70]
)
def test_completions_are_scored_with_kept_tokens_in_them(trio: Trio, completion: str) -> None:
    context = {"max_context_len": 256} if len(completion) > 100 else {}
    with trio.engine(**context) as engine:
        score = engine.score("abc", completion)
    ids = trio.pairs["chat"][0].tokenizer.encode(completion, add_special_tokens=False)
    assert [token.token_id for token in score.tokens] == ids
    for position in (0, len(ids) // 2, len(ids) - 1):
        expected = trio.logprobs("abc", ids[:position], {"chat": 1.0})[ids[position]]
        assert score.tokens[position].composed == pytest.approx(float(expected), abs=2e-4)
        own = score.tokens[position].base
        assert math.isinf(own) == (ids[position] >= VOCAB_SIZE)


def test_a_completion_has_to_fit_as_every_member_reads_it(trio: Trio) -> None:
    pieces = len(trio.base.tokenizer.encode(ADDED[2], add_special_tokens=False))
    with trio.engine(max_context_len=64) as engine:
        fits = "<|think|>" * (61 // pieces)
        assert len(engine.score("abc", fits).tokens) == 61 // pieces
        with pytest.raises(ContextOverflowError, match="context of 64 tokens"):
            engine.score("abc", fits + "<|think|>")


def test_conversations_go_on_from_what_was_read(trio: Trio) -> None:
    vocabulary = trio.pairs["chat"][0].tokenizer.get_vocab()
    unprintable = {
        token_id: -math.inf for token, token_id in vocabulary.items() if not (token.isascii() and token.isprintable())
    }
    sampling = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, logit_bias=unprintable)
    with trio.engine() as engine:
        first = engine.generate("abcdefghijklmnopqrstuvwxyz", sampling=sampling)
        text = trio.pairs["chat"][0].tokenizer.decode(first.token_ids)
        again = engine.generate(f"abcdefghijklmnopqrstuvwxyz{text}!", sampling=sampling)
        wait_until_idle(engine)
    assert again.usage.cached_prompt_tokens > 30
    with trio.engine(max_warm_prefixes=0) as engine:
        cold = engine.generate(f"abcdefghijklmnopqrstuvwxyz{text}!", sampling=sampling)
    assert again.token_ids == cold.token_ids


def test_the_context_holds_what_others_read_for_a_kept_token(trio: Trio) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True, logit_bias={VOCAB_SIZE: 100.0})
    with trio.engine(max_context_len=64) as engine:
        output = engine.generate("abc", sampling=sampling)
    pieces = len(trio.base.tokenizer.encode(ADDED[0], add_special_tokens=False))
    assert output.finish_reason == "length"
    assert 3 + (len(output.token_ids) - 1) * pieces <= 64


def test_a_grammar_may_name_a_kept_token(trio: Trio) -> None:
    grammar = Lark(grammar="start: <|think|> /[a-c]{3}/ <|think|>")
    with trio.engine() as engine:
        output = engine.generate("abc", sampling=SamplingParams(temperature=0, max_tokens=20, grammar=grammar))
    assert output.token_ids[0] == output.token_ids[4] == VOCAB_SIZE + 2
    assert output.finish_reason == "stop"


def test_by_default_the_error_says_which_end_is_lost_and_how_to_keep_it(trio: Trio) -> None:
    with pytest.raises(
        VocabularyMismatchError, match=r"chat\.tuned ends .*'<\|im_end\|>' \(id 261\), which base, chat\.reference"
    ) as error:
        trio.engine(tuned_only_tokens="refuse")
    assert "EngineConfig(tuned_only_tokens='keep')" in str(error.value)


def test_added_tokens_that_end_nothing_are_masked_by_default(trio: Trio) -> None:
    reference = trio.pairs["chat"][1]
    tokenizer = chatml_tokenizer()
    tokenizer.eos_token = "<|end|>"
    model = chatml_model(2)
    model.generation_config.eos_token_id = END_ID
    harmless = Trio(trio.base, {"chat": (Member(model, tokenizer), reference)})
    with harmless.engine(tuned_only_tokens="refuse") as engine:
        output = engine.generate(MESSAGES, sampling=SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
        assert max(output.token_ids) < VOCAB_SIZE
        assert max(engine._requests.render(MESSAGES, PromptOptions()).of("base")) < VOCAB_SIZE


def test_a_renamed_token_is_read_as_what_the_tuned_model_means(trio: Trio) -> None:
    """A reserved token of the base that the tuned model made its own."""
    reserved = make_tokenizer(chat=False, extra_tokens=("<|reserved_0|>", "<|reserved_1|>"))
    base = Member(make_model("llama", seed=1, hidden_size=64, vocab_size=VOCAB_SIZE + 2), reserved)
    reference = Member(make_model("llama", seed=3, vocab_size=VOCAB_SIZE + 2), reserved)
    renamed = Trio(base, {"chat": (trio.pairs["chat"][0], reference)})
    sampling = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with renamed.engine() as engine:
        output = engine.generate("a<|think|>", sampling=sampling)
        assert list(engine._requests.render("a<|think|>", PromptOptions()).of("base")) == [
            *reserved.encode("a<|think|>", add_special_tokens=False)
        ]
    known = Member(base.model, trio.base.tokenizer), Member(reference.model, trio.base.tokenizer)
    judge = Trio(known[0], {"chat": (trio.pairs["chat"][0], known[1])})
    assert list(output.token_ids) == judge.greedy("a<|think|>", {"chat": 1.0}, max_tokens=20, ends=())


def test_a_prompt_id_beyond_a_model_is_refused_and_the_engine_lives_on(trio: Trio) -> None:
    """One tokenizer for all, and a model that was never resized for its last tokens."""
    tokenizer = chatml_tokenizer()
    tokenizer.eos_token = "<|end|>"
    small = make_model("llama", seed=1)
    with Engine.from_models(small, tokenizer=tokenizer) as engine:
        with pytest.raises(UnknownTokenError, match=r"'<\|im_end\|>' \(id 261\), and base reads ids below 260"):
            engine.generate(MESSAGES)
        assert engine.generate("abc", sampling=SamplingParams(max_tokens=3, temperature=0)).usage.completion_tokens == 3


def test_an_adapter_with_tokens_of_its_own_shares_the_network_of_its_reference(tmp_path: Path) -> None:
    """A LoRA whose folder has a tokenizer with added tokens, inside the padding of its reference's vocabulary."""
    plain, added = make_tokenizer(chat=False), chatml_tokenizer()
    reference = chatml_model(3)
    reference.generation_config.eos_token_id = END_ID
    base = make_model("llama", seed=1, hidden_size=64)
    for name, model in (("base", base), ("reference", reference)):
        model.save_pretrained(tmp_path / name)
        plain.save_pretrained(tmp_path / name)
    save_adapter(reference, tmp_path / "adapter", seed=4)
    added.save_pretrained(tmp_path / "adapter")
    tuned = PeftModel.from_pretrained(copy.deepcopy(reference), str(tmp_path / "adapter")).eval()
    judge = Trio(Member(base, plain), {"chat": (Member(tuned, added), Member(copy.deepcopy(reference), plain))})
    pairs = {"chat": TunedPair(str(tmp_path / "adapter"), str(tmp_path / "reference"))}
    sampling = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with Engine.load(
        str(tmp_path / "base"), pairs=pairs, config=EngineConfig(tuned_only_tokens="keep", dtype="float32")
    ) as engine:
        assert len({member.network for member in engine.report().members}) == 2
        outputs = engine.generate(PROMPTS, sampling=sampling)
    expected = [judge.greedy(prompt, {"chat": 1.0}, max_tokens=20, ends=()) for prompt in PROMPTS]
    assert [list(output.token_ids) for output in outputs] == expected
    assert any(token_id >= VOCAB_SIZE for ids in expected for token_id in ids), "no kept token was generated"


@pytest.mark.only_llama_cpp
def test_llama_cpp_reads_and_writes_them(trio: Trio, tmp_path: Path) -> None:
    tuned = Member(chatml_model(2, padding=0), chatml_tokenizer())
    judge = Trio(trio.base, {"chat": (tuned, trio.pairs["chat"][1])})
    members = {"base": judge.base, "tuned": tuned, "reference": judge.pairs["chat"][1]}
    files = {name: write_gguf(own.model, own.tokenizer, tmp_path / f"{name}.gguf") for name, own in members.items()}
    sampling = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    with Engine.load(
        str(files["base"]),
        pairs={"chat": TunedPair(str(files["tuned"]), str(files["reference"]))},
        config=EngineConfig(runtime="llama.cpp", llama_cpp=EXACT, tuned_only_tokens="keep"),
    ) as engine:
        assert engine.report().vocabulary.kept == dict(enumerate(ADDED, start=VOCAB_SIZE))
        for speculation in SPECULATION:
            outputs = engine.generate(PROMPTS, sampling=sampling, speculation=speculation)
            expected = [judge.greedy(prompt, {"chat": 1.0}, max_tokens=16, ends=()) for prompt in PROMPTS]
            assert [list(output.token_ids) for output in outputs] == expected
