"""Adapter files of every kind: each says what PEFT's own forward pass says, or is refused; members without it keep their bits."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from eft_engine import EngineConfig, MemberConfig, TunedPair
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.loading import TrioMember, load_trio
from eft_engine.models.network import Block
from eft_engine.models.planning import TrioPlan, plan_trio
from tests.choice import thorough_but
from tests.models.adapter_files import ADAPTER_FILES, MODELS, REFUSED, AdapterFile, model_named
from tests.toy import make_tokenizer

TEXT = [5, 60, 7, 80, 9, 100]
CONFIG = EngineConfig(device="cpu", runtime="torch", self_check=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models, saved."""
    found: dict[str, Path] = {}
    for name in MODELS:
        found[name] = tmp_path_factory.mktemp(name)
        model_named(name).save_pretrained(found[name])
        make_tokenizer().save_pretrained(found[name])
    return found


def _plan(case: AdapterFile, folder: Path, adapter: Path, merge: bool | None = None) -> TrioPlan:
    tuned = MemberConfig(source=str(folder), adapter=str(adapter), merge=merge)
    return plan_trio(str(folder), {"chat": TunedPair(tuned, str(folder))}, CONFIG)


def _logits(member: TrioMember) -> Tensor:
    """Logits `[width]` behind the text."""
    slot = member.network.kv_cache.allocate()
    try:
        return member.network.forward([Block(slot, TEXT, 1, member.adapter)])[0].clone()
    finally:
        member.network.kv_cache.release(slot)


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Its own weights, by the names that they have without PEFT's layers."""
    return {
        name.replace(".base_layer", ""): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }


@torch.no_grad()
def _peft_says(case: AdapterFile, adapter: Path) -> Tensor:
    """Log-probabilities `[width]` of PEFT's own forward pass, unmerged, on a copy of the model."""
    model = model_named(case.model)
    if case.name == "more tokens":
        model.resize_token_embeddings(264)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # for kinds that start from estimates
        tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    logits: Tensor = tuned(input_ids=torch.tensor([TEXT]), use_cache=False).logits
    return logits[0, -1].log_softmax(dim=-1)


def _ids(cases: tuple[AdapterFile, ...]) -> list[str]:
    return [case.name for case in cases]


HELD = tuple(case for case in ADAPTER_FILES if isinstance(case.expected, str))


def test_there_are_forty_of_them() -> None:
    assert len({case.name for case in ADAPTER_FILES}) == len(ADAPTER_FILES) >= 40


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", thorough_but([pytest.param(case, id=case.name) for case in HELD], often=3))
def test_says_what_peft_says_and_leaves_the_reference_alone(
    case: AdapterFile, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_named(case.model)
    before = _weights(model)
    case.build(model, tmp_path)
    plan = _plan(case, folders[case.model], tmp_path)
    tuned = plan.networks[plan.members["chat.tuned"].network]
    assert (tuned.adapter is None) == (case.expected == "shared")
    assert case.words in (tuned.why_merged or "")

    alone = load_trio(plan_trio(str(folders[case.model]), {}, CONFIG), CONFIG)
    expected = _logits(alone.members["base"])
    trio = load_trio(plan, CONFIG)
    reference = trio.members["chat.reference"]
    assert isinstance(reference.network, LanguageModel)
    ours = _logits(trio.members["chat.tuned"])
    judge = _peft_says(case, tmp_path)
    assert ours.shape == judge.shape == (tuned.logits_width,)
    difference = (ours.log_softmax(dim=-1) - judge).abs().max()
    assert difference < 1e-4, f"differs by {difference:.1e}"
    change = (judge[: len(expected)] - expected.log_softmax(dim=-1)).abs().max()
    assert change > 1e-2, "the adapter changes nothing, so nothing was tested"

    own = trio.members["chat.tuned"].network
    assert isinstance(own, LanguageModel)
    has_layers_of_peft = any(isinstance(module, BaseTunerLayer) for module in own.model.modules())
    assert has_layers_of_peft == (case.expected != "merged")
    assert torch.equal(_logits(reference), expected)
    for network in trio.networks:
        network.release()
    after = _weights(reference.network.model)
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED, ids=_ids(REFUSED))
def test_is_refused_with_its_reason_before_weights_are_read(
    case: AdapterFile, folders: dict[str, Path], tmp_path: Path
) -> None:
    assert not isinstance(case.expected, str)
    case.build(model_named(case.model), tmp_path)
    with pytest.raises(case.expected, match=case.words) as caught:
        _plan(case, folders[case.model], tmp_path)
    assert (caught.value.member, caught.value.source) == ("chat.tuned", str(tmp_path))
