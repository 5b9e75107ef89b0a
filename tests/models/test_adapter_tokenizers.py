"""An adapter's folder as trainers save it: its tokenizer and its chat template are those of the member, and its options hold."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from eft_engine import Engine, EngineConfig, MemberConfig, SamplingParams, TunedPair
from eft_engine.cli import main
from eft_engine.errors import (
    InvalidOptionError,
    TokenizerMissingError,
    UnsupportedAdapterError,
    VocabularyMismatchError,
)
from eft_engine.models import sources
from eft_engine.models.planning import TrioPlan, plan_trio
from tests.models.adapter_files import save_trained
from tests.toy import CHAT_TEMPLATE, make_model, make_tokenizer, save_adapter

pytestmark = pytest.mark.only_torch

CPU = EngineConfig(device="cpu")
TEMPLATE = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
MESSAGES = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base model, whose tokenizer has no chat template."""
    folder = tmp_path_factory.mktemp("base")
    make_model("llama").save_pretrained(folder)
    make_tokenizer(chat=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter, with nothing beside it."""
    return save_adapter(make_model("llama"), tmp_path / "my-lora-adapter", seed=1)


def plan(base: str, adapter: Path, **options: Any) -> TrioPlan:
    tuned = MemberConfig(source=str(adapter), **options)
    return plan_trio(base, {"chat": TunedPair(tuned, base)}, CPU)


def whole_tokenizer(folder: Path) -> None:
    make_tokenizer().save_pretrained(folder)


def template_alone(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def template_in_the_configuration(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}), encoding="utf-8")


@pytest.mark.parametrize("save", [whole_tokenizer, template_alone, template_in_the_configuration])
def test_its_template_is_that_of_the_member_and_of_nobody_else(
    save: Callable[[Path], None], base: str, adapter: Path
) -> None:
    save(adapter)
    members = plan(base, adapter).members
    assert members["chat.tuned"].tokenizer.chat_template == CHAT_TEMPLATE
    assert members["chat.reference"].tokenizer.chat_template is members["base"].tokenizer.chat_template is None


def test_a_chat_goes_through_the_template_of_the_adapter(base: str, adapter: Path) -> None:
    template_alone(adapter)
    with Engine.load(base, pairs={"chat": TunedPair(str(adapter), base)}, config=CPU) as engine:
        sampling = SamplingParams(temperature=0.0, max_tokens=4)
        asked = engine.generate(MESSAGES, sampling=sampling)
        assert asked.token_ids == engine.generate("<|user|>Why?<|end|><|assistant|>", sampling=sampling).token_ids


def test_several_templates_keep_their_names(base: str, adapter: Path) -> None:
    template_alone(adapter)
    (adapter / "additional_chat_templates").mkdir()
    (adapter / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATE, encoding="utf-8")
    tokenizer = plan(base, adapter).members["chat.tuned"].tokenizer
    assert tokenizer.chat_template == {"default": CHAT_TEMPLATE, "tool_use": TEMPLATE}


def test_without_a_tokenizer_it_has_that_of_the_reference(base: str, adapter: Path) -> None:
    members = plan(base, adapter).members
    assert members["chat.tuned"].tokenizer is members["chat.reference"].tokenizer


def test_the_tokenizer_that_a_member_names_goes_before_that_of_its_folder(
    base: str, adapter: Path, tmp_path: Path
) -> None:
    whole_tokenizer(adapter)
    named = make_tokenizer()
    named.chat_template = TEMPLATE
    named.save_pretrained(tmp_path / "named")
    assert (
        plan(base, adapter, tokenizer=str(tmp_path / "named")).members["chat.tuned"].tokenizer.chat_template == TEMPLATE
    )
    explicit = MemberConfig(source=base, adapter=str(adapter), tokenizer=str(tmp_path / "named"))
    members = plan_trio(base, {"chat": TunedPair(explicit, base)}, CPU).members
    assert members["chat.tuned"].tokenizer.chat_template == TEMPLATE


def test_the_tokenizer_of_its_folder_goes_before_the_one_that_the_reference_names(
    base: str, adapter: Path, tmp_path: Path
) -> None:
    whole_tokenizer(adapter)
    make_tokenizer(chat=False).save_pretrained(tmp_path / "named")
    reference = MemberConfig(source=base, tokenizer=str(tmp_path / "named"))
    members = plan_trio(base, {"chat": TunedPair(str(adapter), reference)}, CPU).members
    assert members["chat.tuned"].tokenizer.chat_template == CHAT_TEMPLATE
    assert members["chat.reference"].tokenizer.chat_template is None


def test_its_tokens_are_proven_against_the_others(base: str, adapter: Path) -> None:
    make_tokenizer(shuffle=True).save_pretrained(adapter)
    with pytest.raises(VocabularyMismatchError, match=r"chat\.tuned"):
        plan(base, adapter)


def test_a_damaged_template_is_named(base: str, adapter: Path) -> None:
    (adapter / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        TokenizerMissingError, match=r"chat\.tuned: the chat template in the adapter's folder .* cannot be read"
    ):
        plan(base, adapter)


def test_of_the_hub_no_pickle_and_no_code_is_fetched(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(adapter)

    monkeypatch.setattr(sources, "snapshot_download", fetch)
    assert sources.resolve_adapter("organisation/my-lora-adapter", revision=None, role="chat.tuned") == adapter
    assert {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= set(
        asked
    )
    assert {Path(name).suffix for name in asked} == {".json", ".jinja", ".txt", ".model", ".safetensors"}


def test_options_beside_an_adapter_hold_for_the_tuned_member_alone(base: str, adapter: Path) -> None:
    planned = plan(base, adapter, dtype="bfloat16")
    networks = {name: planned.networks[member.network] for name, member in planned.members.items()}
    assert (networks["chat.tuned"].type_name, networks["chat.reference"].type_name) == ("bfloat16", "float32")
    merged = plan(base, adapter, merge=True)
    [note] = merged.members["chat.tuned"].adapter_notes
    assert note == "adapter merged into a network of its own: merge=True was asked for"
    assert [merged.members[name].network for name in ("base", "chat.tuned", "chat.reference")] == [
        "base",
        "chat.tuned",
        "base",
    ]


def test_inspect_tells_why_an_adapter_has_a_network_of_its_own(
    base: str,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_trained(make_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], use_dora=True), tmp_path / "dora")
    pairs = ["--pair", f"plain={adapter},{base}", "--pair", f"dora={tmp_path / 'dora'},{base}"]
    printed = []
    for form in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["eft", "inspect", *form, "--base", base, *pairs])
        with pytest.raises(SystemExit, match="0"):
            main()
        printed.append(capsys.readouterr().out)
    assert "  adapter merged into a network of its own: it uses DoRA\n" in printed[0]
    members = {member["name"]: member for member in json.loads(printed[1])["members"]}
    assert members["dora.tuned"]["why_merged"] == "it uses DoRA"
    assert (members["dora.tuned"]["network"], members["dora.tuned"]["adapter_bytes"]) == ("dora.tuned", 0)
    assert (members["plain.tuned"]["network"], members["plain.tuned"]["why_merged"]) == ("base", None)


def test_two_members_with_one_merged_adapter_are_one_network(base: str, adapter: Path) -> None:
    tuned = MemberConfig(source=base, adapter=str(adapter), merge=True)
    pairs = {"one": TunedPair(tuned, base), "other": TunedPair(tuned, base), "switched": TunedPair(str(adapter), base)}
    members = plan_trio(base, pairs, CPU).members
    assert members["one.tuned"].network == members["other.tuned"].network == "one.tuned"
    assert (members["switched.tuned"].network, members["switched.tuned"].adapter) == ("base", adapter)


def test_merging_what_is_no_adapter_is_refused(base: str) -> None:
    with pytest.raises(InvalidOptionError, match="has none"):
        plan_trio(MemberConfig(source=base, merge=True), {}, CPU)


def test_a_configuration_of_the_model_beside_an_adapter_makes_it_no_model(base: str, adapter: Path) -> None:
    shutil.copy(Path(base) / "config.json", adapter / "config.json")
    assert plan(base, adapter).members["chat.tuned"].adapter == adapter


def test_a_folder_that_holds_a_model_and_an_adapter_is_refused(base: str, adapter: Path, tmp_path: Path) -> None:
    """Otherwise transformers puts the adapter into the reference, unasked."""
    both = shutil.copytree(base, tmp_path / "both")
    shutil.copytree(adapter, both, dirs_exist_ok=True)
    with pytest.raises(UnsupportedAdapterError, match="holds a model and an adapter"):
        plan_trio(str(both), {}, CPU)
