"""LoRA adapters, switched per row of a batch."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from eft_engine import Engine, EngineConfig, LoadedPair, MemberConfig, TunedPair
from eft_engine.errors import CorruptWeightsError, LoadError, UnsafeWeightsError, UnsupportedAdapterError
from eft_engine.models import merged
from eft_engine.models.adapter_fit import fit_adapter
from eft_engine.models.adapter_folder import read_adapter
from eft_engine.models.adapters import check_adapter
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block
from tests.gguf_files import write_gguf
from tests.models.adapter_files import model_named, save_trained
from tests.models.multimodal_models import make_multimodal, media_tokenizer, save_multimodal
from tests.models.test_recording import TapeRecorder
from tests.toy import make_model, make_tokenizer, save_adapter


def test_rows_with_and_without_adapters_share_a_pass(tmp_path: Path) -> None:
    base = make_model("llama")
    folders = [save_adapter(base, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    model = LanguageModel(copy.deepcopy(base), name="toy")
    names = [model.with_adapter(folder, member="tuned")[1] for folder in folders]
    slots = [model.kv_cache.allocate() for _ in range(3)]
    prompt = [5, 6, 7, 8]
    logits = model.forward([Block(slot, prompt, 1, name) for slot, name in zip(slots, [None, *names], strict=True)])
    plain = base(torch.tensor([prompt])).logits[0, -1]
    tuned = [PeftModel.from_pretrained(copy.deepcopy(base), str(folder)) for folder in folders]
    expected = [plain, *(model(torch.tensor([prompt])).logits[0, -1] for model in tuned)]
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    for ours, theirs in zip(logits, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("recorder", [None, TapeRecorder()], ids=["computed", "replayed"])
@pytest.mark.parametrize(
    ("name", "targets"),
    [("opt", ["fc1", "fc2", "v_proj"]), ("moe", r".*(shared_expert\.(up|down)_proj|shared_expert_gate|v_proj)")],
)
def test_layers_that_see_all_tokens_in_one_list_add_to_the_right_ones(
    name: str, targets: Any, recorder: TapeRecorder | None, tmp_path: Path
) -> None:
    """The rows of a pass are of several lengths, and some of the tokens in the list are padding."""
    base = model_named(name)
    save_trained(base, LoraConfig(r=4, target_modules=targets), tmp_path)
    tuned = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    network = LanguageModel(copy.deepcopy(base), name="toy", recorder=recorder)
    _, adapter = network.with_adapter(tmp_path, member="tuned")
    prompts = ([5, 6, 7, 8], [9, 10], [11, 12, 13], [14])
    for owners in ((None, adapter, None, adapter), (adapter, None, None, adapter)):
        slots = [network.kv_cache.allocate() for _ in prompts]
        blocks = [Block(slot, ids, 1, own) for slot, ids, own in zip(slots, prompts, owners, strict=True)]
        rows = network.forward(blocks)
        for row, ids, own in zip(rows, prompts, owners, strict=True):
            judge = base if own is None else tuned
            torch.testing.assert_close(row, judge(input_ids=torch.tensor([ids])).logits[0, -1], rtol=1e-4, atol=1e-4)
        for slot in slots:
            network.kv_cache.release(slot)
    if recorder is not None:
        assert network.recorded is not None
        assert network.recorded.num_replayed > 0


def test_bytes_of_an_adapter_are_counted_apart(tmp_path: Path) -> None:
    base = make_model("llama")
    folder = save_adapter(base, tmp_path, seed=1)
    alone = sum(parameter.nbytes for parameter in base.parameters())
    model = LanguageModel(copy.deepcopy(base), name="toy")
    model.with_adapter(folder, member="tuned")
    added = sum(parameter.nbytes for parameter in model.model.parameters()) - alone
    assert model.parameter_bytes == alone
    assert read_adapter(folder, member="tuned").num_bytes(torch.float32) == added > 0


def test_release_takes_the_adapters_off(tmp_path: Path) -> None:
    base = make_model("llama")
    before = base(torch.tensor([[1, 2]])).logits
    model = LanguageModel(base, name="toy")
    model.with_adapter(save_adapter(make_model("llama"), tmp_path, seed=1), member="tuned")
    model.release()
    assert torch.equal(base(torch.tensor([[1, 2]])).logits, before)
    assert not [name for name, _ in base.named_modules() if "lora_" in name or "base_layer" in name]


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        (LoraConfig(use_dora=True, target_modules=["q_proj"]), "DoRA"),
        (LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "replaces whole modules"),
        (LoraConfig(target_modules=["q_proj", "embed_tokens"]), "embeddings or the output layer"),
        (LoraConfig(target_modules=["q_proj"], bias="all"), "biases"),
        (LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1]), "embeddings of single tokens"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "it is of type IA3, not LORA"),
        (
            LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM"),
            "invocation tokens",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_adapter_that_cannot_be_switched_per_row_is_refused(config: Any, phrase: str, tmp_path: Path) -> None:
    get_peft_model(make_model("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedAdapterError, match=phrase) as caught:
        check_adapter(tmp_path, member="chat.tuned")
    assert caught.value.member == "chat.tuned"


def test_adapter_that_does_more_than_lora_is_refused_once_its_layers_are_there(tmp_path: Path) -> None:
    """Its configuration tells nothing: an expression matches the embeddings."""
    config = LoraConfig(target_modules=r"model\.embed_tokens")
    get_peft_model(make_model("llama"), config).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(UnsupportedAdapterError, match=r"more to its layers \(Embedding\) than B\(A\(x\)\)"):
        LanguageModel(make_model("llama"), name="toy").with_adapter(tmp_path, member="chat.tuned")


def test_what_says_something_else_when_it_is_merged_keeps_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_model("llama")
    adapter = read_adapter(save_adapter(base, tmp_path, seed=1), member="tuned")

    def merge_wrongly(wrapped: PeftModel) -> PreTrainedModel:
        return wrapped.unload()

    loads = []

    def load() -> PreTrainedModel:
        loads.append(copy.deepcopy(base))
        return loads[-1]

    assert merged.with_adapter_inside(load, adapter, member="tuned").is_merged
    monkeypatch.setattr(merged, "merge", merge_wrongly)
    tuned = merged.with_adapter_inside(load, adapter, member="tuned")
    assert (tuned.is_merged, len(loads)) == (False, 3)
    judge = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(tuned.model(ids).logits, judge(ids).logits)


def test_a_gguf_model_in_torch_takes_what_a_folder_takes(tmp_path: Path) -> None:
    model = make_model("llama")
    path = str(write_gguf(model, make_tokenizer(), tmp_path / "model.gguf"))
    save_trained(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True), tmp_path / "dora")
    config = EngineConfig(device="cpu", runtime="torch", dtype="float32")
    ids = make_tokenizer().encode("The sky")
    judge = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "dora"))
    logprobs = judge(input_ids=torch.tensor([ids])).logits.log_softmax(dim=-1)[0]
    with Engine.load(path, pairs={"chat": TunedPair(str(tmp_path / "dora"), path)}, config=config) as engine:
        scored = engine.score("The", " sky")
    expected = [float(logprobs[place, ids[place + 1]]) for place in range(2, 6)]
    torch.testing.assert_close([token.pairs["chat"].tuned for token in scored.tokens], expected, atol=1e-4, rtol=0)


class _Expert(nn.Module):
    """What a layer of experts was in transformers 4, and is in code that comes with checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(2))


def test_layers_in_a_list_inside_of_a_layer_are_not_shared(tmp_path: Path) -> None:
    """Experts see those tokens alone that were chosen for them, and whose rows nobody knows there."""
    model = make_model("llama")
    for layer in model.model.layers:
        layer.mlp = _Expert()
    get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["experts.1", "q_proj"], r=4)).save_pretrained(
        tmp_path
    )
    fit = fit_adapter(model.to("meta"), read_adapter(tmp_path, member="tuned"), member="tuned")
    assert fit.why_own == (
        "it changes layers that see a choice of the tokens (model.layers.0.mlp.experts.1, model.layers.1.mlp.experts.1)"
    )


@pytest.mark.parametrize(
    ("family", "here", "before"),
    [
        ("gemma3", "model.language_model.", "language_model.model."),
        ("qwen2_vl", "model.language_model.", "model."),
        ("qwen3_5", "model.", "model.language_model."),
    ],
)
def test_an_adapter_that_was_trained_under_other_names_fits(
    family: str, here: str, before: str, tmp_path: Path
) -> None:
    """Multimodal families were renamed between releases of transformers, and some have another class for text alone."""
    whole = make_multimodal(family)
    folder = save_multimodal(whole, tmp_path / "model")
    text = AutoModelForCausalLM.from_pretrained(folder) if family == "qwen3_5" else whole
    save_trained(text, LoraConfig(r=4, target_modules=r".*(layers|language_model).*\.[qv]_proj"), tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {key: tensor for key, tensor in load_file(weights).items() if f"model.{here}layers" in key}
    judge = PeftModel.from_pretrained(copy.deepcopy(text), str(tmp_path / "adapter"))
    save_file(
        {key.replace(f"base_model.model.{here}", f"base_model.model.{before}"): kept[key] for key in kept}, weights
    )
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    settings["target_modules"] = ["q_proj", "v_proj"]
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = EngineConfig(device="cpu", self_check=False)
    pairs = {"chat": TunedPair(str(tmp_path / "adapter"), folder)}
    ids = media_tokenizer().encode("The sky")
    with Engine.load(folder, pairs=pairs, config=config) as engine:
        scored = engine.score("The", " sky")
    logprobs = judge(input_ids=torch.tensor([ids])).logits.log_softmax(dim=-1)[0]
    expected = [float(logprobs[place, ids[place + 1]]) for place in range(2, 6)]
    torch.testing.assert_close([token.pairs["chat"].tuned for token in scored.tokens], expected, atol=1e-4, rtol=0)
    assert any(abs(token.pairs["chat"].delta) > 1e-2 for token in scored.tokens)


def test_a_model_that_peft_has_wrapped_runs_with_its_adapter(tmp_path: Path) -> None:
    base = make_model("llama")
    tuned = PeftModel.from_pretrained(copy.deepcopy(base), str(save_adapter(base, tmp_path, seed=1)))
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("The sky")
    logprobs = tuned(input_ids=torch.tensor([ids])).logits.log_softmax(dim=-1)[0]
    with Engine.from_models(base, tokenizer=tokenizer, pairs={"chat": LoadedPair(tuned, base)}) as engine:
        scored = engine.score("The", " sky")
    expected = [float(logprobs[place, ids[place + 1]]) for place in range(2, 6)]
    torch.testing.assert_close([token.pairs["chat"].tuned for token in scored.tokens], expected, atol=1e-4, rtol=0)
    assert tuned(input_ids=torch.tensor([ids])).logits.log_softmax(dim=-1)[0].equal(logprobs)


def test_a_wrapper_around_another_member_is_refused(tmp_path: Path) -> None:
    """PEFT has changed the reference too: both would say the same, and the reward would be 0."""
    base = make_model("llama")
    tuned = PeftModel.from_pretrained(base, str(save_adapter(base, tmp_path, seed=1)))
    with pytest.raises(UnsupportedAdapterError, match=r"around the very object that is base") as caught:
        Engine.from_models(base, tokenizer=make_tokenizer(), pairs={"chat": LoadedPair(tuned, base)})
    assert caught.value.member == "chat.tuned"


def test_a_wrapper_that_puts_tokens_before_the_text_is_refused() -> None:
    config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    tuned = get_peft_model(make_model("llama"), config)
    pairs = {"chat": LoadedPair(tuned, make_model("llama"))}
    with pytest.raises(UnsupportedAdapterError, match=r"chat\.tuned: .* of type PROMPT_TUNING"):
        Engine.from_models(make_model("llama"), tokenizer=make_tokenizer(), pairs=pairs)


def test_every_member_may_have_adapters_of_both_sorts(tmp_path: Path) -> None:
    model = make_model("llama")
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    folders = {name: str(tmp_path / name) for name in ("one", "other", "dora")}
    for seed, name in enumerate(("one", "other")):
        save_adapter(model, Path(folders[name]), seed=seed)
    save_trained(model, LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]), Path(folders["dora"]))
    source = str(tmp_path / "model")
    members = {name: MemberConfig(source=source, adapter=folder) for name, folder in folders.items()}
    pairs = {"a": TunedPair(members["one"], members["dora"]), "b": TunedPair(members["dora"], members["other"])}
    ids = make_tokenizer().encode("The sky")
    with Engine.load(members["one"], pairs=pairs, config=EngineConfig(device="cpu")) as engine:
        assert len(engine._trio.networks) == 2
        scored = engine.score("The", " sky")
    for name, values in {
        "one": [token.base for token in scored.tokens],
        "dora": [token.pairs["a"].reference for token in scored.tokens],
        "other": [token.pairs["b"].reference for token in scored.tokens],
    }.items():
        judge = PeftModel.from_pretrained(copy.deepcopy(model), folders[name])
        logprobs = judge(input_ids=torch.tensor([ids])).logits.log_softmax(dim=-1)[0]
        expected = [float(logprobs[place, ids[place + 1]]) for place in range(2, 6)]
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)


def _only_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")


def _truncated(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def _not_finite(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values()))[0] = torch.nan
    save_file(tensors, weights)


def _other_shape(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 7}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "kind", "phrase"),
    [
        (_only_pickle, UnsafeWeightsError, "a pickle, which is never opened"),
        (_no_weights, CorruptWeightsError, "no adapter_model.safetensors"),
        (_no_json, CorruptWeightsError, "not an adapter configuration"),
        (_truncated, CorruptWeightsError, "cannot be read"),
        (_not_finite, CorruptWeightsError, "not finite numbers"),
        (_other_shape, CorruptWeightsError, "does not fit LlamaForCausalLM: .* in the file"),
    ],
)
def test_damaged_adapter_is_named(damage: Any, kind: type[LoadError], phrase: str, tmp_path: Path) -> None:
    folder = save_adapter(make_model("llama"), tmp_path, seed=1)
    damage(folder)
    with pytest.raises(kind, match=phrase) as caught:
        LanguageModel(make_model("llama"), name="toy").with_adapter(folder, member="chat.tuned")
    assert (caught.value.member, caught.value.source) == ("chat.tuned", str(folder))
