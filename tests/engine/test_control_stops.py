"""Control tokens in stop strings, stop strings in the middle of tokens, and token ids that no text can have."""

from __future__ import annotations

from typing import Any

import pytest

from eft_engine import Engine, EngineConfig, LoadedPair, SamplingParams
from eft_engine.errors import InvalidOptionError
from tests.text.test_detokenizer import with_long_tokens
from tests.toy import END_ID, SPECIAL_TOKENS, VOCAB_SIZE, ToyTrio, make_model, make_tokenizer

CONFIG = EngineConfig(device="cpu", self_check=False)


@pytest.mark.parametrize("skip", [True, False])
def test_control_token_in_a_stop_string_stops_whatever_is_drafted_and_batched(toy_trio: ToyTrio, skip: bool) -> None:
    controls = range(END_ID, END_ID + len(SPECIAL_TOKENS))
    sampling = SamplingParams(
        max_tokens=24, seed=1, ignore_eos=True, skip_special_tokens=skip, logit_bias=dict.fromkeys(controls, 3.0)
    )
    prompts = ["A", "The sky is", "0123456789"]
    with toy_trio.engine(speculation={"drafter": "none"}) as engine:
        plain = engine.generate(prompts, sampling=sampling)
        found = [next(index for index in range(1, 24) if out.token_ids[index] in controls) for out in plain]
        stops, texts = [], []
        for out, index in zip(plain, found, strict=True):
            before = engine.tokenizer.decode(out.token_ids[index - 1 : index], skip_special_tokens=skip)
            before = before if before.isascii() else ""
            stops.append(before + SPECIAL_TOKENS[out.token_ids[index] - END_ID])
            texts.append(engine.tokenizer.decode(out.token_ids[:index], skip_special_tokens=skip).removesuffix(before))
        stopped = [sampling.model_copy(update={"stop": (stop, "<|never|>")}) for stop in stops]
        single = [engine.generate(prompt, sampling=own) for prompt, own in zip(prompts, stopped, strict=True)]
    with toy_trio.engine(speculation={"adaptive": False, "max_draft_tokens": 6}) as engine:
        batch = engine.generate(prompts, sampling=stopped)
    assert not all(stop in SPECIAL_TOKENS for stop in stops), "some have text in front"
    for out, stop, text, index, one, several in zip(plain, stops, texts, found, single, batch, strict=True):
        assert one.token_ids == several.token_ids == out.token_ids[: index + 1]
        assert one.stop_reason == several.stop_reason == stop
        assert one.text == several.text == text


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_stop_string_of_an_end_is_the_reason(toy_trio: ToyTrio, ignore_eos: bool) -> None:
    forced = SamplingParams(max_tokens=3, temperature=0.0, logit_bias={END_ID: 1e6}, ignore_eos=ignore_eos)
    with toy_trio.engine() as engine:
        out = engine.generate("a", sampling=forced.model_copy(update={"stop": ("<|end|>",)}))
    assert (out.stop_reason, out.text, out.token_ids) == ("<|end|>", "", (END_ID,))


def test_stop_string_in_a_token_that_ends_inside_a_character_is_met_with_it() -> None:
    """It was met with the next token, whose log-probability, text and time were paid for."""
    tokenizer, (token_id,) = with_long_tokens(b"END\xe2")
    model = make_model("llama", hidden_size=16, num_layers=1, vocab_size=len(tokenizer))
    sampling = SamplingParams(max_tokens=4, temperature=0.0, logit_bias={token_id: 1e6}, stop=("ND",), ignore_eos=True)
    with Engine.from_models(model, tokenizer=tokenizer, config=CONFIG) as engine:
        out = engine.generate("a", sampling=sampling)
        unstopped = engine.generate("a", sampling=sampling.model_copy(update={"stop": ()}))
    assert (out.text, out.token_ids, out.stop_reason) == ("E", (token_id,), "ND")
    assert unstopped.text == tokenizer.decode([token_id] * 4)


@pytest.mark.parametrize("option", ["stop_token_ids", "logit_bias"])
def test_token_ids_that_never_come_are_refused(option: str) -> None:
    models = [make_model("llama", hidden_size=16, num_layers=1, seed=seed) for seed in range(2)]
    tokenizers = dict.fromkeys(("base", "chat.tuned"), make_tokenizer()) | {
        "chat.reference": make_tokenizer(shuffle=True)
    }
    config = CONFIG.model_copy(update={"mismatched_tokens": "mask"})  # 40 and 41
    pairs = {"chat": LoadedPair(models[1], models[1])}
    with Engine.from_models(models[0], tokenizer=tokenizers, pairs=pairs, config=config) as engine:
        for token_id, why in ((VOCAB_SIZE, f"ids 0 to {VOCAB_SIZE - 1}"), (10**9, "ids 0 to"), (41, "never generated")):
            value: Any = (token_id,) if option == "stop_token_ids" else {token_id: 1.0}
            with pytest.raises(
                InvalidOptionError, match=f"{option} has the token id {token_id}, and .*{why}"
            ) as caught:
                engine.generate(["a", "b"], sampling=[SamplingParams(max_tokens=1), SamplingParams(**{option: value})])
            assert (caught.value.option, caught.value.value) == (option, token_id)
        assert engine.stats().num_finished == 0
        assert engine.generate("a", sampling=SamplingParams(max_tokens=1, stop_token_ids=(VOCAB_SIZE - 1,))).token_ids
