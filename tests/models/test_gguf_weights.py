"""Weights and configurations out of GGUF files are those of transformers' own loader, bit for bit; broken files are refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from eft_engine.errors import CorruptWeightsError, LoadOutOfMemoryError, UnsupportedModelError
from eft_engine.models import gguf_tensors, gguf_weights
from eft_engine.models.gguf_file import GGUFFile, read_gguf
from eft_engine.models.gguf_tokenizer import end_token_ids
from eft_engine.models.gguf_weights import config_from_gguf, fast_dtype, load_gguf_model
from tests.gguf_files import GgufContents, StoredTensor, gguf_contents, make_hybrid, write_gguf, write_split
from tests.toy import END_ID, VOCAB_SIZE, make_model, make_tokenizer


def read(path: Path) -> GGUFFile:
    return read_gguf(path, member="base")


def load(
    path: Path, *, dtype: torch.dtype = torch.float32, progress: Callable[[int], None] = lambda num_bytes: None
) -> PreTrainedModel:
    """The way that is tested."""
    file = read(path)
    config = config_from_gguf(file, member="base")
    return load_gguf_model(file, config, dtype=dtype, device="cpu", member="base", progress=progress)


def load_as_transformers_does(path: Path) -> PreTrainedModel:
    """The judge: slow, and in float32."""
    return AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )


def tensors_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and buffers, the rotary frequencies among them."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same(model: PreTrainedModel, judge: PreTrainedModel) -> None:
    own, expected = tensors_of(model), tensors_of(judge)
    assert own.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(own[name], tensor, rtol=0, atol=0, msg=name)
    ours, theirs = model.config.to_dict(), judge.config.to_dict()
    assert {key: ours.get(key) for key in theirs} == theirs | {"_name_or_path": ours.get("_name_or_path")}
    assert model.generation_config.eos_token_id == judge.generation_config.eos_token_id == END_ID
    assert not model.training


def llama_contents(file_type: str = "F32", **shape: Any) -> GgufContents:
    return gguf_contents(make_model("llama", **shape), make_tokenizer(), file_type=file_type)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "lfm2"])
def test_weights_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    if architecture == "lfm2":
        model = make_hybrid(architecture)
    else:
        hidden_size = 512 if architecture == "qwen3" else 32  # of Qwen3, transformers loads heads of 128 only
        model = make_model(architecture, hidden_size=hidden_size)
    padding = {"tokenizer.ggml.padding_token_id": 0}  # without, Phi-3 gets one outside the vocabulary
    path = write_gguf(model, make_tokenizer(), tmp_path / "model.gguf", changes=padding)
    assert_same(load(path), load_as_transformers_does(path))


def test_sizes_that_transformers_does_not_read(tmp_path: Path) -> None:
    written = make_model("qwen3", hidden_size=32)
    loaded = load(write_gguf(written, make_tokenizer(), tmp_path / "model.gguf"))
    assert loaded.config.head_dim == 8
    assert tensors_of(loaded).keys() == tensors_of(written).keys()
    for name, tensor in tensors_of(written).items():
        assert torch.equal(tensors_of(loaded)[name], tensor), name


@pytest.mark.parametrize("file_type", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_every_type_is_unpacked_as_transformers_does(architecture: str, file_type: str, tmp_path: Path) -> None:
    path = write_gguf(make_model(architecture), make_tokenizer(), tmp_path / "model.gguf", file_type=file_type)
    assert_same(load(path), load_as_transformers_does(path))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_S"])
def test_types_with_blocks_of_256_are_unpacked_as_transformers_does(kind: str, tmp_path: Path) -> None:
    """The package cannot pack these, so blocks are random bytes: 16-bit scales with a clear top exponent bit are finite."""
    contents = llama_contents(hidden_size=256, num_layers=1)
    number = GGMLQuantizationType[kind]
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        block_len, block_bytes = GGML_QUANT_SIZES[number]
        size = contents.tensor(name).shape[0] * contents.tensor(name).shape[1] // block_len * block_bytes
        blocks = np.random.default_rng(0).integers(0, 256, size=size, dtype=np.uint8) & 0xBF
        contents = contents.with_tensor(name, kind=int(number), data=blocks.tobytes())
    path = contents.write(tmp_path / "model.gguf")
    assert_same(load(path), load_as_transformers_does(path))


def test_padding_outside_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    loaded = load(write_gguf(make_model("phi3"), make_tokenizer(), tmp_path / "model.gguf"))
    assert (loaded.config.pad_token_id, type(loaded.config).pad_token_id) == (None, 32000)


def test_experts_are_put_together(tmp_path: Path) -> None:
    written, contents = qwen2_moe()
    loaded = load(contents.write(tmp_path / "model.gguf"))
    for name, parameter in written.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def test_half_of_the_experts_is_refused(tmp_path: Path) -> None:
    path = qwen2_moe()[1].without("blk.0.ffn_up_exps.weight").write(tmp_path / "model.gguf")
    with pytest.raises(CorruptWeightsError, match=r"blk\.0\.ffn_gate_exps\.weight of shape \[4, 32, 32\]"):
        load(path)


def test_bfloat16_is_the_rounded_float32(tmp_path: Path) -> None:
    path = write_gguf(make_model("gemma3"), make_tokenizer(), tmp_path / "model.gguf", file_type="Q8_0")
    exact, rounded = load(path), load(path, dtype=torch.bfloat16)
    assert rounded.dtype == rounded.config.dtype == torch.bfloat16
    for name, parameter in exact.named_parameters():
        assert torch.equal(rounded.get_parameter(name), parameter.to(torch.bfloat16)), name
    for name, buffer in load_as_transformers_does(path).named_buffers():
        assert torch.equal(rounded.get_buffer(name), buffer.to(rounded.get_buffer(name).dtype)), name


def test_pieces_make_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(make_model("qwen2", hidden_size=64), make_tokenizer(), tmp_path / "model.gguf", file_type="Q4_0")
    whole = load(path)
    unpacked: list[int] = []
    original = gguf_tensors.dequantize

    def recorded(data: Any, kind: Any) -> Any:
        unpacked.append(data.size)
        return original(data, kind)

    monkeypatch.setattr(gguf_tensors, "PIECE_LEN", 1536)
    monkeypatch.setattr(gguf_tensors, "SERIAL_LEN", 1000)
    monkeypatch.setattr(gguf_tensors, "dequantize", recorded)
    assert_same(load(path), whole)
    assert max(unpacked) == 1536 // 32 * 18


def test_parts_are_one_model(tmp_path: Path) -> None:
    path = write_gguf(make_model("qwen2"), make_tokenizer(), tmp_path / "model.gguf", file_type="Q8_0")
    first, *_ = write_split(path, 3)
    assert_same(load(first), load(path))


def test_progress_ends_at_the_bytes_of_all_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tensors, "PIECE_LEN", 1024)
    seen: list[int] = []
    path = write_gguf(make_model("llama"), make_tokenizer(), tmp_path / "model.gguf")
    model = load(path, dtype=torch.bfloat16, progress=seen.append)
    assert len(seen) > 30
    assert seen == sorted(set(seen))
    assert seen[-1] == 2 * sum(parameter.numel() for parameter in model.parameters())


def test_text_ends_where_it_ends_in_llama_cpp(tmp_path: Path) -> None:
    """At tokens that the file names, and at those that are known by their texts."""
    changes = {"tokenizer.ggml.eot_token_id": 258, "tokenizer.ggml.eom_token_id": END_ID}
    tokenizer = make_tokenizer(extra_tokens=["<|im_end|>"])
    model = make_model("llama", vocab_size=VOCAB_SIZE + 1)
    path = write_gguf(model, tokenizer, tmp_path / "model.gguf", changes=changes)
    assert load(path).generation_config.eos_token_id == [END_ID, 258, VOCAB_SIZE] == sorted(end_token_ids(read(path)))


def test_configuration_is_left_alone(tmp_path: Path) -> None:
    file = read(llama_contents().write(tmp_path / "model.gguf"))
    config = config_from_gguf(file, member="base")
    before = config.to_dict()
    model = load_gguf_model(file, config, dtype=torch.float16, device="cpu", member="base", progress=lambda _: None)
    assert config.to_dict() == before
    assert config.dtype is None
    assert model.config.name_or_path == config.name_or_path == str(tmp_path / "model.gguf")


def test_frequencies_of_llama_3_are_those_of_transformers(tmp_path: Path) -> None:
    """What the converter stores is by how much Llama 3.1's rule divides each frequency."""
    model = make_model("llama", hidden_size=64)
    plain = model.model.rotary_emb.inv_freq.clone()
    scaled = copy.deepcopy(model.config)
    scaled.rope_parameters = {
        **model.config.rope_parameters,
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    judge = type(model)(scaled).eval()
    judge.load_state_dict(model.state_dict())
    expected = judge.model.rotary_emb.inv_freq
    assert not torch.equal(expected, plain)
    divisors = (plain / expected).numpy()
    contents = gguf_contents(model, make_tokenizer())
    stored = StoredTensor("rope_freqs.weight", divisors.shape, 0, divisors.tobytes())
    loaded = load(contents.with_added(stored).write(tmp_path / "model.gguf"))
    ids = torch.tensor([list(range(40, 140))])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, judge(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-2)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, r"scaled \(yarn, factor 4\)"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0}, r"scaled \(linear, factor 8\)"),
    ],
)
def test_positions_that_torch_would_not_scale_are_refused(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    path = write_gguf(make_model("llama"), make_tokenizer(), tmp_path / "model.gguf", changes=keys)
    with pytest.raises(UnsupportedModelError, match=words):
        config_from_gguf(read_gguf(path, member="base"), member="base")


def test_configuration_reads_no_list_of_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers reads such lists text by text, which takes 10 s for 150,000 tokens."""
    path = write_gguf(make_model("qwen2"), make_tokenizer(), tmp_path / "model.gguf")
    written: list[bytes] = []
    original = AutoConfig.from_pretrained

    def recorded(folder: str, **arguments: Any) -> Any:
        written.append(Path(folder, arguments["gguf_file"]).read_bytes())
        return original(folder, **arguments)

    monkeypatch.setattr(AutoConfig, "from_pretrained", recorded)
    config_from_gguf(read(path), member="base")
    assert b"<|user|>" not in written[0]
    assert b"<|user|>" in path.read_bytes()


def test_vocabulary_size_may_be_that_of_the_tokens(tmp_path: Path) -> None:
    path = write_gguf(
        make_model("qwen2"), make_tokenizer(), tmp_path / "model.gguf", changes={"qwen2.vocab_size": None}
    )
    assert config_from_gguf(read(path), member="base").vocab_size == 260


def not_finite(value: float) -> Callable[[GgufContents], GgufContents]:
    def change(contents: GgufContents) -> GgufContents:
        numbers = np.frombuffer(contents.tensor("blk.1.ffn_up.weight").data, dtype=np.float32).copy()
        numbers[-1] = value
        return contents.with_tensor("blk.1.ffn_up.weight", data=numbers.tobytes())

    return change


def with_tensor(name: str) -> Callable[[GgufContents], GgufContents]:
    """One more tensor, of ones."""
    return lambda contents: replace(
        contents, tensors=[*contents.tensors, StoredTensor(name, (4,), 0, np.ones(4, dtype=np.float32).tobytes())]
    )


def with_keys(**changes: Any) -> Callable[[GgufContents], GgufContents]:
    return lambda contents: contents.with_keys({name.replace("__", "."): value for name, value in changes.items()})


DAMAGE: dict[str, tuple[Callable[[GgufContents], GgufContents], str]] = {
    "not_a_number": (not_finite(float("nan")), r"blk\.1\.ffn_up\.weight of .* not finite.* wrong order"),
    "infinite": (not_finite(float("-inf")), r"blk\.1\.ffn_up\.weight of .* not finite"),
    "no_norm": (lambda contents: contents.without("output_norm.weight"), r"no tensor for model\.norm\.weight"),
    "other_shape": (
        lambda contents: contents.with_tensor("blk.0.ffn_up.weight", shape=(32, 64)),
        r"blk\.0\.ffn_up\.weight of shape \[32, 64\], and model\.layers\.0\.mlp\.up_proj\.weight needs \[64, 32\]",
    ),
    "other_shape_of_what_is_converted": (
        lambda contents: contents.with_tensor("blk.0.attn_k.weight", shape=(32, 16)),
        r"blk\.0\.attn_k\.weight of shape \[32, 16\], and \[16, 32\] is needed",
    ),
    "no_place": (with_tensor("blk.0.attn_q_norm.weight"), r"no place in the model: blk\.0\.attn_q_norm\.weight"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    change, words = DAMAGE[name]
    path = change(llama_contents()).write(tmp_path / "model.gguf")
    with pytest.raises(CorruptWeightsError, match=words) as caught:
        load(path)
    assert (caught.value.member, caught.value.source) == ("base", str(path))
    assert str(caught.value).startswith("base: ")


def test_metadata_that_lack_what_the_architecture_needs(tmp_path: Path) -> None:
    path = write_gguf(
        make_hybrid("lfm2"), make_tokenizer(), tmp_path / "model.gguf", changes={"lfm2.shortconv.l_cache": None}
    )
    with pytest.raises(CorruptWeightsError, match=r"no configuration of a lfm2 model: KeyError.*shortconv\.l_cache"):
        load(path)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scale_of_a_block_is_looked_at(scale: float, tmp_path: Path) -> None:
    contents = llama_contents("Q8_0")
    data = bytearray(contents.tensor("token_embd.weight").data)
    data[-34:-32] = np.float16(scale).tobytes()
    path = contents.with_tensor("token_embd.weight", data=bytes(data)).write(tmp_path / "model.gguf")
    with pytest.raises(CorruptWeightsError, match=r"token_embd\.weight .* not finite"):
        load(path)


def test_pieces_of_a_download_in_the_wrong_order_are_noticed(tmp_path: Path) -> None:
    whole = llama_contents("Q4_0", hidden_size=64).write(tmp_path / "model.gguf")
    data = whole.read_bytes()
    size = len(data) // 3 + 1
    whole.write_bytes(data[:size] + data[2 * size :] + data[size : 2 * size])
    with pytest.raises(CorruptWeightsError, match="wrong order"):
        load(whole)


def test_file_that_shrank_since_its_header_was_read(tmp_path: Path) -> None:
    path = llama_contents().write(tmp_path / "model.gguf")
    file = read(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CorruptWeightsError, match="ends inside tensor"):
        load_gguf_model(
            file,
            config_from_gguf(file, member="base"),
            dtype=torch.float32,
            device="cpu",
            member="base",
            progress=lambda _: None,
        )


@pytest.mark.parametrize("name", ["rope_factors_long.weight", "rope_factors_short.weight"])
def test_factors_for_long_texts_are_refused(name: str, tmp_path: Path) -> None:
    path = with_tensor(name)(llama_contents()).write(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedModelError, match=r"rotary factors for long texts, .* llama\.cpp computes it"):
        load(path)


def test_frequencies_of_another_number_are_refused(tmp_path: Path) -> None:
    stored = StoredTensor("rope_freqs.weight", (3,), 0, np.ones(3, dtype=np.float32).tobytes())
    path = llama_contents().with_added(stored).write(tmp_path / "model.gguf")
    with pytest.raises(CorruptWeightsError, match=r"rope_freqs\.weight .* the shape \[3\]"):
        load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_keys(general__architecture="nosucharch"), "'nosucharch'"),
        (
            lambda contents: contents.with_tensor("output.weight", kind=int(GGMLQuantizationType.I8)),
            r"output\.weight .* of type I8",
        ),
    ],
    ids=["architecture", "type"],
)
def test_what_cannot_be_loaded_is_named(
    change: Callable[[GgufContents], GgufContents], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        load(change(llama_contents()).write(tmp_path / "model.gguf"))


def test_without_the_package_gguf_the_line_that_installs_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read(llama_contents().write(tmp_path / "model.gguf"))
    config = config_from_gguf(file, member="base")
    for name in [name for name in sys.modules if name == "gguf" or name.startswith("gguf.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "eft_engine.models.gguf_tensors")
    with pytest.raises(UnsupportedModelError, match=r"pip install 'eft-engine\[gguf\]'"):
        config_from_gguf(file, member="base")
    with pytest.raises(UnsupportedModelError, match=r"pip install 'eft-engine\[gguf\]'"):
        load_gguf_model(file, config, dtype=torch.float32, device="cpu", member="base", progress=lambda _: None)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_no_memory(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise error

    path = llama_contents().write(tmp_path / "model.gguf")
    monkeypatch.setattr(gguf_tensors.LazyParameter, "_read", fail)
    with pytest.raises(LoadOutOfMemoryError) as caught:
        load(path, dtype=torch.bfloat16)
    assert caught.value.needed_bytes == 2 * sum(tensor.num_elements for tensor in read(path).tensors.values())
    assert caught.value.device == "cpu"


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_processors_with_bfloat16_take_it(
    capabilities: Mapping[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    choice = fast_dtype("cpu")
    assert choice.dtype == dtype
    assert ("does not" in choice.reason) == (dtype == torch.float32)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((9, 0), torch.bfloat16)])
def test_gpus_with_bfloat16_take_it(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert fast_dtype("cuda:1") == gguf_weights.DtypeChoice(dtype, fast_dtype("cuda:1").reason)
    assert fast_dtype("cuda").reason.startswith(f"a GPU (compute capability {capability[0]}.{capability[1]})")


def qwen2_moe() -> tuple[PreTrainedModel, GgufContents]:
    """Stacked experts, and one that all tokens share."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**shape))
    dense = gguf_contents(make_model("qwen2", num_layers=1), make_tokenizer()).metadata
    metadata = {key.replace("qwen2.", "qwen2moe."): value for key, value in dense.items()} | {
        "general.architecture": "qwen2moe",
        "qwen2moe.expert_feed_forward_length": 32,
        "qwen2moe.expert_shared_feed_forward_length": 64,
        "qwen2moe.expert_count": 4,
        "qwen2moe.expert_used_count": 2,
    }
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    gate, up = np.split(weights["model.layers.0.mlp.experts.gate_up_proj"], 2, axis=1)
    names = {
        "token_embd": "model.embed_tokens.weight",
        "output": "lm_head.weight",
        "output_norm": "model.norm.weight",
        "blk.0.attn_norm": "model.layers.0.input_layernorm.weight",
        "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm.weight",
        "blk.0.attn_output": "model.layers.0.self_attn.o_proj.weight",
        "blk.0.ffn_down_exps": "model.layers.0.mlp.experts.down_proj",
        "blk.0.ffn_gate_inp": "model.layers.0.mlp.gate.weight",
        "blk.0.ffn_gate_shexp": "model.layers.0.mlp.shared_expert.gate_proj.weight",
        "blk.0.ffn_up_shexp": "model.layers.0.mlp.shared_expert.up_proj.weight",
        "blk.0.ffn_down_shexp": "model.layers.0.mlp.shared_expert.down_proj.weight",
    }
    arrays = {f"{stored}.weight": weights[name] for stored, name in names.items()}
    for part in "qkv":
        for kind in ("weight", "bias"):
            arrays[f"blk.0.attn_{part}.{kind}"] = weights[f"model.layers.0.self_attn.{part}_proj.{kind}"]
    arrays["blk.0.ffn_gate_exps.weight"], arrays["blk.0.ffn_up_exps.weight"] = gate, up
    arrays["blk.0.ffn_gate_inp_shexp.weight"] = weights["model.layers.0.mlp.shared_expert_gate.weight"][0]
    tensors = [StoredTensor(name, array.shape, 0, array.tobytes()) for name, array in arrays.items()]
    return model, GgufContents(metadata, tensors)
