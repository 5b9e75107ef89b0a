"""What cannot be run is known before weights are read, what can be run is not named, and layers are counted as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DynamicCache,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
)
from typer.testing import CliRunner

from eft_engine import Engine, EngineConfig, LlamaCppOptions, inspect_trio
from eft_engine.cli.app import app
from eft_engine.errors import UnsupportedModelError
from eft_engine.models.gguf_cache import gguf_layers
from eft_engine.models.gguf_file import read_gguf
from eft_engine.models.layers import layers_of
from eft_engine.models.skeleton import build_on_meta
from eft_engine.models.support import notes_on, why_refused
from tests.gguf_files import write_gguf
from tests.survey.cases import case_of
from tests.survey.tiny import tiny_config, tiny_model
from tests.toy import make_model, make_tokenizer

REFUSED = {
    "axk2": "by an index",
    "bart": "positions by the length of its cache",
    "blt": "patches",
    "cpmant": "both directions",
    "deepseek_v32": "by an index",
    "deepseek_v4": "by an index",
    "diffusion_gemma": "by diffusion",
    "doge: experts": "later tokens among it",
    "doge: few keys": "later ones among them",
    "git": "about an image",
    "glm5_next": "by an index",
    "inkling_text": "distances by the length of its cache",
    "minimax": "cache class of its own",
    "minimax_m3_vl": "by an index",
    "nemotron_h_omni": "no output layer",
    "openai-gpt": "takes no cache",
    "paligemma": "both directions",
    "prophetnet": "positions by the length of its cache",
    "qwen4_exp": "by an index",
    "roberta": "padding id",
    "roformer": "positions by the length of its cache",
    "rwkv": "takes no cache",
    "xlnet": "takes no cache",
    "xlstm": "cache class of its own",
    "zaya": "no recurrence that the engine knows",
}
"""Entries of the survey that an engine refuses, and words of the reason."""

EXACT = (
    *("afmoe", "bamba", "bert", "biogpt", "bloom", "deepseek_v3", "doge", "falcon_h1", "gemma3n", "gemma4", "gpt_neox"),
    *("gpt_oss", "granitemoehybrid", "kimi_linear", "lfm2", "llama", "llama4", "llama: dynamic rope", "mamba", "mpt"),
    *("modernbert-decoder", "nemotron_h", "opt", "phi3: long rope", "qwen2_5_vl", "qwen3_5 (images)", "qwen3_next"),
    *("recurrent_gemma", "unlimited_ocr", "whisper", "xglm", "zamba2"),
)
"""Entries of the survey that an engine composes exactly, of every kind of memory."""

LAYERS = {
    "dbrx": "2 x full attention, 2 x experts (4)",
    "deepseek_v3": "2 x full attention, 1 x experts (4, 2 per token)",
    "falcon_h1": "2 x Mamba-2 and full attention",
    "gemma4_text": "1 x sliding attention (8), 1 x full attention, 1 x sliding attention with another layer's keys, "
    "1 x full attention with another layer's keys",
    "gpt_oss": "2 x sliding attention (8), 2 x full attention, 4 x experts (4, 2 per token)",
    "kimi_linear": "2 x Kimi delta attention, 2 x full attention, 3 x experts (4, 2 per token)",
    "lfm2": "2 x short convolution, 2 x full attention",
    "llama4_text": "2 x chunked attention (8), 2 x full attention, 2 x experts (4, 2 per token)",
    "longcat_flash": "4 x full attention, 2 x experts",
    "mamba": "2 x Mamba",
    "nemotron_h": "1 x Mamba-2, 1 x no memory (experts), 1 x full attention, 1 x no memory (feed-forward), "
    "1 x experts (4, 2 per token)",
    "qwen3_next": "2 x gated delta net, 2 x full attention, 3 x experts (4, 2 per token)",
    "step3p7": "2 x full attention, 2 x sliding attention (8), 3 x experts (4, 2 per token)",
    "zamba2": "3 x Mamba-2, 2 x Mamba-2 and full attention",
}


def skeleton_of(name: str) -> PreTrainedModel:
    auto = AutoModelForImageTextToText if case_of(name).images else AutoModelForCausalLM
    return build_on_meta(auto, tiny_config(name)).eval()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_told_from_class_and_configuration(name: str) -> None:
    reason = why_refused(skeleton_of(name))
    assert reason is not None
    assert REFUSED[name] in reason


@pytest.mark.parametrize("name", EXACT)
def test_what_runs_is_not_named(name: str) -> None:
    assert why_refused(skeleton_of(name)) is None


@pytest.mark.parametrize("name", ["zaya", "deepseek_v32", "lfm2"])
def test_a_model_with_numbers_gets_the_same_answer(name: str) -> None:
    assert why_refused(tiny_model(name, seed=1)) == why_refused(skeleton_of(name))


def test_a_masked_language_model_is_none_for_writing() -> None:
    config = tiny_config("bert")
    assert why_refused(build_on_meta(AutoModelForCausalLM, config)) is None
    config.is_decoder = False
    assert "is_decoder=False" in str(why_refused(build_on_meta(AutoModelForCausalLM, config)))


def test_texts_beyond_the_length_of_dynamic_factors_are_not_offered() -> None:
    (note,) = notes_on(skeleton_of("llama: dynamic rope"))
    assert "texts up to 320 tokens" in note
    assert notes_on(skeleton_of("llama: yarn")) == ()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_named_and_weighed_as_a_real_run_has_them(name: str) -> None:
    """Also of models whose code does not run to its end without numbers (DBRX, LongCat, Step)."""
    summary = layers_of(skeleton_of(name), torch.float32)
    assert ", ".join(summary.kinds) == LAYERS[name]
    model = tiny_model(name, seed=1)
    cache = DynamicCache(config=model.config)
    argument = "cache_params" if name == "mamba" else "past_key_values"
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]), use_cache=True, **{argument: cache})
    held: Any = [vars(layer) for layer in cache.layers]
    keys = [own[kind] for own in held for kind in ("keys", "values") if own.get(kind) is not None]
    states = [
        state
        for own in held
        for kind in ("conv_states", "recurrent_states")
        for state in own.get(kind, {}).values()
        if state is not None
    ]
    assert summary.kv_bytes_per_token * 3 == sum(tensor.nbytes for tensor in keys)
    assert summary.state_bytes == sum(state.nbytes for state in states)


def test_bytes_follow_the_dtype() -> None:
    assert [layers_of(skeleton_of("llama"), dtype).kv_bytes_per_token for dtype in (torch.float32, torch.bfloat16)] == [
        256,
        128,
    ]


def test_states_on_modules_are_counted() -> None:
    summary = layers_of(skeleton_of("recurrent_gemma"), torch.float32)
    assert summary.kinds == ("2 x RG-LRU", "1 x sliding attention (8)")
    model = tiny_model("recurrent_gemma", seed=1)
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]), use_cache=True)
    held = [getattr(module, name, None) for module in model.modules() for name in ("conv1d_state", "recurrent_states")]
    assert summary.state_bytes == sum(state.nbytes for state in held if state is not None) > 0


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_gguf_file_tells_the_bytes_of_its_keys(architecture: str, tmp_path: Path) -> None:
    model = make_model(architecture, hidden_size=64)
    file = read_gguf(write_gguf(model, make_tokenizer(), tmp_path / "model.gguf"), member="base")
    found = gguf_layers(file, LlamaCppOptions())
    skeleton = build_on_meta(AutoModelForCausalLM, model.config)
    assert found == layers_of(skeleton, torch.float16)
    assert found.kv_bytes_per_token > 0


# ---- on disk: a configuration, a tokenizer, and weights that nobody can read ------------------------------------------


def save_config(config: PreTrainedConfig, folder: Path) -> str:
    config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    return str(folder)


def test_loading_refuses_before_weights_are_read(tmp_path: Path) -> None:
    source = save_config(tiny_config("deepseek_v32"), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"base: .* by an index .*docs/models\.md lists") as raised:
        Engine.load(source, config=EngineConfig(show_progress=False))
    assert (raised.value.member, raised.value.source) == ("base", source)
    assert "self_check" not in str(raised.value)


def test_models_that_are_loaded_already_are_refused_by_name() -> None:
    model: Any = LlamaModel(make_model("llama").config)
    with pytest.raises(UnsupportedModelError, match="base: LlamaModel has no output layer"):
        Engine.from_models(model, tokenizer=make_tokenizer())


def test_inspect_shows_what_is_not_supported_and_why(tmp_path: Path) -> None:
    source = save_config(tiny_config("deepseek_v32"), tmp_path)
    report = inspect_trio(source, {}).members[0]
    assert "by an index" in str(report.unsupported)
    assert report.layers[0] == "2 x sparse attention with an index"
    shown = CliRunner().invoke(app, ["inspect", "--base", source], catch_exceptions=False)
    assert "not supported: DeepseekV32ForCausalLM chooses by an index" in " ".join(shown.stdout.split())
    assert shown.exit_code == 1
    as_json = CliRunner().invoke(app, ["inspect", "--base", source, "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout)["members"][0]["unsupported"] == report.unsupported
    assert as_json.exit_code == 1


def test_inspect_shows_layers_and_what_they_keep(tmp_path: Path) -> None:
    source = save_config(tiny_config("qwen3_next"), tmp_path)
    report = inspect_trio(source, {}).members[0]
    assert (report.unsupported, report.kv_bytes_per_token, report.state_bytes) == (None, 256, 4096)
    shown = CliRunner().invoke(app, ["inspect", "--base", source], catch_exceptions=False)
    words = " ".join(shown.stdout.split())
    assert f"base: {source} (Qwen3NextForCausalLM)" in words
    assert "2 x gated delta net, 2 x full attention, 3 x experts (4, 2 per token)" in words
    assert "0.2 KiB per token in keys and values, 0.0 MiB per request in states" in words
    assert shown.exit_code == 0


def test_an_encoder_with_a_decoder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    source = save_config(T5Config(vocab_size=260, d_model=32, num_layers=1, num_heads=2, d_ff=32, d_kv=16), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"base: .* is not a causal language model"):
        inspect_trio(source, {})
