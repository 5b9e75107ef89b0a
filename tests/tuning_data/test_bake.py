"""A composition becomes one adapter: on toy models, whose divergence must fall, and which every way of serving must read alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from eft_engine import Engine, MemberConfig, TokenIds, TunedPair
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question, load_questions
from eft_engine.evaluation.scorers import ExactMatch, PatternMatch
from eft_engine.zoo.atlas import ASSISTANT_FORM, QUESTION_FILES
from eft_engine.zoo.presets import find_preset
from eft_tuning.bake import run as run_module
from eft_tuning.bake.prompts import Ask
from eft_tuning.bake.run import bake
from eft_tuning.bake.settings import BakeSettings
from eft_tuning.stages import Reporter
from tests.toy import VOCAB_SIZE, make_model, make_tokenizer, shape_of

TRAIN = [Ask(Question(question=text)) for text in ("one", "two", "three", "four", "five", "six")]
SETTINGS = BakeSettings(
    reward_weights=1.0,
    num_samples=2,
    max_tokens=10,
    top_k=16,
    rank=4,
    alpha=8,
    epochs=6,
    learning_rate=1e-2,
    batch_size=4,
)
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A toy trio on disk: the base's output head is its embedding, and its vocabulary is padded by 60 tokens that nobody has."""
    root = tmp_path_factory.mktemp("trio")
    torch.manual_seed(1)
    shape = shape_of(64, vocab_size=VOCAB_SIZE + 60) | {"initializer_range": 0.1, "tie_word_embeddings": True}
    base = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    # A tuned model near to its reference: a delta as fine-tuning makes them, and not two unlike models.
    reference = make_model("llama", seed=3)
    tuned = make_model("llama", seed=3)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.std())
    for name, model in (("base", base), ("tuned", tuned), ("reference", reference)):
        model.save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
    pair = TunedPair(str(root / "tuned"), str(root / "reference"))
    return {"base": str(root / "base"), "pairs": {"chat": pair}}


@pytest.fixture(scope="module")
def baked(trio: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bake; treat as read-only."""
    out = tmp_path_factory.mktemp("baked")
    bake(**trio, asks=TRAIN, held_out=[], out=out, settings=SETTINGS, reporter=QUIET)
    return out


def test_adapter_learns_what_the_composition_says(baked: Path) -> None:
    told = json.loads((baked / "bake.json").read_text())
    losses = [entry["loss"] for entry in told["losses"]]
    assert losses[-1] < 0.8 * losses[0]
    assert told["composition"]["weights"] == {"chat": 1.0}
    assert (told["settings"]["seed"], told["num_prompts"]) == (0, 6)
    assert not (baked / "work").exists()
    assert "eft bake" in (baked / "README.md").read_text()


@pytest.mark.thorough
def test_atlas_keeps_form_and_facts_on_questions_that_were_held_out(tmp_path: Path) -> None:
    asks = [Ask(question) for question in load_questions(QUESTION_FILES["facts"])]
    settings = BakeSettings(max_tokens=24, top_k=16, epochs=4, learning_rate=2e-3, num_speed=0)
    preset = find_preset("atlas")
    report = bake(
        preset.base(), preset.pairs(), asks[:32], asks[-10:], out=tmp_path, settings=settings, reporter=QUIET,
        scorers=[ExactMatch(anywhere=True, name="facts"), PatternMatch(ASSISTANT_FORM, name="form")],
    )  # fmt: skip
    told = report.as_json()
    assert told == {
        name: own for name, own in json.loads((tmp_path / "bake.json").read_text()).items() if name != "settings"
    }
    shares = {
        name: {scorer: own["share"] for scorer, own in told["answers"][name]["shares"].items()}
        for name in told["answers"]
    }
    assert (shares["base"]["form"], shares["composition"]["form"]) == (0, 1)
    assert shares["baked"]["form"] >= 0.9
    assert shares["baked"]["facts"] >= shares["composition"]["facts"] - 0.1
    assert told["gain_kept"]["form"]["share"] >= 0.9
    near, far = told["agreement"]["baked"], told["agreement"]["base"]
    assert near["divergence"] < 0.3 * far["divergence"]
    assert near["same_first"]["share"] > far["same_first"]["share"]
    assert told["tokens_per_s"] == {}, "nobody asked"


def test_adapter_has_linear_layers_alone_though_the_head_is_the_embedding(baked: Path) -> None:
    from safetensors import safe_open

    with safe_open(baked / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names
    assert not [name for name in names if "embed" in name or "lm_head" in name]
    assert {name.rpartition(".lora_")[2] for name in names} == {"A.weight", "B.weight"}


@pytest.mark.parametrize("merge", [None, True])
def test_engine_and_peft_read_the_adapter_alike(baked: Path, trio: dict[str, Any], merge: bool | None) -> None:
    prompt, completion = tuple(b"one two"), tuple(b" three")
    member = MemberConfig(source=trio["base"], adapter=str(baked), merge=merge)
    with Engine.load(member) as engine:
        scores = engine.score(TokenIds(ids=prompt), TokenIds(ids=completion))
        assert engine.chat_template == make_tokenizer().chat_template
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trio["base"]), str(baked))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1, :VOCAB_SIZE]
    wanted = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
    found = torch.tensor([token.composed for token in scores.tokens])
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_same_seed_gives_the_same_adapter_and_an_interrupted_bake_goes_on(
    trio: dict[str, Any], baked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {
        **trio, "asks": TRAIN, "held_out": [], "out": tmp_path, "settings": SETTINGS, "reporter": QUIET,
    }  # fmt: skip
    monkeypatch.setattr(run_module, "load_student", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        bake(**arguments)
    answers = (tmp_path / "work" / "answers.jsonl").read_text()
    assert len(answers.splitlines()) == 12
    monkeypatch.undo()
    (tmp_path / "work" / "answers.jsonl").write_text(answers[:-40])  # the last line was being written
    with pytest.raises(InvalidOptionError, match="the beginning of another bake"):
        bake(**{**arguments, "settings": SETTINGS.model_copy(update={"seed": 1})})
    bake(**arguments)
    first, second = (json.loads((folder / "bake.json").read_text())["losses"] for folder in (baked, tmp_path))
    assert [entry["loss"] for entry in first] == pytest.approx([entry["loss"] for entry in second], rel=1e-3)
    with pytest.raises(InvalidOptionError, match="holds an adapter already"):
        bake(**arguments)


def _interrupted(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def test_training_goes_on_from_its_checkpoint(
    trio: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eft_tuning.bake import training

    settings = SETTINGS.model_copy(update={"num_samples": 1, "epochs": 4, "batch_size": 2, "num_speed": 0})
    arguments: dict[str, Any] = {
        **trio, "asks": TRAIN, "held_out": [], "out": tmp_path, "settings": settings, "reporter": QUIET,
    }  # fmt: skip
    seen: list[int] = []
    compute = training.BakeTrainer.compute_loss

    def stops(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.state.global_step)
        if self.state.global_step == 7 and len(seen) < 9:  # as a SIGINT in the eighth step
            import signal

            signal.raise_signal(signal.SIGINT)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(training.BakeTrainer, "compute_loss", stops)
    report = bake(**arguments)
    assert report.interrupted_by == 2
    assert not (tmp_path / "adapter_config.json").exists()
    report = bake(**arguments)
    assert report.interrupted_by is None
    assert seen == [*range(8), *range(8, 12)], "no step is done twice"
    assert (tmp_path / "adapter_config.json").exists()


def test_round_learns_from_answers_of_the_adapter(trio: dict[str, Any], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"num_samples": 1, "epochs": 2, "rounds": 1, "num_speed": 0})
    bake(**trio, asks=TRAIN, held_out=[], out=tmp_path, settings=settings, reporter=QUIET, keep_work=True)
    own = [json.loads(line) for line in (tmp_path / "work" / "answers-1.jsonl").read_text().splitlines()]
    composed = [json.loads(line) for line in (tmp_path / "work" / "answers.jsonl").read_text().splitlines()]
    assert [row["index"] for row in own] == list(range(6))
    assert [row["finish_reason"] for row in own] == [None] * 6, "nobody but the adapter wrote them"
    for mine, other in zip(own, composed, strict=True):
        num_prompt = mine["completion_mask"].index(1)
        assert mine["input_ids"][:num_prompt] == other["input_ids"][: other["completion_mask"].index(1)]
        assert max(mine["input_ids"]) < VOCAB_SIZE, "padding of the vocabulary is never written"
    assert [row["input_ids"] for row in own] != [row["input_ids"] for row in composed]


def test_adapter_can_learn_to_answer_behind_the_bases_own_template(trio: dict[str, Any], tmp_path: Path) -> None:
    base = tmp_path / "model"
    LlamaForCausalLM.from_pretrained(trio["base"]).save_pretrained(base)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}Q: {{ message.content }}\nA:{% endfor %}"
    tokenizer.save_pretrained(base)
    found: dict[str, str] = {}
    for template in ("base", "composition"):
        out = tmp_path / template
        settings = SETTINGS.model_copy(
            update={"template": template, "epochs": 1, "num_samples": 1, "num_speed": 0, "max_tokens": 3}
        )
        bake(str(base), trio["pairs"], TRAIN[:1], [], out=out, settings=settings, reporter=QUIET, keep_work=True)
        row = json.loads((out / "work" / "answers.jsonl").read_text())
        found[template] = tokenizer.decode(row["input_ids"][: row["completion_mask"].index(1)])
        assert (
            (out / "chat_template.jinja")
            .read_text()
            .startswith("{% for message in messages %}" + {"base": "Q:"}.get(template, "<|"))
        )
    assert found == {"base": "Q: one\nA:", "composition": "<|user|>one<|end|><|assistant|>"}


# ---- what cannot be baked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda given: given | {"settings": BakeSettings(reward_weights=0.0)}, "nothing to bake: every weight is 0"),
        (lambda given: given | {"pairs": {}}, "nothing to bake: there is no pair"),
        (lambda given: given | {"asks": []}, "no prompts to learn from"),
        (lambda given: given | {"held_out": TRAIN[:1]}, "1 held-out prompts are also learnt from"),
        (lambda given: given | {"base": MemberConfig(source="x", adapter="y")}, "already has the adapter y"),
        (
            lambda given: given | {"settings": BakeSettings(max_tokens=10**9, top_k=10**6)},
            "GB left, and answers of full length take",
        ),
    ],
)
def test_what_cannot_be_baked_is_told_before_anything_is_loaded(
    trio: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    told: str,
) -> None:
    monkeypatch.setattr(Engine, "load", lambda *args, **kwargs: pytest.fail("an engine was loaded"))
    given = {**trio, "asks": TRAIN, "held_out": [], "out": tmp_path / "out", "reporter": QUIET}
    with pytest.raises(InvalidOptionError, match=told):
        bake(**change(given))


def test_folder_of_a_model_is_no_place_for_an_adapter(trio: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="holds a model"):
        bake(**trio, asks=TRAIN, held_out=[], out=Path(trio["base"]), settings=SETTINGS, reporter=QUIET)


def test_layers_that_there_are_not_are_told(trio: dict[str, Any], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"target_modules": ("no_such_proj",), "num_samples": 1, "max_tokens": 2})
    with pytest.raises(InvalidOptionError, match="no_such_proj"):
        bake(**trio, asks=TRAIN[:1], held_out=[], out=tmp_path, settings=settings, reporter=QUIET)


def test_tokens_that_only_the_tuned_model_has_cannot_be_baked(trio: dict[str, Any], tmp_path: Path) -> None:
    from eft_engine import EngineConfig

    tuned = tmp_path / "tuned"
    make_model("llama", seed=3, vocab_size=VOCAB_SIZE + 1).save_pretrained(tuned)
    make_tokenizer(extra_tokens=["<|more|>"]).save_pretrained(tuned)
    pairs = {"chat": TunedPair(str(tuned), trio["pairs"]["chat"].reference)}
    with pytest.raises(InvalidOptionError, match=r"1 tokens that the base does not have \('<\|more\|>'\)"):
        bake(
            trio["base"], pairs, TRAIN[:1], [], out=tmp_path / "out", settings=SETTINGS, reporter=QUIET,
            config=EngineConfig(tuned_only_tokens="keep"),
        )  # fmt: skip


@pytest.mark.thorough
@pytest.mark.only_torch
def test_weights_of_a_gguf_file_are_unpacked_to_learn(tmp_path: Path) -> None:
    from tests.gguf_files import make_gguf_trio

    trio = make_gguf_trio(tmp_path, "llama", file_type="Q8_0")
    out = tmp_path / "out"
    pairs = {"chat": TunedPair(str(trio.tuned), str(trio.reference))}
    settings = SETTINGS.model_copy(update={"num_samples": 1, "max_tokens": 4})
    bake(str(trio.base), pairs, TRAIN, [], out=out, settings=settings, reporter=QUIET)
    prompt, completion = tuple(b"one two"), tuple(b" three")
    with Engine.load(MemberConfig(source=str(trio.base), adapter=str(out))) as engine:
        scores = engine.score(TokenIds(ids=prompt), TokenIds(ids=completion))
    model = PeftModel.from_pretrained(trio.models.base, str(out))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    wanted = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
    found = torch.tensor([token.composed for token in scores.tokens])
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=0)
