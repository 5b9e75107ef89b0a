"""Trios from folders: what is shared is held once, what is wrong is refused by name, and nothing unsafe is opened."""

from __future__ import annotations

import copy
import errno
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, logging
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from eft_engine import Engine, EngineConfig, LoadedPair, MemberConfig, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.errors import (
    CorruptWeightsError,
    InvalidOptionError,
    LoadError,
    LoadOutOfMemoryError,
    ModelNotFoundError,
    TokenizerMissingError,
    UnsafeWeightsError,
    UnsupportedAdapterError,
    UnsupportedModelError,
    VocabularyMismatchError,
)
from eft_engine.models import memory_check
from eft_engine.models.load_errors import loading_error
from eft_engine.models.planning import TrioPlan, plan_trio
from eft_engine.models.sources import Source
from eft_engine.models.work_memory import step_bytes
from tests.gguf_files import write_gguf
from tests.toy import ToyTrio, make_model, make_tokenizer, naive_greedy, save_adapter

GREEDY = SamplingParams(temperature=0.0, max_tokens=10)


def save(folder: Path, *, seed: int, hidden_size: int = 32, vocab_size: int = 260, tokenizer: Any = None) -> str:
    make_model("llama", seed=seed, hidden_size=hidden_size, vocab_size=vocab_size).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Base, tuned, reference, and an adapter for the reference."""
    root = tmp_path_factory.mktemp("models")
    found = {
        "base": save(root / "base", seed=1, hidden_size=64),
        "tuned": save(root / "tuned", seed=2),
        "reference": save(root / "reference", seed=3),
    }
    found["adapter"] = str(save_adapter(make_model("llama", seed=3), root / "adapter", seed=4))
    return found


@pytest.fixture
def broken(folders: dict[str, str], tmp_path: Path) -> Path:
    """A copy of the base to damage."""
    return Path(shutil.copytree(folders["base"], tmp_path / "broken"))


def test_trio_of_folders_generates_the_composition(folders: dict[str, str], toy_trio: ToyTrio) -> None:
    pairs = {"chat": TunedPair(folders["tuned"], folders["reference"])}
    with Engine.load(folders["base"], pairs=pairs) as engine:
        out = engine.generate("The sky", sampling=GREEDY, reward_weights=0.5)
    ids = toy_trio.tokenizer.encode("The sky")
    assert list(out.token_ids) == naive_greedy(toy_trio, ids, weight=0.5, max_tokens=10)


def test_adapter_on_the_reference_shares_its_weights(folders: dict[str, str]) -> None:
    pairs = {"chat": TunedPair(tuned=folders["adapter"], reference=folders["reference"])}
    with Engine.load(folders["base"], pairs=pairs) as engine:
        report = engine.report()
        networks = engine._trio.networks
        out = engine.generate("The sky", sampling=GREEDY, reward_weights=0.7)
        held = sum(parameter.nbytes for network in networks for parameter in network.model.parameters())
    assert len(networks) == 2
    assert [member.network for member in report.members] == ["base", "chat.tuned", "chat.tuned"]
    assert report.total_bytes == held
    merged = PeftModel.from_pretrained(make_model("llama", seed=3), folders["adapter"]).merge_and_unload()
    trio = ToyTrio(make_model("llama", seed=1, hidden_size=64), merged, make_model("llama", seed=3), make_tokenizer())
    expected = naive_greedy(trio, trio.tokenizer.encode("The sky"), weight=0.7, max_tokens=10)
    assert list(out.token_ids) == expected


def test_base_that_is_the_reference_is_loaded_and_run_once(folders: dict[str, str]) -> None:
    pairs = {"chat": TunedPair(tuned=folders["adapter"], reference=folders["reference"])}
    config = EngineConfig(speculation=SpeculationOptions(drafter="none"))
    with Engine.load(folders["reference"], pairs=pairs, config=config) as engine:
        assert len(engine._trio.networks) == 1
        up_scaled = engine.generate("The sky", sampling=GREEDY, reward_weights=1.0)
        mixed = engine.generate("The sky", sampling=GREEDY, reward_weights=0.5)
    steps = up_scaled.usage.completion_tokens
    assert dict(up_scaled.metrics.num_forwards) == {"base": 0, "chat.tuned": steps, "chat.reference": 0}
    assert mixed.metrics.num_forwards["chat.reference"] == 0
    assert mixed.metrics.num_forwards["base"] == mixed.metrics.num_forwards["chat.tuned"] > 0


def test_adapter_may_be_named_explicitly(folders: dict[str, str]) -> None:
    explicit = MemberConfig(source=folders["reference"], adapter=folders["adapter"])
    with Engine.load(explicit) as engine, Engine.load(folders["reference"]) as plain:
        tuned = engine.generate("The sky", sampling=GREEDY)
        assert tuned.token_ids != plain.generate("The sky", sampling=GREEDY).token_ids


def test_members_may_have_their_own_dtype(folders: dict[str, str]) -> None:
    pairs = {"chat": TunedPair(MemberConfig(source=folders["tuned"], dtype="bfloat16"), folders["reference"])}
    with Engine.load(folders["base"], pairs=pairs, config=EngineConfig(device="cpu")) as engine:
        assert [network.model.dtype for network in engine._trio.networks] == [
            torch.float32,
            torch.bfloat16,
            torch.float32,
        ]
        assert engine.generate("The sky", sampling=GREEDY, reward_weights=0.5).token_ids


def test_padded_logits_of_other_width_are_composed(folders: dict[str, str], tmp_path: Path) -> None:
    wide = save(tmp_path / "wide", seed=9, hidden_size=64, vocab_size=320)
    pairs = {"chat": TunedPair(folders["tuned"], folders["reference"])}
    with Engine.load(wide, pairs=pairs) as engine:
        report = engine.report()
        outs = engine.generate(["a", "b"], sampling=SamplingParams(max_tokens=30, seed=1, temperature=2.0))
    assert dict(report.vocabulary.widths) == {"base": 320, "chat.tuned": 260, "chat.reference": 260}
    assert report.vocabulary.shared_vocab_size == 260
    assert all(token_id < 260 for out in outs for token_id in out.token_ids)


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a safetensors file at all")


def _change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _lose_a_tensor(folder: Path) -> None:
    _change_tensors(folder, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))


def _reshape_a_tensor(folder: Path) -> None:
    _change_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))


class _Bomb:
    """Unpickling it would raise in the test."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was opened",))


def _only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ', encoding="utf-8")


def _unknown_family(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "newest"}', encoding="utf-8")


def _impossible_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}), encoding="utf-8")


def _unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    for name in ("special_tokens_map.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)


def _no_model(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _two_ggufs(folder: Path) -> None:
    _no_model(folder)
    (folder / "a.gguf").write_bytes(b"")
    (folder / "b.gguf").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "kind", "phrase"),
    [
        (_truncate, CorruptWeightsError, "damaged"),
        (_garbage, CorruptWeightsError, "damaged"),
        (_lose_a_tensor, CorruptWeightsError, "missing keys: model.layers.0.mlp.up_proj.weight"),
        (_reshape_a_tensor, CorruptWeightsError, r"mismatched keys: model.norm.weight has shape \[3\], not \[64\]"),
        (_only_pickle, UnsafeWeightsError, "pytorch_model.bin"),
        (_no_weights, CorruptWeightsError, r"no \*.safetensors"),
        (_broken_config, CorruptWeightsError, r"the config\.json of .* is damaged"),
        (_unknown_family, UnsupportedModelError, "may be newer than this version"),
        (_impossible_config, UnsupportedModelError, "Validation error for field 'hidden_size'"),
        (_unknown_architecture, UnsupportedModelError, "not a causal language model"),
        (_no_tokenizer, TokenizerMissingError, r"MemberConfig\(tokenizer=...\)"),
        (_no_model, ModelNotFoundError, "neither a config.json nor a .gguf file"),
        (_two_ggufs, ModelNotFoundError, "choose one with MemberConfig"),
    ],
)
def test_damaged_folder_is_refused_by_name(damage: Any, kind: type[LoadError], phrase: str, broken: Path) -> None:
    damage(broken)
    with pytest.raises(kind, match=phrase) as caught:
        Engine.load(str(broken))
    assert caught.value.member == "base"
    assert str(broken) in str(caught.value)


def test_configuration_whose_code_is_missing_is_not_called_damaged(broken: Path) -> None:
    (broken / "config.json").write_text('{"auto_map": {"AutoConfig": "lost.Config"}}', encoding="utf-8")
    with pytest.raises(CorruptWeightsError, match=r"config\.json of .* cannot be used \(.*lost\.py") as caught:
        Engine.load(MemberConfig(source=str(broken), trust_remote_code=True))
    assert "damaged" not in str(caught.value)


def test_tokenizer_may_lie_elsewhere(folders: dict[str, str], broken: Path) -> None:
    _no_tokenizer(broken)
    with Engine.load(MemberConfig(source=str(broken), tokenizer=folders["base"])) as engine:
        assert engine.generate("The sky", sampling=GREEDY).token_ids


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "~/nothing", "a/b/c", "weights.gguf"])
def test_missing_path_is_not_taken_for_a_hub_id(source: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no model folder and no .gguf file"):
        Engine.load(source)


def test_unreachable_hub_id_says_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="neither a local folder nor reachable on the hub"):
        Engine.load("organisation/no-such-model")
    with pytest.raises(ModelNotFoundError, match="neither a folder nor reachable on the hub"):
        Engine.load(MemberConfig(source="organisation/no-such-model", adapter="organisation/no-such-adapter"))


def test_missing_gguf_in_a_folder_is_named(folders: dict[str, str]) -> None:
    with pytest.raises(ModelNotFoundError, match="has no file 'x.gguf'"):
        Engine.load(MemberConfig(source=folders["base"], gguf_file="x.gguf"))


def test_adapter_needs_something_to_sit_on(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is an adapter; say what it sits on"):
        Engine.load(folders["adapter"])
    with pytest.raises(ModelNotFoundError, match="no adapter at"):
        Engine.load(MemberConfig(source=folders["base"], adapter=str(tmp_path)))
    both = TunedPair(folders["adapter"], MemberConfig(source=folders["reference"], adapter=folders["adapter"]))
    with pytest.raises(UnsupportedAdapterError, match="tuned and reference are both adapters"):
        Engine.load(folders["base"], pairs={"chat": both})


def test_other_vocabulary_is_refused_before_weights_are_read(folders: dict[str, str], tmp_path: Path) -> None:
    other = save(tmp_path / "other", seed=2, tokenizer=make_tokenizer(shuffle=True))
    _truncate(Path(other))  # reading the weights would fail in another way
    with pytest.raises(VocabularyMismatchError, match="id 40 is 'I' in base, 'J' in chat.tuned"):
        Engine.load(folders["base"], pairs={"chat": TunedPair(other, folders["reference"])})


def least_work(plan: TrioPlan) -> int:
    """What a step of one request takes beside weights."""
    members, width = len(plan.members), plan.vocabulary.width
    return step_bytes(plan.networks.values(), EngineConfig(), num_members=members, width=width, num_seqs=1)


def test_weights_that_do_not_fit_are_refused_with_numbers(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 1000)
    with pytest.raises(LoadOutOfMemoryError, match="use a smaller dtype") as caught:
        Engine.load(folders["base"], config=EngineConfig(device="cpu"))
    expected = sum(parameter.nbytes for parameter in make_model("llama", hidden_size=64).parameters())
    expected += least_work(plan_trio(folders["base"], {}, EngineConfig(device="cpu")))
    assert (caught.value.needed_bytes, caught.value.available_bytes, caught.value.device) == (expected, 1000, "cpu")


def test_adapters_are_counted_with_the_weights(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"chat": TunedPair(tuned=folders["adapter"], reference=folders["reference"])}
    plan = plan_trio(folders["base"], pairs, EngineConfig(device="cpu"))
    total = plan.report().total_bytes + least_work(plan)
    monkeypatch.setattr(memory_check, "available_memory", lambda device: total)
    Engine.load(folders["base"], pairs=pairs, config=EngineConfig(device="cpu")).close()
    monkeypatch.setattr(memory_check, "available_memory", lambda device: total - 1)
    with pytest.raises(LoadOutOfMemoryError) as caught:
        Engine.load(folders["base"], pairs=pairs, config=EngineConfig(device="cpu"))
    assert caught.value.needed_bytes == total


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "the file cannot be mapped"),
    ],
    ids=["cuda", "python", "cpu", "mapped file"],
)
def test_running_out_of_memory_while_loading_is_typed(
    raised: BaseException, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(LoadOutOfMemoryError) as caught:
        Engine.load(folders["base"])
    assert caught.value.needed_bytes is not None
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("method", ["from_config", "from_pretrained"])
@pytest.mark.parametrize(
    "raised",
    [
        AssertionError("heads must divide"),
        AttributeError("no attribute 'rope'"),
        ImportError("needs timm"),
        IndexError("list index out of range"),
        KeyError("full_attention"),
        NotImplementedError("not on this device"),
        RuntimeError("Failed to find a kernel"),
        TypeError("'NoneType' object is not subscriptable"),
        ValueError("does not support an attention implementation"),
        ZeroDivisionError("division by zero"),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_whatever_a_model_class_raises_is_typed(
    raised: Exception, method: str, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(AutoModelForCausalLM, method, fail)
    with pytest.raises(UnsupportedModelError) as caught:
        Engine.load(folders["base"])
    assert (caught.value.member, caught.value.source, caught.value.__cause__) == ("base", folders["base"], raised)
    assert str(raised.args[0]) in str(caught.value)
    assert "damaged" not in str(caught.value)
    if method == "from_pretrained":  # the class was built before, out of the same configuration
        assert "is not a causal language model" not in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (ImportError("needs timm"), "needs a package that is not installed: needs timm"),
        (ModuleNotFoundError("No module named 'kernels'", name="kernels"), "needs a package that is not installed"),
        (ImportError("cannot import name 'f' from 'kernels'", name="kernels"), "needs another version of kernels"),
    ],
)
def test_missing_package_and_wrong_version_are_told_apart(
    raised: ImportError, words: str, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UnsupportedModelError, match=words):
        Engine.load(folders["base"])


@pytest.mark.parametrize(("on_hub", "kind"), [(False, CorruptWeightsError), (True, ModelNotFoundError)])
def test_files_that_cannot_be_read_are_not_called_damaged(
    on_hub: bool, kind: type[LoadError], folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = plan_trio(folders["base"], {}, EngineConfig()).networks["base"]
    if on_hub:
        network = replace(network, source=Source("organisation/model"))
    error = loading_error(PermissionError("model.safetensors"), network)
    assert type(error) is kind
    assert "model.safetensors" in str(error)
    assert "damaged" not in str(error)


def test_loading_works_again_after_every_failure(folders: dict[str, str]) -> None:
    with pytest.raises(ModelNotFoundError):
        Engine.load("/no/such/folder")
    with Engine.load(folders["base"]) as engine:
        assert engine.generate("The sky", sampling=GREEDY).token_ids


def test_quantisation_config_is_passed_through(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def capture(source: str, **arguments: Any) -> None:
        seen.update(arguments, source=source)
        raise ImportError("bitsandbytes is not installed")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", capture)
    monkeypatch.setattr(Bnb4BitHfQuantizer, "validate_environment", lambda *_, **__: None)
    quantisation = BitsAndBytesConfig(load_in_4bit=True)
    member = MemberConfig(source=folders["base"], quantization_config=quantisation, device_map="auto")
    with pytest.raises(UnsupportedModelError, match="bitsandbytes is not installed"):
        Engine.load(member)
    assert seen["quantization_config"] is quantisation
    assert (seen["device_map"], seen["use_safetensors"], seen["trust_remote_code"]) == ("auto", True, False)


def test_gguf_is_dequantised_wherever_it_is_placed(tmp_path: Path) -> None:
    """A device map alone says where weights go, and not that they stay packed."""
    path = write_gguf(make_model("llama"), make_tokenizer(), tmp_path / "model.gguf", file_type="Q8_0")
    texts = []
    for device_map in (None, {"": "cpu"}, "auto"):
        member = MemberConfig(source=str(path), runtime="torch", dtype="float32", device_map=device_map)
        with Engine.load(member) as engine:
            model = engine._trio.networks[0].model
            assert getattr(model, "hf_quantizer", None) is None
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
            texts.append(engine.generate("The sky", sampling=GREEDY).token_ids)
    assert texts[0] == texts[1] == texts[2]


def test_code_of_a_checkpoint_is_not_run(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (broken / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (broken / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')", encoding="utf-8")
    with pytest.raises(LoadError):
        Engine.load(str(broken))


def test_progress_is_shown_on_stderr_and_other_bars_come_back(
    folders: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert logging.is_progress_bar_enabled()
    Engine.load(folders["base"], config=EngineConfig(show_progress=True)).close()
    assert logging.is_progress_bar_enabled()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "loading" in captured.err
    Engine.load(folders["base"], config=EngineConfig(show_progress=False)).close()
    assert capfd.readouterr().err == ""


def test_loaded_models_come_back_as_they_were(toy_trio: ToyTrio) -> None:
    base = copy.deepcopy(toy_trio.base)
    before = base(torch.tensor([[1, 2, 3]])).logits
    with Engine.from_models(base, tokenizer=toy_trio.tokenizer) as engine:
        with pytest.raises(InvalidOptionError, match="no load report"):
            engine.report()
        assert engine.context_len == 256
    assert torch.equal(base(torch.tensor([[1, 2, 3]])).logits, before)


def test_loaded_models_need_a_tokenizer_each(toy_trio: ToyTrio) -> None:
    pairs = {"chat": LoadedPair(toy_trio.tuned, toy_trio.reference)}
    with pytest.raises(InvalidOptionError, match=r"no entry for chat\.tuned, chat\.reference"):
        Engine.from_models(toy_trio.base, tokenizer={"base": toy_trio.tokenizer}, pairs=pairs)


@pytest.mark.parametrize("name", ["", "a.b"])
def test_pair_names_with_dots_are_refused(name: str, toy_trio: ToyTrio) -> None:
    with pytest.raises(InvalidOptionError, match="must not be empty or contain a dot"):
        Engine.from_models(
            toy_trio.base, tokenizer=toy_trio.tokenizer, pairs={name: LoadedPair(toy_trio.tuned, toy_trio.reference)}
        )


def test_context_comes_from_the_models(folders: dict[str, str]) -> None:
    with Engine.load(folders["base"], config=EngineConfig(max_context_len=100)) as engine:
        assert engine.context_len == 100
