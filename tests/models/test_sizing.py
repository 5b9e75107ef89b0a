"""Memory that is planned equals memory that models and caches take; splits follow the heads."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from typer.testing import CliRunner

from eft_engine.cli.app import app
from eft_engine.errors import InvalidOptionError
from eft_engine.models.layers import layers_of
from eft_engine.models.sizing import MemberSize, capacity, member_size, splits
from eft_engine.models.skeleton import build_on_meta
from tests.survey.tiny import tiny_model
from tests.toy import make_model, make_trio


def sized(architecture: str) -> MemberSize:
    model = make_model(architecture, hidden_size=64)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return member_size("base", model.config, num_parameters=num_parameters, element_bytes=4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "phi3"])
def test_planned_cache_is_as_large_as_a_real_one(architecture: str) -> None:
    model = make_model(architecture, hidden_size=64)
    cache = DynamicCache()
    with torch.inference_mode():
        model(torch.tensor([list(range(20))]), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert sized(architecture).cache_bytes(20) == held


def test_window_bounds_what_its_layers_keep() -> None:
    gemma = sized("gemma3")  # two layers, one of them with a window of 8 tokens
    per_layer = gemma.cache_bytes(1) // 2
    assert gemma.cache_bytes(8) == 16 * per_layer
    assert gemma.cache_bytes(100) == (100 + 8) * per_layer


@pytest.mark.parametrize("name", ["qwen3_next", "zamba2", "lfm2"])
def test_layers_with_a_state_take_the_same_for_texts_of_any_length(name: str) -> None:
    model = tiny_model(name, seed=1)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.tensor([list(range(20))]), past_key_values=cache, use_cache=True)
    keys = [own for layer in cache.layers for own in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    state_bytes = layers_of(build_on_meta(AutoModelForCausalLM, model.config), torch.float32).state_bytes
    size = member_size("base", model.config, num_parameters=0, element_bytes=4, state_bytes=state_bytes)
    assert size.cache_bytes(20) == sum(own.nbytes for own in keys if own is not None) + state_bytes
    assert size.cache_bytes(0) == state_bytes > 0


def test_weights_are_those_of_the_model() -> None:
    model = make_model("llama", hidden_size=64)
    assert sized("llama").weight_bytes == sum(parameter.nbytes for parameter in model.parameters())


def test_packed_weights_do_not_make_a_cache_smaller() -> None:
    model = make_model("llama", hidden_size=64)
    packed = member_size("base", model.config, num_parameters=10**6, element_bytes=4, weight_bytes=10**5)
    assert (packed.weight_bytes, packed.num_parameters) == (10**5, 10**6)
    assert packed.cache_bytes(20) == sized("llama").cache_bytes(20)
    group = capacity([packed], num_gpus=2, gpu_bytes=10**6, context_len=32)
    assert group.weight_bytes == 10**5 // 2
    assert group.cache_bytes == int(10**6 * 0.9) - 10**5 // 2


def test_split_needs_whole_heads_in_every_member() -> None:
    members = [sized("llama"), sized("qwen2")]  # 4 heads, 2 key/value heads
    assert splits(members) == [1, 2, 4]
    halves = capacity(members, num_gpus=2, gpu_bytes=10**6, context_len=32)
    assert halves.weight_bytes == sum(member.weight_bytes for member in members) // 2
    assert halves.request_bytes == sum(member.cache_bytes(32) for member in members) // 2
    quarters = capacity(members, num_gpus=4, gpu_bytes=10**6, context_len=32)
    assert quarters.request_bytes == halves.request_bytes  # a key/value head is not divided further
    with pytest.raises(InvalidOptionError, match="possible are"):
        capacity(members, num_gpus=3, gpu_bytes=10**6, context_len=32)


def test_what_does_not_fit_holds_no_request() -> None:
    assert capacity([sized("llama")], num_gpus=1, gpu_bytes=1000, context_len=32).num_requests == 0


def test_inspect_plans_without_loading(tmp_path: object) -> None:
    trio = make_trio("llama")
    for name in ("base", "tuned", "reference"):
        getattr(trio, name).save_pretrained(f"{tmp_path}/{name}")
        trio.tokenizer.save_pretrained(f"{tmp_path}/{name}")
    command = ["inspect", "--base", f"{tmp_path}/base", "--tuned", f"{tmp_path}/tuned"]
    command += ["--reference", f"{tmp_path}/reference", "--plan", "--gpu-gib", "1", "--context", "128"]
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "tuned.reference" in shown.stdout
    found = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).stdout)
    assert [group["num_gpus"] for group in found["capacity"]] == [1, 2, 4]
    assert len(found["members"]) == 3
