"""The text of multimodal checkpoints: as their own classes compute it, and without reading what text never uses."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    modeling_utils,
)
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from eft_engine import Engine, EngineConfig, MemberConfig, SamplingParams, TunedPair
from eft_engine.cli import main
from eft_engine.errors import CorruptWeightsError, UnsupportedModelError
from eft_engine.models import loading
from eft_engine.models.planning import plan_trio
from eft_engine.models.sizing import trio_sizes
from eft_engine.models.towers import find_left_out, num_parameters, towers
from tests.choice import thorough_but
from tests.models.multimodal_models import (
    CONFIGS,
    WIDTH,
    make_multimodal,
    media_tokenizer,
    save_gemma3n,
    save_multimodal,
)
from tests.toy import ToyTrio, make_model, naive_greedy, save_adapter

pytestmark = pytest.mark.only_torch

CPU = EngineConfig(device="cpu")
GREEDY = SamplingParams(temperature=0.0, max_tokens=16)
PROMPTS = ["The sky", "A longer prompt that has passed every window", "x"]
TEXT = torch.tensor([[5, 9, 33, 70, 12, 88, 3, 14, 15, 92, 65, 35, 8, 97, 93, 2]])
TEXT_CLASSES = ("qwen3_5", "qwen3_5_moe", "llama4")
"""Families for whose multimodal configuration transformers names a class for text."""
OFTEN = ("gemma3", "gemma4", "llama4", "llava", "qwen2_5_vl", "qwen3_5_moe")
TOWERS = ("vision", "visual", "audio", "projector", "connector")


def load(folder: str, **member: Any) -> PreTrainedModel:
    """The model that an engine would hold, before it is an engine's."""
    planned = plan_trio(MemberConfig(source=folder, **member), {}, CPU).networks["base"]
    return loading.load_model(planned, lambda _: None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedModel, str]]:
    """A pair that is text alone."""
    made: dict[str, tuple[PreTrainedModel, str]] = {}
    for seed, role in enumerate(("tuned", "reference")):
        folder, model = tmp_path_factory.mktemp(role), make_model("llama", seed=seed, vocab_size=WIDTH)
        made[role] = model, save_multimodal(model, folder)
    return made


@pytest.mark.parametrize("family", thorough_but(CONFIGS, often=OFTEN))
def test_a_multimodal_folder_is_composed_with_a_pair_of_text(
    family: str, pair: dict[str, tuple[PreTrainedModel, str]], tmp_path: Path
) -> None:
    base = make_multimodal(family)
    (tuned, tuned_folder), (reference, reference_folder) = pair["tuned"], pair["reference"]
    trio = ToyTrio(base, tuned, reference, media_tokenizer())
    pairs = {"chat": TunedPair(tuned_folder, reference_folder)}
    with Engine.load(save_multimodal(base, tmp_path), pairs=pairs, config=CPU) as engine:
        outs = engine.generate(PROMPTS, sampling=GREEDY, reward_weights=0.7)
    for prompt, out in zip(PROMPTS, outs, strict=True):
        expected = naive_greedy(trio, trio.tokenizer.encode(prompt), weight=0.7, max_tokens=16)
        assert list(out.token_ids) == expected, prompt


def test_all_members_may_be_multimodal(tmp_path: Path) -> None:
    models = [make_multimodal("gemma4", seed=seed) for seed in range(3)]
    base, tuned, reference = (save_multimodal(model, tmp_path / str(i)) for i, model in enumerate(models))
    with Engine.load(base, pairs={"chat": TunedPair(tuned, reference)}, config=CPU) as engine:
        out = engine.generate("The sky", sampling=GREEDY, reward_weights=0.7)
    trio = ToyTrio(*models, media_tokenizer())
    assert list(out.token_ids) == naive_greedy(trio, trio.tokenizer.encode("The sky"), weight=0.7, max_tokens=16)


@pytest.mark.parametrize("published", [True, False], ids=["published names", "names of today"])
@pytest.mark.parametrize("family", thorough_but(CONFIGS, often=OFTEN))
@torch.no_grad()
def test_logits_are_those_of_the_whole_model_to_the_bit(family: str, published: bool, tmp_path: Path) -> None:
    whole = make_multimodal(family)
    text = load(save_multimodal(whole, tmp_path, published=published))
    positions = torch.arange(TEXT.shape[1])[None]
    assert torch.equal(whole(input_ids=TEXT).logits, text(input_ids=TEXT, position_ids=positions).logits)
    assert not [name for name, _ in text.named_parameters() if any(word in name for word in TOWERS)]
    assert isinstance(text, type(whole)) == (family not in TEXT_CLASSES)


def test_published_names_are_others(tmp_path: Path) -> None:
    """Else the test above would try one layout twice."""
    first_of = {}
    for published in (True, False):
        save_multimodal(make_multimodal("llava"), tmp_path, published=published)
        first_of[published] = {name.split(".layers.")[0] for name in load_file(tmp_path / "model.safetensors")}
    assert "language_model.model" in first_of[True]
    assert "model.language_model" in first_of[False]


class _Reader:
    """`safe_open`, with a list of the tensors whose numbers were asked for."""

    read: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._file = safe_open(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Reader:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.__exit__(*exception)

    def get_slice(self, name: str) -> Any:
        return _Slice(name, self._file.get_slice(name))

    def get_tensor(self, name: str) -> Any:
        self.read.append(name)
        return self._file.get_tensor(name)


class _Slice:
    def __init__(self, name: str, found: Any) -> None:
        self._name, self._found = name, found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)

    def __getitem__(self, index: Any) -> Any:
        _Reader.read.append(self._name)
        return self._found[index]


@pytest.mark.parametrize("family", ["gemma4", "llava_next", "qwen2_5_vl", "qwen3_5", "llama4"])
def test_towers_are_not_read_and_not_counted(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_multimodal(family)
    folder = save_multimodal(whole, tmp_path)
    monkeypatch.setattr(modeling_utils, "safe_open", _Reader)
    monkeypatch.setattr(_Reader, "read", [])
    with Engine.load(folder, config=CPU) as engine:
        report = engine.report().members[0]
        held = sum(parameter.nbytes for parameter in engine._trio.networks[0].model.parameters())
    stored = load_file(tmp_path / "model.safetensors")
    left = {name for name in stored if name not in _Reader.read}
    assert left == {name for name in stored if any(word in name for word in TOWERS)} != set()
    assert report.parameter_bytes == held
    beside = sum(num_parameters(whole.get_submodule(name)) for name in towers(whole))
    assert report.left_out_bytes == 4 * beside > 0
    assert report.parameter_bytes + report.left_out_bytes == 4 * num_parameters(whole)


def test_inspect_names_the_class_and_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_multimodal(make_multimodal("gemma4"), tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["eft", "inspect", "--base", folder])
    with pytest.raises(SystemExit, match="0"):
        main()
    shown = " ".join(capsys.readouterr().out.split())
    assert "Gemma4ForConditionalGeneration" in shown
    assert "256 context, 266 logits" in shown
    assert (
        "vision tower (0.0 MiB), audio tower (0.0 MiB), embed vision (0.0 MiB), embed audio (0.0 MiB): not read"
        in shown
    )


def test_a_plan_for_vllm_counts_what_vllm_holds(tmp_path: Path) -> None:
    whole = make_multimodal("llava")
    plan = plan_trio(save_multimodal(whole, tmp_path), {}, CPU)
    assert [size.weight_bytes for size in trio_sizes(plan)] == [4 * num_parameters(whole)]


def _change_tensors(folder: Path, *, drop: str) -> None:
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if drop not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl", "qwen3_5", "llama4"])
def test_missing_weights_of_the_text_are_never_made_up(family: str, tmp_path: Path) -> None:
    folder = save_multimodal(make_multimodal(family), tmp_path)
    drop = "layers.1.self_attn.o_proj.weight"
    _change_tensors(tmp_path, drop=drop)
    with pytest.raises(CorruptWeightsError, match=f"missing keys: .*{drop}"):
        Engine.load(folder, config=CPU)


def test_missing_weights_of_a_tower_do_not_matter(tmp_path: Path) -> None:
    folder = save_multimodal(make_multimodal("llava"), tmp_path)
    _change_tensors(tmp_path, drop="vision_tower")
    with Engine.load(folder, config=CPU) as engine:
        assert engine.generate("The sky", sampling=GREEDY).token_ids


def test_texts_end_as_the_folder_says(tmp_path: Path) -> None:
    folder = save_multimodal(make_multimodal("qwen2_vl"), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 256]}), encoding="utf-8")
    with Engine.load(folder, config=CPU) as engine:
        assert [end.token_id for end in engine.report().ends if end.unused is None] == [7, 256]


def test_an_adapter_of_the_whole_model_changes_its_text(tmp_path: Path) -> None:
    """It was trained on the vision tower too, which is not there."""
    model = make_multimodal("llava", seed=1)
    folder = save_multimodal(model, tmp_path / "reference")
    adapter = save_adapter(model, tmp_path / "adapter", seed=4)
    assert any("vision_tower" in name for name in load_file(adapter / "adapter_model.safetensors"))
    merged = PeftModel.from_pretrained(copy.deepcopy(model), adapter).merge_and_unload()
    with Engine.load(folder, pairs={"chat": TunedPair(str(adapter), folder)}, config=CPU) as engine:
        out = engine.generate("The sky", sampling=GREEDY, reward_weights=0.7)
    trio = ToyTrio(model, merged, model, media_tokenizer())
    assert list(out.token_ids) == naive_greedy(trio, trio.tokenizer.encode("The sky"), weight=0.7, max_tokens=16)


@torch.no_grad()
def test_options_of_loading_go_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_multimodal("llava")
    folder = save_multimodal(whole, tmp_path)
    for device_map in ("auto", {"": "cpu"}):
        assert torch.equal(load(folder, device_map=device_map)(TEXT).logits, whole(TEXT).logits)
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16

    seen: dict[str, Any] = {}

    def capture(source: str, **arguments: Any) -> None:
        seen.update(arguments, source=source)
        raise ImportError("bitsandbytes is not installed")

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", capture)
    monkeypatch.setattr(Bnb4BitHfQuantizer, "validate_environment", lambda *_, **__: None)
    quantisation = BitsAndBytesConfig(load_in_4bit=True)
    with pytest.raises(UnsupportedModelError, match="bitsandbytes is not installed"):
        Engine.load(MemberConfig(source=folder, quantization_config=quantisation))
    assert (seen["source"], seen["quantization_config"], seen["use_safetensors"]) == (folder, quantisation, True)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="with timm the whole class can be built")
@torch.no_grad()
def test_gemma_3n_does_without_the_package_of_its_tower(tmp_path: Path) -> None:
    whole = save_gemma3n(tmp_path)
    member = plan_trio(str(tmp_path), {}, CPU).report().members[0]
    assert member.architecture == "Gemma3nForCausalLM"
    assert "need a package that is not installed" in member.notes[0]
    assert torch.equal(load(str(tmp_path))(TEXT).logits, whole(TEXT).logits)
    _change_tensors(tmp_path, drop="layers.1.mlp.up_proj")
    with pytest.raises(CorruptWeightsError, match="missing keys"):
        load(str(tmp_path))


class _UsesProjector(LlavaForConditionalGeneration):
    """Its text goes through the projector too."""

    def forward(self, **inputs: Any) -> Any:
        self.model.multi_modal_projector(torch.zeros(1, 16, device=self.device))
        return super().forward(**inputs)


def test_a_tower_that_text_uses_is_kept() -> None:
    with torch.device("meta"):
        model = _UsesProjector(CONFIGS["llava"]())
    assert list(towers(model)) == ["model.vision_tower", "model.multi_modal_projector"]
    assert list(find_left_out(model)) == ["model.vision_tower"]


def test_an_image_is_refused(tmp_path: Path) -> None:
    text = load(save_multimodal(make_multimodal("llava"), tmp_path))
    with pytest.raises(UnsupportedModelError, match=r"model\.vision_tower was not read"):
        text(input_ids=TEXT, pixel_values=torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("model_type", "phrase"),
    [
        ("kosmos-2", "does not run over text alone: You have to specify either `pixel_values`"),
        ("instructblip", "does not run over text alone: .* missing 2 required positional arguments"),
        ("blip", "BlipForConditionalGeneration has no output layer to read logits from"),
        ("florence2", "Florence2ForConditionalGeneration is an encoder with a decoder"),
        ("perception_lm", "needs a package that is not installed: .*timm"),
    ],
)
def test_what_has_no_text_of_its_own_is_refused_before_weights_are_read(
    model_type: str, phrase: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=f"(?s){phrase}") as caught:
        plan_trio(str(tmp_path), {}, CPU)
    assert caught.value.member == "base"
    assert str(tmp_path) in str(caught.value)
