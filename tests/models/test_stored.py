"""Weights are counted as they are stored and held: dtypes out of headers, packed weights, and what transformers unpacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GgufConfig,
    GptOssConfig,
    GptOssForCausalLM,
)
from typer.testing import CliRunner

from eft_engine import Engine, EngineConfig, MemberConfig, SamplingParams
from eft_engine.cli.app import app
from eft_engine.errors import CorruptWeightsError, LoadOutOfMemoryError, UnsupportedModelError
from eft_engine.models import memory_check, stored
from eft_engine.models.memory_check import check_memory
from eft_engine.models.planned_network import PlannedNetwork
from eft_engine.models.planning import plan_trio
from eft_engine.models.quantised import Quantisation, quantisation_of, settle
from eft_engine.models.sizing import trio_sizes
from eft_engine.models.stored import read_stored
from tests.gguf_files import write_gguf
from tests.models.multimodal_models import make_multimodal, save_multimodal
from tests.toy import make_model, make_tokenizer

CPU = EngineConfig(device="cpu")
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}

STORED_AS = {
    "4-bit (bitsandbytes nf4)": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "8-bit (bitsandbytes int8)": {"load_in_8bit": True},
    "4-bit (gptq)": {"quant_method": "gptq", "bits": 4, "group_size": 128, "meta": {"damp": 0.1}},
    "3-bit (auto-round)": {"quant_method": "auto-round", "bits": 3, "group_size": 128},
    "4-bit (awq)": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "2-bit (aqlm)": {"quant_method": "aqlm", "in_group_size": 8, "nbits_per_codebook": 16, "num_codebooks": 1},
    "4-bit (hqq)": {
        "quant_method": "hqq",
        "quant_config": {"weight_quant_params": {"nbits": 4}, "scale_quant_params": {"nbits": 8}},
    },
    "8-bit (quanto)": {"quant_method": "quanto", "weights": "int8", "activations": "int4"},
    "4-bit (torchao)": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
    "8-bit (quark)": {
        "quant_method": "quark",
        "global_quant_config": {"input_tensors": {"dtype": "fp4"}, "weight": {"dtype": "fp8_e4m3"}},
    },
    "2-bit (bitnet)": {"quant_method": "bitnet"},
    "vptq": {"quant_method": "vptq", "config_for_layers": {}},
}
"""What inspect says, by the configurations that methods write."""


def save(folder: Path, **changes: Any) -> Path:
    """A small llama with its tokenizer; `changes` to its config.json, None: no such entry."""
    make_model("llama", seed=1, hidden_size=64).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return configure(folder, **changes)


def configure(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
    return folder


def rewrite(folder: Path, change: Callable[[str, Tensor], Mapping[str, Tensor]]) -> int:
    """Every tensor of the file becomes others. Returns the bytes of all."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= change(name, tensor)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def packed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Four bits for a number of a projection, and a scale per row; the rest in bfloat16."""
    if "proj" not in name:
        return {name: tensor.to(torch.bfloat16)}
    module = name.removesuffix(".weight")
    codes = torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8)
    return {f"{module}.qweight": codes, f"{module}.scales": torch.ones(len(tensor), dtype=torch.float16)}


def in_fp8(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if "proj" not in name:
        return {name: tensor.to(torch.bfloat16)}
    scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    blocks = [size // 32 for size in tensor.shape]
    module = name.removesuffix(".weight")
    return {
        f"{module}.weight": (tensor / scale).to(torch.float8_e4m3fn),
        f"{module}.weight_scale_inv": scale.expand(blocks).contiguous(),
    }


def planned(source: Path, **options: Any) -> PlannedNetwork:
    return plan_trio(MemberConfig(source=str(source), **options), {}, CPU).networks["base"]


def free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(memory_check, "available_memory", lambda device: num_bytes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shards", [1, 3])
def test_configuration_without_a_dtype_leaves_it_to_the_file(dtype: torch.dtype, shards: int, tmp_path: Path) -> None:
    save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(tmp_path, max_shard_size=size // shards + 1000)
    assert (tmp_path / stored.INDEX_FILE).exists() == (shards > 1)
    if shards > 1:
        (tmp_path / stored.SINGLE_FILE).unlink(missing_ok=True)
    with Engine.load(str(configure(tmp_path, dtype=None)), config=CPU) as engine:
        report = engine.report().members[0]
        held = {parameter.dtype for parameter in engine._trio.networks[0].model.parameters()}
    assert (held, report.dtype, report.parameter_bytes) == ({dtype}, str(dtype).removeprefix("torch."), size)
    assert any(f"{report.dtype}, as its weights are stored" in note for note in report.notes)


def test_most_bytes_decide_about_the_dtype_and_a_note_says_so(tmp_path: Path) -> None:
    """The first tensor of the file, which transformers would go by, is another one's."""
    save(tmp_path, dtype=None)
    rewrite(tmp_path, lambda name, own: {name: own if name == "lm_head.weight" else own.bfloat16()})
    network = planned(tmp_path)
    assert min(load_file(tmp_path / "model.safetensors")) == "lm_head.weight"
    assert network.dtype == torch.bfloat16
    assert any("of their bytes; others are stored in float32" in note for note in network.notes)


def test_dtype_of_the_configuration_or_the_user_goes_before_the_file(tmp_path: Path) -> None:
    save(tmp_path, dtype="float16")
    rewrite(tmp_path, lambda name, own: {name: own.bfloat16()})
    assert planned(tmp_path).dtype == torch.float16
    assert planned(tmp_path, dtype="float32").dtype == torch.float32


@pytest.mark.parametrize("label", STORED_AS)
def test_packed_weights_are_counted_as_stored(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_bytes = rewrite(save(tmp_path), packed)
    configure(tmp_path, dtype="bfloat16", quantization_config=STORED_AS[label])
    plan = plan_trio(str(tmp_path), {}, CPU)
    network = plan.networks["base"]
    model = make_model("llama", hidden_size=64)
    assert network.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (network.type_name, network.parameter_bytes, network.dtype) == (label, num_bytes, torch.bfloat16)
    assert network.layers.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2  # keys and values, layers, heads, width, bfloat16
    assert [(size.weight_bytes, size.cache_element_bytes) for size in trio_sizes(plan)] == [(num_bytes, 2)]
    free(monkeypatch, num_bytes)
    check_memory([network])
    free(monkeypatch, num_bytes - 1)
    with pytest.raises(LoadOutOfMemoryError, match="use a device_map, or smaller models") as caught:
        check_memory([network])
    assert caught.value.needed_bytes == num_bytes


def test_tensors_that_are_not_packed_are_counted_in_the_dtype_that_was_asked_for(tmp_path: Path) -> None:
    num_bytes = rewrite(save(tmp_path), packed)
    configure(tmp_path, dtype="bfloat16", quantization_config=STORED_AS["4-bit (gptq)"])
    dense = sum(own.nbytes for own in load_file(tmp_path / "model.safetensors").values() if own.dtype == torch.bfloat16)
    assert planned(tmp_path, dtype="float32").parameter_bytes == num_bytes + dense


def test_output_layer_that_is_stored_twice_is_held_once(tmp_path: Path) -> None:
    save(tmp_path, tie_word_embeddings=True, dtype="bfloat16", quantization_config=STORED_AS["4-bit (gptq)"])
    num_bytes = rewrite(tmp_path, packed)
    network = planned(tmp_path)
    assert network.parameter_bytes == num_bytes - 260 * 64 * 2
    assert network.stored_bytes == num_bytes


def test_fp8_is_unpacked_where_nothing_computes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    num_bytes = rewrite(save(tmp_path), in_fp8)
    configure(tmp_path, dtype="bfloat16", quantization_config=FP8)
    with Engine.load(str(tmp_path), config=CPU) as engine:
        report = engine.report().members[0]
        model = engine._trio.networks[0].model
        assert engine.generate("The sky", sampling=SamplingParams(temperature=0.0, max_tokens=3)).token_ids
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert (report.dtype, report.parameter_bytes) == ("bfloat16", sum(own.nbytes for own in model.parameters()))
    assert any(note.startswith("stored as fp8") and "unpacks the weights while" in note for note in report.notes)
    assert [size.weight_bytes for size in trio_sizes(plan_trio(str(tmp_path), {}, CPU))] == [num_bytes]


def test_fp8_on_a_cpu_beside_a_gpu_says_how_to_unpack_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(save(tmp_path), in_fp8)
    configure(tmp_path, dtype="bfloat16", quantization_config=FP8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    words = r"fp8 weights need a GPU .*FineGrainedFP8Config\(dequantize=True\)"
    for member in (MemberConfig(source=str(tmp_path)), MemberConfig(source=str(tmp_path), device_map={"": "cpu"})):
        with pytest.raises(UnsupportedModelError, match=words):
            Engine.load(member, config=CPU)
    unpacking = planned(tmp_path, quantization_config=FineGrainedFP8Config(dequantize=True))
    assert (unpacking.unsupported, unpacking.type_name) == (None, "bfloat16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="its kernels are for the accelerator that is here")
def test_mxfp4_is_unpacked_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GptOssConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        sliding_window=8,
    )
    model = GptOssForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)

    def blocks(name: str, tensor: Tensor) -> dict[str, Tensor]:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return {name: tensor}
        experts, width, rows = tensor.shape
        codes = torch.zeros(experts, rows, width // 32, 16, dtype=torch.uint8)
        return {f"{name}_blocks": codes, f"{name}_scales": torch.full(codes.shape[:-1], 120, dtype=torch.uint8)}

    num_bytes = rewrite(tmp_path, blocks)
    configure(tmp_path, dtype="bfloat16", quantization_config={"quant_method": "mxfp4"})
    network = planned(tmp_path)
    with Engine.load(str(tmp_path), config=CPU) as engine:
        held = sum(parameter.nbytes for parameter in engine._trio.networks[0].model.parameters())
    assert (network.stored_bytes, network.parameter_bytes) == (num_bytes, held)
    assert num_bytes < held
    assert any("stored as mxfp4" in note for note in network.notes)
    for probe in ("is_triton_available", "is_kernels_available"):  # with which its kernels for CPUs are still not used
        monkeypatch.setattr(f"transformers.quantizers.quantizer_mxfp4.{probe}", lambda *_: True)
    assert planned(tmp_path).parameter_bytes == held


def test_compressed_tensors_are_counted_as_after_the_first_pass(tmp_path: Path) -> None:
    num_bytes = rewrite(save(tmp_path), packed)
    weights = {"num_bits": 4, "type": "int", "strategy": "channel"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8}}}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    network = planned(configure(tmp_path, dtype="bfloat16", quantization_config=settings))
    assert (network.type_name, network.parameter_bytes) == ("bfloat16", 2 * network.num_parameters)
    assert network.stored_bytes == num_bytes
    assert any("stored as 4-bit (compressed-tensors pack-quantized)" in note for note in network.notes)


@pytest.mark.parametrize(
    ("method", "module", "probe", "package"),
    [
        ("4-bit (bitsandbytes nf4)", "bnb_4bit", "is_bitsandbytes_available", "pip install -U bitsandbytes"),
        ("4-bit (gptq)", "gptq", "is_optimum_available", "pip install optimum"),
        ("4-bit (awq)", "awq", "is_gptqmodel_available", "pip install gptqmodel"),
    ],
)
def test_package_that_is_missing_is_named_before_weights_are_read(
    method: str, module: str, probe: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"transformers.quantizers.quantizer_{module}.{probe}", lambda: False)
    rewrite(save(tmp_path), packed)
    configure(tmp_path, quantization_config=STORED_AS[method])
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(UnsupportedModelError) as caught:
        Engine.load(str(tmp_path), config=CPU)
    assert f"{method} weights cannot be used here" in str(caught.value)
    assert package in str(caught.value)
    assert "install what is missing" in str(caught.value)


def test_inspect_shows_how_weights_are_packed_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("transformers.quantizers.quantizer_aqlm.is_aqlm_available", lambda: False)
    num_bytes = rewrite(save(tmp_path), packed)
    configure(tmp_path, dtype="bfloat16", quantization_config=STORED_AS["2-bit (aqlm)"])
    shown = CliRunner().invoke(app, ["inspect", "--base", str(tmp_path)])
    assert shown.exit_code == 1
    assert "│ 2-bit (aqlm) │" in shown.stdout
    assert f"│ {num_bytes / 2**20:.1f} MiB │" in shown.stdout
    assert "not supported: 2-bit (aqlm) weights cannot be used here" in shown.stdout
    assert "pip install aqlm[gpu,cpu]" in shown.stdout
    command = ["inspect", "--base", str(tmp_path), "--plan", "--context", "128", "--json"]
    planned_for_gpus = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    assert [member["weight_bytes"] for member in planned_for_gpus["members"]] == [num_bytes]


def test_packing_that_needs_a_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    member = MemberConfig(source=str(save(tmp_path)), quantization_config=FineGrainedFP8Config())
    with pytest.raises(UnsupportedModelError, match="fp8 weights cannot be made here: No GPU or XPU found"):
        Engine.load(member, config=CPU)


def test_method_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    """It would read the weights without their scales."""
    rewrite(save(tmp_path), in_fp8)
    configure(tmp_path, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    with pytest.raises(UnsupportedModelError, match="packed by 'modelopt', which transformers .* does not know"):
        Engine.load(str(tmp_path), config=CPU)


def test_scales_that_no_configuration_explains_are_refused(tmp_path: Path) -> None:
    rewrite(save(tmp_path), in_fp8)
    with pytest.raises(CorruptWeightsError, match=r"are quantised .*no\s+quantization_config"):
        Engine.load(str(tmp_path), config=CPU)


@pytest.mark.parametrize(("options", "bits"), [({"load_in_4bit": True}, 4.5), ({"load_in_8bit": True}, 8.125)])
def test_weights_that_are_packed_while_they_are_read_are_estimated(
    options: dict[str, bool], bits: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = planned(save(tmp_path, dtype="bfloat16"), quantization_config=BitsAndBytesConfig(**options))
    model = make_model("llama", hidden_size=64)
    linear = sum(own.numel() for name, own in model.named_parameters() if "proj" in name)
    rest = sum(own.numel() for own in model.parameters()) - linear
    assert network.parameter_bytes == int(linear * bits / 8) + 2 * rest
    assert any(note.startswith("bytes estimated from the") for note in network.notes)
    free(monkeypatch, network.parameter_bytes - 1)
    with pytest.raises(LoadOutOfMemoryError):
        check_memory([network])


def test_headers_of_the_hub_are_read_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_stored("organisation/no-such-model") is None
    tensor = SimpleNamespace(dtype="BF16", shape=[3, 5], data_offsets=(0, 30))
    seen: list[tuple[str, str | None]] = []

    def answer(self: object, repository: str, *, revision: str | None = None) -> Any:
        seen.append((repository, revision))
        return SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors={"a": tensor})})

    monkeypatch.setattr("huggingface_hub.HfApi.get_safetensors_metadata", answer)
    found = read_stored("organisation/no-such-model", revision="v1")
    assert found is not None
    assert (found.num_bytes, found.float_shares) == (30, {torch.bfloat16: 1.0})
    assert seen == [("organisation/no-such-model", "v1")]


def test_bytes_are_estimated_and_told_where_headers_are_not_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, dtype="bfloat16", quantization_config=STORED_AS["4-bit (gptq)"])
    monkeypatch.setattr("eft_engine.models.weight_plans.read_stored", lambda *_, **__: None)
    network = planned(tmp_path)
    assert 2 * network.num_parameters > network.parameter_bytes > network.num_parameters // 2
    assert any("the headers of its files are not at hand" in note for note in network.notes)


def test_headers_that_the_hubs_client_has_are_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(save(tmp_path))
    (tmp_path / stored.SINGLE_FILE).unlink()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    whole = read_stored(str(tmp_path))

    def cached(repository: str, name: str, *, revision: str | None) -> str | None:
        return str(tmp_path / name) if (tmp_path / name).exists() else None

    monkeypatch.setattr(stored, "try_to_load_from_cache", cached)
    monkeypatch.setattr("huggingface_hub.HfApi.get_safetensors_metadata", lambda *_, **__: 1 / 0)
    assert whole is not None
    assert read_stored("organisation/model") == whole
    min(tmp_path.glob("model-*.safetensors")).unlink()
    assert read_stored("organisation/model") is None  # the hub was asked, and failed


def test_towers_that_are_not_read_are_not_counted(tmp_path: Path) -> None:
    folder = Path(save_multimodal(make_multimodal("llava").to(torch.bfloat16), tmp_path))
    num_bytes = rewrite(folder, lambda name, own: {name: own} if "vision" in name else packed(name, own))
    configure(folder, dtype="bfloat16", quantization_config=STORED_AS["4-bit (gptq)"])
    network = planned(folder)
    towers = ("vision_tower", "multi_modal_projector")
    file = load_file(folder / "model.safetensors")
    left_out = sum(own.nbytes for name, own in file.items() if any(tower in name for tower in towers))
    assert (network.parameter_bytes, network.left_out_bytes) == (num_bytes - left_out, left_out)
    assert network.stored_bytes == num_bytes
    assert left_out > 0


@pytest.mark.parametrize(("kernels", "asked"), [(True, GgufConfig()), (False, GgufConfig()), (True, None)])
def test_gguf_in_torch_is_counted_packed_where_transformers_keeps_it_so(
    kernels: bool, asked: GgufConfig | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eft_engine.models.weight_plans.is_kernels_available", lambda: kernels)
    path = write_gguf(make_model("llama"), make_tokenizer(), tmp_path / "model.gguf", file_type="Q8_0")
    network = planned(path, runtime="torch", dtype="float32", quantization_config=asked)
    assert network.gguf is not None
    stays = kernels and asked is not None
    assert network.parameter_bytes == (network.gguf.tensor_bytes if stays else 4 * network.num_parameters)
    assert network.type_name == ("Q8_0" if stays else "float32")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, (10).to_bytes(8, "little") + b"[1, 2, 3] "])
def test_damaged_headers_are_left_to_loading(content: bytes, tmp_path: Path) -> None:
    (tmp_path / stored.SINGLE_FILE).write_bytes(content)
    assert read_stored(str(tmp_path)) is None


def test_index_with_a_shard_missing_is_left_to_loading(tmp_path: Path) -> None:
    save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / stored.SINGLE_FILE).unlink()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    min(tmp_path.glob("model-*.safetensors")).unlink()
    assert read_stored(str(tmp_path)) is None
    with pytest.raises(CorruptWeightsError, match=r"the weights of .* cannot be read \(.*model-00001-of-"):
        Engine.load(str(tmp_path), config=CPU)


def test_dtype_that_a_method_computes_in_is_settled_with_its_quantiser(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("is_torch_cuda_available", "is_fbgemm_gpu_available", "is_accelerate_available"):
        monkeypatch.setattr(f"transformers.quantizers.quantizer_fbgemm_fp8.{probe}", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    config = make_model("llama").config
    config.quantization_config = {"quant_method": "fbgemm_fp8"}
    found = quantisation_of(config, None)
    assert found == Quantisation("fbgemm_fp8", 8, "", is_stored=True)
    outcome = settle(found, config, None, dtype=torch.float32, device="cuda", device_map=None)
    assert (outcome.dtype, outcome.unpacks, outcome.problem) == (torch.bfloat16, False, None)
