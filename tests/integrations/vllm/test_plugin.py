"""What of the plugin needs no vLLM: weights of a request, the composition, the command, and names and weights on the wire."""

from __future__ import annotations

import doctest
import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from eft_engine import (
    CompositionOptions,
    EngineConfig,
    FirstTokens,
    MemberConfig,
    PromptPair,
    TunedPair,
    errors,
)
from eft_engine import inspect_trio as report_on_trio
from eft_engine.cli.app import app
from eft_engine.decoding.composition import keep_plausible
from eft_integrations.backends.vllm_server import numbers_alone, refuse_steering
from eft_integrations.chat.request import ChatRequest
from eft_integrations.server.settings import load_settings
from eft_integrations.server.vllm_engine import vllm_command
from eft_integrations.vllm.composing import (
    columns_to_weights,
    compose_logits,
    implausible,
    num_weight_columns,
    tokens_of_requests,
    weights_to_columns,
)
from eft_integrations.vllm.launch import serve_command
from eft_integrations.vllm.middleware import Served
from eft_integrations.vllm.request_weights import effective_row, effective_weights, read_share, read_weights
from eft_integrations.vllm.trio_options import TrioOptions
from tests.toy import make_model, make_tokenizer, make_trio, save_adapter

OWN = {"chat": 1.0, "json": 0.5}


def test_plugin_is_inert_without_vllm() -> None:
    names = ["", ".register", ".launch", ".middleware", ".composing", ".admission"]
    code = "; ".join(f"import eft_integrations.vllm{name}" for name in names)
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print('vllm' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "False\n"


@pytest.mark.parametrize("name", ["composing", "request_weights"])
def test_examples_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"eft_integrations.vllm.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, (1.0, 0.5)),
        (2, (2.0, 2.0)),
        ([0, -0.7], (0.0, -0.7)),
        ("0.25", (0.25, 0.25)),
        ("json=2", (1.0, 2.0)),
        ({"chat": 0.0}, (0.0, 0.5)),
    ],
)
def test_weights_are_read_in_every_form(value: Any, read: tuple[float, ...]) -> None:
    extra = {} if value is None else {"eft_weights": value}
    assert read_weights(extra, OWN) == read
    assert effective_weights({**extra, "kv_transfer_params": {}}, OWN) == read


@pytest.mark.parametrize(
    "value", [[1.0], [float("inf"), 0], True, [True, 1], "x=1", "chat", {"x": 1}, [[1], [2]], object()]
)
def test_wrong_weights_are_refused_in_front_and_harmless_behind(value: Any) -> None:
    with pytest.raises(ValueError, match="weights"):
        read_weights({"eft_weights": value}, OWN)
    assert effective_weights({"eft_weights": value}, OWN) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("extra", "row"),
    [
        (None, (1.0, 0.5, 0.0)),
        ({"eft_min_plausibility": 0.25}, (1.0, 0.5, 0.25)),
        ({"eft_weights": 2, "eft_min_plausibility": 1}, (2.0, 2.0, 1.0)),
        ({"eft_min_plausibility": 1.5}, (1.0, 0.5, 0.0)),
        ({"eft_min_plausibility": object()}, (1.0, 0.5, 0.0)),
    ],
)
def test_what_is_plausible_travels_behind_the_weights(extra: Any, row: tuple[float, ...]) -> None:
    assert effective_row(extra, OWN) == row


@pytest.mark.parametrize("share", [1.5, -0.1, True, "0.1", float("nan")])
def test_wrong_share_is_refused_in_front(share: Any) -> None:
    with pytest.raises(ValueError, match="eft_min_plausibility must be a number from 0 to 1"):
        read_share({"eft_min_plausibility": share})


GATE: dict[str, Any] = {"kind": "gate", "by": "kl", "above": 0.1}


@pytest.mark.parametrize("value", [GATE, {"chat": GATE}, [GATE, 1.0]])
def test_a_schedule_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match="this is a schedule; give a number"):
        read_weights({"eft_weights": value}, OWN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_travel_bit_by_bit(dtype: torch.dtype) -> None:
    weights = torch.randn(50, 3) * 10.0 ** torch.randint(-30, 6, (50, 3))
    rows = torch.randn(50, 8, dtype=dtype)
    joined = torch.cat([rows, weights_to_columns(weights, dtype)], dim=1)
    assert joined.shape[1] == 8 + num_weight_columns(3, dtype)
    gathered = joined[torch.tensor([7, 3, 3, 49])]
    assert torch.equal(columns_to_weights(gathered[:, 8:]), weights[torch.tensor([7, 3, 3, 49])])


def test_composition_of_logits_is_that_of_logprobs() -> None:
    base, tuned, reference, second = (torch.randn(6, 11) for _ in range(4))
    weights = torch.randn(6, 2)
    wanted = base.log_softmax(-1)
    wanted = wanted + weights[:, :1] * (tuned.log_softmax(-1) - reference.log_softmax(-1))
    wanted = (wanted + weights[:, 1:] * (second.log_softmax(-1) - tuned.log_softmax(-1))).log_softmax(-1)
    found = compose_logits(base.clone(), [(tuned, reference), (second, tuned)], weights).log_softmax(-1)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_ids_that_only_the_base_has_are_impossible() -> None:
    base, small = torch.zeros(2, 10), torch.zeros(2, 8)
    found = compose_logits(base, [(small, small), (torch.zeros(2, 7), torch.zeros(2, 12))], torch.zeros(2, 2))
    assert found.isinf().tolist() == [[False] * 7 + [True] * 3] * 2


def test_a_term_adds_its_own_logprobs() -> None:
    base, tuned, reference, term = (torch.randn(6, 11) for _ in range(4))
    weights = torch.randn(6, 2)
    wanted = base.log_softmax(-1) + weights[:, :1] * (tuned.log_softmax(-1) - reference.log_softmax(-1))
    wanted = (wanted + weights[:, 1:] * term.log_softmax(-1)).log_softmax(-1)
    found = compose_logits(base.clone(), [(tuned, reference), (term, None)], weights).log_softmax(-1)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_plausible_is_what_the_engine_finds_plausible() -> None:
    base, scores = torch.randn(5, 40) * 4, torch.randn(5, 40)
    base[:, 3] = -torch.inf
    shares = torch.tensor([0.0, 0.01, 0.1, 0.5, 1.0])
    wanted = scores.masked_fill(base.isneginf(), -torch.inf)
    keep_plausible(wanted, base.log_softmax(-1), shares)
    best = torch.maximum(base[:, :20].amax(-1, keepdim=True), base[:, 20:].amax(-1, keepdim=True))  # of two ranks
    found = torch.cat([implausible(part, best, shares[:, None]) for part in (base[:, :20], base[:, 20:])], dim=1)
    found[1:, 3] = True  # impossible anyway
    assert torch.equal(found[1:], wanted[1:].isneginf())
    assert not found[0].any()


def test_padding_behind_the_last_request_is_harmless() -> None:
    rows, starts = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 1, 4], dtype=torch.int32)
    positions = torch.arange(6, dtype=torch.int32)
    found = tokens_of_requests(rows, starts, positions, torch.zeros(6, 1))
    assert found.flatten().tolist() == [1.0, 3.0, 3.0, 3.0, 3.0, 3.0]


# ---- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trio on disk, and an adapter on its reference."""
    root, trio = tmp_path_factory.mktemp("trio"), make_trio("llama")
    for name in ("base", "tuned", "reference"):
        getattr(trio, name).save_pretrained(root / name)
        trio.tokenizer.save_pretrained(root / name)
    save_adapter(make_model("llama", seed=3), root / "adapter", seed=5)
    return {name: root / name for name in ("base", "tuned", "reference", "adapter")}


def write(folder: Path, folders: dict[str, Path], kind: str, **settings: Any) -> Path:
    """A file of settings with two names over one base."""
    pair = {"tuned": str(folders["tuned"]), "reference": str(folders["reference"])}
    own = {
        "compositions": [
            {
                "name": "both",
                "base": str(folders["base"]),
                "pairs": {"chat": pair, "json": pair},
                "weights": {"json": 0.25},
            },
            {"name": "friendly", "base": str(folders["base"]), "pairs": {"chat": pair}},
        ],
        **settings,
    }
    file = folder / f"trio.{kind}"
    file.write_text(json.dumps(own))  # JSON is YAML too
    return file


def arguments_of(command: Any) -> dict[str, str]:
    """Options with their values."""
    words = list(command.arguments)
    return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_command_of_a_file(kind: str, tmp_path: Path, folders: dict[str, Path]) -> None:
    speculation = {"drafter": "tuned", "max_draft_tokens": 3}
    engine = {"dtype": "bfloat16", "max_num_seqs": 64, "speculation": speculation, "mismatched_tokens": "mask"}
    file = write(tmp_path, folders, kind, engine=engine, vllm_args=["--tensor-parallel-size", "4"], api_key="secret")
    command = vllm_command(load_settings(file, port=9000))
    found = arguments_of(command)
    assert str(folders["base"]) in command.arguments
    assert found["--tokenizer"] == str(folders["tuned"])
    assert found["--port"] == "9000"
    assert (found["--dtype"], found["--max-num-seqs"], found["--tensor-parallel-size"]) == ("bfloat16", "64", "4")
    assert json.loads(found["--speculative-config"])["model"] == str(folders["tuned"])
    overrides = json.loads(found["--hf-overrides"])
    assert overrides["architectures"] == ["EFTForCausalLM"]
    options = TrioOptions.model_validate(overrides["eft"])
    assert list(options.pairs) == ["chat", "json"]
    assert options.compositions == {"both": {"chat": 1.0, "json": 0.25}, "friendly": {"chat": 1.0}}
    assert options.end_ids == (256,)
    assert command.environment == {"VLLM_API_KEY": "secret"}
    assert "secret" not in str(command)


def test_command_with_a_term_and_a_share(tmp_path: Path, folders: dict[str, Path]) -> None:
    chat = {"tuned": str(folders["tuned"]), "reference": str(folders["reference"])}
    own: dict[str, Any] = {"name": "m", "base": str(folders["base"]), "composition": {"min_plausibility": 0.1}}
    own["pairs"] = {"chat": chat, "reward": {"model": str(folders["tuned"]), "weight": 0.5}}
    file = tmp_path / "trio.json"
    file.write_text(json.dumps({"compositions": [own]}))
    found = arguments_of(vllm_command(load_settings(file)))
    options = TrioOptions.model_validate(json.loads(found["--hf-overrides"])["eft"])
    assert options.pairs["reward"].reference is None
    assert [key for key, _, _ in options.small_members()] == ["tuned_0", "reference_0", "tuned_1"]
    assert options.row == (1.0, 0.5, 0.0)
    assert options.min_plausibility == {"m": 0.1}


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"weights": {"chat": GATE}}, "is a schedule"),
        ({"prompt_pairs": {"p": {"negative": "x"}}}, "prompt_pairs"),
        ({"call_weight": 0}, "call_weight"),
        ({"composition": {"amplification": 2}}, "composition.amplification"),
        ({"composition": {"tuned_plausibility": 0.1}}, "composition.tuned_plausibility"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_it_is_started(
    setting: dict[str, Any], named: str, tmp_path: Path, folders: dict[str, Path]
) -> None:
    chat = {"tuned": str(folders["tuned"]), "reference": str(folders["reference"])}
    own: dict[str, Any] = {"name": "m", "base": str(folders["base"]), "pairs": {"chat": chat}, **setting}
    file = tmp_path / "trio.json"
    file.write_text(json.dumps({"compositions": [own]}))
    with pytest.raises(errors.InvalidOptionError, match=named):
        vllm_command(load_settings(file))


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    for name, text in (("trio.json", "{"), ("trio.yaml", "a: [")):
        (tmp_path / name).write_text(text)
        with pytest.raises(errors.InvalidOptionError, match="trio"):
            load_settings(tmp_path / name)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"prefill_chunk_len": 64}, "prefill_chunk_len"),
        ({"speculation": {"drafter": "auto"}}, "one drafter at a time"),
        ({"attention": "flash"}, "attention"),
    ],
)
def test_options_without_a_counterpart_are_refused(
    tmp_path: Path, folders: dict[str, Path], engine: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.InvalidOptionError, match=message):
        vllm_command(load_settings(write(tmp_path, folders, "json", engine=engine)))


def test_what_is_no_base_with_pairs_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    preset = load_settings(None, compositions=[{"name": "a", "preset": "atlas"}])
    with pytest.raises(errors.InvalidOptionError, match="presets"):
        vllm_command(preset)
    pair = {"tuned": str(folders["tuned"]), "reference": str(folders["reference"])}
    two = [{"name": str(index), "base": base, "pairs": {"chat": pair}} for index, base in enumerate(("one", "two"))]
    with pytest.raises(errors.InvalidOptionError, match="one vLLM serves one base"):
        vllm_command(load_settings(None, compositions=two))


def command_of(folders: dict[str, Path], **pair: Any) -> Any:
    base = str(folders["base"])
    pairs = {"chat": TunedPair(**{"tuned": str(folders["tuned"]), "reference": str(folders["reference"]), **pair})}
    report = report_on_trio(base, pairs, EngineConfig())
    return serve_command(
        {"a": None}, base=MemberConfig(source=base), pairs=pairs, report=report, engine=EngineConfig(), host="h", port=1
    )


def test_members_that_vllm_cannot_have_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(errors.InvalidOptionError, match="merge_and_unload"):
        command_of(folders, tuned=str(folders["adapter"]))
    with pytest.raises(errors.InvalidOptionError, match="device_map"):
        command_of(folders, tuned=MemberConfig(source=str(folders["tuned"]), device_map="auto"))


def test_other_vocabularies_are_refused_before_vllm_is_started(tmp_path: Path, folders: dict[str, Path]) -> None:
    make_model("llama", seed=2).save_pretrained(tmp_path / "other")
    make_tokenizer(shuffle=True).save_pretrained(tmp_path / "other")
    with pytest.raises(errors.VocabularyMismatchError):
        command_of(folders, tuned=str(tmp_path / "other"))


def test_command_line_prints_the_command_and_runs_nothing(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.execve", lambda *arguments: pytest.fail("nothing may be run"))
    words = [
        "serve",
        "--engine",
        "vllm",
        "--print",
        "--name",
        "mine",
        "--weight",
        "tuned=0.5",
        "--vllm-args",
        "--seed 3",
    ]
    words += [word for name in ("base", "tuned", "reference") for word in (f"--{name}", str(folders[name]))]
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert shown.exit_code == 0
    found = shlex.split(shown.stdout)
    assert found[found.index("--served-model-name") + 1] == "mine"
    assert found[-2:] == ["--seed", "3"]
    options = TrioOptions.model_validate(json.loads(found[found.index("--hf-overrides") + 1])["eft"])
    assert options.compositions == {"mine": {"tuned": 0.5}}


# ---- the wire ------------------------------------------------------------------------------------------------------------

PAIR = {"tuned": "t", "reference": "r"}
OPTIONS = TrioOptions.model_validate(
    {"pairs": {"chat": PAIR, "json": {**PAIR, "weight": 0.5}}, "compositions": {"friendly": {"chat": 2.0}}}
)
SERVED = Served(OPTIONS, ["both", "friendly", "at@home"], [256])


@pytest.mark.parametrize(
    ("body", "header", "name", "weights"),
    [
        ({"model": "both"}, None, "both", None),
        ({"model": "at@home"}, None, "at@home", None),
        ({"model": "friendly"}, None, "friendly", [2.0, 0.0]),
        ({"model": "both@json=2"}, "0.1", "both", [0.1, 0.1]),
        ({"model": "both@json=2", "eft_reward_weights": {"chat": 0}}, "0.1", "both", [0, 0.5]),
        ({"model": "friendly", "vllm_xargs": {"eft_weights": "chat=0.1", "other": 1}}, None, "friendly", [0.1, 0.0]),
        ({"eft_reward_weights": 0}, None, None, [0.0, 0.0]),
    ],
)
def test_names_and_weights_become_extra_arguments(
    body: dict[str, Any], header: str | None, name: Any, weights: Any
) -> None:
    SERVED.translate(body, header)
    assert body.get("model") == name
    assert (body.get("vllm_xargs") or {}).get("eft_weights") == weights
    assert "eft_reward_weights" not in body


def test_text_ends_at_the_end_tokens_of_all_members_unless_it_must_not() -> None:
    body: dict[str, Any] = {"model": "both", "stop_token_ids": [7]}
    SERVED.translate(body, None)
    assert body["stop_token_ids"] == [7, 256]
    going_on: dict[str, Any] = {"model": "both", "ignore_eos": True}
    SERVED.translate(going_on, None)
    assert "stop_token_ids" not in going_on


@pytest.mark.parametrize(
    ("body", "header"),
    [
        ({"model": "friendly", "eft_reward_weights": {"json": 1}}, None),
        ({"model": "both@chat"}, None),
        ({"model": "both"}, "chat=x"),
        ({"model": "both", "eft_reward_weights": float("nan")}, None),
    ],
)
def test_weights_that_cannot_be_read_are_refused(body: dict[str, Any], header: str | None) -> None:
    with pytest.raises(ValueError, match="weight|pair"):
        SERVED.translate(body, header)


def test_share_of_a_request_or_of_its_name_becomes_an_extra_argument() -> None:
    served = Served(OPTIONS.model_copy(update={"min_plausibility": {"friendly": 0.2}}), ["both", "friendly"])
    for body, share in (
        ({"model": "both"}, None),
        ({"model": "both", "eft_min_plausibility": 0.1}, 0.1),
        ({"model": "friendly"}, 0.2),
        ({"model": "friendly", "eft_min_plausibility": 0}, 0.0),
        ({"model": "friendly", "vllm_xargs": {"eft_min_plausibility": 0.3}}, 0.3),
    ):
        asked: dict[str, Any] = dict(body)
        served.translate(asked, None)
        assert (asked.get("vllm_xargs") or {}).get("eft_min_plausibility") == share
        assert "eft_min_plausibility" not in asked


@pytest.mark.parametrize(
    "field",
    ["eft_prompt_pairs", "eft_call_weight", "eft_reasoning_weight", "eft_call_lookahead", "eft_tuned_plausibility"],
)
def test_fields_that_vllm_cannot_do_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: vLLM cannot do it"):
        SERVED.translate({"model": "both", field: 0}, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_pairs": {"p": PromptPair(negative="x")}},
        {"composition": CompositionOptions(prompt_pairs={"p": PromptPair(negative="x")})},
        {"call_weight": 0.0},
        {"reasoning_weight": 0.0},
        {"call_lookahead": 8},
        {"composition": CompositionOptions(tuned_plausibility=0.1)},
    ],
)
def test_client_says_what_vllm_cannot_do(fields: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidOptionError, match="vLLM cannot do it"):
        refuse_steering(ChatRequest(prompt="abc", **fields))
    refuse_steering(ChatRequest(prompt="abc", composition=CompositionOptions(min_plausibility=0.1)))
    with pytest.raises(errors.InvalidOptionError, match="is a schedule"):
        numbers_alone({"chat": FirstTokens(num_tokens=3)})
